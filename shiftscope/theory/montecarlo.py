"""Streaming Monte Carlo moments in bounded memory, and their comparison with predictions.

Moments are power sums about a pivot (the predicted mean), in float64, so that nothing cancels and
a hundred million rows cost no more memory than one chunk. Standard errors are estimated: √(V/N) for
means, √((m₄ - V²)/N) for variances, the delta method for ratios of replicate means.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Generator, Tensor

from shiftscope.theory.claims import Bench, Comparison

__all__ = [
    "RowMoments",
    "compare_means",
    "compare_ratio",
    "compare_variances",
    "differs",
    "identity",
    "row_moments",
]

_ROUNDING = 1e-10
"""Relative difference up to which two sides of an identity count as equal in float64."""


@dataclass(frozen=True, slots=True)
class RowMoments:
    """Moments of every column over independent rows.

    Attributes:
        rows: Number of rows N.
        mean: Means, [k].
        variance: Variances about the mean, [k].
        mean_error: Standard errors of the means, [k].
        variance_error: Standard errors of the variances, from the fourth moments, [k].
    """

    rows: int
    mean: Tensor
    variance: Tensor
    mean_error: Tensor
    variance_error: Tensor


def row_moments(
    bench: Bench, draw: Callable[[Generator, int], Tensor], pivot: Tensor
) -> RowMoments:
    """Moments of the columns of ``bench.samples`` independent rows.

    Args:
        bench: Generator, number of rows, chunk size.
        draw: Returns rows, float64 [rows, k].
        pivot: A value near each column's mean, [k].

    Returns:
        The moments, on the host.
    """
    sums = torch.zeros(4, pivot.numel(), dtype=torch.float64, device=bench.generator.device)
    for part in bench.chunks(bench.samples):
        delta = draw(bench.generator, part) - pivot
        square = delta * delta
        sums[0] += delta.sum(dim=0)
        sums[1] += square.sum(dim=0)
        sums[2] += (square * delta).sum(dim=0)
        sums[3] += (square * square).sum(dim=0)
    return _from_sums(sums.cpu() / bench.samples, pivot.cpu(), bench.samples)


def _from_sums(raw: Tensor, pivot: Tensor, rows: int) -> RowMoments:
    """Central moments from the averages of the first four powers about the pivot."""
    first, second, third, fourth = raw
    variance = second - first**2
    central = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
    return RowMoments(
        rows,
        pivot + first,
        variance * (rows / (rows - 1)),
        (variance / rows).clamp_min(0.0).sqrt(),
        ((central - variance**2) / rows).clamp_min(0.0).sqrt(),
    )


def compare_means(measured: RowMoments, predicted: Tensor, name: str = "E z") -> list[Comparison]:
    """Compare the means of all columns with their predictions, [k]."""
    rows = zip(
        measured.mean.tolist(), predicted.tolist(), measured.mean_error.tolist(), strict=True
    )
    return [
        _compared(f"{name}[{k}]", expected, got, error, got - expected)
        for k, (got, expected, error) in enumerate(rows)
    ]


def compare_variances(
    measured: RowMoments,
    predicted: Tensor | Sequence[float],
    name: str = "V z",
    root: bool = False,
    rounding: float = 0.0,
) -> list[Comparison]:
    """Compare the variances of all columns with their predictions.

    Args:
        measured: The moments.
        predicted: Variances, or standard deviations where ``root``, [k].
        name: What the columns are.
        root: Compare standard deviations instead.
        rounding: Absolute error of a prediction known to few digits; a deviation up to it is none.

    Returns:
        One comparison a column, on the log scale.
    """
    out = []
    columns = (measured.variance.tolist(), measured.variance_error.tolist(), list(predicted))
    for k, (variance, error, expected) in enumerate(zip(*columns, strict=True)):
        got, error = (
            (math.sqrt(variance), error / (2 * math.sqrt(variance))) if root else (variance, error)
        )
        expected = float(expected)
        distance = got * math.log(got / expected)
        slack = math.copysign(max(0.0, abs(distance) - rounding), distance)
        out.append(_compared(f"{name}[{k}]", expected, got, error, slack))
    return out


def _compared(
    quantity: str,
    predicted: float,
    estimate: float,
    error: float,
    deviation: float,
    freedom: float = math.inf,
) -> Comparison:
    if error > 0:
        z = deviation / error
    else:
        z = 0.0 if deviation == 0 else math.copysign(math.inf, deviation)
    p = 2 * float(stats.norm.sf(abs(z)) if math.isinf(freedom) else stats.t.sf(abs(z), freedom))
    return Comparison(quantity, predicted, estimate, error, z, p)


def compare_ratio(
    bench: Bench,
    draw: Callable[[Generator, int], tuple[Tensor, Tensor]],
    predicted: float,
    name: str,
    rows: int,
) -> list[Comparison]:
    """Compare a ratio of two replicate means with its prediction.

    Args:
        bench: Generator and number of rows; ``samples / rows`` replicates are drawn, 16 at least.
        draw: Returns numerators and denominators of that many replicates, each [replicates].
        predicted: E numerator / E denominator.
        name: What the ratio is.
        rows: Rows a replicate consumes.

    Returns:
        One comparison; its p-value is that of Student's t.
    """
    count = max(16, bench.samples // rows)
    sums = torch.zeros(5, dtype=torch.float64, device=bench.generator.device)
    for part in bench.chunks(count, rows):
        top, bottom = draw(bench.generator, part)
        excess = top - predicted * bottom
        terms = (excess, bottom, excess**2, excess * bottom, bottom**2)
        sums += torch.stack([t.sum() for t in terms])
    excess, bottom, square, cross, power = (sums / count).tolist()
    deviation = excess / bottom
    spread = square - 2 * deviation * cross + deviation**2 * power
    error = math.sqrt(max(spread, 0.0) / (count - 1)) / bottom
    return [_compared(name, predicted, predicted + deviation, error, deviation, count - 1)]


def identity(name: str, left: float, right: float, scale: float | None = None) -> Comparison:
    """Two sides of an algebraic identity, equal up to rounding or not.

    Args:
        name: What is compared.
        left: The predicted side.
        right: The computed side.
        scale: Size of the terms; the larger side if None.

    Returns:
        A comparison with z = 0 where they agree, infinite where they do not.
    """
    equal = abs(left - right) <= _ROUNDING * (scale or max(abs(left), abs(right), 1e-300))
    return Comparison(name, left, right, 0.0, 0.0 if equal else math.inf, 1.0 if equal else 0.0)


def differs(name: str, left: float, right: float) -> Comparison:
    """The contrary of :func:`identity`: for statements that deny an equality."""
    same = identity(name, left, right).z == 0
    return Comparison(name, left, right, 0.0, math.inf if same else 0.0, 0.0 if same else 1.0)
