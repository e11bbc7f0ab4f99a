"""Samples as rows: their directions, correlations and angles, a block at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from shiftscope.errors import DataError, UsageError
from shiftscope.theory.arrays import Array, float64

__all__ = [
    "angles_of",
    "correlations",
    "directions",
    "minimal_pair_angle",
    "parts",
    "project",
    "samples_of",
    "unit_rows",
]


_BLOCK = 1 << 16
"""Entries of an [n, n] matrix worked on at once: what stays in a core's cache."""
_CLOSE = 1e-4
"""1 - |ρ| below which an angle is taken from the difference of the vectors, not from ρ."""


def minimal_pair_angle(x: npt.ArrayLike) -> float:
    """Measures how close two samples come to being parallel or opposite.

    Args:
        x: Samples ``[n, d]``, at least two.

    Returns:
        The smallest angle between any x_i and ±x_j, in radians: 0 for duplicates up to scale, for
        which every G-matrix is singular.

    Raises:
        UsageError: Fewer than two samples.
        DataError: A sample that is zero or not finite.
    """
    unit = unit_rows(x)
    if len(unit) < 2:
        raise UsageError(f"a pair needs two samples, got {len(unit)}", "Pass more samples.")
    smallest = math.inf
    for rows, columns, rho in correlations(unit, upper=True):
        angles = angles_of(unit[rows], unit[columns], rho)
        angles = np.minimum(angles, math.pi - angles)
        np.fill_diagonal(angles, math.inf)
        smallest = min(smallest, float(angles.min()))
    return smallest


def samples_of(x: npt.ArrayLike) -> Array:
    """Reads samples, or units, as float64 rows; torch tensors are brought to the host.

    Args:
        x: A matrix ``[n, d]``.

    Returns:
        The rows.

    Raises:
        UsageError: It is no matrix of numbers, or empty.
        DataError: It has values that are not finite.
    """
    try:
        rows = float64(x)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"expected a matrix of numbers, got {type(x).__name__}: {error}",
            "Pass a tensor or an array [samples, inputs].",
        ) from None
    if rows.ndim != 2 or not rows.size:
        raise UsageError(
            f"expected a matrix with one sample or unit per row, got shape {rows.shape}",
            "Flatten each sample; for convolutions use jacobian_g_matrix.",
        )
    if not np.isfinite(rows).all():
        raise DataError(
            "the data have values that are not finite", "Drop or repair the rows with NaN or inf."
        )
    return rows


def unit_rows(x: npt.ArrayLike) -> Array:
    """Normalises samples to unit length, whatever their scale.

    Args:
        x: Samples ``[n, d]``.

    Returns:
        Unit rows.

    Raises:
        UsageError: It is no matrix, or empty.
        DataError: A sample is zero or not finite.
    """
    rows = samples_of(x)
    rows = rows / np.maximum(np.abs(rows).max(1, keepdims=True), 1e-300)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not norms.all():
        raise DataError(f"sample {int(np.argmin(norms))} is zero", "Drop samples of zeros.")
    return np.asarray(rows / norms)


def directions(without: npt.ArrayLike | str, inputs: int) -> Array:
    """Builds an orthonormal basis of the directions that weights are constrained against.

    Args:
        without: "ones", or vectors ``[d]`` or ``[k, d]``; empty for none.
        inputs: Number of inputs d.

    Returns:
        The basis ``[rank, d]``.

    Raises:
        UsageError: Another word, or vectors of another length.
    """
    if isinstance(without, str):
        if without != "ones":
            raise UsageError(
                f"`without` is 'ones' or vectors, got {without!r}",
                "Pass the mean input, or 'ones'.",
            )
        without = np.ones(inputs)
    vectors = np.atleast_2d(float64(without))
    if not vectors.size:
        return np.empty((0, inputs))
    if vectors.shape[1] != inputs:
        raise UsageError(
            f"directions have {vectors.shape[1]} entries, samples {inputs}",
            "Pass directions in the space of the inputs.",
        )
    _, sizes, basis = np.linalg.svd(vectors, full_matrices=False)
    kept: Array = basis[sizes > 1e-12 * sizes.max()] if sizes.max() > 0 else basis[:0]
    return kept


def project(rows: Array, without: npt.ArrayLike | str) -> Array:
    """Removes the components of samples along some directions.

    Args:
        rows: Samples ``[n, d]``.
        without: As for :func:`directions`.

    Returns:
        What constrained weights can see of the samples.

    Raises:
        UsageError: As :func:`directions`.
    """
    basis = directions(without, rows.shape[1])
    return rows - (rows @ basis.T) @ basis if len(basis) else rows


def parts(size: int) -> Iterator[slice]:
    """Cuts the rows of an ``[n, n]`` matrix into blocks of bounded size.

    Args:
        size: The number n.

    Returns:
        Slices that cover 0 to n.
    """
    step = max(1, _BLOCK // size)
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


def correlations(unit: Array, *, upper: bool = False) -> Iterator[tuple[slice, slice, Array]]:
    """Computes the correlation matrix block by block, with exact ones on the diagonal.

    Args:
        unit: Unit rows ``[n, d]``.
        upper: Whether to leave out the columns to the left of each block's diagonal.

    Yields:
        A slice of rows, a slice of columns, and the correlations between them in [-1, 1].
    """
    for rows in parts(len(unit)):
        columns = slice(rows.start if upper else 0, len(unit))
        rho = np.clip(unit[rows] @ unit[columns].T, -1.0, 1.0)
        np.fill_diagonal(rho[:, rows.start - columns.start :], 1.0)
        yield rows, columns, rho


def angles_of(first: Array, second: Array, rho: Array) -> Array:
    """Computes the angles behind a block of correlations.

    Those of nearly parallel or opposite pairs come from the difference of the vectors: the arc
    cosine would turn an error of 1e-16 in ρ into 1e-8.

    Args:
        first: Unit rows ``[k, d]``.
        second: Unit rows ``[l, d]``.
        rho: Their correlations ``[k, l]``.

    Returns:
        Angles in [0, π], shaped like ``rho``.
    """
    angles: Array = np.arccos(rho)
    left, right = np.nonzero(np.abs(rho) > 1.0 - _CLOSE)
    step = max(1, _BLOCK // first.shape[1])
    for start in range(0, len(left), step):
        i, j = left[start : start + step], right[start : start + step]
        sign = np.sign(rho[i, j])
        gap = np.linalg.norm(first[i] - sign[:, None] * second[j], axis=1)
        near = 2.0 * np.arcsin(0.5 * gap)
        angles[i, j] = np.where(sign > 0, near, math.pi - near)
    return angles
