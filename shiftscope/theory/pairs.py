r"""Expectations over two correlated Gaussians, for any activation.

:math:`K(c) = E f(u) g(v)` with u, v standard normal and correlation c is what both the depth maps
and the Gram matrix are made of. It is integrated as
:math:`E_u\, f(u)\, E_w\, g(cu + \sqrt{1-c^2}\,w)` by Gauss–Legendre panels which end at every kink
of f and g and shrink with :math:`\sqrt{1-c^2}` around the places where a kink of g is smoothed on
that scale. No panel straddles a kink, so the error is that of rounding for all c in [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from shiftscope.errors import UsageError
from shiftscope.theory.catalogue import Activation

__all__ = ["mean_of", "pair_mean", "resolve"]

Array = npt.NDArray[np.float64]
Function = Callable[[Array], Array]

_SPAN = 10.0
"""Half-width of the integrals in standard deviations; the mass outside is 1.5e-23."""
_ORDER = 16
"""Gauss–Legendre nodes a panel."""
_LADDER = np.array([0.0, *(s * 2.0**k for k in range(10) for s in (-1, 1))])
"""Distances from a kink, or from the origin, at which a function of unit scale is cut."""
_SMOOTHED = np.array([0.0, *(s * d for d in (0.75, 1.5, 3.0, 6.0, 10.0) for s in (-1, 1))])
"""Distances from a smoothed kink, in units of its width, at which panels end."""
_CHUNK = 1 << 18
"""Function values held at once."""


def resolve(activation: Any, mean: float = 0.0, std: float = 1.0) -> Activation:
    """Finds value, derivative and kinks of an activation.

    Args:
        activation: A name, a torch module or its class, a torch function, any elementwise
            callable, or an :class:`Activation`, which comes back as it is.
        mean: Mean of z, the middle of the range that a callable is examined on.
        std: Standard deviation of z: the range is ``mean ± 10 std``.

    Returns:
        The activation with its parameters filled in.

    Raises:
        UsageError: An unknown name, or parameters that differ between neurons.
        MeasureError: A callable that no reasonable number of panels resolves.
    """
    from shiftscope.theory import activations, catalogue
    from shiftscope.theory.callables import wrap

    if isinstance(activation, Activation):
        return activation
    named = activations.canonical(activation)
    if named is None:
        activations.gains(activation, mean, std)  # refuses what is no activation, in words
        function = activation() if isinstance(activation, type) else activation
        return wrap(function, np.array([mean]), np.array([std]), None, None)
    if any(np.ndim(value) for value in named.parameters.values()):
        raise UsageError(
            f"{named.name} has one parameter per neuron; this needs one function for the layer",
            "Pass the module with a scalar parameter, for instance the mean slope.",
        )
    return catalogue.find(named.name, named.parameters)


def mean_of(
    function: Function, kinks: Sequence[float] = (), mean: float = 0.0, std: float = 1.0
) -> float:
    """Integrates a function of one Gaussian.

    Args:
        function: Elementwise function of z, smooth between the kinks.
        kinks: Where it is not, in units of z.
        mean: Mean of z.
        std: Standard deviation of z, positive.

    Returns:
        ``E function(z)``.
    """
    x, weights = _rule(_cuts(kinks, mean, std))
    return float(function(mean + std * x) @ weights)


def pair_mean(
    f: Function,
    g: Function,
    correlation: float,
    *,
    kinks: Sequence[float] = (),
    means: tuple[float, float] = (0.0, 0.0),
    stds: tuple[float, float] = (1.0, 1.0),
) -> float:
    """Integrates the product of functions of two correlated Gaussians.

    Args:
        f: Function of the first variable.
        g: Function of the second.
        correlation: Their correlation in [-1, 1].
        kinks: Where f or g is not smooth, in units of the variables.
        means: Means of the two variables.
        stds: Their standard deviations, positive.

    Returns:
        ``E f(z1) g(z2)``, right to about 1e-14 of ``sqrt(E f² E g²)``.

    Raises:
        UsageError: The correlation lies outside [-1, 1].
    """
    if not -1.0 <= correlation <= 1.0:
        raise UsageError(
            f"a correlation lies in [-1, 1], got {correlation}",
            "Divide the covariance by both standard deviations.",
        )
    width = math.sqrt((1.0 - correlation) * (1.0 + correlation))
    second = _cuts(kinks, means[1], stds[1])
    u, weights = _rule(
        np.concatenate(
            [
                _cuts(kinks, means[0], stds[0]),
                *_images(second, kinks, means[1], stds[1], correlation, width),
            ]
        )
    )
    if width == 0.0:
        return float(
            (f(means[0] + stds[0] * u) * g(means[1] + correlation * stds[1] * u)) @ weights
        )
    weighted = weights * f(means[0] + stds[0] * u)
    rows = max(1, _CHUNK // (_ORDER * (len(second) + 2)))
    total = 0.0
    for start in range(0, len(u), rows):
        part = slice(start, start + rows)
        centre = means[1] + correlation * stds[1] * u[part]
        total += float(weighted[part] @ _smoothed(g, centre, width * stds[1], kinks))
    return total


def _smoothed(g: Function, centre: Array, width: float, kinks: Sequence[float]) -> Array:
    """``E g(centre + width w)`` for w standard normal, one value per centre."""
    grid = np.broadcast_to(_grid(), (len(centre), len(_grid())))
    places = _places(kinks)
    if width <= 1.0:
        # nothing of unit scale needs resolving: only the kinks themselves cut
        places = np.asarray(kinks, dtype=np.float64)
    cuts = (places - centre[:, None]) / width
    x, weights = _panels(np.sort(np.concatenate([grid, np.clip(cuts, -_SPAN, _SPAN)], axis=1)))
    means: Array = np.einsum("ij,ij->i", g(centre[:, None] + width * x), weights)
    return means


def _images(
    cuts: Array, kinks: Sequence[float], mean: float, std: float, correlation: float, width: float
) -> list[Array]:
    """Where, along u, the inner integral varies quickly: around the images of g's kinks."""
    if correlation == 0.0:
        return []
    at = (np.asarray(kinks, dtype=np.float64) - mean) / std / correlation
    scale = width / abs(correlation)
    return [_inside((at[:, None] + scale * _SMOOTHED).ravel()), _inside(cuts / correlation)]


