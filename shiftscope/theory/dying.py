r"""Dead units: how likely they are at initialisation, and what data can say about them.

Exact probabilities for symmetric weights without bias, the probability that activation shift kills
a unit, and exact confidence bounds for counts. The initialisation of Chen, Hao and He by linear
product structure (arXiv 2109.00125) is deliberately not provided: neither its formula nor its
constants nor its bounds could be read in any text at hand.

A ReLU unit is *dead* on a set of samples if it is active on none of them, *always on* if it is
active on all. With zero-sum weights the shift share is about 0 and death by shift disappears.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shiftscope.errors import DataError, UsageError
from shiftscope.theory.arrays import Array, float64

__all__ = [
    "Activity",
    "Share",
    "activity",
    "layer_dead_probability",
    "low_activity_probability",
    "pair_dead_probability",
    "rule_of_three",
    "share_bounds",
    "shift_dead_probability",
]


def layer_dead_probability(widths: Sequence[int]) -> float:
    r"""Computes how likely some hidden layer is all zero at one given input.

    Exact for ReLU, zero biases, independent symmetric continuous weights and an input that is not
    zero: given a layer that is not zero, every unit of the next is active with probability ½, so
    :math:`1 - \prod_l (1 - 2^{-N_l})`. That the network is dead for *all* inputs is part of this
    event: the same number is its upper bound (cf. Lu et al. 2019, arXiv 1903.06733).

    Args:
        widths: Numbers of units of the hidden layers.

    Returns:
        The probability.

    Raises:
        UsageError: A layer without units.
    """
    if any(width < 1 for width in widths):
        raise UsageError(
            f"every layer has at least one unit, got widths {list(widths)}",
            "Pass the widths of the hidden layers.",
        )
    return -math.expm1(math.fsum(math.log1p(-(2.0 ** -float(width))) for width in widths))


def pair_dead_probability(angle: float, width: int = 1) -> float:
    """Computes how likely all units of a layer are dead on two inputs at once.

    Exact for isotropic weights without bias: (π - α)/(2π) for one unit.

    Args:
        angle: Angle α between the inputs, in [0, π].
        width: Number of independent units.

    Returns:
        The probability.

    Raises:
        UsageError: The angle lies outside [0, π], or there is no unit.
    """
    if not (0.0 <= angle <= math.pi and width >= 1):
        raise UsageError(
            f"expected an angle in [0, π] and at least one unit, got {angle} and {width}",
            "Pass the angle in radians.",
        )
    return ((math.pi - angle) / (2.0 * math.pi)) ** width


def shift_dead_probability(shift_share: float, samples: int) -> float:
    r"""Computes how likely a unit is dead on independent samples because of activation shift.

    Model: :math:`z = s t + e` with t over units and e over samples standard normal and
    :math:`s^2 = c/(1-c)`; the unit is dead with probability :math:`E\,\Phi(-s t)^n`: 2⁻ⁿ without
    shift, exactly 1/(n+1) at c = ½, towards ½ at c = 1.

    Args:
        shift_share: Shift share c of the layer, in [0, 1].
        samples: Number n of independent samples.

    Returns:
        The probability; times the width it is the expected number of dead units.

    Raises:
        UsageError: The share lies outside [0, 1], or there is no sample.
    """
    _check_share(shift_share)
    if samples < 1:
        raise UsageError(f"expected at least one sample, got {samples}", "Pass their number.")
    if shift_share == 1.0:
        return 0.5
    scale = math.sqrt(shift_share / (1.0 - shift_share))
    if scale == 0.0:
        return 0.5**samples
    return _power_mean(scale, samples)


def _power_mean(scale: float, samples: int) -> float:
    """``E Φ(-scale t)^samples``; the logarithm of the integrand is concave, with curvature ≥ 1.

    In ``y = scale t`` where scale is above 1: then Φ(-y)^n varies on the unit scale of y, and left
    of y = -12 it is 1.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_ndtr, ndtr

    def log_integrand(t: Array) -> Array:
        return np.asarray(samples * log_ndtr(-scale * t) - 0.5 * t * t)

    low, high = -math.sqrt(2.0 * samples) * (scale + 1.0), 1.0
    peak = minimize_scalar(lambda t: -log_integrand(t), bounds=(low, high), method="bounded").x
    unit = min(1.0, 1.0 / scale)
    left, right = max(peak - 10.0, -12.0 / scale), peak + 10.0
    # everything right of the peak falls on the scale on which Φ does
    right = min(right, max(peak, 0.0) + 40.0 * unit)
    ends = np.linspace(left, right, 2 + int((right - left) / (0.25 * unit)))
    nodes, weights = np.polynomial.legendre.leggauss(16)
    half = 0.5 * np.diff(ends)[:, None]
    t = 0.5 * (ends[1:] + ends[:-1])[:, None] + half * nodes
    body = float(np.sum(np.exp(log_integrand(t)) * half * weights)) / math.sqrt(2.0 * math.pi)
    return body + (float(ndtr(left)) if left == -12.0 / scale else 0.0)


