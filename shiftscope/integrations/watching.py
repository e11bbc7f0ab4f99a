"""What the callbacks of trainers share: a probe from the begin of a run to its end."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from torch import nn

from shiftscope.capture.schedule import Schedule
from shiftscope.capture.watch import Probe, watch
from shiftscope.errors import UsageError
from shiftscope.files import place_named
from shiftscope.integrations.places import check_folder
from shiftscope.integrations.run import Run
from shiftscope.integrations.sink import Outlet, Sink, checked
from shiftscope.trace import Trace

__all__ = ["Watching"]


class Watching:
    """A run that a trainer makes, watched.

    Each fit is a run of its own, with its own probe and trace, and its steps have the trainer's
    numbers; ``resume`` and ``start`` belong to the first. Sinks take the windows of one run after
    another: a file of JSON lines goes on, a table is written anew with the rows of all runs.

    Watching never ends training. A folder ``out`` that cannot be written is refused when training
    begins; a sink or a report that fails later is a RuntimeWarning.

    Args:
        every: Record every N-th step; None to keep within the budget.
        budget: Share of the training time that recording may take.
        sinks: Where windows go as they end; written by the first process.
        out: Folder of the report that is written when the run ends, also by an exception; None for
            no report.
        validation: Whether the first batch of each validation is recorded, as phase ``"eval"``; of
            one that falls on a recorded step it is in either case, with ``every`` all batches are.
        watch_options: Further arguments of :func:`shiftscope.watch`: ``sites``, ``rows``, ...

    Attributes:
        probe: The probe of the latest run; None before the first begins.

    Raises:
        UsageError: One of the sinks is none, or an argument has no meaning.
    """

    def __init__(
        self,
        every: int | None = None,
        budget: float = 0.01,
        *,
        sinks: Iterable[Sink] = (),
        out: str | os.PathLike[str] | None = None,
        validation: bool = True,
        **watch_options: Any,
    ) -> None:
        super().__init__()
        Schedule(every, budget)  # refuses what is no schedule before a trainer is built on it
        if out is not None:
            place_named(out)
        self.options: dict[str, Any] = {"every": every, "budget": budget, **watch_options}
        self.sinks = checked(sinks)
        self.out = out
        self.validation = validation
        self.probe: Probe | None = None
        self._run: Run | None = None

    @property
    def trace(self) -> Trace:
        """The finished windows of the latest run.

        Raises:
            UsageError: No run has begun.
        """
        if self.probe is None:
            raise UsageError("nothing was watched yet", "train first: the trainer begins the run")
        return self.probe.trace

    def close(self) -> None:
        """End a run that an exception ended: no hook stays, sinks are closed, the report written.

        Done by the next fit as well, and when Python exits.
        """
        if self._run is not None:
            self._run.end()

    def _begin(
        self, model: nn.Module, optimizer: Any, scaler: Any, *, step: int = 0, main: bool = True
    ) -> None:
        """Begin a run at a step of the trainer; ``main`` in the process that writes."""
        self.close()
        self._run = None
        if main and self.out is not None:
            check_folder(self.out, "give out=... a folder you may write to, with space left")
        options = dict(self.options)
        if self.probe is not None:
            options.pop("resume", None)
            options.pop("start", None)
        if step and options.get("resume") is None:
            options.setdefault("start", step)
        self.probe = watch(model, optimizer, scaler=scaler, **options)
        self._run = Run(self.probe, Outlet(*self.sinks), self.out, main)

    def _hand_on(self) -> None:
        """Give the sinks what is finished; in the first process only."""
        if self._run is not None:
            self._run.hand_on()

    def _validation_begins(self) -> None:
        if self.validation and self._run is not None:
            self._run.validation_begins()

    def _validation_ends(self) -> None:
        if self._run is not None:
            self._run.validation_ends()
