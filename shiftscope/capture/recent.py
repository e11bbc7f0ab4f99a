"""What a thread read last: a tensor that several sites share is read once, for all of them."""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from shiftscope.capture.readings import IMAGE, ROWS

__all__ = ["Identity", "Recent"]

_KEPT = 4
"""Readings that are remembered: an op finds what the one before it wrote."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a tensor is known again by: which elements of which storage, and their version.

    Attributes:
        anchor: The tensor, or the base of a view: views of one base are distinct objects that may
            hold the same rows.
        place: What of the anchor, as which neurons, in which state.
    """

    anchor: Tensor
    place: tuple[Any, ...]

    @classmethod
    def of(cls, tensor: Tensor, kind: int, dim: int, turn: int) -> Identity:
        """How a tensor is to be known again.

        Args:
            tensor: The tensor.
            kind: How its neurons lie.
            dim: Their dimension, where that is neither the last one nor the second.
            turn: Readings of another turn are none of this step.
        """
        base, now = tensor._base, (turn, tensor._version, kind)
        if base is None:
            return cls(tensor, now)
        width = tensor.shape[-1 if kind == ROWS else (1 if kind == IMAGE else dim)]
        rows = tensor.shape[0] if kind == IMAGE else 0
        where = (width, rows, tensor.storage_offset(), tensor.numel())
        form = () if tensor.is_contiguous() else (tensor.shape, tensor.stride())
        return cls(base, (*now, *where, *form))


class Recent(threading.local):
    """The last few readings of each thread; no tensor is kept alive."""

    def __init__(self) -> None:
        self._entries: list[tuple[Any, tuple[Any, ...], Any, int]] = []

    def find(self, seen: Identity) -> Any:
        """The reading of a tensor; None where this thread did not just read it."""
        for anchor, place, reading, _ in reversed(self._entries):
            if anchor() is seen.anchor and place == seen.place:
                return reading
        return None

    def keep(self, seen: Identity, reading: Any, slot: int) -> None:
        """Remember a reading, and the slot it was made for."""
        self._entries.append((weakref.ref(seen.anchor), seen.place, reading, slot))
        if len(self._entries) > _KEPT:
            del self._entries[0]

    def slots(self, reading: Any) -> list[int]:
        """The slots that a reading was made for."""
        return [slot for *_, known, slot in self._entries if known is reading]
