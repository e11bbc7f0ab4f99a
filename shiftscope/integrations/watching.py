"""What the callbacks of trainers share: a probe from the begin of a run to its end."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from torch import nn

from shiftscope.capture.watch import Probe, watch
from shiftscope.errors import UsageError
from shiftscope.integrations.sink import Outlet, Sink
from shiftscope.reporting import report
from shiftscope.trace import Trace

__all__ = ["Watching"]


class Watching:
    """A run that a trainer makes, watched.

    Args:
        every: Record every N-th step; None to keep within the budget.
        budget: Share of the training time that recording may take.
        sinks: Where windows go as they end; written by the first process.
        out: Folder of the report that is written when the run ends; None for no report.
        watch_options: Further arguments of :func:`shiftscope.watch`: ``sites``, ``rows``, ...

    Attributes:
        probe: The probe of the run; None before it begins.
    """

    def __init__(
        self,
        every: int | None = None,
        budget: float = 0.01,
        *,
        sinks: Iterable[Sink] = (),
        out: str | os.PathLike[str] | None = None,
        **watch_options: Any,
    ) -> None:
        super().__init__()
        self.options: dict[str, Any] = {"every": every, "budget": budget, **watch_options}
        self.out = out
        self.probe: Probe | None = None
        self._outlet = Outlet(*sinks)

    @property
    def trace(self) -> Trace:
        """The finished windows.

        Raises:
            UsageError: The run has not begun.
        """
        if self.probe is None:
            raise UsageError("nothing was watched yet", "train first: the trainer begins the run")
        return self.probe.trace

    def _begin(self, model: nn.Module, optimizer: Any, scaler: Any) -> None:
        self.probe = watch(model, optimizer, scaler=scaler, **self.options)

    def _hand_on(self, main: bool) -> None:
        """Give the sinks what is finished; in the first process only."""
        if self.probe is not None and main:
            self._outlet.drain(self.probe.trace)

    def _end(self, main: bool, *, completed: bool = True) -> None:
        """Stop watching; the report of a run that was completed is written."""
        if self.probe is None:
            return
        self.probe.detach()
        if main:
            self._outlet.close(self.probe.trace)
            if completed and self.out is not None:
                report(self.probe.trace, self.out)
