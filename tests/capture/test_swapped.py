"""Layers that are swapped, added or moved while the model is watched."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
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
    assert got == {"0": 18, "1": 18, "2": 18, "3": 36, "0~2": 18, "1~2": 18, "2~2": 18, "4": 18}


KINDS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "activation": lambda old: nn.ReLU(),
    "narrower": lambda old: nn.Sequential(nn.Linear(16, 4), nn.Linear(4, 16)),
    "wrapped": lambda old: Adapted(old),
    "children of the same form": lambda old: nn.Sequential(nn.ReLU(), nn.ReLU(), nn.ReLU()),
}


class Adapted(nn.Module):
    """A layer with a low-rank one beside it."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base, self.down, self.up = base, nn.Linear(16, 2), nn.Linear(2, 16)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + self.up(self.down(x))
        return out


def swapped_twice(kind: str, sites: Any = "*") -> ss.Trace:
    """Layer 2 becomes an activation after two steps, and something else after two more."""
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 16), nn.Linear(16, 3))
    with ss.watch(model, every=1, window=1, sites=sites) as probe:
        trained(model, probe)
        old, model[2] = model[2], nn.ReLU()
        trained(model, probe)
        model[2] = KINDS[kind](old)
        trained(model, probe)
    return probe.trace


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_of_another_kind_has_a_name_that_no_child_can_have(kind: str) -> None:
    trace = swapped_twice(kind)
    names = [list(window.snapshot.sites["site"]) for window in trace]
    last = {
        "activation": ["2~2"],
        "narrower": ["2.0", "2.1"],
        "wrapped": ["2.base", "2.down", "2.up"],
        "children of the same form": ["2.0", "2.1", "2.2"],
    }
    assert names[0] == names[1] == ["0", "1", "2", "3"]
    assert names[2] == names[3] == ["0", "1", "2~2", "3"]
    assert names[4] == names[5] == ["0", "1", *last[kind], "3"]
    own = trace.sites[trace.sites["site"] == "2~2"]
    assert own["kind"].unique().tolist() == ["activation"]
    assert own["step"].tolist() == ([2, 3, 4, 5] if kind == "activation" else [2, 3])
    assert counts(trace.merge())["2"] == 18
    assert not any(window.snapshot.gaps for window in trace)


@pytest.mark.parametrize("sites", ["2", ["2"], "[2]", "2*"])
def test_a_pattern_that_keeps_a_place_keeps_its_further_forms(sites: Any) -> None:
    windows = [set(window.snapshot.records) for window in swapped_twice("activation", sites)]
    assert windows == [{"2"}] * 2 + [{"2~2"}] * 4


def test_one_form_may_be_kept_alone() -> None:
    model = mlp()
    with pytest.warns(UserWarning, match="no site matches"):
        probe = ss.watch(model, every=1, sites="2~2")
    with probe:
        trained(model, probe)
        model[2], model[3] = nn.Linear(16, 4), nn.Identity()
        trained(model, probe)
    assert counts(probe.snapshot()) == {"2~2": 18}


def test_a_trace_tells_where_no_site_has_the_name_that_was_asked_for_any_more() -> None:
    trace = swapped_twice("wrapped", "2")
    assert trace.steps == (0, 1, 2, 3)
    reason, remedy = trace.missed["train"]
    assert reason == "no site matches ['2']"
    assert "did you mean '2.*'? sites are named like: 0, 1, 3, 2.base" in remedy


def test_the_empty_calls_of_another_form_are_its_own() -> None:
    model = mlp()
    with ss.watch(model, every=1) as probe:
        trained(model, probe)
        model[2], model[3] = nn.ReLU(), nn.Identity()
        trained(model, probe, 1)
        model(torch.randn(0, 12)).sum().backward()
        probe.step()
    notes = {name: record.notes for name, record in probe.snapshot().records.items()}
    assert notes["2~2"] == notes["0"] == ("1 further call had no rows",)
    assert notes["2"] == notes["3"] == ()


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
