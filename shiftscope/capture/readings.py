"""One read of a tensor: mean and variance of each neuron, by torch's fastest stable kernel.

``torch.batch_norm_update_stats`` reads ``[rows, columns]`` at memory speed in two passes (mean,
then squares about it), which ``torch.var_mean`` does not. Its sums run in the tensor's own
precision, so long columns are cut into short ones that are merged by the law of total variance, and
what the cut cannot mend is told by :attr:`Reading.error`.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    *("IMAGE", "OTHER", "RAW", "ROWS", "Reading", "is_channels_last", "kind_of", "read"),
    *("read_centred", "width_of"),
]

ROWS, IMAGE, OTHER = 0, 1, 2
"""Neurons in the last dimension; in dimension 1 of three or more; anywhere else."""

RAW = math.sqrt(1e-3) / 10
"""The error that plain sums are given: they are doubted where the variance is below a thousandth of
the squared mean."""

_CHUNK = 128
_CACHE = 2**20
"""Bytes that are looked at twice while they lie in the second-level cache."""
_MANY_POSITIONS = 64
_FEW_SAMPLES = 8
_HALVES = (torch.float16, torch.bfloat16)


class Reading(NamedTuple):
    """Mean and variance of the columns of one tensor, on its device.

    Attributes:
        mean: ``[neurons]``.
        variance: ``[neurons]`` population variance.
        rows: Rows behind them.
        error: Relative rounding of the mean (an upper bound of what was seen).
        eps: Relative spacing of the tensor's numbers.
        image: Mean over samples ``[neurons, positions]``; None for rows.
        gain: Power of two by which the tensor was multiplied, so that squares do not underflow.
    """

    mean: Tensor
    variance: Tensor
    rows: int
    error: float
    eps: float
    image: Tensor | None = None
    gain: float = 1.0


def kind_of(tensor: Tensor, dim: int) -> int:
    """How the neurons lie in a tensor: :data:`ROWS`, :data:`IMAGE` or :data:`OTHER`."""
    place = dim % max(1, tensor.dim())
    if place == tensor.dim() - 1:
        return ROWS
    return IMAGE if place == 1 else OTHER


def width_of(tensor: Tensor, kind: int) -> int:
    """Number of neurons of a tensor."""
    return tensor.shape[-1 if kind == ROWS else 1]


def read(tensor: Tensor, kind: int, *, image: bool = False) -> Reading:
    """Mean and variance of each neuron of a dense, detached float tensor that has rows.

    Args:
        tensor: The tensor.
        kind: :data:`ROWS` or :data:`IMAGE`.
        image: Whether the mean over samples at each position is wanted as well.
    """
    if kind == ROWS:
        flat = tensor if tensor.dim() == 2 else tensor.reshape(-1, tensor.shape[-1])
        rows = flat.shape[0]
        if rows <= _CHUNK:
            mean, variance = _kernel(flat)
            return Reading(mean, variance, rows, _error(rows, tensor.dtype), _eps(tensor.dtype))
        mean, variance, short = _long(flat)
        return Reading(mean, variance, rows, _error(short, tensor.dtype), _eps(tensor.dtype))
    return _image(tensor, image)


def read_centred(tensor: Tensor, kind: int) -> Reading:
    """The same of a tensor whose spread is tiny beside its mean: the first row is taken off.

    Differences of near numbers are exact, and the mean of the differences is no larger than
    ``sqrt(rows)`` times their spread, so that nothing is left to be doubted.
    """
    values = tensor.float() if tensor.dtype in _HALVES else tensor
    if kind == ROWS:
        flat = values if values.dim() == 2 else values.reshape(-1, values.shape[-1])
        first = flat[0]
        made = read(flat - first, ROWS)
    else:
        first = values.flatten(2)[0, :, 0]
        made = read(values - first.view(1, -1, *(1 for _ in values.shape[2:])), kind)
    return made._replace(mean=made.mean + first, error=0.0, eps=_eps(tensor.dtype), image=None)


def _image(tensor: Tensor, image: bool) -> Reading:
    samples, width = tensor.shape[0], tensor.shape[1]
    rows = tensor.numel() // width
    if not image and rows // samples >= _MANY_POSITIONS and tensor.is_contiguous():
        return _sums(tensor)
    if samples < _FEW_SAMPLES:
        # Too few samples to be columns: the kernel's own loop over channels sums in double.
        mean, variance = _kernel(tensor)
        means = tensor.mean(dim=0, dtype=torch.float64).reshape(width, -1) if image else None
        return Reading(mean, variance, rows, _error(1, tensor.dtype), _eps(tensor.dtype), means)
    last = not tensor.is_contiguous() and is_channels_last(tensor)
    flat = (tensor.movedim(1, -1) if last else tensor).reshape(samples, -1)
    short = samples
    if samples <= _CHUNK:
        means, variances = _kernel(flat)
    else:
        means, variances, short = _long(flat)
    means, variances = (_channels(t, width, last) for t in (means, variances))
    mean = means.mean(dim=1)
    spread = torch.linalg.vector_norm(means - mean.unsqueeze(1), dim=1)
    variance = variances.mean(dim=1).add_(spread.square_(), alpha=1.0 / means.shape[1])
    return Reading(mean, variance, rows, _error(short, tensor.dtype), _eps(tensor.dtype), means)


def _sums(tensor: Tensor) -> Reading:
    """Plain sums and norms of each image of each channel: fast, and doubted beside a large mean.

    Sums run over one image in single precision and over images in double. A variance below a
    thousandth of the squared mean has lost more than that share of its digits to cancellation.
    """
    flat = tensor.flatten(2)
    samples, width, positions = flat.shape
    at_once = samples
    if flat.device.type == "cpu":
        at_once = max(1, _CACHE // (width * positions * flat.element_size()))
    dtype = torch.float32 if flat.dtype in _HALVES else flat.dtype
    sums, norms = flat.new_empty((2, samples, width), dtype=dtype)
    for start in range(0, samples, at_once):  # the second look finds the piece in the cache
        part = flat[start : start + at_once]
        torch.sum(part, 2, dtype=dtype, out=sums[start : start + at_once])
        torch.linalg.vector_norm(part, dim=2, dtype=dtype, out=norms[start : start + at_once])
    rows = samples * positions
    mean = sums.sum(dim=0, dtype=torch.float64).div_(rows)
    square = norms.double().square_().sum(dim=0).div_(rows)
    variance = square.sub_(mean.square()).clamp_(min=0.0)
    return Reading(mean.to(dtype), variance.to(dtype), rows, RAW, _eps(tensor.dtype))


def _channels(flat: Tensor, width: int, last: bool) -> Tensor:
    return flat.view(-1, width).t().contiguous() if last else flat.view(width, -1)


def is_channels_last(tensor: Tensor) -> bool:
    """Whether the channels of every position of images or volumes lie side by side."""
    if tensor.dim() not in (4, 5):
        return False
    form = torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d
    return tensor.is_contiguous(memory_format=form)


def _long(flat: Tensor) -> tuple[Tensor, Tensor, int]:
    """Moments of many rows, and the length of the columns that were summed in one go."""
    rows, width = flat.shape
    pieces = _pieces(rows)
    if pieces == 1:
        return *_kernel(flat), rows
    means, variances = _kernel(flat.reshape(rows // pieces, pieces * width))
    means, variances = means.view(pieces, width), variances.view(pieces, width)
    if pieces <= _CHUNK:
        mean, between = _kernel(means)
        longest = max(rows // pieces, pieces)
    else:
        mean, between, inner = _long(means)
        longest = max(rows // pieces, inner)
    return mean, variances.mean(dim=0).add_(between), longest


@lru_cache(maxsize=4096)
def _pieces(rows: int) -> int:
    """A power of two that cuts the rows into equal parts of about a chunk."""
    pieces = 1
    while rows // pieces > _CHUNK and rows % (2 * pieces) == 0:
        pieces *= 2
    return pieces


def _kernel(flat: Tensor) -> tuple[Tensor, Tensor]:
    if flat.dtype in _HALVES and flat.device.type == "cpu":
        # The results would be rounded to half precision; the running averages are not.
        rows = flat.numel() // flat.shape[1]
        if rows == 1:
            return flat.reshape(-1).float(), torch.zeros(flat.shape[1])
        mean, unbiased = torch.zeros(flat.shape[1]), torch.zeros(flat.shape[1])
        torch.batch_norm_update_stats(flat, mean, unbiased, 1.0)
        return mean, unbiased.mul_((rows - 1) / rows)
    result: tuple[Tensor, Tensor] = torch.batch_norm_update_stats(flat, None, None, 1.0)
    return result


@lru_cache(maxsize=64)
def _eps(dtype: torch.dtype) -> float:
    return float(torch.finfo(dtype).eps)


@lru_cache(maxsize=4096)
def _error(rows: int, dtype: torch.dtype) -> float:
    """Relative rounding of the mean of so many nearly equal numbers that are summed in turn.

    Adding one number again and again rounds the same way each time while the sum keeps its
    exponent: rows/9 eps were seen at 2^15 rows, rows/21 at 2^10, rows/35 at 2^7.
    """
    steps = max(2.0, rows / 8 if rows > 2048 else rows / 16)
    return steps * _eps(torch.float32 if dtype in _HALVES else dtype)
