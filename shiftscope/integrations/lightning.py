"""Lightning: a callback that watches the module while the trainer trains it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

try:
    from lightning.pytorch.callbacks import Callback
except ModuleNotFoundError:
    from pytorch_lightning.callbacks import Callback

from shiftscope.capture.watch import Probe, watch
from shiftscope.errors import UsageError
from shiftscope.integrations.sink import Outlet, Sink
from shiftscope.reporting import report
from shiftscope.trace import Trace

__all__ = ["LightningWatch"]


class LightningWatch(Callback):  # type: ignore[misc]
    """Watch a run of ``Trainer.fit``; ``callbacks=[LightningWatch(...)]``.

    A step is an update of the first optimizer, so that accumulated batches count as one.

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
        self._counts = False

    @property
    def trace(self) -> Trace:
        """The finished windows.

        Raises:
            UsageError: The run has not begun.
        """
        if self.probe is None:
            raise UsageError("nothing was watched yet", "call trainer.fit(...) first")
        return self.probe.trace

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to watch."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        # Without a scaler Lightning runs forward and backward inside optimizer.step(closure), where
        # the optimizer's own hooks would count the step before its gradients are there.
        self._counts = scaler is None
        if self._counts:
            self.probe = watch(pl_module, **self.options)
        else:
            self.probe = watch(pl_module, trainer.optimizers[0], scaler=scaler, **self.options)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """End a step: the gradients are complete, the weights still those they belong to."""
        if self._counts and self.probe is not None and optimizer is trainer.optimizers[0]:
            self.probe.step()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Hand on what is finished."""
        if self.probe is not None and trainer.is_global_zero:
            self._outlet.drain(self.probe.trace)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Stop watching, and write the report."""
        self._end(trainer)
        if self.out is not None and self.probe is not None and trainer.is_global_zero:
            report(self.probe.trace, self.out)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Stop watching; what was measured stays readable."""
        self._end(trainer)

    def _end(self, trainer: Any) -> None:
        if self.probe is not None:
            self.probe.detach()
            if trainer.is_global_zero:
                self._outlet.close(self.probe.trace)
