"""Lightning: a callback that watches the module while the trainer trains it."""

from __future__ import annotations

from typing import Any

try:
    from lightning.pytorch.callbacks import Callback
except ModuleNotFoundError:
    from pytorch_lightning.callbacks import Callback  # type: ignore[assignment, unused-ignore]

from torch.optim import Optimizer

from shiftscope.integrations.watching import Watching

__all__ = ["LightningWatch"]


class LightningWatch(Watching, Callback):  # type: ignore[misc, unused-ignore]
    """Watch a run of ``Trainer.fit``: ``callbacks=[LightningWatch(...)]``.

    A step is an update of the first optimizer, so that accumulated batches count as one; the first
    has the number ``trainer.global_step``, also after a checkpoint was loaded. Arguments and
    attributes are those of :class:`~shiftscope.integrations.watching.Watching`.
    """

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to watch."""
        optimizer = next(iter(trainer.optimizers), None)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        # Strategies may bring optimizers of their own, without the hooks of torch's.
        self._counts = scaler is None and not isinstance(optimizer, Optimizer)
        self._begin(
            pl_module,
            None if self._counts else optimizer,
            scaler,
            step=trainer.global_step,
            main=trainer.is_global_zero,
        )

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """End a step: the gradients are complete, the weights still those they belong to."""
        if self.probe is not None and self._counts and optimizer is trainer.optimizers[0]:
            self.probe.step()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Hand on what is finished."""
        self._hand_on()

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Record the first batch of a validation."""
        if batch_idx == 0 and dataloader_idx == 0:
            self._validation_begins()

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Leave the batches that follow alone."""
        self._validation_ends()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Stop watching, and write the report."""
        self.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Stop watching, and write the report on what was measured."""
        self.close()
