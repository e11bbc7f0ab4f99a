"""Any elementwise callable as an activation: derivative, kinks and panels found by trial.

The line is bisected until f and f' are polynomials of degree 15 to rounding on every interval. An
interval that stays unresolved however narrow holds a kink; the partition is then made again with
the kinks as ends. Gains are right to about 1e-11 of the function's scale. f' comes from
``derivative``, else from autograd, else (numpy callables) from the interpolants, which costs about
two digits at kinks that are no short decimals. A feature narrower than 1/16 of its distance to the
origin, or of the covered range over 32, may be overlooked: then give ``kinks``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from shiftscope.errors import MeasureError, UsageError
from shiftscope.theory.functions import Activation
from shiftscope.theory.quadrature import ORDER, SPAN

__all__ = ["wrap"]

Array = npt.NDArray[np.float64]
Function = Callable[[Array], Array]

_PANELS = 4096
"""More intervals than this are not spent on one function."""
_TOLERANCE = 1e-12
"""Relative size of the last coefficients below which an interval counts as resolved."""
_NARROW = 1e-7
"""Relative width below which an unresolved interval is taken to hold a kink."""


def wrap(
    function: Callable[[Any], Any],
    mean: Array,
    std: Array,
    kinks: Sequence[float] | None,
    derivative: Callable[[Any], Any] | None,
) -> Activation:
    """A callable as an activation that the quadrature rules can use at the given points.

    Args:
        function: Elementwise on torch tensors or numpy arrays of float64.
        mean: Means of z, shape [n].
        std: Standard deviations of z, shape [n].
        kinks: Points where f or f' jumps; None lets them be searched for.
        derivative: f' on arrays of the same kind, or None.

    Returns:
        An activation whose kinks are the ends of all intervals on which f is resolved.

    Raises:
        UsageError: The callable fails, changes shapes, or is not elementwise.
        MeasureError: 4096 intervals do not resolve it.
    """
    value, slope = _functions(function, derivative)
    low, high = _range(mean, std)
    _check_elementwise(value, low, high)
    found = list(kinks) if kinks is not None else _search(value, slope, low, high)
    ends = _partition(value, slope, _seed(low, high, found), locate=False)
    if slope is None:
        slope = _interpolated_slope(value, ends)
    joined = _joined(value, found)
    return Activation("callable", value, slope, kinks=tuple(ends), continuous=joined, resolved=True)


def _range(mean: Array, std: Array) -> tuple[float, float]:
    """The stretch of z that the quadrature will visit, and half a unit at the least."""
    usable = np.isfinite(mean) & np.isfinite(std)
    if not usable.any():
        return -1.0, 1.0
    reach = np.maximum(SPAN * std[usable], 0.5)
    return float((mean[usable] - reach).min()), float((mean[usable] + reach).max())


def _functions(
    function: Callable[[Any], Any], derivative: Callable[[Any], Any] | None
) -> tuple[Function, Function | None]:
    """The callable and its derivative on numpy arrays, by whichever library it understands."""
    if isinstance(function, np.ufunc):
        return _numpy_function(function), None if derivative is None else _numpy_function(
            derivative
        )
    import torch

    if isinstance(function, torch.nn.Module):
        function = _copy(function)
    try:
        answer = function(torch.zeros(3, dtype=torch.float64, requires_grad=True))
        understood = isinstance(answer, torch.Tensor)
    except Exception:  # whatever a stranger's function raises: it may still be numpy's
        understood = False
    if not understood:
        return _numpy_function(function), None if derivative is None else _numpy_function(
            derivative
        )
    value = _torch_function(function)
    return value, _autograd(function) if derivative is None else _torch_function(derivative)


def _copy(module: Any) -> Any:
    """The module in float64 on the CPU, without its random behaviour; the user's is left alone."""
    import copy

    return copy.deepcopy(module).double().cpu().eval().requires_grad_(False)


def _numpy_function(function: Callable[[Any], Any]) -> Function:
    def value(z: Array) -> Array:
        with np.errstate(all="ignore"):
            return _checked(function(z), z)

    return value


