"""What is asked about all readings of a step when it ends: compiled, or in Python without that.

A step has a few hundred of them, which lie anywhere in memory: to look at each once more from
Python would cost more than merging what they hold.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable
from operator import add, attrgetter, itemgetter
from typing import Any

from shiftscope.tally import native

__all__ = ["Write", "add_rows", "all_within", "form_of", "only_type"]

Write = tuple[int, Any]
"""A slot, and the reading that was written under it."""

_FIRST, _SECOND, _ROWS = itemgetter(0), itemgetter(1), attrgetter("rows")


def only_type(writes: list[Write]) -> type | None:
    """The type of all readings that were written; None where they are of several."""
    if native.built():
        found: type | None = native.only_type(writes)
        return found
    types = set(map(type, map(_SECOND, writes)))
    return types.pop() if len(types) == 1 else None


def all_within(writes: list[Write], slots: set[int]) -> bool:
    """Whether a set holds all slots that were written."""
    if native.built():
        return bool(native.all_within(writes, slots))
    return slots.issuperset(map(_FIRST, writes))


def form_of(writes: list[Write], readings: list[Any]) -> Hashable | None:
    """What tells steps of one structure from those of others.

    Args:
        writes: Slots and readings, in order of writing.
        readings: All readings of the step, in order; each knows its number among them.

    Returns:
        Equal for steps with the same slots, numbers of the readings under them, and width and
        dtype of every reading; None where something was written that is not among the readings.
    """
    if native.built():
        form: bytes | None = native.form_of(writes, readings)
        return form
    if any(r.number >= len(readings) or readings[r.number] is not r for _, r in writes):
        return None
    places = tuple([(slot, reading.number) for slot, reading in writes])
    return places, tuple([(reading.width, reading.dtype) for reading in readings])


def add_rows(readings: list[Any], rows: array[int]) -> None:
    """Add the rows of each reading to those of the steps before.

    Args:
        readings: All readings of the step, in order.
        rows: As many 64-bit integers (code ``q``).
    """
    if native.built():
        native.add_rows(readings, rows)
    else:
        rows[:] = array("q", map(add, rows, map(_ROWS, readings)))
