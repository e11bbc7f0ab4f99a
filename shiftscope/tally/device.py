"""Moments of many tensors on a GPU in one table, read and merged by Triton kernels.

The counterpart of :mod:`shiftscope.tally.native` for tensors on a GPU: each is read once, by one
launch, and nothing ever waits for the device. Triton comes with torch's builds for GPUs; where it
is missing, or cannot compile, torch's own kernels do the same in more passes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from shiftscope.tally import native
from shiftscope.tally.launches import Launches, kernels
from shiftscope.tally.transfer import sent

__all__ = ["DeviceReader", "DeviceRecord", "Fact", "Page", "Parts", "usable"]

_FIRST = 2**15
"""Columns of the first page."""
_MERGED = (16, 32)
"""Parts and columns that a program merges at once."""
Fact = tuple[int, int, int, int]
"""First column, width and number of the parts of some neurons, and the rows that were read."""


def usable(device: torch.device) -> bool:
    """Whether Triton kernels can be tried on a device."""
    return device.type == "cuda" and find_spec("triton") is not None


class _Parts:
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

    def __init__(self, slot: int, width: int, rows: int, parts: int, dtype: int) -> None:
        self.slot, self.width, self.rows, self.parts = slot, width, rows, parts
        self.dtype, self.number, self.offset = dtype, 0, 0
        self.image: Tensor | None = None


Parts: Any = native.Parts or _Parts
"""The readings of a GPU: those of the compiled reader, or the same in Python."""


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
        self.readings: list[Any] = []


class _Books:
    """What the compiled reader does for a GPU, but for launching by itself, in Python.

    Args:
        page_of: Columns -> a page that has as many.
    """

    def __init__(self, page_of: Callable[[int], Page]) -> None:
        self.readings: list[Any] = []
        self.pages: list[Page] = []
        self._page_of, self._lock, self._busy = page_of, threading.Lock(), 0

    def look(self, x: Tensor, slot: int, kind: int, image: bool) -> None:
        """None: what is to be read is read through Triton's launcher."""

    read = look

    def reserve(self, slot: int, width: int, rows: int, parts: int, dtype: int) -> tuple[Any, Page]:
        """Columns of a page, as a reading; :meth:`done` says that they are written."""
        made, columns = _Parts(slot, width, rows, parts, dtype), parts * width
        with self._lock:
            page = self.pages[-1] if self.pages else None
            if page is None or page.used + columns > page.capacity:
                page = self._page_of(columns)
                page.used = 0
                self.pages.append(page)
            made.offset, made.number = page.used, len(self.readings)
            page.used += columns
            self.readings.append(made)
            self._busy += 1
        return made, page

    def done(self) -> None:
        """Reserved columns are written."""
        with self._lock:
            self._busy -= 1

    @property
    def used(self) -> int:
        """Columns of the last page."""
        return self.pages[-1].used if self.pages else 0

    def take(self) -> tuple[list[Any], list[Page], bool]:
        """All readings, their pages, and whether some thread still writes."""
        with self._lock:
            readings, self.readings = self.readings, []
            pages, self.pages = self.pages, []
            return readings, pages, self._busy > 0


class DeviceReader:
    """Reads the tensors of a step on one GPU into pages of columns.

    Args:
        device: The GPU.

    Attributes:
        look: ``look(tensor, slot, kind, image) -> Parts``: read a contiguous tensor by a kernel
            that was compiled in a step before, unless this thread just did so; None where it has
            to be read by :meth:`read`.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._spare: list[Page] = []
        self._size, self._reusable = [_FIRST], True
        self._launches = Launches()
        make = partial(Page, device=device)
        # Not self: the compiled reader takes no part in collecting cycles.
        page_of = partial(native.next_page, self._spare, self._size, make)
        self._books: Any = _books(device, page_of, self._launches)
        self.look, self._again = self._books.look, self._books.read

    def read(self, x: Tensor, slot: int, by_row: bool, image: bool) -> Any:
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
        known = self._again(x, slot, 0 if by_row else 1, image)
        if known is not None:
            return known
        launch = self._launches.of(x, by_row, image and not by_row)
        if launch is None:
            return None
        sizes = (launch.width, launch.rows, launch.parts, native.number_of(x.dtype))
        parts, page = self._books.reserve(slot, *sizes)
        try:
            parts.image = launch(x, x.data_ptr(), page, parts.offset)
        except BaseException:
            columns = parts.parts * parts.width  # taken, and never written
            page.data[:, parts.offset : parts.offset + columns].zero_()
            raise
        finally:
            self._books.done()
        return parts

    @property
    def used(self) -> int:
        """Columns that were read into."""
        books = self._books
        return int(sum(page.used for page in books.pages[:-1]) + books.used)

    def take(self) -> tuple[list[Any], list[Page]]:
        """Take all readings and the pages that hold them; the next step gets others."""
        readings, pages, busy = self._books.take()
        self._launches.settle()
        used = sum(page.used for page in pages)
        self._size[0] = max(_FIRST, used + used // 8)
        self._reusable = not busy
        if len(pages) == 1:
            pages[0].readings = readings
        else:
            _share_out(readings, pages)
        return readings, pages

    def give_back(self, pages: list[Page]) -> None:
        """Use a page again, unless some thread may still write to it.

        What still reads it was launched before what will write to it, on the same stream.
        """
        if len(pages) == 1 and self._reusable:
            pages[0].readings = []
            self._spare[:] = pages

    def clear(self) -> None:
        """Forget all readings."""
        self.give_back(self.take()[1])


def _share_out(readings: list[Any], pages: list[Page]) -> None:
    """Tell each page what stands in it: as many of the readings, in order, as fill it."""
    start = 0
    for page in pages:
        end, filled = start, 0
        while filled < page.used:
            filled += readings[end].width * readings[end].parts
            end += 1
        page.readings, start = readings[start:end], end


def _books(device: torch.device, page_of: Callable[[int], Page], launches: Launches) -> Any:
    if not native.built():
        return _Books(page_of)
    several = device.type == "cuda" and torch.cuda.device_count() > 1
    index = -1 if device.index is None else device.index
    image_of = partial(_image_of, device)
    return native.on_device(index, page_of, image_of, launches.native, _unwritten, several)


def _image_of(device: torch.device, width: int, run: int) -> Tensor:
    return torch.empty((width, run), dtype=torch.float64, device=device)


def _unwritten(page: Page, first: int, columns: int, error: int) -> None:
    """The driver refused a launch; if the GPU is lost, the next op of the model says so."""
    with suppress(Exception):
        page.data[:, first : first + columns].zero_()


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