def _torch_function(function: Callable[[Any], Any]) -> Function:
    import torch

    def value(z: Array) -> Array:
        with torch.no_grad():
            result = function(torch.from_numpy(z.copy()))
        if isinstance(result, torch.Tensor):
            result = result.detach().numpy()
        return _checked(result, z)

    return value


def _autograd(function: Callable[[Any], Any]) -> Function:
    import torch

    def slope(z: Array) -> Array:
        leaf = torch.from_numpy(z.copy()).requires_grad_()
        with torch.enable_grad():
            result = function(leaf)
            if not result.requires_grad:  # piecewise constant: no path back to z
                return np.zeros_like(z)
            (gradient,) = torch.autograd.grad(result.sum(), leaf, allow_unused=True)
        return np.zeros_like(z) if gradient is None else _checked(gradient.numpy(), z)

    return slope


def _checked(result: Any, z: Array) -> Array:
    values = np.asarray(result, dtype=np.float64)
    if values.shape != z.shape:
        raise UsageError(
            f"the activation maps shape {z.shape} to {values.shape}",
            "Gains are defined for elementwise functions only.",
        )
    return values


def _check_elementwise(value: Function, low: float, high: float) -> None:
    """Refuse functions that mix elements (softmax) or draw random numbers (dropout)."""
    z = np.linspace(low, high, 9)
    whole, part = value(z), value(z[::2].copy())
    if not np.allclose(whole[::2], part, rtol=1e-9, atol=0.0, equal_nan=True):
        raise UsageError(
            "the activation's value at a point depends on other points, or on chance",
            "Gains are defined for deterministic elementwise functions only.",
        )


def _seed(low: float, high: float, kinks: Sequence[float]) -> Array:
    """First ends: a uniform grid, a dyadic ladder about the origin, and the kinks."""
    ladder = 2.0 ** np.arange(-3, 24)
    fixed = np.unique([low, high, *(k for k in kinks if low < k < high)])
    points = np.concatenate([np.linspace(low, high, 33), [0.0], ladder, -ladder])
    points = np.unique(points[(points > low) & (points < high)])
    # Ends that nearly coincide would make intervals on which f' is nothing but rounding.
    far = np.abs(points[:, None] - fixed).min(axis=1) > 1e-3 * np.maximum(1.0, np.abs(points))
    points = points[far]
    apart = np.diff(points, prepend=-np.inf) > 1e-3 * np.maximum(1.0, np.abs(points))
    return np.union1d(fixed, points[apart])


def _search(value: Function, slope: Function | None, low: float, high: float) -> list[float]:
    """The kinks inside the range: what bisection cannot resolve."""
    ends = _partition(value, slope, _seed(low, high, ()), locate=True)
    width = np.diff(ends)
    narrow = width < _NARROW * np.maximum(1.0, np.abs(ends[:-1]))
    if not narrow.any():
        return []
    # Neighbouring narrow intervals surround one kink; the narrowest of them holds it.
    groups = np.split(
        np.flatnonzero(narrow), np.flatnonzero(np.diff(np.flatnonzero(narrow)) > 1) + 1
    )
    smallest = [g[np.argmin(width[g])] for g in groups]
    return [_rounded(float(ends[k] + 0.5 * width[k]), float(width[k])) for k in smallest]


def _rounded(kink: float, width: float) -> float:
    """The short decimal the author of the function meant, where one lies within the interval."""
    # Inside the interval no place is better supported than another, so this can cost nothing.
    short = round(kink, 6)
    return short if abs(short - kink) <= max(width, 1e-12 * max(1.0, abs(kink))) else kink


