"""Steps under a loss scale: true gradients, and steps that overflow set apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import shiftscope as ss

SIZE, STEPS = 8, 6


def trained(overflowing: set[int], scaled: bool = True, every: int = 1, **options: Any) -> Any:
    """A probe after some steps, a few of which overflow (or are left out, without a scale)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**9, enabled=scaled)
    if options.pop("give", False):
        options["scaler"] = scaler
    probe = ss.watch(model, optimizer, every=every, **options)
    generator = torch.Generator().manual_seed(1)
    for step in range(STEPS):
        loss = model(torch.randn(SIZE, 4, generator=generator)).square().mean()
        if step in overflowing:
            if not scaled:
                probe._phases.discard()
                continue
            loss = loss * float("inf")
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    return probe


@pytest.mark.parametrize(
    "overflowing", [set(), {0}, {2}, {STEPS - 1}, {0, 1, 2}, {0, 3, 4, STEPS - 1}], ids=str
)
@pytest.mark.parametrize("give", [False, True])
def test_overflowing_steps_are_left_out(overflowing: set[int], give: bool) -> None:
    probe = trained(overflowing, give=give)
    got, want = probe.snapshot().neurons, trained(overflowing, scaled=False).snapshot().neurons
    if give:
        assert probe.overflows == len(overflowing)
    elif overflowing & {0}:  # the scaler is not known before it has made a step
        assert set(got["count"]) == {SIZE * (STEPS - len(overflowing) - 1)}
        assert np.isfinite(got.grad_z_var).all()
        return
    for name in ("count", "z_mean", "z_var", "grad_z_count", "grad_z_mean", "grad_z_var"):
        np.testing.assert_allclose(got[name], want[name], rtol=1e-4, atol=1e-12)


def test_a_run_of_nothing_but_overflows_has_no_numbers() -> None:
    probe = trained(set(range(STEPS)), give=True)
    with pytest.raises(ss.MeasureError, match="no step"):
        probe.snapshot()
    assert probe.overflows == STEPS
    probe.detach()


def test_an_overflow_at_the_end_is_left_out_of_the_trace_as_well() -> None:
    probe = trained({STEPS - 1}, give=True)
    probe.detach()
    assert set(probe.trace.last.neurons["count"]) == {SIZE * (STEPS - 1)}
    assert probe.overflows == 1
    with torch.no_grad():  # detached twice, and used after: nothing more
        probe.detach()


def test_the_scaler_is_found_through_wrappers() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)  # wraps optimizer.step
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)

    def train(factor: Any) -> Any:
        with ss.watch(model, optimizer, every=1) as probe:
            optimizer.zero_grad()
            loss = model(torch.ones(6, 4)).square().mean()
            if factor is None:
                loss.backward()
                optimizer.step()
            else:
                factor.scale(loss).backward()
                factor.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
                factor.step(optimizer)
                factor.update()
            scheduler.step()
        return probe.trace.last.neurons.grad_z_mean.to_numpy()

    state = {name: value.clone() for name, value in model.state_dict().items()}
    want = train(None)
    model.load_state_dict(state)
    np.testing.assert_allclose(train(scaler), want, rtol=1e-6)


def test_a_disabled_scaler_is_none() -> None:
    probe = trained(set(), scaled=False, give=True)
    assert probe.snapshot().manifest["steps"] == STEPS
    assert probe.overflows == 0
