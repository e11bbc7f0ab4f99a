"""The named activation functions: value, derivative, kinks and torch spelling of each.

Three kinds, by how their Gaussian moments are computed: piecewise polynomials (closed form),
smooth functions (trapezoidal rule, panels where the scale is large) and kinked ones (panels split
at the kinks). Definitions are those of ``torch.nn.functional``, except that ``softplus`` is exact:
torch switches to the identity beyond ``threshold``, a difference below 3e-9.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy import special

from shiftscope.theory.arrays import Array
from shiftscope.theory.functions import Activation, Exponential, Function, PiecewisePolynomial

__all__ = ["Activation", "defaults", "find", "names"]

_SELU_SCALE = 1.0507009873554804934193349852946
_SELU_ALPHA = 1.6732632423543772848170429916717


def names() -> tuple[str, ...]:
    """The names of all activations that can be looked up, sorted."""
    return tuple(sorted(_MAKERS))


def defaults(name: str) -> dict[str, Any]:
    """The parameters of the activation ``name`` with their default values, in torch's order."""
    return dict(_DEFAULTS.get(name, {}))


def find(name: str, parameters: Mapping[str, Any]) -> Activation:
    """The activation called ``name``, with ``parameters`` over torch's defaults.

    Args:
        name: One of :func:`names`.
        parameters: Torch's parameters by name; every value a number.
    """
    filled = {**defaults(name), **parameters}
    made = _MAKERS[name](**filled)
    if isinstance(made, PiecewisePolynomial):
        return Activation(
            name,
            made.value,
            made.derivative,
            kinks=made.breaks,
            pieces=made,
            continuous=_joined(made),
            parameters=filled,
        )
    value, derivative, extra = made
    return Activation(name, value, derivative, parameters=filled, **extra)


def _joined(pieces: PiecewisePolynomial) -> bool:
    """Whether neighbouring pieces meet at every break."""
    polyval = np.polynomial.polynomial.polyval
    rows = pieces.coefficients
    return all(
        math.isclose(polyval(b, rows[k]), polyval(b, rows[k + 1]), rel_tol=1e-12, abs_tol=1e-12)
        for k, b in enumerate(pieces.breaks)
    )


# -- piecewise polynomials ---------------------------------------------------------------------


def _leaky(slope: float) -> PiecewisePolynomial:
    return PiecewisePolynomial((0.0,), ((0.0, slope), (0.0, 1.0)))


def _clip(low: float, high: float, slope: float = 1.0, offset: float = 0.0) -> PiecewisePolynomial:
    """``offset + slope z`` for z in [low, high], held constant outside; either end may be inf."""
    breaks: list[float] = []
    rows: list[tuple[float, ...]] = [(offset, slope)]
    if low > -math.inf:
        breaks.append(low)
        rows.insert(0, (offset + slope * low,))
    if high < math.inf:
        breaks.append(high)
        rows.append((offset + slope * high,))
    return PiecewisePolynomial(tuple(breaks), tuple(rows))


def _softshrink(lambd: float) -> PiecewisePolynomial:
    return PiecewisePolynomial((-lambd, lambd), ((lambd, 1.0), (0.0,), (-lambd, 1.0)))


def _hardshrink(lambd: float) -> PiecewisePolynomial:
    return PiecewisePolynomial((-lambd, lambd), ((0.0, 1.0), (0.0,), (0.0, 1.0)))


def _hardswish() -> PiecewisePolynomial:
    return PiecewisePolynomial((-3.0, 3.0), ((0.0,), (0.0, 0.5, 1 / 6), (0.0, 1.0)))


# -- smooth and kinked functions ---------------------------------------------------------------

_Made = tuple[Function, Function, dict[str, Any]]


def _bell(z: Array) -> Array:
    """The derivative of the sigmoid, without cancellation in either tail."""
    small = np.exp(-np.abs(z))
    return np.asarray(small / np.square(1.0 + small))


def _sigmoid() -> _Made:
    return special.expit, _bell, {"reach": 0.45}


def _logsigmoid() -> _Made:
    return lambda z: -np.logaddexp(0.0, -z), lambda z: special.expit(-z), {"reach": 0.45}


def _softplus(beta: float, threshold: float) -> _Made:
    del threshold  # torch's switch to the identity is a numerical convenience, not a definition
    return (
        lambda z: np.logaddexp(0.0, beta * z) / beta,
        lambda z: special.expit(beta * z),
        {"reach": 0.45 / beta},
    )


def _tanh() -> _Made:
    return np.tanh, lambda z: 4.0 * _bell(2.0 * z), {"reach": 0.2}


def _tanhshrink() -> _Made:
    return lambda z: z - np.tanh(z), lambda z: np.tanh(z) ** 2, {"reach": 0.2}


def _erf() -> _Made:
    scale = 2.0 / math.sqrt(math.pi)
    return special.erf, lambda z: scale * np.exp(-z * z), {"reach": 0.32}


def _swish(rate: float) -> _Made:
    """The product of z and the sigmoid of ``rate`` z."""

    def derivative(z: Array) -> Array:
        gate = special.expit(rate * z)
        return np.asarray(gate * (1.0 + rate * z * special.expit(-rate * z)))

    return lambda z: z * special.expit(rate * z), derivative, {"reach": 0.4 / rate}