def _cuts(kinks: Sequence[float], mean: float, std: float) -> Array:
    """Panel ends in units of x = (z - mean)/std for a function with these kinks."""
    return np.concatenate([_grid(), _inside((_places(kinks) - mean) / std)])


def _places(kinks: Sequence[float]) -> Array:
    """A ladder around the origin and around every kink, in units of z."""
    places: Array = np.unique(np.concatenate([_LADDER + at for at in (0.0, *kinks)]))
    return places


def _inside(points: Array) -> Array:
    inside: Array = points[np.abs(points) < _SPAN]
    return inside


def _rule(cuts: Array) -> tuple[Array, Array]:
    """Nodes and Gaussian weights of panels that end at these points."""
    x, weights = _panels(np.unique(cuts)[None])
    return x[0], weights[0]


def _panels(cuts: Array) -> tuple[Array, Array]:
    """Nodes and Gaussian weights, ``[rows, nodes]``, for sorted panel ends ``[rows, ends]``."""
    nodes, weights = _legendre()
    half = 0.5 * np.diff(cuts, axis=1)[..., None]
    middle = 0.5 * (cuts[:, 1:] + cuts[:, :-1])[..., None]
    x = (middle + half * nodes).reshape(len(cuts), -1)
    flat = (half * weights).reshape(len(cuts), -1)
    return x, flat * np.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)


@cache
def _legendre() -> tuple[Array, Array]:
    nodes, weights = np.polynomial.legendre.leggauss(_ORDER)
    return nodes, weights


@cache
def _grid() -> Array:
    return np.linspace(-_SPAN, _SPAN, 17)
