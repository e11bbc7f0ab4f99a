"""A step of the optimizer that raises, and is made again: one window, of the try that succeeded."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import shiftscope as ss

COLUMNS = ("count", "z_mean", "z_var", "grad_z_mean", "grad_z_var", "weight_norm", "theta_mean")
STEPS = 6


class Fails(torch.optim.SGD):
    """Raises before it writes to any weight, where it is told to."""

    error: BaseException | None = None

    def step(self, closure: Any = None) -> Any:
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return super().step(closure)


class Net(nn.Module):
    def __init__(self, late: bool = False) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.late, self.passes = late, 0

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        self.passes += 1
        return self.last(h) if not self.late or self.passes > 2 else h  # type: ignore[no-any-return]


Retry = Callable[[Callable[[], None], Fails], None]


def all_over(step: Callable[[], None], optimizer: Fails) -> None:
    step()


def in_the_handler(step: Callable[[], None], optimizer: Fails) -> None:
    try:
        raise ValueError
    except ValueError:
        step()


def update_only(step: Callable[[], None], optimizer: Fails) -> None:
    optimizer.step()


def run(
    options: dict[str, Any],
    failing: dict[int, BaseException],
    retry: Retry = all_over,
    closure: bool = False,
    evaluate: bool = False,
) -> ss.Trace:
    torch.manual_seed(0)
    model = Net()
    optimizer = Fails(model.parameters(), lr=0.1)
    draw = torch.Generator().manual_seed(1)
    with ss.watch(model, optimizer, **options) as probe:
        for number in range(STEPS):
            x = torch.randn(16, 6, generator=draw) + number
            if evaluate:
                with torch.no_grad():
                    model.eval()(x[:4])
                model.train()

            def loss(x: Tensor = x) -> Tensor:
                optimizer.zero_grad()
                loss = model(x).square().mean()
                loss.backward()
                return loss

            def step() -> None:
                if closure:
                    optimizer.step(loss)
                else:
                    loss()
                    optimizer.step()

            if number in failing:
                optimizer.error = failing[number]
                if not closure:
                    loss(x + 5)
                with pytest.raises(type(failing[number])):
                    optimizer.step(loss if closure else None)
                assert len(probe.trace.phase("train")) <= number
                retry(step, optimizer)
            else:
                step()
    return probe.trace


def agree(got: ss.Trace, want: ss.Trace) -> None:
    assert [(w.first, w.last, w.phase) for w in got] == [(w.first, w.last, w.phase) for w in want]
    for one, other in zip(got, want, strict=True):
        for name in ("steps", "batches"):
            assert one.snapshot.manifest[name] == other.snapshot.manifest[name]
        for column in COLUMNS:
            a, b = (w.snapshot.neurons[column].to_numpy(dtype=float) for w in (one, other))
            np.testing.assert_allclose(a, b, rtol=1e-12)  # merged in another order


OPTIONS: list[dict[str, Any]] = [
    {"every": 1, "window": 1},
    {"every": 1, "window": 3},
    {"every": 3, "window": 2},
    {"every": 1},
]


@pytest.mark.parametrize("evaluate", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("retry", [all_over, in_the_handler])
@pytest.mark.parametrize("failing", [(0,), (3,), (5,), (0, 1, 2, 3, 4, 5)])
def test_a_step_that_was_made_again_has_the_numbers_of_the_second_try(
    options: dict[str, Any], retry: Retry, failing: tuple[int, ...], evaluate: bool
) -> None:
    errors = {number: RuntimeError("out of memory") for number in failing}
    agree(run(options, errors, retry, evaluate=evaluate), run(options, {}, evaluate=evaluate))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_an_interrupt_within_a_step_is_no_window_either(options: dict[str, Any]) -> None:
    agree(run(options, {0: KeyboardInterrupt(), 4: KeyboardInterrupt()}), run(options, {}))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_closure_that_runs_again_for_a_retry_is_recorded_anew(options: dict[str, Any]) -> None:
    errors = {number: RuntimeError() for number in (0, 3)}
    agree(run(options, errors, closure=True), run(options, {}, closure=True))


@pytest.mark.parametrize("options", OPTIONS[:2], ids=str)
def test_where_the_update_alone_is_made_again_its_passes_stay(options: dict[str, Any]) -> None:
    trace = run(options, {0: RuntimeError(), 4: RuntimeError()}, update_only)
    assert [record.calls for window in trace for record in window.snapshot.records.values()] == [
        options["window"]
    ] * (3 * len(trace))
    assert trace.steps == run(options, {}).steps


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_step_that_raised_last_is_in_the_trace(options: dict[str, Any]) -> None:
    model = Net()
    optimizer = Fails(model.parameters(), lr=0.1)
    optimizer.error = RuntimeError("the end")

    def ends() -> None:
        with ss.watch(model, optimizer, **options) as probe:
            probes.append(probe)
            model(torch.randn(4, 6)).sum().backward()
            optimizer.step()

    probes: list[ss.Probe] = []
    with pytest.raises(RuntimeError, match="the end"):
        ends()
    (window,) = probes[0].trace
    assert (window.first, window.snapshot.records["first"].samples) == (0, 4)


def test_a_site_that_began_in_the_step_that_failed_amid_a_window_is_told() -> None:
    """Its weights were read, for which the step was merged: that is not undone."""
    torch.manual_seed(0)
    model = Net(late=True)
    optimizer = Fails(model.parameters(), lr=0.1)
    with ss.watch(model, optimizer, every=1, window=4) as probe:
        for number in range(4):
            for _ in range(2 if number == 2 else 1):
                model(torch.randn(4, 6)).sum().backward()
                if number == 2 and model.passes == 3:
                    optimizer.error = RuntimeError()
                    with pytest.raises(RuntimeError):
                        optimizer.step()
                else:
                    optimizer.step()
    (window,) = probe.trace
    assert window.snapshot.manifest["steps"] == 4
    record = window.snapshot.records["first"]
    assert record.calls == 5
    assert record.notes == ("step 2 raised and was made again: both tries are counted",)


def mixed(seed: int, fails: bool) -> ss.Trace:
    """A loop of all kinds of steps, where all kinds of things fail or nothing does."""
    draw, data = random.Random(seed), torch.Generator().manual_seed(seed)
    torch.manual_seed(0)
    model = Net()
    optimizer = Fails(model.parameters(), lr=0.05)
    options = {"every": draw.choice((1, 1, 2)), "window": draw.choice((1, 2, 3))}

    def raises(*_: Any) -> None:
        raise ValueError

    def batch(x: Tensor) -> Tensor:
        loss = model(x).square().mean()
        loss.backward()
        return loss

    def fails_in_a_pass(x: Tensor) -> None:
        hook = model.first.register_forward_hook(raises)
        with pytest.raises(ValueError):  # noqa: PT011
            model(x)
        hook.remove()

    with ss.watch(model, optimizer, **options) as probe:
        for _ in range(8):
            parts = [torch.randn(5, 6, generator=data) for _ in range(draw.choice((1, 2)))]
            by_closure, plan = draw.random() < 0.4, draw.choices((0, 1), (2, 1), k=4)
            evaluated = draw.random() < 0.3
            if evaluated:
                with torch.no_grad():
                    model.eval()(parts[0])
                model.train()
            for again in (True, False) if plan[0] and fails else (False,):
                optimizer.zero_grad()
                before = parts[:-1] if by_closure else parts
                for part in before:
                    if plan[1] and fails:
                        fails_in_a_pass(part + 3)
                    batch(part)
                if plan[2] and fails:
                    fails_in_a_pass(parts[0])
                optimizer.error = RuntimeError() if again else None
                with contextlib.suppress(RuntimeError):
                    optimizer.step((lambda x=parts[-1]: batch(x)) if by_closure else None)
    return probe.trace


@pytest.mark.parametrize("seed", range(16))
def test_any_mixture_of_failures_leaves_the_numbers_of_a_run_without(seed: int) -> None:
    agree(mixed(seed, True), mixed(seed, False))


class Twice(torch.optim.SGD):
    """Its step calls that of its base class."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


def test_a_step_within_a_step_is_one() -> None:
    torch.optim.SGD([torch.zeros(1, requires_grad=True)])  # from now on it calls hooks as well
    model = Net()
    optimizer = Twice(model.parameters(), lr=0.1)
    with ss.watch(model, optimizer, every=2, window=1) as probe:
        for _ in range(4):
            model(torch.randn(4, 6)).sum().backward()
            optimizer.step()
    assert probe.trace.steps == (0, 2)
    assert probe.overhead["steps_seen"] == 4
