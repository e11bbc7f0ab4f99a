"""Reading by compiled code: the columns of one step lie in one table, and are merged in one call.

During a step every tensor that is read takes the next free columns of a page; at its end the whole
page is merged into the accumulators of the window (:class:`Totals`), and is used again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from shiftscope.capture.readings import IMAGE, ROWS
from shiftscope.tally import Moments
from shiftscope.tally.native import CODES, Record, read_columns

__all__ = ["Columns", "CompiledReader", "Structure", "Totals"]

_EPS = {dtype: float(torch.finfo(dtype).eps) for dtype in CODES}
_FIRST = 2**14
"""Columns of the first page."""

Structure = tuple[tuple[int, ...], tuple[int, ...]]
"""Slots in order of writing, and number of the reading each one got."""


class Columns:
    """Where the moments of one tensor stand until the step ends.

    Attributes:
        number: How many readings of this step came before it.
        width: Number of neurons.
        rows: Rows behind them.
        eps: Relative spacing of the tensor's numbers.
        image: Mean over samples ``[neurons, positions]`` in float64; None where not asked for.
    """

    __slots__ = ("eps", "image", "number", "rows", "width")

    def __init__(
        self, number: int, width: int, rows: int, eps: float, image: Tensor | None
    ) -> None:
        self.number, self.width, self.rows = number, width, rows
        self.eps, self.image = eps, image


class CompiledReader:
    """Readings of the running step, and accumulators of the steps before it."""

    def __init__(self) -> None:
        self._readings: list[Columns] = []
        self._page = Record(_FIRST)
        self._full: list[Record] = []
        self._lock = threading.Lock()
        self._totals: Totals | None = None

    @property
    def used(self) -> int:
        """Columns that were read into so far."""
        return sum(page.used for page in self._pages())

    def read(self, x: Tensor, kind: int, image: bool) -> Columns:
        """Read a tensor.

        Args:
            x: A tensor with elements that the compiled reader takes.
            kind: Whether its neurons lie in the last dimension or in the second.
            image: Whether the mean over samples at each position is wanted as well.
        """
        if not x.is_contiguous():
            x, kind = _laid_out(x, kind, image)
        size, dtype = x.numel(), x.dtype
        width = x.shape[-1 if kind == ROWS else 1]
        samples = size // width if kind == ROWS else x.shape[0]
        rows, means, place = size // width, None, 0
        if image and kind == IMAGE:
            means = torch.empty((width, rows // samples), dtype=torch.float64)
            place = means.data_ptr()
        with self._lock:
            page = self._page
            offset = page.used
            if offset + width > page.capacity:
                page, offset = self._next(width), 0
            page.used = offset + width
            made = Columns(len(self._readings), width, rows, _EPS[dtype], means)
            self._readings.append(made)
        read_columns(
            *(x.data_ptr(), CODES[dtype], samples, width, rows // samples),
            *(page.address, page.capacity, offset, place, torch.get_num_threads()),
        )
        return made

    def merge(
        self,
        writes: Sequence[tuple[int, Columns]],
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
        # Not what another thread read before the last merging and wrote down after it.
        known = [(slot, r.number) for slot, r in writes if self._holds(r)]
        if known:
            slots, numbers = zip(*known, strict=True)
            key: Structure = (slots, numbers)
            totals, readings = self._totals, self._readings
            if totals is None or not totals.fits(key, readings):
                if totals is not None:
                    yield totals
                flags = [False] * len(readings)
                for slot, number in known:
                    flags[number] |= gradient[slot]
                totals = self._totals = Totals(key, readings, flags)
            totals.add(self._pages(), readings, inverse)
        self.clear()

    def clear(self) -> None:
        """Throw away what was read: all columns are free, in one page that is large enough."""
        if self._full:
            self._page = Record(2 * self.used)
            self._full.clear()
        self._page.used, self._readings = 0, []

    def close(self) -> Totals | None:
        """The accumulators of the steps so far; new ones begin."""
        totals, self._totals = self._totals, None
        return totals

    def _pages(self) -> list[Record]:
        return [*self._full, self._page]

    def _holds(self, reading: Columns) -> bool:
        number, readings = reading.number, self._readings
        return number < len(readings) and readings[number] is reading

    def _next(self, width: int) -> Record:
        self._full.append(self._page)
        self._page = Record(max(width, 2 * self._page.capacity))
        return self._page


class Totals:
    """Accumulators over the columns of all readings of a step, for steps of one structure.

    Args:
        key: The structure.
        readings: The readings of the first step.
        gradient: For each reading whether it is a gradient.
    """

    def __init__(
        self, key: Structure, readings: Sequence[Columns], gradient: Sequence[bool]
    ) -> None:
        self.key = key
        self._widths = [reading.width for reading in readings]
        self._eps = [reading.eps for reading in readings]
        self._ends = list(accumulate(self._widths))
        self._record = Record(self._ends[-1])
        self._rows = [0] * len(readings)
        flags = torch.tensor(gradient, dtype=torch.float64)
        self._gradient = flags.repeat_interleave(torch.tensor(self._widths)) > 0

    def fits(self, key: Structure, readings: Sequence[Columns]) -> bool:
        """Whether a step has this structure."""
        return self.key == key and [r.width for r in readings] == self._widths

    def add(
        self, pages: Sequence[Record], readings: Sequence[Columns], inverse: Tensor | None
    ) -> None:
        """Merge one step (Chan, Golub, LeVeque 1983).

        Args:
            pages: The columns that were read in it, in order.
            readings: Its readings.
            inverse: One over the loss scale, or None.
        """
        factor = None if inverse is None else torch.where(self._gradient, inverse, 1.0)
        start = 0
        for page in pages:
            if factor is not None:
                part = factor[start : start + page.used]
                page.data[1, : page.used] *= part
                page.data[2, : page.used] *= part.square()
            self._record.merge(page, page.used, start)
            start += page.used
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


def _laid_out(x: Tensor, kind: int, image: bool) -> tuple[Tensor, int]:
    """The tensor as the reader wants it: rows of channels as they are, all else as a copy."""
    if kind == IMAGE and not image and x.dim() in (4, 5):
        form = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
        if x.is_contiguous(memory_format=form):
            return x.movedim(1, -1), ROWS
    return x.detach().contiguous(), kind
