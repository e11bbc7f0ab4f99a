r"""Hermite coefficients of a function of a Gaussian.

With the normalised probabilists' polynomials :math:`h_k` let
:math:`c_k(\sigma) = E\,g(\sigma x)h_k(x)`. For standard normal u, v of correlation ρ,
:math:`E\,g(\sigma u) g(\tau v) = \sum_k c_k(\sigma) c_k(\tau) \rho^k`: mass at high k is what keeps
the Gram matrix of ϕ' away from singularity. A jump of g leaves :math:`c_k^2 \sim k^{-3/2}`, a kink
:math:`k^{-5/2}`, and an analytic g less than any power.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from shiftscope.theory.pairs import gauss_rule

__all__ = ["hermite_coefficients"]

Array = npt.NDArray[np.float64]

_SPAN = 13.0
"""Half-width of the integrals: h_k exp(-x²/2) falls like exp(-x²/4) before its turning point."""
_PANELS = 128
"""Panels of 16 nodes, enough for the 26 oscillations a unit that h_k has at k = 160."""


def hermite_coefficients(
    function: Callable[[Array], Array],
    count: int,
    *,
    kinks: Sequence[float] = (),
    std: float = 1.0,
) -> Array:
    """Expands a function of a centred Gaussian in normalised Hermite polynomials.

    Args:
        function: Elementwise function g of z, smooth between the kinks.
        count: Number of coefficients, from the constant on.
        kinks: Where g jumps or has a kink, in units of z.
        std: Standard deviation of z, positive.

    Returns:
        Coefficients ``[count]``; their squares sum to E g² as ``count`` grows.
    """
    x, weights = gauss_rule(kinks, 0.0, std, span=_SPAN, panels=_PANELS)
    weighted = weights * function(std * x)
    coefficients = np.empty(count)
    before, here = np.zeros_like(x), np.ones_like(x)
    for k in range(count):
        coefficients[k] = here @ weighted
        before, here = here, (x * here - math.sqrt(k) * before) / math.sqrt(k + 1)
    return coefficients
