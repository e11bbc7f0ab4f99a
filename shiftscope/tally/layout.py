"""How a tensor of any layout is read as rows of neurons, a block at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isfinite, prod

import torch
from torch import Tensor

from shiftscope.errors import MeasureError, UsageError

__all__ = ["Layout", "known_finite", "over_rows"]

_CPU_BLOCK = 1 << 16
"""Elements of a block on the CPU: its float64 copy (512 KB) stays in the second-level cache."""
_DEVICE_BLOCK = 1 << 20
"""Elements of a block elsewhere: few launches, and 8 MB for each of four float64 temporaries."""
_FEW = 64
_REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Layout:
    """A tensor seen as [before, neurons, after]; row number = before · len(after) + after.

    Args:
        values: The tensor, of one of the four usual floating dtypes.
        dim: Its dimension of neurons, not negative.
        eps: Relative spacing of the source's numbers (0 for integers).
    """

    values: Tensor
    dim: int
    eps: float

    @classmethod
    def of(cls, x: Tensor, feature_dim: int = -1) -> Layout:
        """See `x` as rows of neurons.

        Args:
            x: Any tensor of real numbers with at least one dimension.
            feature_dim: The dimension of the neurons; all others are rows.

        Returns:
            The layout; other dtypes than the four usual floating ones are converted.

        Raises:
            UsageError: There is no such dimension, or it is empty.
            MeasureError: The tensor is complex, sparse or quantised.
        """
        _check(x, feature_dim)
        x = x.detach()
        eps = torch.finfo(x.dtype).eps if x.dtype.is_floating_point else 0.0
        if x.dtype not in _REAL:
            x = x.to(torch.float32 if x.dtype.is_floating_point else torch.float64)
        return cls(x, feature_dim % x.ndim, float(eps))

    @property
    def neurons(self) -> int:
        """Number of neurons."""
        return self.values.shape[self.dim]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return prod(self.values.shape) // self.neurons

    def blocks(self) -> Iterator[Tensor]:
        """Pieces [before, neurons, after] of bounded size that cover all rows."""
        for piece in self._pieces():
            for before, after in _spans(piece):
                yield piece[before, :, after]

    def weighted_blocks(self, weights: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The blocks, each with its rows' weights.

        Args:
            weights: One weight for each row, in any shape of that many elements.

        Yields:
            (block, weights [before, 1, after] in float64).
        """
        left = weights.detach().reshape(-1)
        for piece in self._pieces():
            number = piece.shape[0] * piece.shape[2]
            table, left = left[:number].reshape(-1, 1, piece.shape[2]), left[number:]
            for before, after in _spans(piece):
                yield piece[before, :, after], table[before, :, after].double()

    def take(self, row_numbers: Tensor) -> Tensor:
        """Copy of some rows.

        Args:
            row_numbers: [k] int64 row numbers on the values' device.

        Returns:
            [k, neurons].
        """
        last = self.values.movedim(self.dim, -1)
        if last.ndim == 1:
            return last[None].index_select(0, row_numbers)
        at: list[Tensor] = []
        for size in reversed(last.shape[1:-1]):
            at.insert(0, row_numbers.remainder(size))
            row_numbers = row_numbers.div(size, rounding_mode="floor")
        return last[(row_numbers, *at)]

    def _pieces(self) -> Iterator[Tensor]:
        """The whole as one view [before, neurons, after], or copies of slices where none fits."""
        x, dim = self.values, self.dim
        whole = _view(x, dim)
        if whole is not None:
            yield whole
        elif dim == 0:
            yield x.reshape(1, x.shape[0], -1)
        else:
            for part in x.split(max(1, _limit(x) // max(1, prod(x.shape[1:])))):
                yield part.reshape(prod(part.shape[:dim]), x.shape[dim], -1)


def over_rows(block: Tensor, reduction: Callable[..., Tensor]) -> Tensor:
    """Reduce a block to one number for each neuron.

    Args:
        block: [before, neurons, after].
        reduction: `torch.sum`, `torch.amin` or `torch.amax`.

    Returns:
        [neurons].
    """
    before, _, after = block.shape
    if after == 1 or before == 1:
        return reduction(block, 2 if before == 1 else 0).flatten()
    if after < _FEW:  # short runs are slow to reduce: add whole samples first
        return reduction(reduction(block, 0), 1)
    return reduction(reduction(block, 2), 0)


def known_finite(values: Tensor) -> bool:
    """Whether all values are known to be finite.

    Args:
        values: Any numbers.

    Returns:
        False also where nobody knows: on a GPU, which is not waited for, and where a sum overflows.
    """
    return values.is_cpu and isfinite(float(values.sum()))


def _view(x: Tensor, dim: int) -> Tensor | None:
    shape = x.shape
    before, after = prod(shape[:dim]), prod(shape[dim + 1 :])
    last = x.movedim(dim, -1)
    wanted = [(x, (before, shape[dim], after)), (last, (before * after, shape[dim], 1))]
    if last.stride(-1) == 1:  # channels-last: rows of neurons lie in memory as they are wanted
        wanted.reverse()
    for tensor, three in wanted:
        try:
            return tensor.view(three)
        except RuntimeError:
            continue
    return None


def _limit(x: Tensor) -> int:
    return _CPU_BLOCK if x.device.type == "cpu" else _DEVICE_BLOCK


def _spans(piece: Tensor) -> Iterator[tuple[slice, slice]]:
    before, neurons, after = piece.shape
    wide = max(1, min(after, _limit(piece) // neurons))
    tall = max(1, _limit(piece) // (neurons * wide))
    for start in range(0, before, tall):
        for left in range(0, after, wide):
            yield slice(start, start + tall), slice(left, left + wide)


def _check(x: Tensor, feature_dim: int) -> None:
    if x.is_complex() or x.is_quantized or x.layout is not torch.strided or x.is_nested:
        raise MeasureError(
            f"cannot record a tensor of dtype {x.dtype} and layout {x.layout}",
            "Give dense real numbers; take .abs() of complex and .to_dense() of sparse ones.",
        )
    if not -x.ndim <= feature_dim < x.ndim:
        raise UsageError(
            f"feature_dim {feature_dim} is not a dimension of a tensor of shape {tuple(x.shape)}",
            "Give at least one dimension, and name the one that counts the neurons.",
        )
    if x.shape[feature_dim] == 0:
        raise UsageError(
            f"a tensor of shape {tuple(x.shape)} has no neurons along dimension {feature_dim}",
            "Give a tensor with at least one neuron.",
        )
