"""Hugging Face: a callback that watches the model while the Trainer trains it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from transformers import TrainerCallback

from shiftscope.capture.watch import Probe, watch
from shiftscope.errors import UsageError
from shiftscope.integrations.sink import Outlet, Sink
from shiftscope.reporting import report
from shiftscope.trace import Trace

__all__ = ["TransformersWatch"]


class TransformersWatch(TrainerCallback):  # type: ignore[misc]
    """Watch a run of ``Trainer.train``; ``callbacks=[TransformersWatch(...)]``.

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
            raise UsageError("nothing was watched yet", "call trainer.train() first")
        return self.probe.trace

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to watch."""
        optimizer = kwargs["optimizer"]
        scaler = getattr(optimizer, "scaler", None)
        # Accelerate's wrapper is an optimizer by class, but has none of its hooks.
        inner = getattr(optimizer, "optimizer", optimizer)
        self.probe = watch(kwargs["model"], inner, scaler=scaler, **self.options)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Hand on what is finished."""
        if self.probe is not None and state.is_world_process_zero:
            self._outlet.drain(self.probe.trace)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop watching, and write the report."""
        if self.probe is None:
            return
        self.probe.detach()
        if state.is_world_process_zero:
            self._outlet.close(self.probe.trace)
            if self.out is not None:
                report(self.probe.trace, self.out)
