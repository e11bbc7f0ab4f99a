"""Quadratic approximations of activations by least squares."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np

from shiftscope.errors import UsageError
from shiftscope.theory.hermite import hermite_coefficients
from shiftscope.theory.pairs import resolve

__all__ = ["Quadratic", "quadratic_fit"]


class Quadratic(NamedTuple):
    """The polynomial ``c0 + c1 x + c2 x²``."""

    c0: float
    """Constant coefficient."""
    c1: float
    """Linear coefficient."""
    c2: float
    """Quadratic coefficient."""


def quadratic_fit(activation: Any, law: Literal["normal", "uniform"] = "normal") -> Quadratic:
    """Finds the quadratic polynomial nearest an activation in mean square.

    For ReLU it is (3/32, 1/2, 15/32) on [-1, 1] and (1/√(8π), 1/2, 1/√(8π)) under N(0, 1).

    Args:
        activation: A name, a torch module or any elementwise callable.
        law: Law of the argument: "normal" for N(0, 1), "uniform" for [-1, 1].

    Returns:
        The coefficients.

    Raises:
        UsageError: An unknown activation or law.
    """
    found = resolve(activation)
    if law == "normal":
        a0, a1, a2 = hermite_coefficients(found.value, 3, kinks=found.kinks).tolist()
        return Quadratic(a0 - a2 / math.sqrt(2.0), a1, a2 / math.sqrt(2.0))
    if law != "uniform":
        raise UsageError(
            f"the law is 'normal' or 'uniform', got {law!r}", "Pass 'normal' for N(0, 1)."
        )
    inside = [k for k in found.kinks if -1.0 < k < 1.0]
    ends = np.unique([*np.linspace(-1.0, 1.0, 9), *inside])
    nodes, weights = np.polynomial.legendre.leggauss(16)
    half = 0.5 * np.diff(ends)[:, None]
    x = (0.5 * (ends[1:] + ends[:-1])[:, None] + half * nodes).ravel()
    basis = np.polynomial.legendre.legvander(x, 2)
    projected = basis.T @ (found.value(x) * (half * weights).ravel())
    # Legendre polynomials have squared norms 2/(2k + 1)
    p0, p1, p2 = (projected * np.array([0.5, 1.5, 2.5])).tolist()
    return Quadratic(p0 - 0.5 * p2, p1, 1.5 * p2)
