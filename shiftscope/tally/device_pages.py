"""Pages of columns on a GPU, and the books of what was read into them during a step."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from shiftscope.tally import native

__all__ = ["Books", "Page", "Parts"]


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


class Books:
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
