"""The loop behind ``ss.watch``: which steps and passes are recorded, and what becomes of them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from shiftscope.absences import no_rows
from shiftscope.capture import distributed
from shiftscope.capture.belonging import kept, note_bypassed
from shiftscope.capture.boundary_moves import BoundaryTracker
from shiftscope.capture.conditions import is_capturing
from shiftscope.capture.coverage import obstacles
from shiftscope.capture.hooks import passes_gradients
from shiftscope.capture.lean import LeanRecorder
from shiftscope.capture.phases import Phases
from shiftscope.capture.probe import Attachment
from shiftscope.capture.recorder import Settings
from shiftscope.capture.schedule import Schedule
from shiftscope.capture.stance import Eager
from shiftscope.capture.steps import Steps, weakly
from shiftscope.capture.windows import OpenWindow
from shiftscope.trace import Trace

__all__ = ["Recording"]

_FIRST_ALONE = (
    "the model was run several times within one step of the optimizer (its closure, a line search):"
    " recorded is the first time"
)

_DROPPED = (
    "no gradient of earlier passes of the step was kept in .grad when a later one began "
    "(zero_grad, a backward that raised, autograd.grad): all passes are counted"
)
_NO_STEP = (
    "the optimizer that is watched made no step: these are all passes so far; give ss.watch the "
    "optimizer whose step() the loop calls"
)
_BOTH = "a step that raised was made again: passes of both tries are counted"


class Recording:
    """Recorded steps of one training run; what nobody holds any more leaves nothing behind.

    Args:
        model: The (unwrapped) model.
        optimizer: Its optimizer, a wrapper around one, or None.
        settings: What to record.
        schedule: Which steps.
        phases: Where they are recorded.
        trace: Where finished windows go.
        patterns: The sites that windows keep.
        boundaries: Follows activation boundaries over recorded steps, if asked for.

    Attributes:
        attachment: Installs the hooks; None when all is over.
        done: Whether all is over.
        lock: Held around every change of what was recorded.
        steps: Tells of the optimizer's steps.
        obstacles: What ran and could not be measured, as of the latest end of windows.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        settings: Settings,
        schedule: Schedule,
        phases: Phases,
        trace: Trace,
        patterns: tuple[str, ...],
        boundaries: BoundaryTracker | None,
    ) -> None:
        self._model = weakref.ref(model)
        self._settings, self._schedule, self._phases = settings, schedule, phases
        self._trace, self._patterns, self._boundaries = trace, patterns, boundaries
        self.lock = threading.RLock()
        self.obstacles: list[tuple[str, str]] = []
        self.done = self._recorded = self._given_up = False
        self._forced: str | None = None
        self._evaluated = -1
        self._trained = "train"
        self._notes: dict[str, None] = {}
        self._eager = Eager()
        # Not a strong reference: what is dropped goes at once, and takes its hooks along.
        self.attachment: Attachment | None = Attachment(
            model, LeanRecorder(settings), choose=weakly(self._choose)
        )
        self.steps = Steps(optimizer, self)
        self._counted = self.steps.counted  # also when it is no longer listened to
        if schedule.first():
            self._attach()

    # -- the training loop ----------------------------------------------------------------------

    def made(self) -> None:
        """A step is made, of which no optimizer tells."""
        if self.begun():
            self.complete()
        self.ended()

    def begun(self) -> bool:
        """A step begins; whether it is recorded."""
        self._phases.scale.stepped()
        if not self._recorded or self.attachment is None:
            return False
        self._trained = self._forced or self._phase()
        return True

    def complete(self) -> None:
        """The gradients of a recorded step are there, and the weights still those of its passes."""
        began = self._schedule.clock()
        if self.attachment is not None:
            self.attachment.settle()
        with self.lock:
            self._given_up = self._phases.find_scaler()
            if self.attachment is not None:
                note_bypassed(self._trace, self._phases.forwards, self.attachment)
            if self._phases.complete(self._schedule.steps):
                self._close_windows()
        self._schedule.took(self._schedule.clock() - began)

    def ended(self) -> None:
        """A step has ended."""
        if self.done:
            return
        self._schedule.enter()
        recorded, stays = self._recorded, self._schedule.every == 1
        if recorded:
            self._end_step()
        self._trace.steps_done = self._schedule.steps + 1
        if recorded and self._boundaries is not None:
            self._boundaries.step(self._schedule.steps)
        if recorded and not stays:
            self._leave()
        given_up, self._given_up = self._given_up, False
        if self._schedule.leave(recorded, not given_up):
            self._attach()
            if self._boundaries is not None and not recorded:
                self._boundaries.mark()  # weights change at the end of a step only
        elif recorded and stays:
            self._leave()

    def _end_step(self) -> None:
        if self.attachment is not None:
            self.attachment.settle()
        with self.lock:
            self._merge_step()
            if self._phases.full:
                self._close_windows()
            self._publish()

    def _merge_step(self) -> None:
        self._phases.end_step(self._schedule.steps)
        while self._notes:
            text, _ = self._notes.popitem()
            self._phases.note(self._schedule.steps, self._trained, text)

    def failed(self) -> None:
        """A recorded step raised: what was recorded for it is of no step."""
        with self.lock:
            self._phases.take_back(self._schedule.steps, self._trained)
            self._notes.clear()
            self._schedule.pause()

    def made_again(self) -> None:
        """A recorded step raised and is made again, with the passes recorded before it."""
        self._notes[_BOTH] = None
        self._schedule.pause()

    def waits(self) -> bool:
        """Whether forward passes were recorded for the step to come."""
        return self._phases.waits(self._forced or self._phase())

    def left_out(self) -> None:
        """A forward pass runs again within a step, and is not recorded."""
        self._notes[_FIRST_ALONE] = None

    def _attach(self) -> None:
        """Install the hooks for the step to come, where they are not there already."""
        attachment = self.attachment
        if attachment is None:
            return
        self._eager.hold()
        self._recorded = True
        if not attachment.attached:
            attachment.refresh()
            attachment.__enter__()

    def _leave(self) -> None:
        self._recorded = False
        try:
            if self.attachment is not None:
                self.attachment.detach()
        finally:
            self._eager.release()

    # -- a forward pass -------------------------------------------------------------------------

    @contextmanager
    def forced(self, phase: str) -> Iterator[None]:
        """Record what runs inside for a phase, whatever the schedule says."""
        before = self._forced
        with ExitStack() as last:
            if self.attachment is None or not self.attachment.attached:
                last.callback(self._leave)
            last.callback(self._schedule.pause)
            if phase == self._trained:  # trained in evaluation mode: a window of its own
                self._close_phase(phase)
                last.callback(self._close_phase, phase)
            last.callback(self._phases.end_step, self._schedule.steps, phase)
            last.callback(setattr, self, "_forced", before)
            self._forced, self._evaluated = phase, self._schedule.steps
            self._attach()
            yield

    def _choose(self) -> LeanRecorder | None:
        """The recorder of the forward pass that begins; None where it cannot be recorded."""
        if is_capturing():
            if self.attachment is not None:
                self.attachment.gap("", "a CUDA graph: what it replays calls no Python")
            return None
        with self.lock:
            self._phases.set_overflow_apart()
            if self._forced is None and not self.steps.admits():
                return None
            phase = self._forced or self._phase()
            if phase == "eval" and self._forced is None and not self._admit():
                return None
            if phase == "train" and self._phases.waits(phase) and self._gradients_are_gone(phase):
                self._notes[_DROPPED] = None
            return self._phases.begin(phase, self._schedule.steps)

    def _gradients_are_gone(self, phase: str) -> bool:
        """Whether gradients came back to passes of the step to come, and none of them is kept."""
        model, recorder = self._model(), self._phases.recorders[phase]
        if model is None or distributed.world_size() > 1 or not recorder.has_gradients:
            return False
        return all(weight.grad is None for weight in model.parameters())

    def _admit(self) -> bool:
        """One more evaluation pass: whether it is recorded; under a budget the first of a step.

        A validation takes many of them before the step ends, and is no time of training.
        """
        self._schedule.pause()
        before, self._evaluated = self._evaluated, self._schedule.steps
        return self._schedule.every is not None or before != self._evaluated

    def _phase(self) -> str:
        model = self._model()
        training = model is not None and model.training and passes_gradients()
        return "train" if training else "eval"

    # -- windows --------------------------------------------------------------------------------

    def close(self) -> None:
        """Close all windows, whatever step is under way."""
        with self.lock:
            self._phases.set_overflow_apart()
            stepless = self._counted and self._schedule.steps == self._schedule.start
            if stepless and self._phases.forwards > 1:
                self._notes[_NO_STEP] = None
            self._merge_step()
            self._close_windows()
            self._publish()
            if self.attachment is not None:
                self.obstacles = obstacles(self.attachment)

    def _publish(self) -> None:
        """Closed windows join the trace."""
        closed = self._phases.closed
        while closed:
            self._trace.append(closed.pop(0))

    def _close_windows(self) -> None:
        """Freeze all windows."""
        for phase in list(self._phases.windows):
            self._freeze(phase)

    def _close_phase(self, phase: str) -> None:
        """Close the window of one phase, unless passes of the step to come were recorded in it."""
        with self.lock:
            window = self._phases.windows.get(phase)
            if window is not None and not window.forwards:
                self._freeze(phase)
                self._publish()

    def _freeze(self, phase: str) -> None:
        window = self._phases.windows.pop(phase)
        recorder, attachment = self._phases.recorders.get(phase), self.attachment
        if window.steps and recorder is not None and attachment is not None:
            self._close(phase, window, recorder, attachment)
            recorder.restart()

    def _close(
        self, phase: str, window: OpenWindow, recorder: LeanRecorder, attachment: Attachment
    ) -> None:
        overflows, schedule = self._phases.overflows, self._schedule
        made = window.closed(
            (self._model(), phase, self._settings),
            *(recorder, attachment),
            {"overflow_steps": overflows, "schedule": schedule.summary()},
            lambda records: kept(
                *(records, self._patterns, phase, self._trace, schedule.start),
                () if records else _unmeasured(attachment, recorder),
            ),
        )
        if made is not None:
            self._phases.closed.append(made)

    # -- the end --------------------------------------------------------------------------------

    def end(self) -> None:
        """Remove everything and close the windows; idempotent."""
        if self.done:
            return
        # Last line first, each whatever becomes of the others; hooks twice, against interrupts.
        with ExitStack() as last:
            last.callback(self._forget)
            last.callback(self.close)
            for act in (self.steps.remove, self._leave, self._leave):
                last.callback(act)

    def _forget(self) -> None:
        self.done, self.attachment = True, None
        self._phases.forget()

    def __del__(self) -> None:
        """What nobody holds any more leaves nothing behind."""
        if getattr(self, "attachment", None) is not None:
            self._leave()


def _unmeasured(attachment: Attachment, recorder: LeanRecorder) -> list[tuple[str, str]]:
    """What ran and could not be measured, where nothing was."""
    empty = [(site, no_rows(calls.calls)) for site, calls in recorder.empty_calls.items()]
    return obstacles(attachment) or empty
