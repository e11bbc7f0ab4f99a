"""Gaussian moments of ELU, CELU and SELU, in closed form and centred.

On the negative side the function is ``A e^{rz} + B``. With ``t = μ/σ`` and ``x = t + krσ``
``E[e^{krz}; z < 0] = exp(krμ + k²r²σ²/2) Φ(-x) = ½ erfcx(x/√2) exp(-t²/2)``, where the second form
neither overflows nor cancels for positive x. Values are shifted by f(μ) first, as for piecewise
polynomials.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import special

from shiftscope.theory.arrays import Array
from shiftscope.theory.functions import Exponential

__all__ = ["SMALLEST", "moments"]

SMALLEST = 0.2
"""Below this rate·std the exponential moments cancel; quadrature is right there."""


def moments(law: Exponential, mean: Array, std: Array) -> tuple[Array, Array, Array, Array]:
    """Moments of f' and of ``g = (f(z) - f(mean)) / std``.

    Args:
        law: The parameters of f.
        mean: Means of z, shape [n].
        std: Standard deviations of z, at least :data:`SMALLEST` over the rate, shape [n].

    Returns:
        E g, V g (which is φ_fw), E f', E f'² (which is φ_bw), each of shape [n].
    """
    alpha, rate, scale = law.alpha, law.rate, law.scale
    t = mean / std
    above, below = special.ndtr(t), special.ndtr(-t)
    density = np.exp(-0.5 * t * t) / math.sqrt(2.0 * math.pi)
    once, twice = _exponential(rate, mean, std), _exponential(2 * rate, mean, std)
    bent = np.expm1(rate * np.minimum(mean, 0.0))
    centre = np.where(mean > 0, mean, alpha * bent)
    # Below zero f - f(μ) = α e^{rz} + rest; above it is σx + lift.
    rest = np.where(mean > 0, -alpha - mean, -alpha * (1.0 + bent))
    lift = mean - centre
    first = alpha * once + rest * below + lift * above + std * density
    second = alpha * alpha * twice + 2 * alpha * rest * once + rest * rest * below
    second += lift * lift * above + 2 * lift * std * density
    second += std * std * (above - t * density)
    factor = scale / std
    first, second = factor * first, factor * factor * second
    return (
        first,
        np.maximum(second - first * first, 0.0),
        scale * (above + alpha * rate * once),
        scale * scale * (above + (alpha * rate) ** 2 * twice),
    )


def _exponential(rate: float, mean: Array, std: Array) -> Array:
    """``E[e^{rate·z}; z < 0]``."""
    t = mean / std
    x = t + rate * std
    tail = 0.5 * special.erfcx(np.maximum(x, 0.0) / math.sqrt(2.0)) * np.exp(-0.5 * t * t)
    power = np.minimum(rate * std * (t + 0.5 * rate * std), 0.0)
    return np.asarray(np.where(x > 0, tail, np.exp(power) * special.ndtr(-x)))
