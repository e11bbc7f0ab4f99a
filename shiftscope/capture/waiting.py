"""What was read of the step that runs, waiting for its end; a part of it can be taken back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shiftscope.capture.calls import books_of
from shiftscope.capture.events import Counters, Event
from shiftscope.capture.mean_images import Image
from shiftscope.capture.readers import Found, Readers
from shiftscope.capture.recorder import Recorder, Settings
from shiftscope.capture.sampling import Sampler
from shiftscope.capture.site_state import SiteState

__all__ = ["Mark", "Waiting"]

_ARRIVALS = ("arrived", "due", "shared", "repeated")
_LEFT_OUT = "forward passes that raised are left out"
_COUNTED = (
    "a forward pass that raised is counted as far as it came: other threads ran the model "
    "or ended a step meanwhile"
)


@dataclass(frozen=True, slots=True)
class Mark:
    """How much waited when a forward pass began.

    Attributes:
        turn: Mergings before.
        lengths: Of readings, events and images.
        drawn: Row samples.
    """

    turn: int
    lengths: tuple[int, ...]
    drawn: int


class Waiting(Recorder):
    """Readings, events, mean images and row samples since the last merging.

    Args:
        settings: What to record.

    Attributes:
        failed: Forward passes since the last step that raised, and of which nothing is left.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.failed = 0
        self._pending: list[tuple[int, Found]] = []
        self._events: list[Event] = []
        self._images: list[Image] = []
        self._sampler = Sampler(settings)
        self.readers = Readers()
        self.look, self.otherwise = self.readers.look, self.readers.otherwise
        self.books = books_of(self._pending, self._events, self.readers.looks, self.readers.imaged)

    def tell(self, state: Counters, name: str) -> None:
        """Count something at the end of the step; safe from any thread."""
        self._events.append((state, name, None))

    def write(self, slot: int, reading: Found | None) -> None:
        """Keep a reading for the end of the step, unless it is None."""
        if reading is not None:
            self._pending.append((slot, reading))

    @property
    def has_gradients(self) -> bool:
        """Whether gradients came back to any of the calls."""
        return any(what in _ARRIVALS for _, what, _ in self._events)

    @property
    def _lists(self) -> tuple[list[Any], ...]:
        return self._pending, self._events, self._images

    def _withdraw(self) -> tuple[list[Any], ...]:
        taken: list[Any] = []
        for items in self._lists:
            # Other threads may append meanwhile: the same lists are emptied, not replaced.
            number = len(items)
            taken.append(items[:number])
            del items[:number]
        self.readers.next_turn()
        return tuple(taken)

    # -- a forward pass that raises -------------------------------------------------------------

    def mark(self) -> Mark:
        """What waits now, when a forward pass begins."""
        return Mark(self.readers.turn, tuple(map(len, self._lists)), self._sampler.drawn)

    def fail(self, mark: Mark, alone: bool) -> None:
        """The pass raised: what it recorded is taken back where it can be told from all other.

        Args:
            mark: What waited when it began.
            alone: Whether no other thread recorded meanwhile.
        """
        if not alone or mark.turn != self.readers.turn:
            for state in list(self.states.values()):
                state.notes[_COUNTED] = None
            return
        for counted, *_ in self._events[mark.lengths[1] :]:
            if isinstance(counted, SiteState):
                counted.notes[_LEFT_OUT] = None
        for items, number in zip(self._lists, mark.lengths, strict=True):
            del items[number:]
        self._sampler.take_back(mark.drawn)
        self.failed += 1
