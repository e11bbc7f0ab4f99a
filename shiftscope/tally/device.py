"""Moments of many tensors on a GPU in one table, read and merged by Triton kernels.

The counterpart of :mod:`shiftscope.tally.native` for tensors on a GPU: each is read once, by one
launch, and nothing ever waits for the device. Triton comes with torch's builds for GPUs; where it
is missing, or cannot compile, torch's own kernels do the same in more passes.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from shiftscope.tally.launches import Launch, kernels

__all__ = ["DeviceReader", "DeviceRecord", "Fact", "Page", "Parts", "usable"]

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_FIRST = 2**15
"""Columns of the first page."""
_MERGED = (16, 32)
"""Parts and columns that a program merges at once."""
_LARGEST, _LONGEST = 2**30, 2**20
"""Rows that are numbered in 32 bits, and positions of a sample that do not make too many parts."""
_KNOWN = 2**12
"""Shapes that are remembered."""

Fact = tuple[int, int, int, int]
"""First column, width and number of the parts of some neurons, and the rows that were read."""


def usable(device: torch.device) -> bool:
    """Whether Triton kernels can be tried on a device."""
    return device.type == "cuda" and find_spec("triton") is not None


class Parts:
    """Where the moments of one tensor stand: ``parts`` runs of ``width`` columns, to be merged.

    Attributes:
        slot: What it was read for.
        number: Among the readings of the step.
        width: Number of neurons.
        rows: Rows behind each.
        dtype: Number of its dtype in :data:`shiftscope.tally.native.EPS`.
        offset: Column of its page that the first part begins at.
        parts: Number of parts.
        image: Mean over samples at each position ``[width, positions]``, or None.
    """

    __slots__ = ("dtype", "image", "number", "offset", "parts", "rows", "slot", "width")

    def __init__(self, slot: int, launch: Launch, dtype: torch.dtype) -> None:
        self.slot, self.dtype = slot, _DTYPES[dtype]
        self.width, self.rows, self.parts = launch.width, launch.rows, launch.parts
        self.number = self.offset = 0
        self.image: Tensor | None = None


class Page:
    """Columns that the tensors of a step are read into.

    Attributes:
        data: ``[3, capacity]`` float64 on the device: count, mean and m2.
        address: Of the data.
        capacity: Number of columns.
        used: How many of them are taken.
        readings: What was read into it, in order.
    """

    __slots__ = ("address", "capacity", "data", "readings", "used")

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.capacity, self.used = capacity, 0
        self.data = torch.empty((3, capacity), dtype=torch.float64, device=device)
        self.address = self.data.data_ptr()
        self.readings: list[Parts] = []


class DeviceReader:
    """Reads the tensors of a step on one GPU into pages of columns.

    Args:
        device: The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.readings: list[Parts] = []
        self._pages: list[Page] = []
        self._spare: Page | None = None
        self._size = _FIRST
        self._launches: dict[Any, Launch] = {}
        self._lock = threading.Lock()
        self._under_way, self._reusable = 0, True

    def read(self, x: Tensor, slot: int, by_row: bool, image: bool) -> Parts | None:
        """Read a contiguous tensor that has elements.

        Elements that are not finite are left out. In float32 the variance is right to 2e-6, also
        where the spread is 1e-6 of the mean or 1e-43 in size; float64 is read in float64.

        Args:
            x: The tensor.
            slot: What for.
            by_row: Whether neurons lie in the last dimension; else in the second.
            image: Whether the mean over samples at each position is wanted as well.

        Returns:
            Where its moments will stand; None for a tensor that must be read otherwise.
        """
        address = x.data_ptr()
        key = (x.dtype, x.shape, by_row, image, address % 16)
        launch = self._launches.get(key)
        if launch is None:
            if not _suits(x, by_row):
                return None
            if len(self._launches) >= _KNOWN:
                self._launches.clear()
            launch = self._launches[key] = Launch(x, by_row, image)
        parts = Parts(slot, launch, x.dtype)
        with self._lock:
            page = self._page_for(parts)
            self._under_way += 1
        try:
            parts.image = launch(x, address, page, parts.offset)
        except BaseException:
            columns = parts.parts * parts.width  # taken, and never written
            page.data[:, parts.offset : parts.offset + columns].zero_()
            raise
        finally:
            with self._lock:
                self._under_way -= 1
        return parts

    @property
    def used(self) -> int:
        """Columns that were read into."""
        return sum(page.used for page in self._pages)

    def take(self) -> tuple[list[Parts], list[Page]]:
        """Take all readings and the pages that hold them; the next step gets others."""
        with self._lock:
            readings, self.readings = self.readings, []
            pages, self._pages = self._pages, []
            used = sum(page.used for page in pages)
            self._size = max(_FIRST, used + used // 8)
            self._reusable = not self._under_way
        return readings, pages

    def give_back(self, pages: list[Page]) -> None:
        """Use a page again, unless some thread may still write to it.

        What still reads it was launched before what will write to it, on the same stream.
        """
        if len(pages) == 1 and self._reusable:
            page = pages[0]
            page.used, page.readings = 0, []
            self._spare = page

    def clear(self) -> None:
        """Forget all readings."""
        self.give_back(self.take()[1])

    def _page_for(self, parts: Parts) -> Page:
        columns = parts.parts * parts.width
        page = self._pages[-1] if self._pages else None
        if page is None or page.used + columns > page.capacity:
            page, self._spare = self._spare, None
            if page is None or page.capacity < columns:
                page = Page(max(self._size, columns), self.device)
            self._pages.append(page)
        parts.offset, parts.number = page.used, len(self.readings)
        page.used += columns
        page.readings.append(parts)
        self.readings.append(parts)
        return page


def _suits(x: Tensor, by_row: bool) -> bool:
    rows = x.numel() // x.shape[-1 if by_row else 1]
    places = 1 if by_row else rows // x.shape[0]
    return x.dtype in _DTYPES and rows <= _LARGEST and places <= _LONGEST


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
    if device.type == "cuda":  # copied from pinned memory, nothing waits for the device
        return table.contiguous().pin_memory().to(device, non_blocking=True)
    return table.contiguous()
