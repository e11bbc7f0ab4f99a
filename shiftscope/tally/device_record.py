"""Moments that many neurons gather over the steps of a window, on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from shiftscope.tally.device_pages import Page
from shiftscope.tally.launches import kernels
from shiftscope.tally.transfer import sent

__all__ = ["DeviceRecord", "Fact"]

_MERGED = (16, 32)
"""Parts and columns that a program merges at once."""
Fact = tuple[int, int, int, int]
"""First column, width and number of the parts of some neurons, and the rows that were read."""


class DeviceRecord:
    """Count, mean, sum of squared deviations and first loss of many neurons, on a GPU.

    Args:
        capacity: Number of neurons.
        device: Where.

    Attributes:
        data: ``[4, capacity]`` float64: count, mean, m2, and the first turn in which elements that
            were not finite were left out, -1 for none.
    """

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.capacity = capacity
        self.data = torch.zeros((4, capacity), dtype=torch.float64, device=device)
        self.data[3] = -1.0
        self._tables: dict[Any, tuple[Any, Tensor]] = {}

    def merge(
        self,
        page: Page | DeviceRecord,
        facts: Sequence[Fact],
        start: int = 0,
        *,
        gradient: Sequence[bool] | None = None,
        inverse: Tensor | None = None,
        drift: bool = True,
        turn: int = 0,
        key: Any = None,
    ) -> None:
        """Merge runs of columns of a page into the neurons from ``start`` on, in place.

        Args:
            page: The page, or another record.
            facts: For each run its first column, its width, how many parts of it follow, and how
                many rows were read.
            start: The neuron of this record that the first one belongs to.
            gradient: For each run whether ``inverse`` is multiplied in.
            inverse: One float64 on the device, one over the loss scale; or None.
            drift: Whether the distance of the means of record and page counts as deviation (other
                rows of the same step) or not (the rows of another step).
            turn: What is written where some of the rows were not finite for the first time.
            key: What a table of the same place is remembered by.

        Source: Chan, Golub, LeVeque (1983).
        """
        flags = [False] * len(facts) if gradient is None else gradient
        table = self._table((start, key), list(facts), flags)
        with torch.cuda.device(self.data.device) if self.data.is_cuda else nullcontext():
            self._launch(page, (start, turn), table, inverse, drift)

    def _launch(
        self,
        page: Page | DeviceRecord,
        place: tuple[int, int],
        table: Tensor,
        inverse: Tensor | None,
        drift: bool,
    ) -> None:
        columns, (start, turn) = table.shape[1], place
        kernels().merge_parts[(-(-columns // _MERGED[1]),)](
            *(self.data, self.capacity, start, page.data, page.capacity, table, columns),
            *(self.data if inverse is None else inverse, turn),
            SCALED=inverse is not None,
            DRIFT=drift,
            PARTS=_MERGED[0],
            WIDTH=_MERGED[1],
            enable_fp_fusion=True,
        )

    def _table(self, place: Any, facts: list[Fact], gradient: Sequence[bool]) -> Tensor:
        """Where the parts of each neuron stand; made anew only when they moved."""
        known = self._tables.get(place)
        if known is None or known[0] != facts:
            known = self._tables[place] = (facts, _table(facts, gradient, self.data.device))
        return known[1]


def _table(facts: Sequence[Fact], gradient: Sequence[bool], device: torch.device) -> Tensor:
    """``[5, neurons]``: first column, distance to the next part, parts, gradient, rows."""
    each = torch.tensor(
        [[*fact[:3], flag, fact[3]] for fact, flag in zip(facts, gradient, strict=True)],
        device="cpu",
    ).t()
    widths = each[1]
    table = each.repeat_interleave(widths, dim=1)
    first = (widths.cumsum(0) - widths).repeat_interleave(widths)
    table[0] += torch.arange(table.shape[1], device="cpu") - first
    return sent(table.contiguous(), device)