def _gelu() -> _Made:
    scale = 1.0 / math.sqrt(2.0 * math.pi)
    return (
        lambda z: z * special.ndtr(z),
        lambda z: special.ndtr(z) + scale * z * np.exp(-0.5 * z * z),
        {"reach": 0.4},
    )


def _gelu_tanh() -> _Made:
    rate, cubic = 2.0 * math.sqrt(2.0 / math.pi), 0.044715

    def derivative(z: Array) -> Array:
        inner = rate * z * (1.0 + cubic * z * z)
        slope = rate * (1.0 + 3.0 * cubic * z * z)
        return np.asarray(special.expit(inner) + z * slope * _bell(inner))

    return (
        lambda z: z * special.expit(rate * z * (1.0 + cubic * z * z)),
        derivative,
        {"reach": 0.35},
    )


def _mish() -> _Made:
    """Mish: z tanh(log(1 + e^z)) = z n / (n + 2) with w = e^z, n = w (w + 2)."""

    def power(z: Array) -> Array:
        return np.asarray(np.exp(np.minimum(z, 40.0)))  # beyond 40 the gate is 1 to rounding

    def value(z: Array) -> Array:
        w = power(z)
        n = w * (w + 2.0)
        return np.asarray(z * (n / (n + 2.0)))

    def derivative(z: Array) -> Array:
        w = power(z)
        n = w * (w + 2.0)
        gate = n + 2.0
        return np.asarray(n / gate + z * (4.0 * w * (w + 1.0)) / np.square(gate))

    return value, derivative, {"reach": 0.3}


def _softsign() -> _Made:
    return (
        lambda z: z / (1.0 + np.abs(z)),
        lambda z: (1.0 + np.abs(z)) ** -2.0,
        {"kinks": (0.0,)},
    )


def _exponential(alpha: float, rate: float, scale: float) -> _Made:
    """``scale`` times: z above 0, ``alpha (exp(rate z) - 1)`` below."""

    def value(z: Array) -> Array:
        return scale * np.where(z > 0, z, alpha * np.expm1(rate * np.minimum(z, 0.0)))

    def derivative(z: Array) -> Array:
        return scale * np.where(z > 0, 1.0, alpha * rate * np.exp(rate * np.minimum(z, 0.0)))

    law = Exponential(alpha, rate, scale)
    return value, derivative, {"kinks": (0.0,), "exponential": law}


def _sin() -> _Made:
    return np.sin, np.cos, {}


def _cos() -> _Made:
    return np.cos, lambda z: -np.sin(z), {}


_MAKERS: dict[str, Callable[..., Any]] = {
    "abs": lambda: PiecewisePolynomial((0.0,), ((0.0, -1.0), (0.0, 1.0))),
    "celu": lambda alpha: _exponential(alpha, 1.0 / alpha, 1.0),
    "cos": _cos,
    "elu": lambda alpha: _exponential(alpha, 1.0, 1.0),
    "erf": _erf,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "hardshrink": _hardshrink,
    "hardsigmoid": lambda: _clip(-3.0, 3.0, 1 / 6, 0.5),
    "hardswish": _hardswish,
    "hardtanh": lambda min_val, max_val: _clip(min_val, max_val),
    "identity": lambda: PiecewisePolynomial((), ((0.0, 1.0),)),
    "leaky_relu": lambda negative_slope: _leaky(negative_slope),
    "logsigmoid": _logsigmoid,
    "mish": _mish,
    "prelu": lambda weight: _leaky(weight),
    "quick_gelu": lambda: _swish(1.702),
    "relu": lambda: _leaky(0.0),
    "relu6": lambda: _clip(0.0, 6.0),
    "relu_squared": lambda: PiecewisePolynomial((0.0,), ((0.0,), (0.0, 0.0, 1.0))),
    "rrelu": lambda lower, upper: _leaky(0.5 * (lower + upper)),
    "selu": lambda: _exponential(_SELU_ALPHA, 1.0, _SELU_SCALE),
    "sigmoid": _sigmoid,
    "silu": lambda: _swish(1.0),
    "sin": _sin,
    "softplus": _softplus,
    "softshrink": _softshrink,
    "softsign": _softsign,
    "square": lambda: PiecewisePolynomial((), ((0.0, 0.0, 1.0),)),
    "tanh": _tanh,
    "tanhshrink": _tanhshrink,
    "threshold": lambda threshold, value: PiecewisePolynomial((threshold,), ((value,), (0.0, 1.0))),
}

_DEFAULTS: dict[str, dict[str, float]] = {
    "celu": {"alpha": 1.0},
    "elu": {"alpha": 1.0},
    "hardshrink": {"lambd": 0.5},
    "hardtanh": {"min_val": -1.0, "max_val": 1.0},
    "leaky_relu": {"negative_slope": 0.01},
    "prelu": {"weight": 0.25},
    "rrelu": {"lower": 0.125, "upper": 1 / 3},
    "softplus": {"beta": 1.0, "threshold": 20.0},
    "softshrink": {"lambd": 0.5},
    "threshold": {"threshold": 0.0, "value": 0.0},
}
