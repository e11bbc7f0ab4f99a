"""Moments of many tensors in one table, read and merged by compiled code on the CPU.

``torch.var_mean`` and its kin read a CPU tensor at a tenth of the speed of memory, and every torch
call costs microseconds. The compiled part reads a dense tensor once and writes the moments of its
columns to a :class:`Record` (``_moments.c``); a reader keeps the books of a step (``_native.c``).
It is optional: where it could not be built, or for tensors it does not take, other code does the
same by torch functions.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from shiftscope.errors import UsageError

try:
    from shiftscope.tally import _native
except ImportError:  # no compiler where shiftscope was installed
    _native = None  # type: ignore[assignment]

__all__ = [
    "EPS",
    "Columns",
    "Counters",
    "Launch",
    "Parts",
    "Reader",
    "Record",
    "add_rows",
    "all_within",
    "built",
    "count",
    "form_of",
    "next_page",
    "number_of",
    "on_device",
    "only_type",
    "short_of",
]

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_FIRST = 2**14
"""Columns of the first page."""
EPS = tuple(float(torch.finfo(dtype).eps) for dtype in _DTYPES)
"""Relative spacing of the numbers of a dtype, by the number the compiled part knows it by."""

Columns: Any = getattr(_native, "Columns", None)
"""Where the moments of one tensor stand: ``slot, number, width, rows, dtype, image``."""


Parts: Any = getattr(_native, "Parts", None)
"""The same of a tensor on a GPU: ``parts`` runs of ``width`` columns from ``offset`` on."""
Launch: Any = getattr(_native, "Launch", None)
"""A kernel that the reader of a GPU launches by itself."""


only_type: Any = getattr(_native, "only_type", None)
all_within: Any = getattr(_native, "all_within", None)
form_of: Any = getattr(_native, "form_of", None)
add_rows: Any = getattr(_native, "add_rows", None)
"""See :mod:`shiftscope.tally.steps`, which has them in Python as well."""
Counters: Any = getattr(_native, "Counters", None)
count: Any = getattr(_native, "count", None)
"""See :mod:`shiftscope.capture.events`; likewise."""


stream_of: Any = getattr(torch._C, "_cuda_getCurrentRawStream", None)
"""The current stream of a device, as its address; what code compiled by torch itself uses."""

table: Any = getattr(Tensor, "__dlpack_c_exchange_api__", None)
"""Torch's functions by which compiled code sees where a tensor lies, since torch 2.10; None lets it
ask for one attribute after another, which gives the same at several times the cost."""


def number_of(dtype: torch.dtype) -> int:
    """The number the compiled part knows a dtype by; -1 for one that is read otherwise."""
    return _DTYPES.index(dtype) if dtype in _DTYPES else -1


def built() -> bool:
    """Whether the compiled part is there."""
    return _native is not None


class Record:
    """Count, mean and sum of squared deviations of many columns.

    Args:
        capacity: Number of columns there is room for.

    Attributes:
        data: ``[3, capacity]`` float64: count, mean (NaN where the count is 0) and m2.
        capacity: Number of columns.
        used: How many of them a reader wrote.
        address: Of the data.
    """

    __slots__ = ("address", "capacity", "data", "used")

    def __init__(self, capacity: int) -> None:
        self.capacity, self.used = max(1, capacity), 0
        self.data = torch.zeros((3, self.capacity), dtype=torch.float64, device="cpu")
        self.address = self.data.data_ptr()

    def read(
        self, x: Tensor, offset: int, rows: int, width: int, image: Tensor | None = None
    ) -> None:
        """Write the moments of the columns of a tensor.

        Elements that are not finite are left out. The variance is right to 2e-6, also where the
        spread is 1e-6 of the mean or 1e-38 in size; float64 sums in float64.

        Args:
            x: A contiguous tensor on the CPU of one of the four usual floating dtypes, seen as
                ``[rows, width, run]``.
            offset: Place of its first column.
            rows: Number of rows.
            width: Number of columns.
            image: ``[width, run]`` float64, contiguous, for the means over rows at each place.

        Raises:
            UsageError: ``x`` is not such a tensor.
            ValueError: The record has no such columns.

        Source: Chan, Golub, LeVeque (1983).
        """
        size, run = x.numel(), x.numel() // (rows * width)
        if not (
            x.is_cpu and x.dtype in _DTYPES and x.is_contiguous() and run * rows * width == size
        ):
            raise UsageError(
                f"a tensor of {x.dtype} and shape {tuple(x.shape)} is not contiguous "
                f"[{rows}, {width}, run] on the CPU",
                "Give x.contiguous() and its own sizes.",
            )
        place = 0
        if image is not None:
            if image.numel() != width * run or image.dtype is not torch.float64:
                raise UsageError("an image of another size", "Give [width, run] in float64.")
            place = image.data_ptr()
        _native.read(
            x.data_ptr(), _DTYPES.index(x.dtype), rows, width, run,
            self.address, self.capacity, offset, place, torch.get_num_threads(),
        )  # fmt: skip

    def merge(
        self, other: Record, columns: int, offset: int = 0, start: int = 0, *, drift: bool = True
    ) -> None:
        """Merge some columns of another record into those of this one, in place.

        Args:
            other: The other record.
            columns: How many of its columns.
            offset: Column of this record that the first of them belongs to.
            start: The first of them.
            drift: Whether the distance of both means counts as deviation (other rows of the same
                step) or not (the rows of another step).

        Raises:
            UsageError: There are fewer columns.

        Source: Chan, Golub, LeVeque (1983).
        """
        fits = 0 <= start <= other.capacity - columns and 0 <= offset <= self.capacity - columns
        if columns < 0 or not fits:
            raise UsageError(f"no {columns} columns to merge at {offset}", "Give records that fit.")
        _native.merge(
            *(self.address + 8 * offset, self.capacity),
            *(other.address + 8 * start, other.capacity),
            *(columns, drift),
        )


class Reader:
    """Reads the tensors of a step into pages of columns, each tensor once.

    Attributes:
        look: ``look(tensor, slot, kind, image) -> Columns``: read a contiguous tensor, unless this
            thread just did; None for one that must be read otherwise, or has no elements. ``kind``
            is 0 where neurons lie in the last dimension, 1 where they do in the second; with
            ``image`` also the mean over samples at each position.
        read: The same, in any case.
    """

    def __init__(self) -> None:
        self._spare: list[Record] = []
        self._size, self._reusable = [_FIRST], True
        spare, size = self._spare, self._size  # not self: the native reader collects no cycles
        self._native = _native.Reader(
            _DTYPES,
            torch.strided,
            (Tensor, torch.nn.Parameter),
            table,
            partial(next_page, spare, size, Record),
            lambda width, run: torch.empty((width, run), dtype=torch.float64, device="cpu"),
            torch.get_num_threads,
        )
        self.look, self.read = self._native.look, self._native.read

    @property
    def readings(self) -> list[Any]:
        """What was read since the last :meth:`take`, in order."""
        return self._native.readings

    @property
    def used(self) -> int:
        """Columns that were read into."""
        return sum(used for _, used in self.pages())

    def pages(self) -> list[tuple[Record, int]]:
        """The records that hold the columns of all readings, in order, and how many of each."""
        pages = self._native.pages
        return [(page, page.used) for page in pages[:-1]] + [
            (page, self._native.used) for page in pages[-1:]
        ]

    def take(self) -> tuple[list[Any], list[tuple[Record, int]]]:
        """Take all readings and the pages that hold their columns; the next step gets others.

        In one piece, whatever other threads read meanwhile.
        """
        readings, pages, busy = self._native.take()
        taken = [(page, page.used) for page in pages]
        self._size[0] = max(_FIRST, 2 * sum(used for _, used in taken))
        self._reusable = not busy
        return readings, taken

    def give_back(self, pages: list[tuple[Record, int]]) -> None:
        """Use the page that was taken last again, unless some thread may still write to it."""
        if len(pages) == 1 and self._reusable:
            self._spare[:] = [pages[0][0]]

    def clear(self) -> None:
        """Forget all readings."""
        self.give_back(self.take()[1])


def short_of(readings: list[Any], pages: list[tuple[Record, int]]) -> list[int]:
    """Numbers of the readings of which elements were left out as not finite.

    Args:
        readings: All readings of a step, in order.
        pages: The records that hold their columns, in order, and how many of each.
    """
    found: list[int] = _native.short_of(readings, [(page.address, used) for page, used in pages])
    return found


def on_device(
    index: int, page_of: Any, image_of: Any, launch_of: Any, failed: Any, several: bool
) -> Any:
    """The compiled reader of a GPU, which launches the kernels that read.

    Args:
        index: Number of the GPU.
        page_of: Columns -> a page that has as many.
        image_of: Memory for a mean image of some shape.
        launch_of: Tensor, dtype, kind, image -> :data:`Launch`, or None where Python has to read.
        failed: Page, first column, columns, error of the driver: they were not written.
        several: Whether there are other GPUs, one of which may be the current one.
    """
    current = torch._C._cuda_getDevice if several else None
    return _native.Reader(
        *(_DTYPES, torch.strided, (Tensor, torch.nn.Parameter), table, page_of, image_of, int),
        (index, launch_of, stream_of, current, failed),
    )


def next_page(spare: list[Any], size: list[int], make: Callable[[int], Any], width: int) -> Any:
    """A page that was used before, if it is large enough, or a new one."""
    with suppress(IndexError):  # another thread may take the last one
        while spare:
            page = spare.pop()
            if page.capacity >= width:
                return page
    return make(max(size[0], width))
