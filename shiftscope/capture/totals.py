"""Accumulators over the steps of a window, and the readers whose readings they take.

A reader writes the moments of every tensor of a step to pages of columns; at the end of the step
the pages are merged at once into the totals of the window. Steps of another structure (another set
of tensors, another order) get totals of their own, which wait beside them: closing totals on a GPU
waits for the GPU.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from shiftscope.tally import Moments
from shiftscope.tally.native import EPS

__all__ = ["PagedReader", "Structure", "Totals"]

Structure = tuple[tuple[int, ...], tuple[int, ...], tuple[tuple[int, int], ...]]
"""Slots in order of writing, number of the reading each one got, width and dtype of each."""

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
    """Has ``data``, ``[3, columns]`` float64: count, mean and m2."""

    def __init__(self, key: Structure, readings: Sequence[Any], gradient: Sequence[bool]) -> None:
        self.key = key
        self.gradient = gradient
        self.widths = [reading.width for reading in readings]
        self.ends = list(accumulate(self.widths))
        self._eps = [EPS[reading.dtype] for reading in readings]
        self._rows = [0] * len(readings)

    def add(self, pages: Sequence[Any], readings: Sequence[Any], inverse: Tensor | None) -> None:
        """Merge one step (Chan, Golub, LeVeque 1983).

        Args:
            pages: The columns that were read in it, in order.
            readings: Its readings.
            inverse: One over the loss scale, or None.
        """
        self._merge(pages, inverse)
        self._rows = [rows + r.rows for rows, r in zip(self._rows, readings, strict=True)]

    @abstractmethod
    def _merge(self, pages: Sequence[Any], inverse: Tensor | None) -> None:
        """Merge the pages into the record, gradients times ``inverse``."""

    def totals(self) -> Iterator[tuple[int, Moments, Tensor]]:
        """Slot, moments over all steps, and number of elements left out as not finite."""
        count, mean, m2 = self.record.data.cpu()
        mean = torch.where(count > 0, mean, torch.nan)
        std = (m2 / count.clamp(min=1.0)).sqrt()
        scale = torch.maximum(mean.nan_to_num().abs(), std)
        for slot, number in zip(*self.key[:2], strict=True):
            at = slice(self.ends[number] - self.widths[number], self.ends[number])
            moments = Moments(count[at].long(), mean[at], m2[at], self._eps[number], scale[at])
            yield slot, moments, self._rows[number] - count[at]


class PagedReader(ABC):
    """Readings of the running step, and accumulators of the steps before it."""

    @cached_property
    def _open(self) -> dict[Structure, Totals]:
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
        writes: Sequence[tuple[int, Any]],
        gradient: Sequence[bool],
        inverse: Tensor | None,
    ) -> Iterator[Totals]:
        """Merge a step, and begin the next; readings that nobody wrote down go unused.

        Args:
            writes: Slots and readings, in order.
            gradient: For each slot whether it is a gradient, to be divided by the loss scale.
            inverse: One over the loss scale, or None.

        Yields:
            Accumulators of another structure that are closed now, as there were too many.
        """
        readings, pages = self.take()
        # Not what another thread read before the last merging and wrote down after it.
        known = [(slot, r.number) for slot, r in writes if _holds(readings, r)]
        if known:
            slots, numbers = zip(*known, strict=True)
            key: Structure = (slots, numbers, tuple([(r.width, r.dtype) for r in readings]))
            totals = self._open.get(key)
            if totals is None:
                if len(self._open) == _STRUCTURES:
                    yield self._open.pop(next(iter(self._open)))
                flags = [False] * len(readings)
                for slot, number in known:
                    flags[number] |= gradient[slot]
                totals = self._open[key] = self._new(key, readings, flags)
            totals.add(pages, readings, inverse)
        self.give_back(pages)

    def close(self) -> list[Totals]:
        """The accumulators of the steps so far; new ones begin."""
        closed = list(self._open.values())
        self._open.clear()
        return closed


def _holds(readings: Sequence[Any], reading: Any) -> bool:
    return reading.number < len(readings) and readings[reading.number] is reading
