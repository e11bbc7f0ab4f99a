"""What an activation function does to means and variances under a Gaussian preactivation.

For ``z ~ N(μ, σ²)``, ``a = f(z)`` and a gradient independent of z with mean zero, the gains are
``φ_fw = V f(z) / σ²`` and ``φ_bw = E f'(z)²`` (Kutsuna 2019, Prop. 6 and Sec. 4.2).

Accuracy. Against 25-digit values the named functions are right to 1e-13 of max(1, value), for σ
between 1e-8 and 1e3 and |μ| up to 1e3. Variances are computed about the mean, never as
``E f² - (E f)²``, so that φ_fw keeps its digits where the variance is far below the squared mean.
Values far out in a Gaussian tail are right to about 1e-13 of the function's own scale, not to 13
digits of their own. For callables see :mod:`shiftscope.theory.callables`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shiftscope.errors import UsageError
from shiftscope.theory import catalogue, quadrature, rules
from shiftscope.theory.arrays import Array, float64
from shiftscope.theory.callables import wrap
from shiftscope.theory.functions import Activation
from shiftscope.theory.naming import Canonical, canonical

__all__ = ["Canonical", "Gains", "canonical", "gains", "known", "poincare_bounds", "stein_gap"]


@dataclass(frozen=True, slots=True)
class Gains:
    """Moments of ``f(z)`` and ``f'(z)`` for ``z ~ N(mean, std²)``.

    Every field is a float, or a float64 array of the broadcast shape of mean and std.

    Attributes:
        mean: E f(z).
        variance: V f(z).
        second_moment: E f(z)².
        mean_grad: E f'(z).
        phi_fw: Forward gain V f(z) / std²; at std = 0 its limit f'(mean)².
        phi_bw: Backward gain E f'(z)².
    """

    mean: Any
    variance: Any
    second_moment: Any
    mean_grad: Any
    phi_fw: Any
    phi_bw: Any

    @property
    def degree(self) -> Any:
        """φ_bw / φ_fw: the mean Hermite degree of f, at least 1, and 1 for affine f only."""
        return self.phi_bw / self.phi_fw


def known() -> tuple[str, ...]:
    """The names that :func:`gains` understands, sorted."""
    return catalogue.names()


def gains(
    activation: Any,
    mean: Any = 0.0,
    std: Any = 1.0,
    *,
    kinks: Sequence[float] | None = None,
    derivative: Callable[[Any], Any] | None = None,
    **parameters: Any,
) -> Gains:
    """Mean, variance and the two gains of an activation under a Gaussian preactivation.

    >>> round(gains("relu").phi_fw, 6), gains("relu").phi_bw
    (0.340845, 0.5)

    Args:
        activation: A name from :func:`known`, a torch module or its class, a torch function, or
            any elementwise callable on torch tensors or numpy arrays.
        mean: Mean of z; a number or an array.
        std: Standard deviation of z, not negative; broadcast against ``mean``. NaN gives NaN.
        kinks: For callables: the points where f or f' jumps; None lets them be searched for.
        derivative: For callables: f'; None takes autograd, or differences of f for numpy.
        **parameters: Parameters by torch's names, e.g. ``negative_slope=0.2``; arrays broadcast.

    Returns:
        The gains; floats where mean, std and parameters are all scalars.

    Raises:
        UsageError: An unknown name or parameter, a negative std, or a callable that fails.
        MeasureError: A callable that no reasonable number of panels resolves.

    Source: Kutsuna (2019), Prop. 6 and Sec. 4.2; closed forms by elementary integration.
    """
    named = canonical(activation, **parameters)
    if named is None and isinstance(activation, str):
        raise _unknown(activation)
    if named is not None and kinks is None and derivative is None:
        return _named_gains(named, mean, std)
    function = _callable_of(activation, parameters)
    shape, mu, sigma = _points(mean, std)
    return _assemble(wrap(function, mu, sigma, kinks, derivative), shape, mu, sigma)


def _named_gains(named: Canonical, mean: Any, std: Any) -> Gains:
    """Gains of a catalogue function; parameters that are arrays are broadcast value by value."""
    varying = {k: float64(v) for k, v in named.parameters.items() if np.ndim(v) > 0}
    shape, mu, sigma = _points(mean, std, *varying.values())
    if not varying:
        return _assemble(catalogue.find(named.name, named.parameters), shape, mu, sigma)
    table = np.stack([np.broadcast_to(v, shape).ravel() for v in varying.values()], axis=1)
    values, index = np.unique(table, axis=0, return_inverse=True)
    flat = np.empty((6, mu.size))
    for k, row in enumerate(values):
        here = np.flatnonzero(index.ravel() == k)
        chosen = {**named.parameters, **dict(zip(varying, map(float, row), strict=True))}
        part = _assemble(catalogue.find(named.name, chosen), here.shape, mu[here], sigma[here])
        flat[:, here] = _columns(part)
    return _shaped(list(flat), shape)


def _points(mean: Any, std: Any, *others: Array) -> tuple[tuple[int, ...], Array, Array]:
    """The broadcast shape and the flat float64 means and standard deviations."""
    mu, sigma = float64(mean), float64(std)
    try:
        shape = np.broadcast_shapes(mu.shape, sigma.shape, *(o.shape for o in others))
    except ValueError:
        raise UsageError(
            f"mean of shape {mu.shape} and std of shape {sigma.shape} do not broadcast",
            "Give scalars, or arrays of matching shapes.",
        ) from None
    if np.any(sigma < 0):
        raise UsageError(
            f"std must not be negative, got {float(np.nanmin(sigma))}",
            "Pass standard deviations, not signed values.",
        )
    return shape, np.broadcast_to(mu, shape).ravel(), np.broadcast_to(sigma, shape).ravel()


def _assemble(activation: Activation, shape: tuple[int, ...], mean: Array, std: Array) -> Gains:
    """Compute all points and give the results their shape."""
    average, phi_fw, mean_grad, phi_bw = rules.evaluate(activation, mean, std)
    variance = phi_fw * np.square(std)
    rest = [variance, variance + np.square(average), mean_grad, phi_fw, phi_bw]
    return _shaped([average, *rest], shape)


def _columns(value: Gains) -> Array:
    names = ("mean", "variance", "second_moment", "mean_grad", "phi_fw", "phi_bw")
    return np.stack([np.asarray(getattr(value, n), dtype=np.float64) for n in names])


def _shaped(columns: list[Array], shape: tuple[int, ...]) -> Gains:
    if shape == ():
        return Gains(*(float(c[0]) for c in columns))
    return Gains(*(np.ascontiguousarray(c).reshape(shape) for c in columns))


def _unknown(name: str) -> UsageError:
    return UsageError(
        f"no activation is called {name!r}",
        f"Use one of {', '.join(known())}; or pass a torch module or any callable.",
    )


def _callable_of(activation: Any, parameters: Mapping[str, Any]) -> Callable[[Any], Any]:
    """The function to integrate, for activations that are not taken from the catalogue."""
    named = canonical(activation, **parameters)
    if named is not None:
        return catalogue.find(named.name, named.parameters).value
    if isinstance(activation, type):
        activation = activation(**parameters)
        parameters = {}
    if not callable(activation):
        raise UsageError(
            f"an activation is a name, a torch module or a callable, got {type(activation)}",
            f"Use one of {', '.join(known())}; or pass a torch module or any callable.",
        )
    chosen: Callable[[Any], Any] = activation
    return (lambda z: chosen(z, **parameters)) if parameters else chosen


def stein_gap(activation: Any, mean: Any = 0.0, std: Any = 1.0, **parameters: Any) -> Any:
    """``Cov(z, f(z)) / σ² - E f'(z)``: zero for every absolutely continuous f (Stein's identity).

    A check of a pair f, f' that shares no code with the gains: the covariance is integrated from f
    alone. Functions that jump (hardshrink, threshold) show the jumps their a.e. derivative omits.

    Args:
        activation: As for :func:`gains`.
        mean: Mean of z.
        std: Standard deviation of z, positive.
        **parameters: Parameters by torch's names.

    Returns:
        The gap, a float or an array.

    Raises:
        UsageError: As :func:`gains`.
    """
    named = canonical(activation, **parameters)
    shape, mu, sigma = _points(mean, std)
    if named is not None:
        known_one = catalogue.find(named.name, named.parameters)
    else:
        known_one = wrap(_callable_of(activation, parameters), mu, sigma, None, None)
    covariance = quadrature.covariance(known_one.value, mu, sigma, known_one.kinks)
    gap = covariance - _columns(_assemble(known_one, mu.shape, mu, sigma))[3]
    return float(gap[0]) if shape == () else gap.reshape(shape)


def poincare_bounds(value: Gains) -> tuple[Any, Any]:
    """The two slacks of ``(E f')² ≤ φ_fw ≤ φ_bw``, non-negative for absolutely continuous f.

    Args:
        value: Gains at any points.

    Returns:
        ``φ_fw - (E f')²`` and ``φ_bw - φ_fw``; both vanish for affine f only.

    Source: the Gaussian Poincaré inequality, by Hermite expansion.
    """
    return value.phi_fw - value.mean_grad**2, value.phi_bw - value.phi_fw
