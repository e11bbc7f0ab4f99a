"""Spectra: known matrices, the floor, certificates, what may be overwritten."""

from __future__ import annotations

import math

import numpy as np
import pytest

from shiftscope.errors import DataError, UsageError
from shiftscope.theory.spectrum import exceeds, spectrum


def _matrix(eigenvalues: list[float], seed: int = 0) -> np.ndarray:
    draws = np.random.default_rng(seed).normal(size=(len(eigenvalues), len(eigenvalues)))
    basis, _ = np.linalg.qr(draws)
    matrix = basis @ np.diag(eigenvalues) @ basis.T
    return (matrix + matrix.T) / 2


def test_known_eigenvalues() -> None:
    got = spectrum(_matrix([0.5, 1.0, 4.0]))
    np.testing.assert_allclose(got.eigenvalues, [0.5, 1.0, 4.0], rtol=1e-12)
    assert got.lambda_min == pytest.approx(0.5)
    assert got.lambda_max == pytest.approx(4.0)
    assert got.condition == pytest.approx(8.0)
    assert got.condition_at_least == pytest.approx(8.0)
    assert got.effective_rank == pytest.approx(5.5**2 / 17.25)
    assert str(got) == "0.5"


def test_effective_rank_at_its_ends() -> None:
    assert spectrum(np.eye(7)).effective_rank == pytest.approx(7)
    assert spectrum(np.ones((7, 7))).effective_rank == pytest.approx(1)


def test_below_the_floor_there_is_no_number() -> None:
    got = spectrum(_matrix([1e-18, 1.0, 10.0]))
    assert got.floor == pytest.approx(3 * np.finfo(float).eps * 10)
    assert not got.resolved
    assert math.isnan(got.lambda_min)
    assert math.isnan(got.condition)
    assert got.condition_at_least == pytest.approx(10 / got.floor)
    assert str(got) == f"≤ {got.floor:.2g}"


def test_entry_errors_and_single_precision_raise_the_floor() -> None:
    matrix = _matrix([1e-5, 1.0, 10.0])
    assert spectrum(matrix).resolved
    assert not spectrum(matrix, entry_error=1e-4).resolved
    single = spectrum(_matrix([1e-7, 1.0, 10.0]).astype(np.float32))
    assert single.floor > 1e-6
    assert not single.resolved


def test_parameters_bound_the_rank() -> None:
    assert spectrum(np.eye(3), parameters=2).singular
    assert not spectrum(np.eye(3), parameters=3).singular


def test_the_matrix_is_kept_unless_given_away() -> None:
    matrix = _matrix([1.0, 2.0, 3.0])
    before = matrix.copy()
    spectrum(matrix)
    np.testing.assert_array_equal(matrix, before)
    np.testing.assert_allclose(spectrum(matrix, overwrite=True).eigenvalues, [1, 2, 3])


def test_certificate() -> None:
    matrix = _matrix([0.1, 1.0, 4.0])
    before = matrix.copy()
    assert exceeds(matrix, 0.0999)
    assert not exceeds(matrix, 0.1001)
    np.testing.assert_array_equal(matrix, before)


@pytest.mark.parametrize("matrix", [np.ones((2, 3)), np.empty((0, 0)), np.ones(3)])
def test_what_is_not_square_is_refused(matrix: np.ndarray) -> None:
    with pytest.raises(UsageError, match="square"):
        spectrum(matrix)
    with pytest.raises(UsageError, match="square"):
        exceeds(matrix, 0.0)


def test_bad_entries_are_refused() -> None:
    with pytest.raises(DataError, match="not finite"):
        spectrum(np.array([[1.0, math.nan], [math.nan, 1.0]]))
    with pytest.raises(DataError, match="zero"):
        spectrum(np.zeros((2, 2)))
