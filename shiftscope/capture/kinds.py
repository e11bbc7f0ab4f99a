"""The readings of a step, by the way they were read."""

from __future__ import annotations

from typing import Any

from shiftscope.capture.compiled_reader import Columns
from shiftscope.capture.device_reader import Parts
from shiftscope.capture.readings import Reading
from shiftscope.tally import Moments
from shiftscope.tally.steps import only_type

__all__ = ["by_kind", "mixed"]


def by_kind(pending: list[tuple[int, Any]]) -> dict[Any, list[Any]]:
    """Kind of reading -> slots and readings, in order."""
    kinds: dict[Any, list[Any]] = {Columns: [], Parts: [], Reading: [], Moments: []}
    found = only_type(pending)
    if found is not None:
        return kinds | {found: pending}
    for item in pending:
        kinds[type(item[1])].append(item)
    return kinds


def mixed(kinds: dict[Any, list[Any]]) -> bool:
    """Whether some stream was read in several ways in one step."""
    if sum(map(bool, kinds.values())) < 2:
        return False
    ways = [{slot for slot, _ in found} for found in kinds.values() if found]
    return len(ways) > 1 and len(set().union(*ways)) < sum(len(slots) for slots in ways)
