"""What an activation function is here: value, derivative, kinks, and its special forms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shiftscope.theory.arrays import Array

__all__ = ["Activation", "Exponential", "Function", "PiecewisePolynomial"]

Function = Callable[[Array], Array]


@dataclass(frozen=True, slots=True)
class PiecewisePolynomial:
    """A function that is a polynomial between consecutive breaks.

    Args:
        breaks: Increasing abscissae, length K.
        coefficients: K + 1 rows of polynomial coefficients in z, lowest degree first.
    """

    breaks: tuple[float, ...]
    coefficients: tuple[tuple[float, ...], ...]

    def value(self, z: Array) -> Array:
        """The function at ``z``; a break belongs to the piece on its left."""
        return self._evaluate(z, self.coefficients)

    def derivative(self, z: Array) -> Array:
        """The derivative almost everywhere; at a break the one of the piece on its left."""
        slopes = tuple(tuple(k * c for k, c in enumerate(row))[1:] for row in self.coefficients)
        return self._evaluate(z, slopes)

    def _evaluate(self, z: Array, rows: tuple[tuple[float, ...], ...]) -> Array:
        pieces = [np.polynomial.polynomial.polyval(z, row or (0.0,)) for row in rows]
        piece = np.searchsorted(np.asarray(self.breaks), z, side="left")
        return np.asarray(np.choose(piece, pieces), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Exponential:
    """``scale`` times: z above 0, ``alpha (exp(rate z) - 1)`` below (ELU, CELU, SELU).

    Args:
        alpha: Depth of the negative side.
        rate: Steepness of the exponential.
        scale: Factor of the whole function.
    """

    alpha: float
    rate: float
    scale: float


@dataclass(frozen=True, slots=True)
class Activation:
    """One activation function with its parameters filled in.

    Args:
        name: Its name, as ``torch.nn.functional`` spells it where torch has it.
        value: f, elementwise on float64 arrays.
        derivative: f', almost everywhere.
        kinks: Points where f, f' or f'' jumps.
        reach: For functions analytic in a strip: the largest spacing of nodes, in units of z, at
            which the trapezoidal rule is still right to 2e-14 (measured); 0 for all others.
        pieces: The function as a piecewise polynomial, where it is one.
        exponential: The function as an exponential linear unit, where it is one.
        continuous: False for functions that jump: the Stein and Poincaré relations fail there.
        resolved: True where the kinks form a partition that resolves f at every scale.
        parameters: The parameters, by torch's names.
    """

    name: str
    value: Function
    derivative: Function
    kinks: tuple[float, ...] = ()
    reach: float = 0.0
    pieces: PiecewisePolynomial | None = None
    exponential: Exponential | None = None
    continuous: bool = True
    resolved: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)
