"""Reading by compiled code: the columns of one step lie in one table, and are merged in one call.

During a step every tensor that is read takes the next free columns of a page; at its end the whole
page is merged into the accumulators of the window (:class:`Totals`), and is used again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from shiftscope.capture.readings import IMAGE, ROWS
from shiftscope.tally import Moments
from shiftscope.tally.native import EPS, Columns, Reader, Record

__all__ = ["Columns", "CompiledReader", "Structure", "Totals"]

Structure = tuple[tuple[int, ...], tuple[int, ...]]
"""Slots in order of writing, and number of the reading each one got."""


class CompiledReader(Reader):
    """Readings of the running step, and accumulators of the steps before it."""

    def __init__(self) -> None:
        super().__init__()
        self._totals: Totals | None = None

    def read_copy(self, x: Tensor, slot: int, kind: int, image: bool) -> Any:
        """Read a tensor that does not lie in order; None where it cannot be read here at all."""
        if kind == IMAGE and not image and x.dim() in (4, 5):
            form = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
            if x.is_contiguous(memory_format=form):
                return self.read(x.detach().movedim(1, -1), slot, ROWS, False)
        return self.read(x.detach().contiguous(), slot, kind, image)

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
                totals = self._totals = Totals(key, readings, flags)
            totals.add(pages, readings, inverse)
        self.give_back(pages)

    def close(self) -> Totals | None:
        """The accumulators of the steps so far; new ones begin."""
        totals, self._totals = self._totals, None
        return totals


def _holds(readings: Sequence[Any], reading: Any) -> bool:
    return reading.number < len(readings) and readings[reading.number] is reading


class Totals:
    """Accumulators over the columns of all readings of a step, for steps of one structure.

    Args:
        key: The structure.
        readings: The readings of the first step.
        gradient: For each reading whether it is a gradient.
    """

    def __init__(self, key: Structure, readings: Sequence[Any], gradient: Sequence[bool]) -> None:
        self.key = key
        self._widths = [reading.width for reading in readings]
        self._eps = [EPS[reading.dtype] for reading in readings]
        self._shapes = list(zip(self._widths, self._eps, strict=True))
        self._ends = list(accumulate(self._widths))
        self._record = Record(self._ends[-1])
        self._rows = [0] * len(readings)
        flags = torch.tensor(gradient, dtype=torch.float64, device="cpu")
        widths = torch.tensor(self._widths, device="cpu")
        self._gradient = flags.repeat_interleave(widths) > 0

    def fits(self, key: Structure, readings: Sequence[Any]) -> bool:
        """Whether a step has this structure."""
        shapes = [(r.width, EPS[r.dtype]) for r in readings]
        return self.key == key and shapes == self._shapes

    def add(
        self,
        pages: Sequence[tuple[Record, int]],
        readings: Sequence[Any],
        inverse: Tensor | None,
    ) -> None:
        """Merge one step (Chan, Golub, LeVeque 1983).

        Args:
            pages: The columns that were read in it, in order, and how many of each page.
            readings: Its readings.
            inverse: One over the loss scale, or None.
        """
        factor = None
        if inverse is not None:
            factor = torch.where(self._gradient, inverse.to("cpu"), 1.0)
        start = 0
        for page, used in pages:
            if factor is not None:
                part = factor[start : start + used]
                page.data[1, :used] *= part
                page.data[2, :used] *= part.square()
            self._record.merge(page, used, start)
            start += used
        self._rows = [rows + r.rows for rows, r in zip(self._rows, readings, strict=True)]

    def totals(self) -> Iterator[tuple[int, Moments, Tensor]]:
        """Slot, moments over all steps, and number of elements left out as not finite."""
        count, mean, m2 = self._record.data
        mean = torch.where(count > 0, mean, torch.nan)
        std = (m2 / count.clamp(min=1.0)).sqrt()
        scale = torch.maximum(mean.nan_to_num().abs(), std)
        for slot, number in zip(*self.key, strict=True):
            at = slice(self._ends[number] - self._widths[number], self._ends[number])
            moments = Moments(count[at].long(), mean[at], m2[at], self._eps[number], scale[at])
            yield slot, moments, self._rows[number] - count[at]
