r"""Hermite coefficients of a function of a Gaussian.

With the normalised probabilists' polynomials :math:`h_k` let
:math:`c_k(\sigma) = E\,g(\sigma x)h_k(x)`. For standard normal u, v of correlation ρ,
:math:`E\,g(\sigma u) g(\tau v) = \sum_k c_k(\sigma) c_k(\tau) \rho^k`: mass at high k is what keeps
the Gram matrix of ϕ' away from singularity. A jump of g leaves :math:`c_k^2 \sim k^{-3/2}`, a kink
:math:`k^{-5/2}`, and an analytic g less than any power.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from shiftscope.theory.arrays import Array
from shiftscope.theory.pairs import gauss_rule

__all__ = ["hermite_coefficients", "square_means"]


_SPAN = 13.0
"""Half-width of the integrals: h_k exp(-x²/2) falls like exp(-x²/4) before its turning point."""
_PANELS = 128
"""Panels of 16 nodes, enough for the 26 oscillations a unit that h_k has at k = 160."""
_BLOCK = 1 << 18
"""Function values held at once."""


def hermite_coefficients(
    function: Callable[[Array], Array],
    count: int,
    *,
    kinks: Sequence[float] = (),
    std: npt.ArrayLike = 1.0,
) -> Array:
    """Expands a function of a centred Gaussian in normalised Hermite polynomials.

    Args:
        function: Elementwise function g of z, smooth between the kinks.
        count: Number of coefficients, from the constant on.
        kinks: Where g jumps or has a kink, in units of z.
        std: Standard deviations of z, positive, any shape.

    Returns:
        Coefficients ``[..., count]``; their squares sum to E g² as ``count`` grows.
    """
    stds = np.asarray(std, dtype=np.float64)
    flat = stds.ravel()
    out = np.empty((flat.size, count))
    for rows, x, weights in _rules(kinks, flat):
        out[rows] = (weights * function(flat[rows, None] * x)) @ _polynomials(x, count)
    return out.reshape(*stds.shape, count)


def square_means(
    function: Callable[[Array], Array], *, kinks: Sequence[float] = (), std: Array
) -> Array:
    """Integrates the square of a function of a centred Gaussian, by the rule of the coefficients.

    Args:
        function: Elementwise function g of z, smooth between the kinks.
        kinks: Where g jumps or has a kink, in units of z.
        std: Standard deviations of z, positive, ``[n]``.

    Returns:
        ``E g²``, ``[n]``.
    """
    out = np.empty(len(std))
    for rows, x, weights in _rules(kinks, std):
        out[rows] = np.square(function(std[rows, None] * x)) @ weights
    return out


def _rules(kinks: Sequence[float], stds: Array) -> Iterator[tuple[slice, Array, Array]]:
    """Blocks of standard deviations with nodes that suit them all."""
    if any(kinks):
        for row, std in enumerate(stds):
            yield slice(row, row + 1), *gauss_rule(kinks, 0.0, std, span=_SPAN, panels=_PANELS)
        return
    # a kink at the origin, or none, is in the same place for every scale
    panels = _PANELS * min(max(1, math.ceil(stds.max(initial=1.0))), 32)
    x, weights = gauss_rule(kinks, span=_SPAN, panels=panels)
    step = max(1, _BLOCK // len(x))
    for start in range(0, len(stds), step):
        yield slice(start, start + step), x, weights


@lru_cache(maxsize=2)
def _table(nodes: bytes, count: int) -> Array:
    x = np.frombuffer(nodes)
    table = np.empty((len(x), count))
    before, here = np.zeros_like(x), np.ones_like(x)
    for k in range(count):
        table[:, k] = here
        before, here = here, (x * here - math.sqrt(k) * before) / math.sqrt(k + 1)
    return table


def _polynomials(x: Array, count: int) -> Array:
    """The first normalised Hermite polynomials at x, ``[nodes, count]``."""
    return _table(x.tobytes(), count)
