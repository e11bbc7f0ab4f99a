r"""Expectations over two correlated Gaussians, for any activation.

:math:`K(c) = E f(u) g(v)` with u, v standard normal and correlation c is what both the depth maps
and the Gram matrix are made of. It is integrated as
:math:`E_u\, f(u)\, E_w\, g(cu + \sqrt{1-c^2}\,w)` by Gauss–Legendre panels which end at every kink
of f and g and shrink with :math:`\sqrt{1-c^2}` around the places where a kink of g is smoothed on
that scale. No panel straddles a kink, so the error is that of rounding for all c in [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from shiftscope.errors import UsageError
from shiftscope.theory.arrays import Array
from shiftscope.theory.functions import Activation, Function

__all__ = ["gauss_rule", "mean_of", "pair_mean", "panels_for", "resolve"]


_SPAN = 10.0
"""Half-width of the integrals in standard deviations; the mass outside is 1.5e-23."""
_ORDER = 16
"""Gauss–Legendre nodes a panel."""
_LADDER = np.array([0.0, *(s * 2.0**k for k in range(10) for s in (-1, 1))])
"""Distances from a kink, or from the origin, at which a function of unit scale is cut where the
standard deviation is large."""
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
        found = wrap(function, np.array([mean]), np.array([std]), None, None)
        return replace(found, kinks=tuple(e for e in found.kinks if _is_kink(found, e)))
    if any(np.ndim(value) for value in named.parameters.values()):
        raise UsageError(
            f"{named.name} has one parameter per neuron; this needs one function for the layer",
            "Pass the module with a scalar parameter, for instance the mean slope.",
        )
    return catalogue.find(named.name, named.parameters)


def _is_kink(activation: Activation, place: float) -> bool:
    """Whether f, f' or f'' jumps here: the values extrapolated from both sides differ."""
    step = 1e-5 * max(1.0, abs(place))
    sides = place + step * np.array([[-2.0, -1.0], [2.0, 1.0]])
    values, slopes = activation.value(sides), activation.derivative(sides)
    bends = (slopes[:, 1] - slopes[:, 0]) / (sides[:, 1] - sides[:, 0])
    scale = float(np.abs(slopes).max() + np.abs(bends).max())
    jumps = [abs(float(np.diff(2.0 * x[:, 1] - x[:, 0])[0])) for x in (values, slopes)]
    return max(jumps) > 1e-6 * scale or abs(float(np.diff(bends)[0])) > 1e-3 * scale


def panels_for(activation: Activation, mean: float = 0.0, std: float = 1.0) -> int:
    """Finds how many panels resolve an activation and its derivative.

    Args:
        activation: The activation.
        mean: Mean of z.
        std: Standard deviation of z, positive.

    Returns:
        The number of equal panels over ±10 standard deviations whose doubling changes neither
        E f² nor E f'² by more than 1e-13 of itself; 512 at most.
    """
    panels, before = 16, np.full(2, math.nan)
    while panels <= 512:
        x, weights = gauss_rule(activation.kinks, mean, std, panels=panels)
        z = mean + std * x
        now = np.array(
            [np.square(f(z)) @ weights for f in (activation.value, activation.derivative)]
        )
        if np.all(np.abs(now - before) <= 1e-13 * np.abs(now)):
            return panels // 2
        panels, before = 2 * panels, now
    return 512


def mean_of(
    function: Function,
    kinks: Sequence[float] = (),
    mean: float = 0.0,
    std: float = 1.0,
    *,
    panels: int = 16,
) -> float:
    """Integrates a function of one Gaussian.

    Args:
        function: Elementwise function of z, smooth between the kinks.
        kinks: Where it is not, in units of z.
        mean: Mean of z.
        std: Standard deviation of z, positive.
        panels: Number of equal panels, from :func:`panels_for`.

    Returns:
        ``E function(z)``.
    """
    x, weights = gauss_rule(kinks, mean, std, panels=panels)
    return float(function(mean + std * x) @ weights)


def gauss_rule(
    kinks: Sequence[float] = (),
    mean: float = 0.0,
    std: float = 1.0,
    *,
    span: float = _SPAN,
    panels: int = 16,
) -> tuple[Array, Array]:
    """Nodes and weights of a rule for the standard normal that straddles no kink.

    Args:
        kinks: Where the integrand is not smooth, in units of ``z = mean + std x``.
        mean: Mean of z.
        std: Standard deviation of z, positive.
        span: Half-width of the rule in units of x.
        panels: Number of equal panels before the cuts at the kinks and around them.

    Returns:
        Nodes x and weights, which sum to 1.
    """
    return _rule(_cuts(kinks, mean, std, panels, span))


