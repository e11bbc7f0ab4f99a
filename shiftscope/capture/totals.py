"""Accumulators over the steps of a window, and the readers whose readings they take.

A reader writes the moments of every tensor of a step to pages of columns; at the end of the step
the pages are merged at once into the totals of the window. Steps of another structure (another set
of tensors, a ragged last batch) get totals of their own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from shiftscope.tally import Moments
from shiftscope.tally.native import EPS

__all__ = ["PagedReader", "Structure", "Totals"]

Structure = tuple[tuple[int, ...], tuple[int, ...]]
"""Slots in order of writing, and number of the reading each one got."""


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
        self._shapes = list(zip(self.widths, self._eps, strict=True))
        self._rows = [0] * len(readings)

    def fits(self, key: Structure, readings: Sequence[Any]) -> bool:
        """Whether a step has this structure."""
        shapes = [(r.width, EPS[r.dtype]) for r in readings]
        return self.key == key and shapes == self._shapes

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
        for slot, number in zip(*self.key, strict=True):
            at = slice(self.ends[number] - self.widths[number], self.ends[number])
            moments = Moments(count[at].long(), mean[at], m2[at], self._eps[number], scale[at])
            yield slot, moments, self._rows[number] - count[at]


class PagedReader(ABC):
    """Readings of the running step, and accumulators of the steps before it."""

    _totals: Totals | None = None

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
            Accumulators of earlier steps of another structure, which are closed now.
        """
        readings, pages = self.take()
        # Not what another thread read before the last merging and wrote down after it.
        known = [(slot, r.number) for slot, r in writes if _holds(readings, r)]
        if known:
            slots, numbers = zip(*known, strict=True)
            key: Structure = (slots, numbers)
            totals = self._totals
            if totals is None or not totals.fits(key, readings):
                self._totals = None
                if totals is not None:
                    yield totals
                flags = [False] * len(readings)
                for slot, number in known:
                    flags[number] |= gradient[slot]
                totals = self._totals = self._new(key, readings, flags)
            totals.add(pages, readings, inverse)
        self.give_back(pages)

    def close(self) -> Totals | None:
        """The accumulators of the steps so far; new ones begin."""
        totals, self._totals = self._totals, None
        return totals


def _holds(readings: Sequence[Any], reading: Any) -> bool:
    return reading.number < len(readings) and readings[reading.number] is reading
