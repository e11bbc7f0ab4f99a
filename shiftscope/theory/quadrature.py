"""Gaussian expectations of f and f' by rules that never straddle a kink.

Three rules, all vectorised over (mean, std) and chunked to a few MB:

* :func:`trapezoid` for functions analytic in a strip: its error falls like
  ``exp(-2π reach / (std step))``, far faster than Gauss-Hermite's;
* :func:`panels` for everything else: Gauss-Legendre panels split at the kinks, on a dyadic ladder
  around them, and on a grid in ``x = (z - mean) / std``;
* :func:`integrated` for std tiny against the mean: f is rebuilt from f' by spectral integration,
  since ``f(z) - f(mean)`` itself has lost its digits there.

Each returns ``E g, V g, E f', E f'²`` with ``g = (f(z) - f(mean)) / std``, so that V g is φ_fw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

__all__ = ["covariance", "integrated", "panels", "trapezoid"]

Array = npt.NDArray[np.float64]
Function = Callable[[Array], Array]
Moments = tuple[Array, Array, Array, Array]

SPAN = 10.0
"""Quadrature covers mean ± SPAN·std; the Gaussian mass outside is 1.5e-23."""
ORDER = 16
"""Gauss-Legendre nodes a panel."""
CHUNK = 1 << 16
"""Function values held at once: what stays in a core's cache."""
_ROOT_TAU = math.sqrt(2.0 * math.pi)
_LADDER = tuple(float(2**k) for k in range(1, 15))


@cache
def _legendre() -> tuple[Array, Array]:
    nodes, weights = np.polynomial.legendre.leggauss(ORDER)
    return nodes, weights


@cache
def _integrator() -> Array:
    """Matrix S, [ORDER, ORDER]: ``(S f)_i = ∫_{-1}^{x_i} f`` for f of degree below ORDER."""
    nodes, weights = _legendre()
    legendre = np.polynomial.legendre
    rows = legendre.legvander(nodes, ORDER - 1)
    degrees = np.arange(ORDER)
    coefficients = (rows * weights[:, None]).T * ((2 * degrees + 1) / 2)[:, None]
    antiderivative = [legendre.legint(np.eye(ORDER)[k], lbnd=-1) for k in range(ORDER)]
    values = np.stack([legendre.legval(nodes, c) for c in antiderivative], axis=1)
    return np.asarray(values @ coefficients)


