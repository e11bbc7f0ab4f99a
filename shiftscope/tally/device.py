"""Reading the tensors of a step on a GPU into pages of columns, by Triton kernels.

The counterpart of :mod:`shiftscope.tally.native` for tensors on a GPU: each is read once, by one
launch, and nothing ever waits for the device. Triton comes with torch's builds for GPUs; where it
is missing, or cannot compile, torch's own kernels do the same in more passes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from shiftscope.tally import native
from shiftscope.tally.device_pages import Books, Page
from shiftscope.tally.launches import Launches

__all__ = ["DeviceReader", "usable"]

_FIRST = 2**15
"""Columns of the first page."""


def usable(device: torch.device) -> bool:
    """Whether Triton kernels can be tried on a device."""
    return device.type == "cuda" and find_spec("triton") is not None


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
        return Books(page_of)
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
