"""The phases of a training run that are recorded apart, each with its recorder and its window."""

from __future__ import annotations

from shiftscope.capture.lean import LeanRecorder
from shiftscope.capture.recorder import Settings
from shiftscope.capture.scaling import LossScale
from shiftscope.capture.windows import OpenWindow

__all__ = ["Phases"]


class Phases:
    """Recorders and open windows by phase; the caller holds a lock around every call.

    Args:
        settings: What to record.
        span: Recorded steps in one window.
        scale: The loss scale.

    Attributes:
        recorders: Phase -> recorder.
        windows: Phase -> the window that is open.
        overflows: Steps whose scaled gradients overflowed; they are left out.
        scale: The loss scale.
    """

    def __init__(self, settings: Settings, span: int, scale: LossScale) -> None:
        self._settings, self._span, self.scale = settings, span, scale
        self.recorders: dict[str, LeanRecorder] = {}
        self.windows: dict[str, OpenWindow] = {}
        self.overflows = 0

    def begin(self, phase: str, step: int) -> LeanRecorder:
        """The recorder of a forward pass that begins."""
        recorder, window = self.recorders.get(phase), self.windows.get(phase)
        if recorder is None:
            recorder = self.recorders[phase] = LeanRecorder(self._settings, self.scale.scaler)
        if window is None:
            window = self.windows[phase] = OpenWindow(step)
        recorder.detail, recorder.step = window.steps == 0, step
        if recorder.crowded and self.scale.scaler is None:
            recorder.flush(ended=False)
        window.forwards += 1
        return recorder

    def end_step(self, step: int, only: str | None = None) -> None:
        """What was read since the last step is of one that has ended.

        Args:
            step: Its number.
            only: The phase; None for all.
        """
        for phase in list(self.recorders) if only is None else [only]:
            recorder, window = self.recorders.get(phase), self.windows.get(phase)
            if recorder is None or window is None:
                continue
            window.forwards -= recorder.failed
            recorder.failed = 0
            if not window.forwards:
                continue
            recorder.step = step
            recorder.flush()
            # A window of one training step ends with it, others go on while the weights move.
            if recorder.unsettled and (self._span > 1 or phase != "train"):
                recorder.settle()
            window.ended(step)

    @property
    def full(self) -> bool:
        """Whether the window of training has all its steps.

        Or another one, where none of training is open: a model may be trained in evaluation mode.
        """
        train = self.windows.get("train")
        open_ones = [*self.windows.values()] if train is None else [train]
        return any(window.steps >= self._span for window in open_ones)

    def set_overflow_apart(self) -> None:
        """A scaler that was updated without a step of its optimizer had found an overflow."""
        self.scale.begins()
        if self.scale.overflowed():
            self.overflows += 1
            self.discard()

    def find_scaler(self) -> None:
        """From the first step on that a scaler makes, gradients are divided by its scale."""
        if not self.scale.found():
            return
        for recorder in self.recorders.values():
            recorder.scaler = self.scale.scaler
        window = self.windows.get("train")
        if window is not None and window.forwards > 1:
            self.discard()  # perhaps of steps that overflowed, before it was known

    def discard(self) -> None:
        """Forget the training step under way."""
        recorder, window = self.recorders.get("train"), self.windows.get("train")
        if recorder is not None:
            recorder.discard()
            recorder.failed = 0
        if window is not None:
            window.forwards = 0

    def forget(self) -> None:
        """Watching has ended."""
        self.recorders.clear()
        self.scale = LossScale(None)