def trapezoid(f: Function, df: Function, mean: Array, std: Array, step: float) -> Moments:
    """Moments by the trapezoidal rule of one step for all points.

    Args:
        f: The function.
        df: Its derivative.
        mean: Means, shape [n].
        std: Standard deviations, shape [n].
        step: Spacing of the nodes in units of x.

    Returns:
        E g, V g, E f', E f'², each of shape [n].
    """
    count = math.ceil(9.5 / step)
    nodes = step * np.arange(-count, count + 1)
    weights = np.exp(-0.5 * nodes * nodes)
    weights /= weights.sum()
    out = np.empty((4, mean.size))
    rows = max(1, CHUNK // nodes.size)
    for start in range(0, mean.size, rows):
        part = slice(start, start + rows)
        z = mean[part, None] + std[part, None] * nodes
        g = (f(z) - f(mean[part])[:, None]) / std[part, None]
        slope = df(z)
        out[0, part] = g @ weights
        out[1, part] = np.square(g - out[0, part, None]) @ weights
        out[2, part] = slope @ weights
        out[3, part] = np.square(slope) @ weights
    return out[0], out[1], out[2], out[3]


def panels(
    f: Function,
    df: Function,
    mean: Array,
    std: Array,
    breaks: Sequence[float],
    ladder: bool = True,
) -> Moments:
    """Moments by Gauss-Legendre panels that end at every break.

    Args:
        f: The function, smooth between the breaks.
        df: Its derivative.
        mean: Means, shape [n].
        std: Standard deviations, shape [n].
        breaks: Points in units of z that panels must not straddle.
        ladder: Also break at distances 2, 4, 8, … of the origin and of every break, which resolves
            functions that vary on unit scale there however large std is.

    Returns:
        E g, V g, E f', E f'², each of shape [n].
    """
    places = np.array(sorted(_rungs(breaks) if ladder else set(breaks)))
    out = np.empty((4, mean.size))
    rows = max(1, CHUNK // (ORDER * (places.size + 11)))
    for start in range(0, mean.size, rows):
        part = slice(start, start + rows)
        out[:, part] = _panel_chunk(f, df, mean[part], std[part], places)
    return out[0], out[1], out[2], out[3]


def _rungs(breaks: Sequence[float]) -> set[float]:
    """The breaks and, around each of them and the origin, a dyadic ladder."""
    centres = {0.0, *breaks} if len(breaks) <= 4 else {0.0}
    return {c + s * r for c in centres for r in (0.0, *_LADDER) for s in (-1.0, 1.0)} | set(breaks)


def _panel_chunk(
    f: Function, df: Function, mean: Array, std: Array, places: Array
) -> npt.NDArray[np.float64]:
    site, left, right = _cut(mean, std, places)
    nodes, weights = _legendre()
    half = 0.5 * (right - left)[:, None]
    x = 0.5 * (right + left)[:, None] + half * nodes
    mass = half * weights * np.exp(-0.5 * x * x) / _ROOT_TAU
    z = mean[site, None] + std[site, None] * x
    g = (f(z) - f(mean)[site, None]) / std[site, None]
    slope = df(z)

    def expectation(values: Array) -> Array:
        sums = np.bincount(site, (values * mass).sum(axis=1), minlength=mean.size)
        return np.asarray(sums, dtype=np.float64)

    average = expectation(g)
    spread = expectation(np.square(g - average[site, None]))
    return np.stack([average, spread, expectation(slope), expectation(np.square(slope))])


def _cut(mean: Array, std: Array, places: Array) -> tuple[npt.NDArray[np.intp], Array, Array]:
    """Panels of positive width in x: the point each belongs to, its left and its right end."""
    grid = np.linspace(-SPAN, SPAN, 11)
    inner = np.clip((places[None, :] - mean[:, None]) / std[:, None], -SPAN, SPAN)
    edges = np.concatenate([np.broadcast_to(grid, (mean.size, grid.size)), inner], axis=1)
    edges.sort(axis=1)
    keep = edges[:, 1:] > edges[:, :-1]
    site = np.nonzero(keep)[0]
    return site, edges[:, :-1][keep], edges[:, 1:][keep]


def integrated(df: Function, mean: Array, std: Array, kinks: Sequence[float]) -> Moments:
    """Moments of a continuous f from f' alone, exact however small std is.

    Args:
        df: The derivative of f.
        mean: Means, shape [n].
        std: Standard deviations, small against the scale on which f' varies between the kinks.
        kinks: Points where f' is not smooth.

    Returns:
        E g, V g, E f', E f'², each of shape [n].
    """
    out = np.empty((4, mean.size))
    places = np.array(sorted(set(kinks)))
    rows = max(1, CHUNK // (ORDER * (places.size + 11)))
    for start in range(0, mean.size, rows):
        part = slice(start, start + rows)
        out[:, part] = _integrated_chunk(df, mean[part], std[part], places)
    return out[0], out[1], out[2], out[3]


def _integrated_chunk(
    df: Function, mean: Array, std: Array, places: Array
) -> npt.NDArray[np.float64]:
    grid = np.linspace(-SPAN, SPAN, 11)
    inner = np.clip((places[None, :] - mean[:, None]) / std[:, None], -SPAN, SPAN)
    edges = np.concatenate([np.broadcast_to(grid, (mean.size, grid.size)), inner], axis=1)
    edges.sort(axis=1)
    nodes, weights = _legendre()
    half = 0.5 * np.diff(edges, axis=1)[..., None]
    x = 0.5 * (edges[:, 1:] + edges[:, :-1])[..., None] + half * nodes
    slope = df(mean[:, None, None] + std[:, None, None] * x)
    rise = np.cumsum((slope * half * weights).sum(axis=-1), axis=1)
    start = np.concatenate([np.zeros((mean.size, 1)), rise[:, :-1]], axis=1)
    g = start[..., None] + half * (slope @ _integrator().T)
    at_mean = _value_at_zero(edges, start, rise)
    mass = half * weights * np.exp(-0.5 * x * x) / _ROOT_TAU

    def expectation(values: Array) -> Array:
        return np.asarray((values * mass).sum(axis=(1, 2)))

    g -= at_mean[:, None, None]
    average = expectation(g)
    spread = expectation(np.square(g - average[:, None, None]))
    return np.stack([average, spread, expectation(slope), expectation(np.square(slope))])


def _value_at_zero(edges: Array, start: Array, rise: Array) -> Array:
    """The running integral at x = 0, which is always one of the edges."""
    full = np.concatenate([start[:, :1], rise], axis=1)
    index = np.argmax(edges >= 0.0, axis=1)
    return np.asarray(full[np.arange(edges.shape[0]), index])


def covariance(f: Function, mean: Array, std: Array, breaks: Sequence[float]) -> Array:
    """``Cov(z, f(z)) / std²`` by panels, from f alone.

    Args:
        f: The function, smooth between the breaks.
        mean: Means, shape [n].
        std: Standard deviations, shape [n].
        breaks: Points in units of z that panels must not straddle.

    Returns:
        The regression slope of f(z) on z, shape [n].
    """
    places = np.array(sorted(_rungs(breaks)))
    nodes, weights = _legendre()
    out = np.empty(mean.size)
    for k in range(mean.size):
        point = slice(k, k + 1)
        _, left, right = _cut(mean[point], std[point], places)
        half = 0.5 * (right - left)[:, None]
        x = 0.5 * (right + left)[:, None] + half * nodes
        mass = half * weights * np.exp(-0.5 * x * x) / _ROOT_TAU
        out[k] = (mass * x * (f(mean[k] + std[k] * x) - f(mean[point]))).sum() / std[k]
    return out
