r"""The G-matrix of a layer: how well its weights alone can move the outputs apart.

For :math:`F(x) = m^{-1/2}\sum_k a_k \phi(w_k\cdot x)` with only w trained the gradients' Gram
matrix is :math:`G_{ij} = \langle x_i, x_j\rangle\, m^{-1}\sum_k a_k^2\phi'(w_k x_i)\phi'(w_k x_j)`,
for infinite width :math:`G^\infty_{ij} = \langle x_i, x_j\rangle E\,\phi'(u_i)\phi'(u_j)`. Gradient
descent shrinks the training error at a rate set by its smallest eigenvalue (Panigrahi, Shetty and
Goyal, ICLR 2020, arXiv 1908.05660). Their normalisation :math:`c_\phi^2 = 1/E\phi^2` is left out:
multiply by :func:`activation_scale` where it is wanted.

A constraint on the weights leaves only gradients along the allowed directions: ⟨x, y⟩ becomes
⟨Px, Py⟩. For zero-sum rows (LCW) P removes the direction of ones, for data-aware LCW that of the
mean input, and with it the eigenvalue of order n‖μ‖² that shifted inputs add.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shiftscope.errors import DataError, UsageError
from shiftscope.theory.arrays import Array, float64
from shiftscope.theory.gram_rows import (
    angles_of,
    correlations,
    directions,
    parts,
    project,
    samples_of,
    unit_rows,
)
from shiftscope.theory.hermite import hermite_coefficients
from shiftscope.theory.pairs import mean_of, panels_for, resolve
from shiftscope.theory.slope_kernel import slope_kernel
from shiftscope.theory.spectrum import Spectrum, spectrum

__all__ = [
    "GMatrix",
    "activation_scale",
    "g_matrix",
    "hermite_gershgorin",
    "layer_g_matrix",
]


@dataclass(frozen=True)
class GMatrix:
    """A Gram matrix of gradients with what is known about its accuracy and rank."""

    values: Array
    """The matrix, ``[n, n]``, symmetric, float64."""
    entry_error: float
    """Largest absolute error of an entry, rounding apart."""
    parameters: int | None
    """Number of trained parameters, which bounds the rank; None for infinite width."""

    def spectrum(self, *, overwrite: bool = False) -> Spectrum:
        """Computes its eigenvalues, floor, condition and effective rank.

        Args:
            overwrite: Whether ``values`` may be destroyed, which saves a copy for large n.

        Returns:
            The spectrum.

        Raises:
            DataError: The matrix is zero or has entries that are not finite.
        """
        return spectrum(
            self.values,
            entry_error=self.entry_error,
            parameters=self.parameters,
            overwrite=overwrite,
        )


def g_matrix(x: npt.ArrayLike, activation: Any, *, without: npt.ArrayLike | str = ()) -> GMatrix:
    """Computes the G-matrix of infinite width, weights standard normal.

    Args:
        x: Samples ``[n, d]``, any norms.
        activation: A name, a torch module or any elementwise callable.
        without: Directions that the weights have no component along: "ones" for zero-sum rows
            (LCW), or vectors ``[d]`` or ``[k, d]``, for instance the mean input (data-aware LCW).

    Returns:
        G without the factor c_ϕ². With unequal norms, more than about 70 samples and a kinked ϕ
        other than ReLU and its leaky kin, ``entry_error`` is that of a truncated series.

    Raises:
        UsageError: Shapes that do not fit, or an unknown activation.
        DataError: A sample that is zero (after the projection), or not finite.
    """
    samples = samples_of(x)
    rows = project(samples, without)
    norms = np.linalg.norm(rows, axis=1)
    blind = norms <= 1e-12 * np.linalg.norm(samples, axis=1)
    if blind.any():
        raise DataError(
            f"sample {int(np.argmax(blind))} is zero where the weights can see it",
            "Drop constant samples, or samples along the directions given by `without`.",
        )
    unit = rows / norms[:, None]
    kernel = slope_kernel(resolve(activation, std=float(norms.max())), norms)
    values = np.empty((len(rows), len(rows)))
    for block, columns, rho in correlations(unit, upper=True):
        argument = angles_of(unit[block], unit[columns], rho) if kernel.takes_angle else rho
        inner = rho * norms[block, None] * norms[columns]
        values[block, columns] = kernel.evaluate(argument, block, columns) * inner
        _mirror(values, block)
    error = kernel.entry_error * float(norms.max()) ** 2
    return GMatrix(values, error, None)


def _mirror(values: Array, block: slice) -> None:
    """Copies what stands right of the diagonal in a block of rows to below it."""
    values[block.stop :, block] = values[block, block.stop :].T
    square = values[block, block]
    below = np.tril_indices(len(square), -1)
    square[below] = square.T[below]


def layer_g_matrix(
    x: npt.ArrayLike,
    weight: npt.ArrayLike,
    activation: Any,
    bias: npt.ArrayLike | None = None,
    *,
    factors: npt.ArrayLike | None = None,
    train_bias: bool = False,
    without: npt.ArrayLike | str = (),
) -> GMatrix:
    """Computes the G-matrix of a fully connected layer as it is, at finite width.

    Args:
        x: Inputs of the layer, ``[n, d]``.
        weight: Effective weights ``[m, d]``.
        activation: What follows the layer.
        bias: Effective biases ``[m]``; None for zero.
        factors: Derivatives of the output by each unit's activation, ``[m]`` or ``[n, m]``; None
            for ±1, the layer being the last but one.
        train_bias: Whether the bias is trained as well, which adds 1 to every ⟨x, y⟩.
        without: Directions the weights are constrained against; see :func:`g_matrix`.

    Returns:
        G, divided by the number of units m.

    Raises:
        UsageError: Shapes that do not fit, or an unknown activation.
        DataError: Values that are not finite.
    """
    samples, weights = samples_of(x), samples_of(weight)
    if weights.shape[1] != samples.shape[1]:
        raise UsageError(
            f"weights {weights.shape} do not fit inputs {samples.shape}",
            "Pass weights [units, inputs] and inputs [samples, inputs].",
        )
    z = samples @ weights.T
    if bias is not None:
        z += float64(bias)
    slopes = resolve(activation, std=max(float(np.abs(z).max()), 1.0) / 10.0).derivative(z)
    if factors is not None:
        slopes = slopes * float64(factors)
    allowed = project(samples, without)
    values = np.empty((len(samples), len(samples)))
    for part in parts(len(samples)):
        inner = allowed[part] @ allowed.T + float(train_bias)
        values[part] = slopes[part] @ slopes.T / len(weights) * inner
    free = samples.shape[1] - len(directions(without, samples.shape[1])) + train_bias
    return GMatrix(values, 0.0, len(weights) * free)


def activation_scale(activation: Any) -> float:
    """Computes the factor c_ϕ² that gives ϕ(u) unit power for standard normal u.

    Args:
        activation: A name, a torch module or any elementwise callable.

    Returns:
        ``1/E ϕ(u)²``.

    Raises:
        UsageError: An unknown activation.
    """
    found = resolve(activation)
    square = mean_of(lambda z: np.square(found.value(z)), found.kinks, panels=panels_for(found))
    return 1.0 / square


def hermite_gershgorin(x: npt.ArrayLike, activation: Any, *, terms: int = 11) -> float:
    r"""Bounds the smallest eigenvalue of the infinite-width G-matrix of unit-norm data from below.

    :math:`G^\infty = \sum_k c_k^2 (XX^\top)^{\circ(k+1)}`, every term positive semidefinite, and by
    Gershgorin each is at least :math:`g_p = 1 - \max_i\sum_{j\ne i}|\rho_{ij}|^p`, which grows
    with p. Hence :math:`\lambda_{min} \ge \sum_{k<K} c_k^2 \max(0, g_{k+1}) + (E\phi'^2 -
    \sum_{k<K}c_k^2)\max(0, g_{K+1})`.

    Args:
        x: Samples ``[n, d]``; their norms are taken out.
        activation: A name, a torch module or any elementwise callable.
        terms: Number K of Hermite terms treated one by one.

    Returns:
        The bound, 0 where Gershgorin's discs say nothing.

    Raises:
        UsageError: No samples, or an unknown activation.
        DataError: A sample that is zero or not finite.
    """
    found = resolve(activation)
    squares = np.square(hermite_coefficients(found.derivative, terms, kinks=found.kinks))
    power = mean_of(lambda z: np.square(found.derivative(z)), found.kinks, panels=panels_for(found))
    radii = np.zeros(terms + 1)
    for block, _, rho in correlations(unit_rows(x)):
        size = np.abs(rho)
        np.fill_diagonal(size[:, block.start :], 0.0)
        powers = np.ones_like(size)
        for k in range(terms + 1):
            powers *= size
            radii[k] = max(radii[k], float(powers.sum(1).max()))
    discs = np.maximum(0.0, 1.0 - radii)
    rest = max(power - float(squares.sum()), 0.0)
    return float(squares @ discs[:-1] + rest * discs[-1])
