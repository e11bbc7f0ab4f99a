"""What a probe keeps of a window while it is open, and how windows are put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

from torch import nn

from shiftscope.capture.conditions import described
from shiftscope.capture.coverage import coverage, missing
from shiftscope.capture.lean import LeanRecorder
from shiftscope.capture.pictures import pictures
from shiftscope.capture.probe import Attachment
from shiftscope.capture.recorder import Settings
from shiftscope.record import SiteRecord
from shiftscope.snapshot import Snapshot
from shiftscope.trace import Trace, Window

__all__ = ["OpenWindow", "main_phase", "noted", "since"]


@dataclass
class OpenWindow:
    """A window that is being recorded.

    Attributes:
        first: Number of its first step.
        last: Number of its last step.
        steps: Recorded steps.
        batches: Forward passes of them.
        forwards: Forward passes since the last step ended.
        notes: What is to be said of all its numbers.
    """

    first: int
    last: int = -1
    steps: int = 0
    batches: int = 0
    forwards: int = 0
    notes: dict[str, None] = field(default_factory=dict)

    def ended(self, step: int) -> None:
        """A recorded step ended."""
        if not self.steps:
            self.first = step
        self.last, self.steps = step, self.steps + 1
        self.batches, self.forwards = self.batches + self.forwards, 0

    def closed(
        self,
        what: tuple[nn.Module | None, str, Settings],
        recorder: LeanRecorder,
        attachment: Attachment,
        about: Mapping[str, Any],
        keep: Callable[[Mapping[str, SiteRecord]], Mapping[str, SiteRecord]],
    ) -> Window | None:
        """The finished window.

        Args:
            what: The model, the phase, and what is recorded.
            recorder: Has its numbers.
            attachment: Knows what was not measured.
            about: More for the manifest.
            keep: Chooses the sites.

        Returns:
            The window; None where no site is to be kept.
        """
        phase = what[1]
        shown = keep(recorder.records(backward=phase == "train"))
        if not shown:
            return None
        snapshot = Snapshot(
            records=shown,
            gaps=tuple(missing(attachment, recorder)),
            manifest={**described(*what), **self.told(), **about},
            coverage=coverage(attachment, recorder, 0.0),
            pictures=pictures({name: recorder.states[name] for name in shown}),
        )
        return noted(Window(self.first, self.last, phase, snapshot), *self.notes)

    def told(self) -> dict[str, int]:
        """The part of a manifest that says which steps these are."""
        return {
            "step": self.last,
            "step_first": self.first,
            "steps": self.steps,
            "batches": self.batches,
        }


def noted(window: Window, *notes: str) -> Window:
    """The window, which says something of all its numbers."""
    if not notes:
        return window
    told = {
        name: replace(record, notes=tuple(dict.fromkeys((*record.notes, *notes))))
        for name, record in window.snapshot.records.items()
    }
    return replace(window, snapshot=replace(window.snapshot, records=told))


def main_phase(trace: Trace, reported: Mapping[str, int]) -> str:
    """Training, or evaluation where that is all that is new.

    Args:
        trace: The finished windows.
        reported: Phase to the first step that was not reported yet.
    """
    fresh = [w.phase for w in trace if w.last >= reported.get(w.phase, 0)]
    return "train" if "train" in fresh or not fresh else fresh[-1]


def since(trace: Trace, phase: str, reported: dict[str, int]) -> Snapshot:
    """The windows of a phase that were not reported yet, as one; they count as reported then."""
    start = reported.get(phase, 0)
    fresh = [w for w in trace if w.phase == phase and w.last >= start]
    reported[phase] = max((w.last + 1 for w in fresh), default=start)
    if not fresh:
        return Snapshot({})
    return reduce(Snapshot.join, [w.snapshot for w in fresh])