def _partition(value: Function, slope: Function | None, ends: Array, locate: bool) -> Array:
    """Bisect until every interval is resolved; with ``locate`` down to rounding around kinks."""
    finest = 4e-15 if locate else _NARROW
    done: list[Array] = [ends[:1]]
    left, right = ends[:-1], ends[1:]
    scale = np.zeros(2)
    while left.size:
        open_ = _unresolved(value, slope, left, right, scale)
        open_ &= (right - left) > finest * np.maximum(1.0, np.abs(left))
        done.append(right[~open_])
        left, right = left[open_], right[open_]
        middle = 0.5 * (left + right)
        left, right = np.concatenate([left, middle]), np.concatenate([middle, right])
        if sum(d.size for d in done) + left.size > _PANELS:
            raise MeasureError(
                f"{_PANELS} intervals do not resolve the activation on "
                f"[{ends[0]:.6g}, {ends[-1]:.6g}]",
                "Give its kinks, or smaller standard deviations.",
            )
    return np.unique(np.concatenate(done))


@cache
def _transform() -> tuple[Array, Array]:
    """Gauss-Legendre nodes, and the matrix from values there to Legendre coefficients."""
    nodes, weights = np.polynomial.legendre.leggauss(ORDER)
    basis = np.polynomial.legendre.legvander(nodes, ORDER - 1)
    return nodes, (basis * weights[:, None]).T * (np.arange(ORDER)[:, None] + 0.5)


def _coefficients(function: Function, left: Array, right: Array) -> tuple[Array, Array]:
    """Values at the nodes and Legendre coefficients of every interval, [intervals, ORDER]."""
    nodes, matrix = _transform()
    z = 0.5 * (left + right)[:, None] + 0.5 * (right - left)[:, None] * nodes
    values = function(z)
    return values, values @ matrix.T


def _unresolved(
    value: Function, slope: Function | None, left: Array, right: Array, scale: Array
) -> npt.NDArray[np.bool_]:
    """Intervals on which the last coefficients of f or f' are not yet negligible."""
    bad = np.zeros(left.size, dtype=np.bool_)
    for k, function in enumerate((value, slope)):
        if function is None:
            continue
        values, coefficients = _coefficients(function, left, right)
        if not np.isfinite(values).all():
            raise _not_finite("derivative" if k else "value", left, right, values)
        size = np.abs(values).max(axis=1)
        scale[k] = max(scale[k], float(size.max()))
        tail = np.abs(coefficients[:, -3:]).max(axis=1)
        bad |= ~(tail <= _TOLERANCE * size + 1e-15 * scale[k])
    return bad


def _not_finite(what: str, left: Array, right: Array, values: Array) -> UsageError:
    where = int(np.argmin(np.isfinite(values).all(axis=1)))
    return UsageError(
        f"the activation's {what} is not finite on [{left[where]:.6g}, {right[where]:.6g}]",
        "Write it so that it neither overflows nor leaves its domain, or give its derivative.",
    )


def _interpolated_slope(value: Function, ends: Array) -> Function:
    """The derivative of the interpolants between the ends."""
    left, right = ends[:-1], ends[1:]
    values, coefficients = _coefficients(value, left, right)
    # Differentiation multiplies the rounding in the last coefficients by their degree squared.
    noise = 1e-15 * (np.arange(ORDER) + 0.5) * np.abs(values).max(axis=1, keepdims=True)
    coefficients = np.where(np.abs(coefficients) > noise, coefficients, 0.0)
    slopes = np.polynomial.legendre.legder(coefficients, axis=1) * (2.0 / (right - left))[:, None]

    def slope(z: Array) -> Array:
        cell = np.clip(np.searchsorted(ends, z, side="left") - 1, 0, left.size - 1)
        local = (2.0 * z - left[cell] - right[cell]) / (right - left)[cell]
        rows = np.moveaxis(slopes[cell], -1, 0)
        return np.asarray(np.polynomial.legendre.legval(local, rows, tensor=False))

    return slope


def _joined(value: Function, kinks: Sequence[float]) -> bool:
    """Whether f is continuous at its kinks."""
    if not len(kinks):
        return True
    at = np.asarray(kinks, dtype=np.float64)
    gap = 1e-9 * np.maximum(1.0, np.abs(at))
    before, after = value(at - gap), value(at + gap)
    return bool(np.all(np.abs(after - before) <= 1e-6 * (1.0 + np.abs(before))))
