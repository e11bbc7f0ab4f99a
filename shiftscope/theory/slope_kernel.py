r""":math:`E\,\phi'(w\cdot x)\,\phi'(w\cdot y)` for w standard normal, as a function of the data.

It depends on the norms and on the correlation ρ = cos t only. Four routes, the first that applies:
closed forms (slopes constant but for one step at 0: ReLU, leaky ReLU, abs; erf), the Hermite series
where it converges to rounding (analytic ϕ, polynomials), a table in the angle t where all norms are
equal (ϕ' with kinks or jumps is smooth in t, not in ρ), and quadrature pair by pair for small sets.
What remains, kinked ϕ on large sets of unequal norms, is the truncated series with its error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from shiftscope.theory.arrays import Array
from shiftscope.theory.functions import Activation
from shiftscope.theory.hermite import hermite_coefficients, square_means
from shiftscope.theory.pairs import pair_mean, panels_for

__all__ = ["SlopeKernel", "slope_kernel"]


_TERMS = 192
"""Hermite terms tried before a series counts as not convergent."""
_CONVERGED = 5e-15
"""Share of E ϕ'² left out of a series that counts as converged: the rounding of its quadrature."""
_PANELS, _DEGREE = 16, 15
"""The table's polynomials in the angle: panels of [0, π] and degree on each."""
_PAIRS = 2500
"""Pairs integrated one by one, a few milliseconds each; beyond, the truncated series is used."""


@dataclass(frozen=True)
class SlopeKernel:
    """Evaluates one block of rows of the kernel against all columns."""

    evaluate: Callable[[Array, slice, slice], Array]
    """Takes ρ, or the angle, of a block, and the slices of its rows and columns."""
    takes_angle: bool
    """Whether ``evaluate`` takes angles in [0, π] instead of correlations."""
    entry_error: float
    """Largest absolute error of an entry, rounding apart."""


def slope_kernel(activation: Activation, norms: Array) -> SlopeKernel:
    """Chooses how to compute the kernel for data of these norms.

    Args:
        activation: The activation ϕ.
        norms: Norms of all samples, ``[n]``, positive.

    Returns:
        The evaluator.
    """
    steps = _step_slopes(activation)
    if steps is not None:
        return _step_kernel(*steps)
    if activation.name == "erf":
        return _erf_kernel(norms)
    equal = np.ptp(norms) <= 1e-12 * norms.max()
    coefficients, error, power = _series(activation, norms[:1] if equal else norms)
    if error <= _CONVERGED * max(1.0, power):
        return _series_kernel(coefficients, error)
    if equal:
        return _table_kernel(activation, float(norms[0]))
    if len(norms) * (len(norms) + 1) // 2 <= _PAIRS:
        return _pair_kernel(activation, norms)
    return _series_kernel(coefficients, error)


def _step_slopes(activation: Activation) -> tuple[float, float] | None:
    """The slopes on both sides of 0 if the activation is linear on each."""
    pieces = activation.pieces
    if pieces is None or any(b != 0.0 for b in pieces.breaks):
        return None
    if any(any(row[2:]) for row in pieces.coefficients):
        return None
    slopes = [row[1] if len(row) > 1 else 0.0 for row in pieces.coefficients]
    return slopes[0], slopes[-1]


def _step_kernel(below: float, above: float) -> SlopeKernel:
    jump = (above - below) ** 2 / (2.0 * math.pi)

    def evaluate(angle: Array, rows: slice, columns: slice) -> Array:
        del rows, columns
        return below * above + jump * (math.pi - angle)

    return SlopeKernel(evaluate, True, 0.0)


def _erf_kernel(norms: Array) -> SlopeKernel:
    squares = np.square(norms)

    def evaluate(rho: Array, rows: slice, columns: slice) -> Array:
        inner = rho * norms[rows, None] * norms[columns]
        outer = (1.0 + 2.0 * squares[rows, None]) * (1.0 + 2.0 * squares[columns])
        values: Array = 4.0 / math.pi / np.sqrt(outer - 4.0 * np.square(inner))
        return values

    return SlopeKernel(evaluate, False, 0.0)


