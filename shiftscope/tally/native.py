"""Moments of many tensors in one table, read and merged by compiled code on the CPU.

``torch.var_mean`` and its kin read a CPU tensor at a tenth of the speed of memory, and every torch
call costs microseconds. ``_native.c`` reads a dense tensor once and writes the moments of its
columns to a :class:`Record`. It is an optional part: where it could not be built, or for tensors it
does not take (:func:`takes`), other code does the same by torch functions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from shiftscope.errors import UsageError

try:
    from shiftscope.tally import _native
except ImportError:  # no compiler where shiftscope was installed
    _native = None  # type: ignore[assignment]

__all__ = ["CODES", "Record", "built", "read_columns", "takes"]

read_columns: Any = getattr(_native, "read", None)
"""The compiled reader itself; :meth:`Record.read` is the same with its arguments checked."""
CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
"""The dtypes it reads, by the numbers it knows them by."""


def built() -> bool:
    """Whether the compiled part is there."""
    return _native is not None


def takes(x: Tensor) -> bool:
    """Whether the compiled reader can read a tensor: real numbers in memory of the CPU."""
    kind = type(x)
    return (
        read_columns is not None
        and (kind is Tensor or kind is torch.nn.Parameter)
        and x.is_cpu
        and x.dtype in CODES
        and x.layout is torch.strided
        and not (x.is_nested or x.is_neg())
    )


class Record:
    """Count, mean and sum of squared deviations of many columns.

    Args:
        capacity: Number of columns there is room for.

    Attributes:
        data: ``[3, capacity]`` float64: count, mean (NaN where the count is 0) and m2.
        used: Columns written since the record was made or cleared.
        address: Of the data.
    """

    __slots__ = ("address", "capacity", "data", "used")

    def __init__(self, capacity: int) -> None:
        self.data = torch.zeros((3, max(1, capacity)), dtype=torch.float64)
        self.capacity, self.used = max(1, capacity), 0
        self.address = self.data.data_ptr()

    def read(
        self, x: Tensor, offset: int, rows: int, width: int, image: Tensor | None = None
    ) -> None:
        """Write the moments of the columns of a tensor.

        Elements that are not finite are left out. The spread is right to about 1e-7, also where it
        is 1e-7 of the mean or 1e-35 in size; float64 sums in float64.

        Args:
            x: A contiguous tensor that :func:`takes` accepts, seen as ``[rows, width, run]``.
            offset: Place of its first column.
            rows: Number of rows.
            width: Number of columns.
            image: ``[width, run]`` float64, contiguous, for the means over rows at each place.

        Raises:
            UsageError: ``x`` is not contiguous, or its size is none of rows of that width.
            ValueError: The record has no such columns.

        Source: Chan, Golub, LeVeque (1983).
        """
        run = x.numel() // (rows * width)
        if not run or run * rows * width != x.numel() or not x.is_contiguous():
            raise UsageError(
                f"a tensor of shape {tuple(x.shape)} is not contiguous [{rows}, {width}, run]",
                "Give x.contiguous() and its own sizes.",
            )
        place = 0
        if image is not None:
            if image.numel() != width * run or image.dtype is not torch.float64:
                raise UsageError("an image of another size", "Give [width, run] in float64.")
            place = image.data_ptr()
        _native.read(
            x.data_ptr(), CODES[x.dtype], rows, width, run,
            self.address, self.capacity, offset, place, torch.get_num_threads(),
        )  # fmt: skip

    def merge(self, other: Record, columns: int, offset: int = 0) -> None:
        """Merge the first columns of another record into those of this one, in place.

        Args:
            other: The other record.
            columns: How many of its columns.
            offset: Column of this record that its first one belongs to.

        Raises:
            UsageError: There are fewer columns.

        Source: Chan, Golub, LeVeque (1983).
        """
        if not 0 <= columns <= other.capacity or not 0 <= offset <= self.capacity - columns:
            raise UsageError(f"no {columns} columns to merge at {offset}", "Give records that fit.")
        _native.merge(
            self.address + 8 * offset, self.capacity, other.address, other.capacity, columns
        )
