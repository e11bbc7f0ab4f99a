"""Layers that are swapped, added or moved while the model is watched."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import shiftscope as ss


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 8), nn.ReLU())


def trained(model: nn.Module, probe: Any, steps: int = 2) -> None:
    for _ in range(steps):
        model(torch.randn(9, 12)).square().mean().backward()
        probe.step()


def counts(snapshot: ss.Snapshot) -> dict[str, int]:
    return {name: int(n) for name, n in snapshot.sites[["site", "count"]].to_numpy()}


@pytest.mark.parametrize("every", [1, 2])
def test_a_swapped_layer_takes_the_place_of_the_old_one(every: int) -> None:
    model = mlp()
    with ss.watch(model, every=every) as probe:
        trained(model, probe)
        gone = weakref.ref(model[2])
        first = model[2].weight.detach().norm(dim=1).double()
        model[2] = nn.Linear(16, 8)
        trained(model, probe)
    gc.collect()
    assert gone() is None
    snapshot = probe.snapshot()
    rows = 9 * 4 // every
    assert counts(snapshot) == dict.fromkeys(("0", "1", "2", "3"), rows)
    assert snapshot.gaps == ()
    assert {r.info.module for r in snapshot.records.values()} == {"0", "1", "2", "3"}
    norms = snapshot.neurons.query("site == '2'")["weight_norm"].to_numpy()
    torch.testing.assert_close(torch.tensor(norms), first)  # of the first step of the window
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_a_layer_of_another_form_is_a_place_of_its_own() -> None:
    model = mlp()
    with ss.watch(model, every=1) as probe:
        trained(model, probe)
        model[0], model[2] = nn.Linear(12, 20), nn.Linear(20, 8)
        model.append(nn.Linear(8, 3))
        trained(model, probe)
    got = counts(probe.snapshot())
    assert got == {"0": 18, "1": 18, "2": 18, "3": 36, "0.2": 18, "1.2": 18, "2.2": 18, "4": 18}


def test_hooks_follow_the_modules_and_leave_the_old_ones() -> None:
    model, old = mlp(), mlp()
    with ss.watch(model, every=1) as probe:
        trained(model, probe)
        old[2], model[2] = model[2], nn.Linear(16, 8)
        trained(model, probe)
        assert not any(m._forward_pre_hooks or m._forward_hooks for m in old.modules())
        old(torch.randn(3, 12))
    assert counts(probe.snapshot())["2"] == 36


def test_a_layer_swapped_as_a_window_ends_is_hooked() -> None:
    model = mlp()
    with ss.watch(model, every=1, window=1) as probe:
        model(torch.randn(9, 12)).square().mean().backward()
        model[2] = nn.Linear(16, 8)
        probe.step()
        trained(model, probe, 3)
    assert counts(probe.snapshot())["2"] == 36


def test_a_parameter_that_another_module_uses_is_named_after_its_new_owner() -> None:
    class Borrowing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(12, 5)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.inner.weight)

    model = Borrowing()
    with ss.watch(model, every=1) as probe:
        trained(model, probe)
        model.inner.weight = nn.Parameter(torch.randn(5, 12))
        trained(model, probe)
    assert counts(probe.snapshot()) == {"inner": 36}
