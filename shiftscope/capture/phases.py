"""The phases of a training run that are recorded apart, each with its recorder and its window."""

from __future__ import annotations

from shiftscope.capture.lean import LeanRecorder
from shiftscope.capture.recorder import Settings
from shiftscope.capture.scaling import LossScale
from shiftscope.capture.windows import OpenWindow, noted
from shiftscope.trace import Window

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
        closed: Windows that are to join the trace when the step under way has ended.
        overflows: Steps whose scaled gradients overflowed; they are left out.
        scale: The loss scale.
    """

    def __init__(self, settings: Settings, span: int, scale: LossScale) -> None:
        self._settings, self._span, self.scale = settings, span, scale
        self.recorders: dict[str, LeanRecorder] = {}
        self.windows: dict[str, OpenWindow] = {}
        self.closed: list[Window] = []
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

    def waits(self, phase: str) -> bool:
        """Whether passes of a phase were recorded for the step to come."""
        recorder, window = self.recorders.get(phase), self.windows.get(phase)
        return recorder is not None and window is not None and window.forwards > recorder.failed

    def complete(self, step: int) -> bool:
        """The gradients of a step are there: read what must be read before the weights change.

        All else waits for :meth:`end_step`, so that a step that fails can be taken back.

        Args:
            step: Its number.

        Returns:
            Whether the windows are to be closed at once: they are of this step alone.
        """
        for phase, recorder in list(self.recorders.items()):
            if self._span == 1 or recorder.unsettled:
                self.end_step(step, phase)
        return self._span == 1 and self.full

    def take_back(self, step: int, phase: str) -> None:
        """A step has failed: forget its passes, they will be run anew.

        Args:
            step: Its number.
            phase: What a pass of the model is of, as it is trained.
        """
        chosen = self._trained_in(step, phase)
        self.closed = [window for window in self.closed if window.phase not in chosen]
        for own in chosen & self.windows.keys():
            self._discard(own)
            window = self.windows[own]
            if window.steps and window.last == step:
                self._take_back(own, window)

    def _take_back(self, phase: str, window: OpenWindow) -> None:
        """A step was merged before it failed, as weights had to be read."""
        if window.steps == 1:
            self.recorders[phase].restart()
            del self.windows[phase]
            return
        # A site that ran for the first time amid the window: merged is merged.
        window.steps -= 1
        window.notes[f"step {window.last} raised and was made again: both tries are counted"] = None

    def _trained_in(self, step: int, phase: str) -> set[str]:
        """The phase a step trains in, where any of its passes was recorded.

        It is another than ``"train"`` where a model is trained in evaluation mode.
        """
        taking_part = {window.phase for window in self.closed}
        for own, window in self.windows.items():
            if window.forwards or (window.steps and window.last == step):
                taking_part.add(own)
        return {"train"} & taking_part or {phase} & taking_part

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

    def note(self, step: int, phase: str, text: str) -> None:
        """Say something of all numbers of a training step that has ended."""
        chosen = self._trained_in(step, phase)
        self.closed = [noted(w, text) if w.phase in chosen else w for w in self.closed]
        for own in chosen & self.windows.keys():
            self.windows[own].notes[text] = None

    @property
    def forwards(self) -> int:
        """Forward passes that were recorded since the last step ended, of any phase."""
        return sum(window.forwards for window in self.windows.values())

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

    def find_scaler(self) -> bool:
        """From the first step on that a scaler makes, gradients are divided by its scale.

        Returns:
            Whether the step under way was given up for that.
        """
        if not self.scale.found():
            return False
        for recorder in self.recorders.values():
            recorder.scaler = self.scale.scaler
        window = self.windows.get("train")
        if window is None or window.forwards < 2:
            return False
        self.discard()  # perhaps of steps that overflowed, before it was known
        return True

    def discard(self) -> None:
        """Forget the training step under way."""
        self._discard("train")

    def _discard(self, phase: str) -> None:
        recorder, window = self.recorders.get(phase), self.windows.get(phase)
        if recorder is not None:
            recorder.discard()
            recorder.failed = 0
        if window is not None:
            window.forwards = 0

    def forget(self) -> None:
        """Watching has ended."""
        self.recorders.clear()
        self.scale = LossScale(None)
