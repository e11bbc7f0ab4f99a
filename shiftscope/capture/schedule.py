"""Which steps are recorded: every N-th, or as many as a share of the training time allows."""

from __future__ import annotations

import time
from collections import deque
from statistics import median
from typing import Any

from shiftscope.errors import UsageError
from shiftscope.given import positive, whole

__all__ = ["Schedule"]

_WARM_UP = 2
"""Steps at the start whose duration says nothing: allocation, compilation, first reads of data."""
_KNOWN = 32
"""Durations that are remembered; their medians are what a step costs."""


class Schedule:
    """Decides after each step whether the next one is recorded, and keeps the accounts.

    Under a budget the time that recording takes is measured on this very run, as the difference of
    recorded and bare steps and the time spent between steps. The very first step is recorded on
    credit (it shows the network as it was initialised); from then on a step is recorded only while
    ``spent + expected <= budget * elapsed``.

    Args:
        every: Record every N-th step, beginning with the first; None for the budget.
        budget: Time that recording may take, as a share of the time training takes without.
        start: Number of steps done before (a resumed run).
        clock: Time in seconds.

    Raises:
        UsageError: ``every`` is no positive number, or ``budget`` none between 0 and 1.
    """

    def __init__(
        self,
        every: int | None = None,
        budget: float = 0.01,
        start: int = 0,
        clock: Any = time.perf_counter,
    ) -> None:
        if isinstance(every, float) and every.is_integer():
            every = int(every)
        if every is not None:
            every = whole("every", every, 1, "e.g. every=50")
        budget = positive("budget", budget, "e.g. budget=0.01")
        if budget > 1.0:
            raise UsageError(f"budget must lie in (0, 1], got {budget!r}", "e.g. budget=0.01")
        self.every, self.budget, self.clock = every, budget, clock
        self.steps = start
        self.recorded = 0
        self.spent = 0.0
        self.elapsed = 0.0
        self.start = start
        self._bare: deque[float] = deque(maxlen=_KNOWN)
        self._extra: deque[float] = deque(maxlen=_KNOWN)
        self._left: float | None = None
        self._entered = self._own = 0.0
        self._owed: float | None = None

    def first(self) -> bool:
        """Whether the very first step is recorded."""
        return self.every is None or self.steps % self.every == 0

    def took(self, seconds: float) -> None:
        """Time that putting a recorded step away took, before it ended."""
        self._own = seconds

    def enter(self) -> None:
        """A step has ended, and the work between steps begins."""
        self._entered = self.clock()

    def leave(self, recorded: bool, kept: bool = True) -> bool:
        """The work between steps has ended.

        Args:
            recorded: Whether the step that ended was recorded.
            kept: Whether anything of it was kept.

        Returns:
            Whether the next one is to be recorded.
        """
        self.steps += 1
        self.recorded += recorded and kept
        now = self.clock()
        if recorded and not self._bare:
            self._borrow(self._own + now - self._entered)
        elif self._left is not None:
            self._account(self._entered - self._left, now - self._entered, recorded)
        elif recorded:
            self._estimate(self._own + now - self._entered)
        self._left, self._own = now, 0.0
        return self._next()

    def pause(self) -> None:
        """The time up to the next step is no training time (a validation pass, a checkpoint)."""
        self._left = None

    def summary(self) -> dict[str, Any]:
        """What the manifest says of it."""
        told: dict[str, Any] = {"every": self.every} if self.every else {"budget": self.budget}
        told |= {"steps_seen": self.steps - self.start, "steps_recorded": self.recorded}
        if self._bare and self.elapsed > 0:
            told["overhead_share"] = self.spent / max(self.elapsed - self.spent, 1e-12)
            told["step_seconds"] = median(self._bare)
        return told

    def _borrow(self, known: float) -> None:
        """A step is recorded before anybody can know what it costs; some of it is known at once."""
        self._owed = known if self._owed is None else self._owed + known
        self.spent += known
        self.elapsed += known

    def _estimate(self, known: float) -> None:
        """What recording took cannot be told from a step that held a validation pass as well."""
        extra = max(known, median(self._extra)) if self._extra else known
        self.spent += extra
        self.elapsed += extra + median(self._bare)

    def _account(self, step: float, between: float, recorded: bool) -> None:
        if self.steps - self.start <= _WARM_UP:
            return
        self.elapsed += step + between
        extra = between
        if recorded:
            extra += max(0.0, step - median(self._bare))
            self._extra.append(extra)
            self._settle(extra)
        else:
            self._bare.append(step)
        self.spent += extra

    def _settle(self, extra: float) -> None:
        """The first steps will have cost as much as the first one that could be measured."""
        if self._owed is not None:
            rest = max(0.0, extra - self._owed)
            self.spent += rest
            self.elapsed += rest
            self._owed = None

    def _next(self) -> bool:
        if self.every is not None:
            return self.steps % self.every == 0
        if self.steps - self.start <= _WARM_UP or not self._bare:
            return False
        if not self.recorded:
            return True
        expected = median(self._extra or [max(self._owed or 0.0, median(self._bare))])
        return self.spent + expected <= self.budget * (self.elapsed - self.spent)
