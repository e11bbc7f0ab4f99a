"""One run of a trainer: a probe, an outlet and a folder for the report, ended once."""

from __future__ import annotations

import atexit
import os
import warnings
import weakref
from contextlib import ExitStack, suppress
from typing import Any

from shiftscope.capture.watch import Probe
from shiftscope.integrations.sink import Outlet, reason_of
from shiftscope.reporting import report

__all__ = ["Run"]

_GOING: weakref.WeakSet[Run] = weakref.WeakSet()
"""Runs that have not ended; where a script ends by an exception, that ends them."""


class Run:
    """What a callback holds from the begin of a run to its end.

    A trainer that ends by an exception may tell nobody. So a run that is dropped removes its hooks
    and closes its sinks, and one that is still going when Python exits is ended as it should be.

    Args:
        probe: The probe.
        outlet: Where windows go.
        out: Folder of the report; None for none.
        main: Whether this process writes.
    """

    def __init__(self, probe: Probe, outlet: Outlet, out: Any, main: bool) -> None:
        self.probe, self.outlet, self.out, self.main = probe, outlet, out, main
        self.ended = False
        self._process = os.getpid()
        self._validation = ExitStack()
        _GOING.add(self)

    def hand_on(self) -> None:
        """Give the sinks what is finished."""
        if self.main and not self.ended:
            self.outlet.drain(self.probe.trace)

    def validation_begins(self) -> None:
        """Record the batch that follows."""
        self.validation_ends()
        if not self.ended:
            self._validation.enter_context(self.probe.record())

    def validation_ends(self) -> None:
        """Record no more of the validation; idempotent."""
        self._validation.close()

    def end(self, *, told: bool = True) -> None:
        """Detach, close the sinks and write the report; idempotent.

        Args:
            told: Whether the report is written.
        """
        # A forked process holds a copy of the run: it is not the one that ends it.
        if self.ended or os.getpid() != self._process:
            return
        self.ended = True
        _GOING.discard(self)
        try:
            self._detach()
        finally:
            if self.main:
                self.outlet.close(self.probe.trace)
        if self.main and told and self.out is not None:
            self._report()

    def __del__(self) -> None:
        """A report takes seconds and draws: that is not for the garbage collector."""
        if not self.ended:
            self.end(told=False)

    def _detach(self) -> None:
        try:
            self.validation_ends()
            self.probe.detach()
        except Exception as error:  # after a failed kernel nothing on a GPU can be read any more
            with suppress(Exception):
                self.probe.detach()  # without the window that failed it comes to the hooks
            text = f"the last window of the run is lost: {reason_of(error)}"
            warnings.warn(text, RuntimeWarning, stacklevel=4)

    def _report(self) -> None:
        try:
            report(self.probe.trace, self.out)
        except Exception as error:  # whatever it is, the training that has just ended is not lost
            remedy = getattr(error, "remedy", "") or "ss.report(callback.trace, folder) tries again"
            text = f"no report in {os.fspath(self.out)!r}: {reason_of(error)}; {remedy}"
            warnings.warn(text, RuntimeWarning, stacklevel=4)


@atexit.register
def _end_all() -> None:
    for run in list(_GOING):
        run.end()
