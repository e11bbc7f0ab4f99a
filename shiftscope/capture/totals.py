"""Accumulators over the steps of a window, and the readers whose readings they take.

A reader writes the moments of every tensor of a step to pages of columns; at the end of the step
the pages are put into the totals of the window at once. Steps of another structure (another set
of tensors, another order) get totals of their own, which wait beside them: closing totals on a GPU
waits for the GPU.

What one stream has in one step is merged as if it were one tensor; steps are averaged, since
between them the weights move (:meth:`shiftscope.tally.Moments.join`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from shiftscope.tally import Moments
from shiftscope.tally.native import EPS
from shiftscope.tally.steps import Write, add_rows, form_of

__all__ = ["Group", "PagedReader", "Structure", "Total", "Totals", "groups_of", "places_of"]

Structure = tuple[tuple[int, ...], tuple[int, ...]]
"""Slots in order of writing, and the number of the reading that each one got."""


@dataclass(frozen=True, slots=True)
class Total:
    """What the steps of a window gave for one stream.

    Attributes:
        slot: The stream.
        moments: Averages over the steps.
        lost: ``[neurons]`` elements that were left out as not finite.
        since: The first step at which some were; -1 for none.
    """

    slot: int
    moments: Moments
    lost: Tensor
    since: int


@dataclass(frozen=True, slots=True)
class Group:
    """Readings of one stream in one step: micro-batches, or a module that is used again.

    Attributes:
        slot: The stream.
        numbers: The readings.
        width: Their number of neurons.
        at: First of its columns among those of all groups.
    """

    slot: int
    numbers: tuple[int, ...]
    width: int
    at: int


def groups_of(
    slots: Sequence[int], numbers: Sequence[int], widths: Sequence[int]
) -> tuple[list[tuple[int, int]], list[Group]]:
    """Streams that were read once in a step, and those that were read more often.

    Args:
        slots: Streams in order of writing.
        numbers: Number of the reading that each one got.
        widths: Number of neurons of each reading.

    Returns:
        ``(slot, number)`` of the first kind, and the groups.
    """
    of_slot: dict[tuple[int, int], list[int]] = {}
    for slot, number in zip(slots, numbers, strict=True):
        of_slot.setdefault((slot, widths[number]), []).append(number)
    single = [(slot, own[0]) for (slot, _), own in of_slot.items() if len(own) == 1]
    groups, at = [], 0
    for (slot, width), own in of_slot.items():
        if len(own) > 1:
            groups.append(Group(slot, tuple(own), width, at))
            at += width
    return single, groups


def places_of(
    single: Sequence[tuple[int, int]], groups: Sequence[Group], ends: Sequence[int]
) -> Iterator[tuple[int, tuple[int, ...], slice]]:
    """Each stream of :func:`groups_of`, its readings and its columns of a record.

    Args:
        single: Streams that were read once in a step.
        groups: The others; their columns stand behind those of all readings.
        ends: Column behind the last one of each reading.
    """
    for slot, number in single:
        yield slot, (number,), slice(ends[number - 1] if number else 0, ends[number])
    for group in groups:
        start = ends[-1] + group.at
        yield group.slot, group.numbers, slice(start, start + group.width)


_STRUCTURES = 16
"""Structures whose totals are kept open; a training loop alternates between a few."""


class Totals(ABC):
    """Accumulators over the columns of all readings of a step, for steps of one structure.

    Args:
        key: The structure.
        readings: The readings of the first step.
        gradient: For each reading whether it is a gradient, to be divided by the loss scale.
    """

    record: Any
    """Has ``data``, ``[3, columns]`` float64: count, mean and m2; groups behind the readings."""

    def __init__(self, key: Structure, readings: Sequence[Any], gradient: Sequence[bool]) -> None:
        self.key = key
        self.gradient = gradient
        self.widths = [reading.width for reading in readings]
        self.ends = list(accumulate(self.widths))
        self.single, self.groups = groups_of(key[0], key[1], self.widths)
        self.grouped = sum(group.width for group in self.groups)
        self._eps = [EPS[reading.dtype] for reading in readings]
        self._rows = array("q", bytes(8 * len(readings)))

    def add(self, pages: list[Any], readings: list[Any], inverse: Tensor | None, step: int) -> None:
        """Add one step.

        Args:
            pages: The columns that were read in it, in order.
            readings: Its readings.
            inverse: One over the loss scale, or None.
            step: Its number.
        """
        self._add(pages, readings, inverse, step)
        add_rows(readings, self._rows)

    @abstractmethod
    def _add(
        self, pages: list[Any], readings: list[Any], inverse: Tensor | None, step: int
    ) -> None:
        """Add the pages to the record, gradients times ``inverse``; note what was not finite."""

    @abstractmethod
    def _first_losses(self, data: Tensor) -> Mapping[int, int]:
        """Readings in which elements were not finite -> first step at which some were."""

    @property
    def columns(self) -> tuple[Tensor, ...]:
        """What :meth:`moments` and :meth:`totals` are taken from, where it lies."""
        return (self.record.data,)

    def moments(self, columns: Sequence[Tensor]) -> Iterator[tuple[int, Moments]]:
        """Averages over the steps so far for each stream; nothing waits for the device.

        Args:
            columns: Those of this object, or copies of them elsewhere.
        """
        count, mean, m2 = columns[0][:3]
        mean = torch.where(count > 0, mean, torch.nan)
        std = (m2 / count.clamp(min=1.0)).sqrt()
        scale = torch.maximum(mean.nan_to_num().abs(), std)
        count = count.long()
        for slot, numbers, at in places_of(self.single, self.groups, self.ends):
            eps = max(self._eps[number] for number in numbers)
            yield slot, Moments(count[at], mean[at], m2[at], eps, scale[at])

    def totals(self, columns: Sequence[Tensor]) -> Iterator[Total]:
        """What all steps gave, for each stream.

        Args:
            columns: Those of this object, on the CPU.
        """
        first = self._first_losses(columns[0])
        places = places_of(self.single, self.groups, self.ends)
        for (_, numbers, at), (slot, moments) in zip(places, self.moments(columns), strict=True):
            rows = sum(self._rows[number] for number in numbers)
            since = min((first[number] for number in numbers if number in first), default=-1)
            yield Total(slot, moments, rows - columns[0][0, at], since)


def _written(writes: Sequence[Write], readings: Sequence[Any]) -> list[Write]:
    """What was written of these readings.

    Not what another thread read before the last merging and wrote down after it.
    """
    number = len(readings)
    return [(s, r) for s, r in writes if r.number < number and readings[r.number] is r]


class PagedReader(ABC):
    """Readings of the running step, and accumulators of the steps before it."""

    @cached_property
    def _open(self) -> dict[Hashable, Totals]:
        return {}

    @abstractmethod
    def take(self) -> tuple[list[Any], Any]:
        """Take all readings of the step, and the pages that hold them."""

    @abstractmethod
    def give_back(self, pages: Any) -> None:
        """Use pages again."""

    @abstractmethod
    def _new(self, key: Structure, readings: Sequence[Any], gradient: Sequence[bool]) -> Totals:
        """Accumulators for a structure."""

    def merge(
        self,
        writes: list[Write],
        gradient: Sequence[bool],
        inverse: Tensor | None,
        step: int,
    ) -> Iterator[Totals]:
        """Merge a step, and begin the next; readings that nobody wrote down go unused.

        Args:
            writes: Slots and readings, in order.
            gradient: For each slot whether it is a gradient, to be divided by the loss scale.
            inverse: One over the loss scale, or None.
            step: Its number.

        Yields:
            Accumulators of another structure that are closed now, as there were too many.
        """
        readings, pages = self.take()
        form = form_of(writes, readings)
        if form is None:
            writes = _written(writes, readings)
            form = form_of(writes, readings)
        if writes:
            totals = self._open.get(form)
            if totals is None:
                if len(self._open) == _STRUCTURES:
                    yield self._open.pop(next(iter(self._open)))
                totals = self._open[form] = self._begin(writes, readings, gradient)
            totals.add(pages, readings, inverse, step)
        self.give_back(pages)

    def _begin(
        self, writes: Sequence[Write], readings: Sequence[Any], gradient: Sequence[bool]
    ) -> Totals:
        """Accumulators for steps like this one."""
        slots = tuple([slot for slot, _ in writes])
        numbers = tuple([reading.number for _, reading in writes])
        flags = [False] * len(readings)
        for slot, number in zip(slots, numbers, strict=True):
            flags[number] |= gradient[slot]
        return self._new((slots, numbers), readings, flags)

    def opened(self) -> list[Totals]:
        """The accumulators of the steps so far, which go on."""
        return list(self._open.values())

    def close(self) -> list[Totals]:
        """The accumulators of the steps so far; new ones begin."""
        closed = self.opened()
        self._open.clear()
        return closed
