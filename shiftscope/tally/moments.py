"""Count, mean and sum of squared deviations of each neuron."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from shiftscope.errors import UsageError
from shiftscope.tally.base import Tally
from shiftscope.tally.layout import Layout, over_rows

__all__ = ["Moments", "Pooled"]

_PIVOT_ROWS = 4
"""Samples, and positions of each, that are searched for a finite pivot."""
_JOIN: tuple[Callable[..., Tensor], ...] = (
    torch.add,
    torch.add,
    torch.add,
    torch.minimum,
    torch.maximum,
)
"""How number, Σd, Σd², smallest and largest d of two blocks join."""
_ROUNDINGS = 4.0
"""A spread below so many eps·max|x| is called rounding. One rounding to nearest of values around m
has a standard deviation of at most eps·|m|/√12 = 0.29 eps·|m|, so 4 leaves room for about 190
independent ones: the sums inside a layer (collapsed float32 layers measure 0.7 to 1). At the bound
a single rounding makes up 0.5 % of the variance."""
_TINY = {torch.finfo(t).eps: torch.finfo(t).tiny for t in (torch.float16, torch.float32)}
_TINY |= {torch.finfo(t).eps: torch.finfo(t).tiny for t in (torch.bfloat16, torch.float64)}
"""eps -> smallest normal number of the dtype it belongs to."""


@dataclass(frozen=True, eq=False)
class Pooled:
    """Variance over rows and neurons together, split by the law of total variance.

    Args:
        within: Mean over neurons of the variances over rows; NaN if nothing was recorded.
        between: Variance over neurons of the means over rows.
        total: Their sum.
        shift_share_raw: between / total; NaN where the total is 0.
        shift_share: The same after the part of `between` that sampling explains (mean of V/n) is
            taken off, not below 0; NaN where no neuron has two rows.
    """

    within: Tensor
    between: Tensor
    total: Tensor
    shift_share_raw: Tensor
    shift_share: Tensor


@dataclass(frozen=True, eq=False)
class Moments(Tally):
    """First two moments of each neuron; elements that are not finite are left out.

    Args:
        count: [neurons] int64 number of finite elements.
        mean: [neurons] float64; NaN where the count is 0.
        m2: [neurons] float64 sum of squared deviations from the mean.
        eps: Relative spacing of the coarsest source dtype seen; 0 for none.
        scale: [neurons] float64 largest finite |x|, or larger: the size of what was rounded.
    """

    count: Tensor
    mean: Tensor
    m2: Tensor
    eps: float
    scale: Tensor

    @classmethod
    def empty(cls, neurons: int, device: torch.device | str = "cpu") -> Moments:
        """The tally of no rows.

        Args:
            neurons: Number of neurons.
            device: Where the tensors are to lie.

        Returns:
            The identity of `merge`.
        """
        zeros = torch.zeros(neurons, dtype=torch.float64, device=device)
        return cls(zeros.long(), torch.full_like(zeros, torch.nan), zeros, 0.0, zeros)

    @classmethod
    def of(cls, x: Tensor, feature_dim: int = -1, weights: Tensor | None = None) -> Moments:
        """Tally the rows of a tensor.

        Differences to a row of the data are summed in float64, so that a spread of 1e-5 of the
        mean, or values of 1e-35, keep their digits.

        Args:
            x: Rows of any real dtype; all dimensions but `feature_dim` are rows.
            feature_dim: The dimension of the neurons.
            weights: How often each row counts: whole numbers, of x's shape without `feature_dim`
                (a padding mask, for instance). Once each if left out.

        Returns:
            The tally, on the device of `x`.

        Raises:
            UsageError: `x` has no neurons along `feature_dim`, or the weights do not fit.
            MeasureError: `x` is complex or sparse.

        Source: Chan, Golub, LeVeque, "Algorithms for computing the sample variance" (1983).
        """
        layout = Layout.of(x, feature_dim)
        if layout.rows == 0:
            return cls.empty(layout.neurons, x.device)
        if weights is not None and weights.numel() != layout.rows:
            raise UsageError(
                f"{weights.numel()} weights for {layout.rows} rows",
                "Give one weight for each row: the shape of x without its feature dimension.",
            )
        return _moments(layout, weights)

    def merge(self, other: Moments) -> Moments:
        """The tally of both streams of rows.

        Args:
            other: A tally of the same neurons on the same device.

        Returns:
            Their merger.

        Raises:
            UsageError: The numbers of neurons differ.

        Source: Chan, Golub, LeVeque (1983).
        """
        return self._put_together(other, drift=True)

    def join(self, other: Moments) -> Moments:
        """The average over two stretches of a training run, each weighted by its rows.

        Between them the weights have moved. How far the means moved along is no answer of a neuron
        to its inputs: unlike in `merge`, it does not count as variance.

        Args:
            other: The tally of the same neurons at other steps, on the same device.

        Returns:
            Mean and variance are the weighted averages of both.

        Raises:
            UsageError: The numbers of neurons differ.
        """
        return self._put_together(other, drift=False)

    def _put_together(self, other: Moments, *, drift: bool) -> Moments:
        self._check_fits(other, self.mean, other.mean)
        count = self.count + other.count
        share = other.count.double() / count.clamp(min=1)
        step = torch.where(self.count == 0, 0.0, other.mean - self.mean)
        step = torch.where(other.count == 0, 0.0, step)
        start = torch.where(self.count == 0, other.mean, self.mean)
        m2 = self.m2 + other.m2
        if drift:
            m2 = m2 + step.square() * share * self.count
        scale = torch.maximum(self.scale, other.scale)
        return Moments(count, start + step * share, m2, max(self.eps, other.eps), scale)

    @property
    def variance(self) -> Tensor:
        """[neurons] population variance (ddof 0), NaN where nothing was counted."""
        return self.m2 / torch.where(self.count == 0, torch.nan, self.count.double())

    @property
    def std(self) -> Tensor:
        """[neurons] square root of `variance`."""
        return self.variance.sqrt()

    @property
    def std_error(self) -> Tensor:
        """[neurons] standard error √(V/n) of the mean, for independent rows."""
        return (self.variance / self.count).sqrt()

    @property
    def below_resolution(self) -> Tensor:
        """[neurons] whether the spread cannot be told from rounding of the source.

        So where the standard deviation is below 4 eps·max|x|, or where no value exceeds the
        smallest normal number of the dtype. Neurons that are exactly 0, or that were never
        counted, are not flagged.
        """
        coarse = self.std < _ROUNDINGS * self.eps * self.scale
        subnormal = self.scale <= _TINY.get(self.eps, 0.0)
        return (coarse | subnormal) & (self.scale > 0)

    def pooled(self) -> Pooled:
        """Split the variance over rows and neurons into its two parts.

        Every neuron that was counted weighs the same.

        Returns:
            The parts and the shift share as scalars on the tally's device.

        Source: law of total variance; the shift is Kutsuna (ECML-PKDD 2019), Definition 2.
        """
        seen = self.count > 0
        within, center = _mean(self.variance, seen), _mean(self.mean, seen)
        between = _mean((self.mean - center).square(), seen)
        corrected = (between - _mean(self.std_error.square(), seen)).clamp(min=0)
        raw, share = (part / (within + part) for part in (between, corrected))
        share = torch.where((self.count > 1).any(), share, torch.nan)
        return Pooled(within, between, within + between, raw, share)


def _moments(layout: Layout, weights: Tensor | None) -> Moments:
    if weights is None:
        sums = _plain_sums(layout)
    else:
        sums = _weighted_sums(layout, weights.detach().reshape(-1))
    number, first, second, pivot, low, high = sums
    safe, seen = number.clamp(min=1), number > 0
    mean = torch.where(seen, pivot + first / safe, torch.nan)
    m2 = (second - first * first / safe).clamp(min=0)
    # Left-out elements stand at the pivot, which is an element itself (0 where none is finite).
    scale = torch.maximum((pivot + low).abs(), (pivot + high).abs())
    return Moments(number.long(), mean, m2, layout.eps, torch.where(seen, scale, 0.0))


def _plain_sums(layout: Layout) -> list[Tensor]:
    """[neurons] number, Σd, Σd² of the finite d = x − pivot, pivot, smallest and largest d."""
    blocks = layout.blocks()
    start = next(blocks)
    pivot = _pivot(start[:_PIVOT_ROWS, :, :_PIVOT_ROWS])
    total = _block_sums(start, pivot)
    for block in blocks:
        part = _block_sums(block, pivot)
        total = [op(x, y) for op, x, y in zip(_JOIN, total, part, strict=True)]
    number, first, second, low, high = total
    return [number, first, second, pivot, low, high]


def _block_sums(block: Tensor, pivot: Tensor) -> list[Tensor]:
    d = block.to(torch.float64, copy=True).sub_(pivot[:, None])
    finite = d.mul(0).eq_(0)  # 1 where d is finite, else 0: NaN and inf times 0 are NaN
    d.nan_to_num_(0.0, 0.0, 0.0)
    ends = [over_rows(d, torch.amin), over_rows(d, torch.amax)]
    first = over_rows(d, torch.sum)
    return [over_rows(finite, torch.sum), first, over_rows(d.square_(), torch.sum), *ends]


def _weighted_sums(layout: Layout, weights: Tensor) -> list[Tensor]:
    """The same with whole numbers as weights; the pivot is a row that counts."""
    pivot = _pivot(layout.take((weights > 0).to(torch.uint8).argmax().reshape(1))[..., None])
    zeros = torch.zeros_like(pivot)
    total = [zeros] * 5
    for block, weight in layout.weighted_blocks(weights):
        d = block.to(torch.float64, copy=True).sub_(pivot[:, None])
        finite = d.mul(0).eq_(0).mul_(weight)
        d.nan_to_num_(0.0, 0.0, 0.0).mul_(weight > 0)
        ends = [over_rows(d, torch.amin), over_rows(d, torch.amax)]
        sums = [over_rows(part, torch.sum) for part in (finite, d * weight, d.square_() * weight)]
        total = [op(x, y) for op, x, y in zip(_JOIN, total, [*sums, *ends], strict=True)]
    number, first, second, low, high = total
    return [number, first, second, pivot, low, high]


def _pivot(rows: Tensor) -> Tensor:
    """[neurons] float64: the largest finite element of some rows [., neurons, .], else 0."""
    top = rows.double().nan_to_num(-torch.inf, -torch.inf, -torch.inf).amax((0, 2))
    return top.nan_to_num_(0.0, 0.0, 0.0)


def _mean(values: Tensor, seen: Tensor) -> Tensor:
    return torch.where(seen, values, 0.0).sum() / seen.sum()
