"""Reading on the CPU by compiled code: the columns of one step lie in one table.

During a step every tensor that is read takes the next free columns of a page; at its end the whole
page is merged into the accumulators of the window in one call, and is used again.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from shiftscope.capture.readings import IMAGE, ROWS, is_channels_last
from shiftscope.capture.totals import PagedReader, Structure, Totals
from shiftscope.tally.native import Columns, Reader, Record, short_of

__all__ = ["Columns", "CompiledReader"]


class CompiledReader(Reader, PagedReader):
    """Readings of the running step, and accumulators of the steps before it."""

    def read_copy(self, x: Tensor, slot: int, kind: int, image: bool) -> Any:
        """Read a tensor that does not lie in order; None where it cannot be read here at all."""
        if kind == IMAGE and not image and is_channels_last(x):
            return self.read(x.detach().movedim(1, -1), slot, ROWS, False)
        return self.read(x.detach().contiguous(), slot, kind, image)

    def _new(self, key: Structure, readings: Sequence[Any], gradient: Sequence[bool]) -> Totals:
        return _RecordTotals(key, readings, gradient)


class _RecordTotals(Totals):
    """Accumulators on the CPU."""

    def __init__(self, key: Structure, readings: Sequence[Any], gradient: Sequence[bool]) -> None:
        super().__init__(key, readings, gradient)
        self.record = Record(self.ends[-1] + self.grouped)
        self._step = Record(self.grouped)
        flags = torch.tensor(gradient, dtype=torch.float64, device="cpu")
        widths = torch.tensor(self.widths, device="cpu")
        self._gradient = flags.repeat_interleave(widths) > 0
        self._first: dict[int, int] = {}

    def _add(
        self,
        pages: list[tuple[Record, int]],
        readings: list[Any],
        inverse: Tensor | None,
        step: int,
    ) -> None:
        factor, start = None, 0
        if inverse is not None:
            factor = torch.where(self._gradient, inverse.to("cpu"), 1.0)
        starts = []
        for page, used in pages:
            if factor is not None:
                part = factor[start : start + used]
                page.data[1, :used] *= part
                page.data[2, :used] *= part.square()
            self.record.merge(page, used, start, drift=False)
            starts.append(start)
            start += used
        if self.groups:
            self._add_groups(starts, [page for page, _ in pages])
        for number in short_of(readings, pages):
            self._first.setdefault(number, step)

    def _first_losses(self, data: Tensor) -> Mapping[int, int]:
        return self._first

    def _add_groups(self, starts: Sequence[int], pages: Sequence[Record]) -> None:
        """Merge the readings of each group, and add them as one."""
        self._step.data.zero_()
        for group in self.groups:
            for number in group.numbers:
                first = self.ends[number] - group.width
                place = bisect_right(starts, first) - 1
                self._step.merge(pages[place], group.width, group.at, first - starts[place])
        self.record.merge(self._step, self.grouped, self.ends[-1], drift=False)