def _series(activation: Activation, norms: Array) -> tuple[Array, float, float]:
    """Hermite coefficients ``[n or 1, terms]``, what they leave of E ϕ'² at most, and E ϕ'²."""
    slope, kinks = activation.derivative, activation.kinks
    table = hermite_coefficients(slope, _TERMS, kinks=kinks, std=norms)
    powers = square_means(slope, kinks=kinks, std=norms)
    left = powers[:, None] - np.cumsum(np.square(table), axis=1)
    # entries are sums of c_k(σ) c_k(τ) ρ^k: by Cauchy-Schwarz the rest is below the larger tail
    tails = left.max(axis=0)
    enough = np.flatnonzero(tails <= _CONVERGED * powers.max())
    last = int(enough[0]) if enough.size else _TERMS - 1
    return table[:, : last + 1], max(float(tails[last]), 0.0), float(powers.max())


def _series_kernel(coefficients: Array, error: float) -> SlopeKernel:
    """Horner's rule in ρ, in place, every term a product of coefficients of row and column.

    Slopes that are even or odd have every other coefficient zero: the rule then runs in ρ².
    """
    single = len(coefficients) == 1
    largest = np.abs(coefficients).max(axis=0)
    null = largest <= 1e-15 * largest.max()
    first, step = next(((k, 2) for k in (0, 1) if null[1 - k :: 2].all()), (0, 1))
    terms = np.ascontiguousarray(coefficients[:, first::step].T)

    def evaluate(rho: Array, rows: slice, columns: slice) -> Array:
        total, scratch = np.zeros_like(rho), np.empty_like(rho)
        factor = np.square(rho) if step == 2 else rho
        for term in terms[::-1]:
            total *= factor
            if single:
                total += term[0] ** 2
            else:
                total += np.multiply.outer(term[rows], term[columns], out=scratch)
        return total * rho if first else total

    return SlopeKernel(evaluate, False, error)


def _table_kernel(activation: Activation, norm: float) -> SlopeKernel:
    """Polynomials in the angle, and the largest error seen halfway between their nodes."""
    from scipy.interpolate import PPoly

    slope, panels = activation.derivative, panels_for(activation, std=norm)

    def exact(angles: Array) -> Array:
        # the sine keeps the digits that the cosine loses near 0 and pi
        pairs = [(math.cos(t), math.sin(t)) for t in angles]
        options: Any = {"kinks": activation.kinks, "stds": (norm, norm), "panels": panels}
        return np.array([pair_mean(slope, slope, c, width=s, **options) for c, s in pairs])

    ends = np.linspace(0.0, math.pi, _PANELS + 1)
    width = ends[1]
    chebyshev = 0.5 - 0.5 * np.cos(math.pi * (np.arange(_DEGREE + 1) + 0.5) / (_DEGREE + 1))
    values = exact((ends[:-1, None] + width * chebyshev).ravel()).reshape(_PANELS, -1)
    powers = np.vander(chebyshev)
    local = np.linalg.solve(powers, values.T)
    scale = width ** -np.arange(_DEGREE, -1, -1.0)
    table = PPoly(local * scale[:, None], ends, extrapolate=False)
    between = ends[:-1] + width * 0.5 * (chebyshev[0] + chebyshev[1])
    checks = np.append(between, [0.0, math.pi])
    error = float(np.abs(table(checks) - exact(checks)).max())

    def evaluate(angle: Array, rows: slice, columns: slice) -> Array:
        del rows, columns
        interpolated: Array = table(angle)
        return interpolated

    return SlopeKernel(evaluate, True, error)


def _pair_kernel(activation: Activation, norms: Array) -> SlopeKernel:
    slope, panels = activation.derivative, panels_for(activation, std=float(norms.max()))

    def entry(i: int, j: int, rho: float) -> float:
        stds = (float(norms[i]), float(norms[j]))
        options: Any = {"kinks": activation.kinks, "stds": stds, "panels": panels}
        return pair_mean(slope, slope, rho, **options)

    def evaluate(rho: Array, rows: slice, columns: slice) -> Array:
        first, second = (range(*part.indices(len(norms))) for part in (rows, columns))
        table = [
            [entry(i, j, float(c)) if j >= i else 0.0 for j, c in zip(second, row, strict=True)]
            for i, row in zip(first, rho, strict=True)
        ]
        return np.array(table)

    return SlopeKernel(evaluate, False, 0.0)