def low_activity_probability(shift_share: float, active: float) -> float:
    """Computes how likely a unit is active on less than a given fraction of samples.

    In the model of :func:`shift_dead_probability`: ``Φ(Φ⁻¹(p)/s)``.

    Args:
        shift_share: Shift share c of the layer, in [0, 1].
        active: The fraction p, between 0 and 1.

    Returns:
        The probability.

    Raises:
        UsageError: Share or fraction lie outside their range.
    """
    from scipy.special import ndtr, ndtri

    _check_share(shift_share)
    if not 0.0 < active < 1.0:
        raise UsageError(f"expected a fraction between 0 and 1, got {active}", "Pass 0.01 for 1 %.")
    if shift_share == 0.0:
        return float(active > 0.5)
    return float(ndtr(ndtri(active) * math.sqrt((1.0 - shift_share) / shift_share)))


def _check_share(shift_share: float) -> None:
    if not 0.0 <= shift_share <= 1.0:
        raise UsageError(
            f"a shift share lies in [0, 1], got {shift_share}",
            "Pass between/(between + within), clipped at 0 if corrected for sampling.",
        )


@dataclass(frozen=True)
class Share:
    """A share estimated from a count, with exact confidence bounds."""

    estimate: float
    """Count over total; NaN where the total is 0."""
    low: float
    """Lower bound of the confidence interval."""
    high: float
    """Upper bound."""


def share_bounds(count: int, total: int, confidence: float = 0.95) -> Share:
    """Bounds a share from a count, by Clopper and Pearson: exact, never too narrow.

    Args:
        count: Number of cases, for instance dead units.
        total: Number of independent trials, for instance units.
        confidence: Coverage of the two-sided interval.

    Returns:
        Estimate and bounds; (0, 1) where nothing was tried.

    Raises:
        UsageError: A count outside 0 to ``total``, or a confidence outside (0, 1).
    """
    from scipy.special import betaincinv

    _check_confidence(confidence)
    if not 0 <= count <= total:
        raise UsageError(
            f"a count lies between 0 and its total, got {count} of {total}",
            "Pass the number of cases first, then the number of trials.",
        )
    tail = 0.5 * (1.0 - confidence)
    low = float(betaincinv(count, total - count + 1, tail)) if count else 0.0
    high = float(betaincinv(count + 1, total - count, 1.0 - tail)) if count < total else 1.0
    return Share(count / total if total else math.nan, low, high)


def rule_of_three(samples: int, confidence: float = 0.95) -> float:
    """Bounds the activity of a unit that was active on none of the samples.

    The exact one-sided bound ``1 - (1 - confidence)^(1/n)``, at 95 % about 3/n.

    Args:
        samples: Number of independent samples.
        confidence: One-sided coverage.

    Returns:
        The largest fraction of samples on which such a unit may still be active; 1 for no sample.

    Raises:
        UsageError: A negative number of samples, or a confidence outside (0, 1).
    """
    _check_confidence(confidence)
    if samples < 0:
        raise UsageError(f"expected a number of samples, got {samples}", "Pass their number.")
    return -math.expm1(math.log1p(-confidence) / samples) if samples else 1.0


def _check_confidence(confidence: float) -> None:
    if not 0.0 < confidence < 1.0:
        raise UsageError(
            f"a confidence lies between 0 and 1, got {confidence}", "Pass 0.95 for 95 %."
        )


@dataclass(frozen=True)
class Activity:
    """What a set of samples shows about the activity of a layer's units."""

    active_fraction: Array
    """Share of samples on which each unit is active, ``[units]``."""
    dead: Share
    """Share of units active on none of the samples, bounds over units."""
    always_on: Share
    """Share of units active on all samples."""
    unseen: float
    """What a unit counted as dead may still be active on, by the rule of three."""


def activity(preactivations: npt.ArrayLike, confidence: float = 0.95) -> Activity:
    """Counts dead and always active units, with bounds.

    The bounds over units take units as independent draws, those over samples take samples so;
    positions of one image are not.

    Args:
        preactivations: z, ``[samples, units]``; a unit is active where z > 0.
        confidence: Coverage of the bounds.

    Returns:
        The activity.

    Raises:
        UsageError: No matrix, no samples, or a confidence outside (0, 1).
        DataError: Values that are NaN.
    """
    z = float64(preactivations)
    if z.ndim != 2 or not z.size:
        raise UsageError(
            f"expected preactivations [samples, units], got shape {z.shape}",
            "Flatten positions into samples.",
        )
    if np.isnan(z).any():
        raise DataError("preactivations contain NaN", "Find where they arise before counting.")
    active = (z > 0).mean(axis=0)
    units = z.shape[1]
    return Activity(
        active_fraction=active,
        dead=share_bounds(int((active == 0).sum()), units, confidence),
        always_on=share_bounds(int((active == 1).sum()), units, confidence),
        unseen=rule_of_three(len(z), confidence),
    )
