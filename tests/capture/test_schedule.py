"""The schedule keeps its budget, on a clock that the test turns."""

from __future__ import annotations

import numpy as np
import pytest

from shiftscope import UsageError
from shiftscope.capture.schedule import Schedule


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def simulate(
    schedule: Schedule, clock: Clock, steps: int, cost: float, noise: float = 0.0
) -> list[int]:
    rng = np.random.default_rng(0)
    recorded, chosen = schedule.first(), []
    for step in range(steps):
        if recorded:
            chosen.append(step)
        clock.now += 1.0 + (cost if recorded else 0.0) + noise * rng.random()
        schedule.enter()
        clock.now += 1e-5
        recorded = schedule.leave(recorded)
    return chosen


@pytest.mark.parametrize("cost", [0.05, 0.5, 4.0])
@pytest.mark.parametrize("budget", [0.01, 0.1])
def test_the_budget_is_kept_and_used(cost: float, budget: float) -> None:
    clock = Clock()
    schedule = Schedule(budget=budget, clock=clock)
    chosen = simulate(schedule, clock, 5000, cost)
    share = cost * len(chosen) / 5000
    assert share <= budget * 1.02
    assert share >= 0.5 * min(budget, cost)
    told = schedule.summary()["overhead_share"]
    assert told == pytest.approx(share, rel=0.05, abs=2e-4)


def test_noise_of_the_steps_is_no_overhead() -> None:
    clock = Clock()
    schedule = Schedule(budget=0.01, clock=clock)
    chosen = simulate(schedule, clock, 5000, 1.0, noise=0.5)
    assert 0.5 <= len(chosen) / 50 <= 1.3


def test_the_first_step_is_recorded_on_credit() -> None:
    clock = Clock()
    assert simulate(Schedule(budget=0.01, clock=clock), clock, 50, 3.0) == [0]


def test_what_the_first_step_took_is_paid_back_before_the_next() -> None:
    clock = Clock()
    schedule = Schedule(budget=0.01, clock=clock)
    schedule.took(5.0)
    chosen = simulate(schedule, clock, 2000, 5.0)
    assert chosen[0] == 0
    assert 900 <= chosen[1] <= 1100  # two of them are one in a hundred of this
    told = schedule.summary()["overhead_share"]
    assert told == pytest.approx(5.0 * len(chosen) / 2000, rel=0.05)


def test_every_nth_step_counts_from_the_first_and_goes_on_after_a_restart() -> None:
    clock = Clock()
    assert simulate(Schedule(every=4, clock=clock), clock, 10, 0.1) == [0, 4, 8]
    assert simulate(Schedule(every=4, start=6, clock=clock), clock, 10, 0.1) == [2, 6]


def test_a_pause_is_no_training_time() -> None:
    clock = Clock()
    schedule = Schedule(budget=0.5, clock=clock)
    simulate(schedule, clock, 10, 0.1)
    elapsed = schedule.elapsed
    schedule.pause()
    clock.now += 1e6
    schedule.enter()
    schedule.leave(False)
    assert schedule.elapsed == elapsed


@pytest.mark.parametrize(
    "options", [{"every": 0}, {"every": 1.5}, {"every": True}, {"budget": 2.0}]
)
def test_schedules_without_meaning_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Schedule(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("lasted", [0.0, 500.0])
def test_a_validation_is_no_cost_of_recording(lasted: float) -> None:
    clock = Clock()
    schedule = Schedule(budget=0.05, clock=clock)
    recorded, steps = schedule.first(), []
    for step in range(1000):
        if recorded:
            steps.append(step)
            clock.now += lasted  # a validation within each step that is recorded
            schedule.pause()
        clock.now += 1.0 + (0.5 if recorded else 0.0)
        schedule.took(0.1)
        schedule.enter()
        clock.now += 0.2 if recorded else 0.0
        recorded = schedule.leave(recorded)
    share = 0.3 * len(steps) / 1000  # what can be told apart from the validation
    assert 0.03 <= share <= 0.05
    assert schedule.summary()["overhead_share"] == pytest.approx(share, rel=0.05)
