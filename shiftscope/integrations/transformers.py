"""Hugging Face: a callback that watches the model while the Trainer trains it."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from shiftscope.integrations.watching import Watching

__all__ = ["TransformersWatch"]


class TransformersWatch(Watching, TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Watch a run of ``Trainer.train``: ``callbacks=[TransformersWatch(...)]``.

    Steps have the numbers of ``state.global_step``, also after a checkpoint was loaded. Arguments
    and attributes are those of :class:`~shiftscope.integrations.watching.Watching`.

    The Trainer tells a callback nothing of an exception. After one, :meth:`close` ends the run, and
    so does the next ``train`` and the exit of Python; until then the optimizer keeps a hook. A
    callback that is dropped removes its hooks and closes its sinks, without a report.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to watch."""
        optimizer = kwargs["optimizer"]
        # Accelerate's wrapper is an optimizer by class, but has none of its hooks.
        inner = getattr(optimizer, "optimizer", optimizer)
        self._begin(
            kwargs["model"],
            inner,
            getattr(optimizer, "scaler", None),
            step=state.global_step,
            main=state.is_world_process_zero,
        )
        if getattr(args, "eval_on_start", False):
            self._validation_begins()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A validation that was announced has ended, or did not come."""
        self._validation_ends()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Hand on what is finished; record the first batch of a validation that follows."""
        self._hand_on()
        if control.should_evaluate:
            self._validation_begins()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record the first batch of a validation that follows."""
        if control.should_evaluate:
            self._validation_begins()

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the batches that follow alone."""
        self._validation_ends()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The validation has ended."""
        self._validation_ends()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop watching, and write the report."""
        self.close()
