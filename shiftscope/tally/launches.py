"""How a tensor on a GPU is cut into tiles, and how its kernel is launched at little cost.

A launch through Triton binds and hashes its arguments anew each time, which costs more than the
kernel runs for most layers. A :class:`Launch` is made once for tensors of one shape; from its
second call on it runs the compiled kernel with the addresses alone, and from the next step on the
compiled reader does so by itself (:mod:`shiftscope.tally.driver`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from shiftscope.tally.driver import by_driver
from shiftscope.tally.native import number_of, stream_of

__all__ = ["Launch", "Launches", "kernels"]

_THREADS = 64
"""Threads of a program."""
_LOADS = {8: (2, 8), 4: (4, 8), 2: (4, 16)}
"""Elements of a load, and loads of a thread that are on their way at once, by bytes an element:
loads of 8 elements would need registers that more programs can use better."""
_LINE = 64
"""Columns of a tile: a whole number of cache lines for each row."""
_PROGRAMS = 1024
"""Programs that keep a GPU busy; more of them would only make more parts to merge."""
_MOST_PARTS, _FEWEST_ROWS = 256, 128
"""Parts of a tensor, and rows of each: what is written stays far below what is read."""

_LARGEST, _LONGEST = 2**30, 2**20
"""Rows that are numbered in 32 bits, and positions of a sample that do not make too many parts."""
_KNOWN = 2**12
"""Shapes that are remembered."""


def kernels() -> Any:
    """The module of the kernels; Triton is imported with it."""
    from shiftscope.tally import triton_kernels

    return triton_kernels


class Launch:
    """Reads tensors of one dtype, shape and alignment.

    Args:
        x: The first of them, contiguous.
        by_row: Whether neurons lie in the last dimension; else in the second.
        image: Whether the mean over samples at each position is wanted as well.

    Attributes:
        width: Number of neurons.
        rows: Rows behind each.
        parts: Runs of columns that are written, to be merged.
        places: Shape of the mean image; None without.
        native: The same for the compiled reader; None where it cannot launch it, or not yet.
    """

    def __init__(self, x: Tensor, by_row: bool, image: bool) -> None:
        self.native: Any = None
        self._form = (tuple(x.shape), (number_of(x.dtype), int(not by_row), int(image)))
        self._residue = x.data_ptr() % 16
        self.width = x.shape[-1 if by_row else 1]
        self.rows = x.numel() // self.width
        self.places: tuple[int, int] | None = None
        run = 1 if by_row else self.rows // x.shape[0]
        self._by_row = by_row or (run == 1 and not image)
        if self._by_row:
            self._columns(x)
        else:
            self._images(x, run, image)
        self._index = x.device.index
        self._elsewhere = x.is_cuda and torch.cuda.device_count() > 1
        self._rest = self._sizes
        self._made: Any = None
        self._compiled: Any = None

    def _columns(self, x: Tensor) -> None:
        width = min(_LINE, max(8, _power(self.width)))
        height, unroll, down = _cut(x, width, self.rows)
        across = -(-self.width // width)
        self.parts = _shares(down, across, self.rows)
        self._kernel, self._grid = kernels().read_columns, (across, self.parts, 1)
        self._sizes: tuple[Any, ...] = (
            *(self.rows, self.width, self.parts),
            *(height, width, unroll, x.dtype is torch.float64),
        )

    def _images(self, x: Tensor, run: int, image: bool) -> None:
        samples = x.shape[0]
        width = min(_tile(x), _power(run))
        height, unroll, down = _cut(x, width, samples)
        across = -(-run // width)
        deep = 1 if image else _shares(down, across * self.width, self.rows)
        self.parts = across * deep
        if image:
            self.places = (self.width, run)
        self._kernel, self._grid = kernels().read_images, (self.width, across, deep)
        self._sizes = (
            *(samples, self.width, run, deep),
            *(image, height, width, unroll, x.dtype is torch.float64),
        )

    def __call__(self, x: Tensor, address: int, page: Any, offset: int) -> Tensor | None:
        """Launch the kernel on the device's current stream.

        Args:
            x: The tensor.
            address: Of its first element.
            page: Where the moments of each part go; has ``data`` ``[3, columns]``, ``address``.
            offset: The first column to be written.

        Returns:
            The mean image, if one was asked for.
        """
        image = None
        if self.places is not None:
            image = torch.empty(self.places, dtype=torch.float64, device=x.device)
        if self._elsewhere and self._index != torch.cuda.current_device():
            with torch.cuda.device(self._index):
                self._run(x, address, page, offset, image)
        else:
            self._run(x, address, page, offset, image)
        return image

    def _run(self, x: Tensor, address: int, page: Any, offset: int, image: Tensor | None) -> None:
        compiled = self._compiled
        if compiled is None:
            into = () if self._by_row else (page.data if image is None else image,)
            made = self._kernel[self._grid](
                *(x, page.data, *into, page.capacity, offset, *self._sizes),
                num_warps=_THREADS // 32,
                enable_fp_fusion=True,
            )
            if made is not None:  # None from Triton's interpreter
                self._rest = self._passed(made)
                self._made, self._compiled = made, made[self._grid]
            return
        stream = stream_of(self._index)
        if self._by_row:
            compiled(address, page.address, page.capacity, offset, *self._rest, stream=stream)
        else:
            place = page.address if image is None else image.data_ptr()
            rest = (page.capacity, offset, *self._rest)
            compiled(address, page.address, place, *rest, stream=stream)

    def _passed(self, made: Any) -> tuple[Any, ...]:
        """Sizes that the launcher of a compiled kernel takes: before Triton 3.3 no constants."""
        names = self._kernel.arg_names[-len(self._sizes) :]
        known = made.src.signature
        return tuple(s for name, s in zip(names, self._sizes, strict=True) if name in known)

    def settle(self) -> None:
        """Let the compiled reader launch the kernel from now on, if it was compiled and it can."""
        if self._made is not None and self.native is None:
            names = self._kernel.arg_names[-len(self._sizes) :]
            known = dict(zip(names, self._sizes, strict=True))
            run = 1 if self.places is None else self.places[1]
            extent = (self.width, self.rows, self.parts, run)
            form = (*self._form, self._residue, extent)
            self.native = by_driver(self._made, self._grid, known, form)


class Launches:
    """The launches of a GPU, by the form of the tensors that they read."""

    def __init__(self) -> None:
        self._known: dict[Any, Launch] = {}
        self._new: list[Launch] = []

    def of(self, x: Tensor, by_row: bool, image: bool) -> Launch | None:
        """The one for a contiguous tensor; None for a tensor that must be read otherwise."""
        key = (x.dtype, x.shape, by_row, image, x.data_ptr() % 16)
        launch = self._known.get(key)
        if launch is None and _suits(x, by_row):
            if len(self._known) >= _KNOWN:
                self._known.clear()
            launch = self._known[key] = Launch(x, by_row, image)
            self._new.append(launch)
        return launch

    def native(self, x: Tensor, dtype: int, kind: int, image: int) -> Any:
        """What the compiled reader asks for a tensor: one of a step before."""
        known = self._known.get((x.dtype, x.shape, kind == 0, image == 1, x.data_ptr() % 16))
        return None if known is None else known.native

    def settle(self) -> None:
        """A step has ended. Within a step all tensors of one form are read in one way."""
        if self._new:
            new, self._new = self._new, []
            for launch in new:
                launch.settle()


def _suits(x: Tensor, by_row: bool) -> bool:
    rows = x.numel() // x.shape[-1 if by_row else 1]
    places = 1 if by_row else rows // x.shape[0]
    return number_of(x.dtype) >= 0 and rows <= _LARGEST and places <= _LONGEST


def _tile(x: Tensor) -> int:
    """Elements of a tile: what a program loads at once."""
    return _THREADS * _LOADS[x.element_size()][0]


def _cut(x: Tensor, width: int, rows: int) -> tuple[int, int, int]:
    """Rows of a tile, tiles on their way at once, and how many such turns all rows need.

    The last turn is read more slowly if rows do not fill it: it should be a small share.
    """
    height = max(1, _tile(x) // width)
    tiles = -(-rows // height)
    unroll = min(_LOADS[x.element_size()][1], _power(tiles))
    while unroll > 4 and rows % (height * unroll) > rows // 4:
        unroll //= 2
    return height, unroll, -(-rows // (height * unroll))


def _shares(tiles: int, programs: int, rows: int) -> int:
    """Programs that share the tiles of a column."""
    most = min(tiles, _MOST_PARTS, _PROGRAMS // programs, rows // _FEWEST_ROWS)
    return max(1, most)


def _power(number: int) -> int:
    """The next power of two."""
    return 1 << max(0, number - 1).bit_length()
