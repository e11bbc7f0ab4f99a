"""Gaussian moments of piecewise polynomials, in closed form and centred.

With ``x = (z - mean) / std`` every piece is a polynomial in x, and
``∫ x^k ϕ(x) dx`` over a piece follows from Φ and ϕ by the recursion
``M_k = (k - 1) M_{k-2} - [x^{k-1} ϕ]``. The function is first shifted by its value at the mean and
divided by std, so that nothing cancels where the variance is far below the squared mean.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import special

from shiftscope.theory.functions import PiecewisePolynomial

__all__ = ["moments"]

Array = npt.NDArray[np.float64]


def moments(pieces: PiecewisePolynomial, mean: Array, std: Array) -> tuple[Array, ...]:
    """Moments of f' and of ``g = (f(z) - c) / std``, c the central piece's value at the mean.

    Args:
        pieces: The function f.
        mean: Means of z, shape [n].
        std: Standard deviations of z, positive, shape [n].

    Returns:
        E g, V g (which is φ_fw), E f', E f'² (which is φ_bw) and c, each of shape [n].
    """
    edges = _edges(pieces, mean, std)
    centre = np.searchsorted(np.asarray(pieces.breaks), mean, side="left")
    shifted = [_recentre(row, mean) for row in pieces.coefficients]
    anchor = np.choose(centre, [row[0] for row in shifted])
    first, second, slope, square = (np.zeros_like(mean) for _ in range(4))
    for k, row in enumerate(shifted):
        partial = _partial_moments(edges[k], edges[k + 1], 2 * len(row))
        g = [(row[0] - anchor) / std] + [c * std ** (j - 1) for j, c in enumerate(row) if j]
        h = [j * c * std ** (j - 1) for j, c in enumerate(row) if j]
        first += _pair(g, [np.ones_like(mean)], partial)
        second += _pair(g, g, partial)
        slope += _pair(h, [np.ones_like(mean)], partial)
        square += _pair(h, h, partial)
    return first, np.maximum(second - first * first, 0.0), slope, square, anchor


def _edges(pieces: PiecewisePolynomial, mean: Array, std: Array) -> list[Array]:
    """The breaks in units of x, with infinities at both ends."""
    inner = [(b - mean) / std for b in pieces.breaks]
    return [np.full_like(mean, -math.inf), *inner, np.full_like(mean, math.inf)]


def _recentre(row: tuple[float, ...], mean: Array) -> list[Array]:
    """Coefficients of the polynomial in ``z - mean``: derivatives at the mean over factorials."""
    derivative = np.polynomial.polynomial.polyder
    polyval = np.polynomial.polynomial.polyval
    return [
        np.asarray(polyval(mean, derivative(row, k)), dtype=np.float64) / math.factorial(k)
        for k in range(len(row))
    ]


def _partial_moments(low: Array, high: Array, count: int) -> list[Array]:
    """``∫_low^high x^k ϕ(x) dx`` for k below ``count`` (at least one)."""
    # Φ(high) - Φ(low) from the tail in which both are small, else it cancels.
    flip = low > 0
    mass = np.where(
        flip, special.ndtr(-low) - special.ndtr(-high), special.ndtr(high) - special.ndtr(low)
    )
    out = [mass]
    for k in range(1, count):
        before = (k - 1) * out[k - 2] if k > 1 else np.zeros_like(mass)
        out.append(before + _edge(low, k - 1) - _edge(high, k - 1))
    narrow = np.flatnonzero((high - low < 1.0) & (high > low))
    if narrow.size:
        _by_quadrature(low[narrow], high[narrow], narrow, out)
    return out


def _by_quadrature(low: Array, high: Array, where: npt.NDArray[np.intp], out: list[Array]) -> None:
    """Overwrite the moments of narrow pieces, whose differences of Φ and ϕ cancel."""
    nodes, weights = np.polynomial.legendre.leggauss(12)
    half = 0.5 * (high - low)[:, None]
    x = 0.5 * (high + low)[:, None] + half * nodes
    term = half * weights * np.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)
    for column in out:
        column[where] = term.sum(axis=1)
        term = term * x


def _edge(x: Array, power: int) -> Array:
    """``x^power ϕ(x)``, zero at infinity."""
    finite = np.where(np.isfinite(x), x, 0.0)
    value = finite**power * np.exp(-0.5 * finite * finite) / math.sqrt(2.0 * math.pi)
    return np.where(np.isfinite(x), value, 0.0)


def _pair(left: list[Array], right: list[Array], partial: list[Array]) -> Array:
    """``∫ left(x) right(x) ϕ`` over one piece, for coefficient lists in x."""
    total = np.zeros_like(partial[0])
    for j, a in enumerate(left):
        for k, b in enumerate(right):
            total += a * b * partial[j + k]
    return total