def pair_mean(
    f: Function,
    g: Function,
    correlation: float,
    *,
    kinks: Sequence[float] = (),
    means: tuple[float, float] = (0.0, 0.0),
    stds: tuple[float, float] = (1.0, 1.0),
    width: float | None = None,
    panels: int = 16,
) -> float:
    """Integrates the product of functions of two correlated Gaussians.

    Args:
        f: Function of the first variable.
        g: Function of the second.
        correlation: Their correlation c in [-1, 1].
        kinks: Where f or g is not smooth, in units of the variables.
        means: Means of the two variables.
        stds: Their standard deviations, positive.
        width: ``√(1 - c²)`` where it is known better than c tells it, as the sine of an angle.
        panels: Number of equal panels, from :func:`panels_for`.

    Returns:
        ``E f(z1) g(z2)``, right to about 1e-14 of ``√(E f² E g²)``.

    Raises:
        UsageError: The correlation lies outside [-1, 1].
    """
    if not -1.0 <= correlation <= 1.0:
        raise UsageError(
            f"a correlation lies in [-1, 1], got {correlation}",
            "Divide the covariance by both standard deviations.",
        )
    if width is None:
        width = math.sqrt((1.0 - correlation) * (1.0 + correlation))
    cuts = _cuts(kinks, means[0], stds[0], panels)
    u, weights = _rule(
        np.append(cuts, _images(kinks, means[1], stds[1], correlation, width, panels))
    )
    weighted = weights * f(means[0] + stds[0] * u)
    centre = means[1] + correlation * stds[1] * u
    if width == 0.0:
        return float(weighted @ g(centre))
    rows = max(1, _CHUNK // (_ORDER * (len(cuts) + 1)))
    parts = (slice(start, start + rows) for start in range(0, len(u), rows))
    return sum(
        float(weighted[part] @ _smoothed(g, centre[part], width * stds[1], kinks, panels))
        for part in parts
    )


def _smoothed(
    g: Function, centre: Array, width: float, kinks: Sequence[float], panels: int
) -> Array:
    """``E g(centre + width w)`` for w standard normal, one value per centre."""
    grid = np.broadcast_to(_grid(panels, _SPAN), (len(centre), panels + 1))
    cuts = np.clip((_places(kinks, width) - centre[:, None]) / width, -_SPAN, _SPAN)
    x, weights = _panels(np.sort(np.concatenate([grid, cuts], axis=1)))
    means: Array = np.einsum("ij,ij->i", g(centre[:, None] + width * x), weights)
    return means


def _images(
    kinks: Sequence[float], mean: float, std: float, correlation: float, width: float, panels: int
) -> Array:
    """Where, along u, the inner integral varies quickly: around the images of g's kinks."""
    if correlation == 0.0:
        return np.empty(0)
    at = (np.asarray(kinks, dtype=np.float64) - mean) / std
    images = (at[:, None] + width * _SMOOTHED).ravel()
    if std > 1.0:
        # there g has cuts of its own, finer than the grid
        images = np.append(images, _cuts(kinks, mean, std, panels))
    inside: Array = images[np.abs(images) < _SPAN * abs(correlation)] / correlation
    return inside


def _cuts(
    kinks: Sequence[float], mean: float, std: float, panels: int, span: float = _SPAN
) -> Array:
    """Panel ends in units of x = (z - mean)/std for a function with these kinks."""
    places = (_places(kinks, std) - mean) / std
    return np.append(_grid(panels, span), places[np.abs(places) < span])


def _places(kinks: Sequence[float], std: float) -> Array:
    """The kinks; where std is large with a ladder around the origin and around each, in units of z.

    A panel of the grid spans more than one unit of z then.
    """
    if std <= 1.0:
        return np.asarray(kinks, dtype=np.float64)
    places: Array = np.unique(np.concatenate([_LADDER + at for at in (0.0, *kinks)]))
    return places


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
def _grid(panels: int, span: float) -> Array:
    return np.linspace(-span, span, panels + 1)
