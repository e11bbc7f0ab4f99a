"""Hugging Face: a callback that watches the model while the Trainer trains it."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from shiftscope.integrations.watching import Watching

__all__ = ["TransformersWatch"]


class TransformersWatch(Watching, TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Watch a run of ``Trainer.train``: ``callbacks=[TransformersWatch(...)]``.

    Arguments and attributes are those of
    :class:`~shiftscope.integrations.watching.Watching`.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to watch."""
        optimizer = kwargs["optimizer"]
        # Accelerate's wrapper is an optimizer by class, but has none of its hooks.
        inner = getattr(optimizer, "optimizer", optimizer)
        self._begin(kwargs["model"], inner, getattr(optimizer, "scaler", None))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Hand on what is finished."""
        self._hand_on(state.is_world_process_zero)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop watching, and write the report."""
        self._end(state.is_world_process_zero)
