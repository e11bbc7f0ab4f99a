"""Which rule computes the moments of which activation at which point, and how.

Closed forms where there are any (piecewise polynomials, exponential linear units, sine and cosine);
else the trapezoidal rule for analytic functions at moderate std, panels at large std and for kinked
functions, and integration of f' where std is tiny against the mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shiftscope.theory import exponential, piecewise, quadrature
from shiftscope.theory.arrays import Array
from shiftscope.theory.functions import Activation, Exponential, PiecewisePolynomial

__all__ = ["Moments", "evaluate"]

_COARSE = 0.5
"""Largest trapezoidal step: the Gaussian alone is summed to 1e-34 by it."""
_FINE = 0.05
"""Trapezoidal steps below this cost more than panels do."""
_TINY = 2e-3
"""σ / max(1, |μ|) below which differences of f have lost too many digits."""


class Moments(NamedTuple):
    """E f, φ_fw, E f', φ_bw, each of shape [n]."""

    mean: Array
    phi_fw: Array
    mean_grad: Array
    phi_bw: Array


def evaluate(activation: Activation, mean: Array, std: Array) -> Moments:
    """Compute each point by the rule that suits it.

    Args:
        activation: The function.
        mean: Means of z, shape [n].
        std: Standard deviations of z, not negative, shape [n].

    Returns:
        The moments; NaN where mean or std is not finite.
    """
    flat = np.full((4, mean.size), math.nan)
    usable = np.isfinite(mean) & np.isfinite(std)
    for where, rule in _plan(activation, mean, std, usable):
        if where.size:
            flat[:, where] = rule(activation, mean[where], std[where])
    return Moments(*flat)


_Rule = Callable[[Activation, Array, Array], Moments]


def _plan(
    activation: Activation, mean: Array, std: Array, usable: npt.NDArray[np.bool_]
) -> list[tuple[npt.NDArray[np.intp], _Rule]]:
    """Which points are computed by which rule."""
    still = usable & (std == 0)
    moving = usable & ~still
    plan: list[tuple[npt.NDArray[np.intp], _Rule]] = [(np.flatnonzero(still), _limit)]
    if activation.pieces is not None:
        return [*plan, (np.flatnonzero(moving), _by_pieces)]
    if activation.name in _CLOSED:
        return [*plan, (np.flatnonzero(moving), _CLOSED[activation.name])]
    if activation.exponential is not None:
        wide = moving & (std * activation.exponential.rate >= exponential.SMALLEST)
        plan.append((np.flatnonzero(wide), _by_exponentials))
        moving &= ~wide
    tiny = moving & (std < _TINY * np.maximum(1.0, np.abs(mean))) & activation.continuous
    plan.append((np.flatnonzero(tiny), _by_integration))
    moving &= ~tiny
    if activation.reach > 0:
        steps = _steps(activation.reach, std)
        for step in np.unique(steps[moving & (steps >= _FINE)]):
            here = np.flatnonzero(moving & (steps == step))
            plan.append((here, _by_trapezoid(float(step))))
        moving &= steps < _FINE
    return [*plan, (np.flatnonzero(moving), _by_panels)]


def _steps(reach: float, std: Array) -> Array:
    """Trapezoidal steps in units of x, rounded down to quarter octaves to form few groups."""
    with np.errstate(divide="ignore", invalid="ignore"):
        octaves = np.floor(4.0 * np.log2(reach / std)) / 4.0
    return np.asarray(np.minimum(_COARSE, 2.0**octaves))


def _limit(activation: Activation, mean: Array, std: Array) -> Moments:
    """The limit of std going to zero."""
    slope = activation.derivative(mean)
    return Moments(activation.value(mean), slope * slope, slope, slope * slope)


def _by_pieces(activation: Activation, mean: Array, std: Array) -> Moments:
    pieces = activation.pieces or PiecewisePolynomial((), ((0.0,),))
    g, phi_fw, slope, phi_bw, anchor = piecewise.moments(pieces, mean, std)
    return Moments(anchor + std * g, phi_fw, slope, phi_bw)


def _by_exponentials(activation: Activation, mean: Array, std: Array) -> Moments:
    law = activation.exponential or Exponential(1.0, 1.0, 1.0)
    g, phi_fw, slope, phi_bw = exponential.moments(law, mean, std)
    return Moments(activation.value(mean) + std * g, phi_fw, slope, phi_bw)


def _by_integration(activation: Activation, mean: Array, std: Array) -> Moments:
    g, phi_fw, slope, phi_bw = quadrature.integrated(
        activation.derivative, mean, std, activation.kinks
    )
    return Moments(activation.value(mean) + std * g, phi_fw, slope, phi_bw)


def _by_trapezoid(step: float) -> _Rule:
    def rule(activation: Activation, mean: Array, std: Array) -> Moments:
        f, df = activation.value, activation.derivative
        g, phi_fw, slope, phi_bw = quadrature.trapezoid(f, df, mean, std, step)
        return Moments(f(mean) + std * g, phi_fw, slope, phi_bw)

    return rule


def _by_panels(activation: Activation, mean: Array, std: Array) -> Moments:
    f, df = activation.value, activation.derivative
    g, phi_fw, slope, phi_bw = quadrature.panels(
        f, df, mean, std, activation.kinks, ladder=not activation.resolved
    )
    return Moments(f(mean) + std * g, phi_fw, slope, phi_bw)


def _wave(phase: float) -> _Rule:
    """Closed forms of ``sin(z + phase)``."""

    def rule(activation: Activation, mean: Array, std: Array) -> Moments:
        del activation
        angle, power = mean + phase, np.square(std)
        decay, twice = np.exp(-power), np.cos(2 * angle)
        # 1 + cos(2 angle) decay, written so that it keeps its digits near the crests.
        bracket = -np.expm1(-power) + 2.0 * decay * np.square(np.cos(angle))
        phi_fw = 0.5 * (-np.expm1(-power) / power) * bracket
        damped = np.sqrt(decay)
        phi_bw = 0.5 * (1.0 + twice * decay * decay)
        return Moments(np.sin(angle) * damped, phi_fw, np.cos(angle) * damped, phi_bw)

    return rule


_CLOSED: Mapping[str, _Rule] = {"sin": _wave(0.0), "cos": _wave(0.5 * math.pi)}
