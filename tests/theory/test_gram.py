"""G-matrices: golden values, circles, ranks, constraints, the bound, accuracy of every route."""

from __future__ import annotations

import math
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from support import golden

from shiftscope.errors import DataError, UsageError
from shiftscope.theory.functions import Activation
from shiftscope.theory.gram import (
    activation_scale,
    g_matrix,
    hermite_gershgorin,
    layer_g_matrix,
)
from shiftscope.theory.gram_rows import minimal_pair_angle
from shiftscope.theory.hermite import hermite_coefficients
from shiftscope.theory.pairs import pair_mean, resolve
from shiftscope.theory.slope_kernel import slope_kernel

CUBIC = Activation("cubic", lambda z: z**3, lambda z: 3 * z**2)
NAMES: dict[str, Any] = {
    "relu": "relu",
    "leaky_relu_0.01": torch.nn.LeakyReLU(0.01),
    "elu_1": "elu",
    "selu": "selu",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "softplus": "softplus",
    "silu": "silu",
    "gelu": "gelu",
    "mish": "mish",
    "erf": "erf",
    "quadratic": "square",
    "cubic": CUBIC,
    "identity": "identity",
}


@pytest.mark.parametrize("key", NAMES)
def test_matrices_meet_golden(key: str) -> None:
    data, name = golden("gram"), NAMES[key]
    row = data["activations"][key]
    near: dict[str, float] = {"atol": 1e-9, "rtol": 1e-9}
    unit = g_matrix(data["X_unit"], name)
    general = g_matrix(data["X_general"], name)
    finite = layer_g_matrix(data["X_unit"], data["W_finite"], name)
    np.testing.assert_allclose(unit.values, row["Ginf_unnormalised_unit"], **near)
    np.testing.assert_allclose(general.values, row["Ginf_unnormalised_general"], **near)
    np.testing.assert_allclose(finite.values, row["G_finite_unnormalised"], **near)
    for matrix, eigenvalues in [
        (unit, row["eig_Ginf_unit"]),
        (general, row["eig_general"]),
        (finite, row["eig_G_finite"]),
    ]:
        np.testing.assert_allclose(matrix.spectrum().eigenvalues, eigenvalues, rtol=1e-9, atol=1e-9)
    scale = activation_scale(name)
    assert scale == pytest.approx(row["c_phi_squared"], rel=1e-9)
    least = unit.spectrum().eigenvalues[0] * scale
    assert least == pytest.approx(row["lambda_min_unit_times_cphi2"], abs=1e-9)
    bound = hermite_gershgorin(data["X_unit"], name)
    assert bound == pytest.approx(row["hermite_gershgorin_lower_bound_unit"], abs=1e-9)
    assert bound <= unit.spectrum().eigenvalues[0] + 1e-12


@pytest.mark.parametrize("key", NAMES)
def test_hermite_coefficients_meet_golden(key: str) -> None:
    wanted = golden("gram")["hermite_coeffs_of_derivative_k0_to_10"][key]
    found = resolve(NAMES[key])
    got = hermite_coefficients(found.derivative, 11, kinks=found.kinks)
    np.testing.assert_allclose(got, wanted, atol=1e-12)
    power = golden("gram")["activations"][key]["E_dphi_squared"]
    assert np.square(got).sum() <= power * (1 + 1e-12)


def _circle(count: int) -> np.ndarray:
    around = 2 * np.pi * np.arange(count) / count
    return np.stack([np.cos(around), np.sin(around)], axis=1)


@pytest.mark.parametrize("count", [7, 8, 15, 31])
@pytest.mark.parametrize("name", ["relu", "erf", "quadratic"])
def test_circles_meet_the_exact_spectra(count: int, name: str) -> None:
    spectra = golden("gram")["circle_d2_unnormalised"]["spectra"]
    row = spectra[str(count)][name]
    got = g_matrix(_circle(count), NAMES[name]).spectrum()
    assert got.lambda_max == pytest.approx(float(row["lambda_max"]), rel=1e-12)
    least = float(row["lambda_min"])
    if least == 0:
        assert not got.resolved
        assert math.isnan(got.lambda_min)
        assert str(got).startswith("≤ ")
        assert abs(got.eigenvalues[0]) <= got.floor < 1e-11
    else:
        assert got.resolved
        assert got.lambda_min == pytest.approx(least, abs=got.floor)
        assert got.lambda_min == pytest.approx(least, rel=1e-9 if least > 1e-9 else 0.05)


def test_rank_of_a_polynomial_activation() -> None:
    row = golden("gram")["polynomial_rank_demo"]
    got = g_matrix(row["X"], CUBIC).spectrum()
    assert int((got.eigenvalues > got.floor).sum()) == row["numerical_rank"] == 4
    assert not got.resolved
    np.testing.assert_allclose(got.eigenvalues[-4:], row["eig_top6"][-4:], rtol=1e-9)


def _pair_by_pair(rows: np.ndarray, name: Any) -> np.ndarray:
    """The definition: one two-dimensional integral per entry."""
    found = resolve(name)
    norms = np.linalg.norm(rows, axis=1)
    out = np.empty((len(rows), len(rows)))
    for i in range(len(rows)):
        for j in range(i + 1):
            inner = float(rows[i] @ rows[j])
            rho = max(-1.0, min(1.0, inner / norms[i] / norms[j]))
            slope = found.derivative
            out[i, j] = out[j, i] = inner * pair_mean(
                slope, slope, rho, kinks=found.kinks, stds=(norms[i], norms[j])
            )
    return out


@pytest.mark.parametrize("name", ["elu", "hardtanh", "softsign", "tanh", "gelu", "square", "abs"])
def test_series_and_tables_agree_with_quadrature(name: str) -> None:
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(3, 3))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    got = g_matrix(unit, name)
    assert got.entry_error <= 1e-12
    np.testing.assert_allclose(got.values, _pair_by_pair(unit, name), atol=1e-11)
    np.testing.assert_allclose(g_matrix(rows, name).values, _pair_by_pair(rows, name), atol=1e-11)


def test_a_truncated_series_states_its_error() -> None:
    rng = np.random.default_rng(4)
    rows = rng.normal(size=(80, 3))
    got = g_matrix(rows, "elu")
    exact = _pair_by_pair(rows[:6], "elu")
    wrong = np.abs(got.values[:6, :6] - exact).max()
    assert 1e-12 < wrong <= got.entry_error
    assert got.spectrum().floor >= 80 * got.entry_error


def test_a_callable_is_as_good_as_its_name() -> None:
    rows = _circle(9)
    for name in ["selu", "tanh"]:
        named = g_matrix(rows, name).values
        own = getattr(torch, name)
        np.testing.assert_allclose(g_matrix(rows, own).values, named, atol=1e-12)
        stranger = g_matrix(rows, lambda z, own=own: own(z)).values
        np.testing.assert_allclose(stranger, named, atol=1e-11)


def test_width_brings_the_finite_matrix_to_the_infinite_one() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(5, 4))
    for name in ["relu", "tanh", "elu"]:
        limit = g_matrix(rows, name).values
        got = layer_g_matrix(rows, rng.normal(size=(200_000, 4)), name).values
        np.testing.assert_allclose(got, limit, atol=0.05)


def test_finite_matrix_is_the_gram_matrix_of_autograd_gradients() -> None:
    torch.manual_seed(0)
    for activation, train_bias in [(torch.relu, False), (torch.tanh, True), (torch.sigmoid, True)]:
        layer = torch.nn.Linear(4, 7, dtype=torch.float64)
        head = torch.randn(7, dtype=torch.float64)
        x = torch.randn(6, 4, dtype=torch.float64)
        parameters = [layer.weight, layer.bias] if train_bias else [layer.weight]
        rows = []
        for sample in x:
            grads = torch.autograd.grad(activation(layer(sample)) @ head, parameters)
            rows.append(torch.cat([g.flatten() for g in grads]))
        wanted = torch.stack(rows) @ torch.stack(rows).T / 7
        got = layer_g_matrix(
            x, layer.weight, activation, layer.bias, factors=head, train_bias=train_bias
        )
        np.testing.assert_allclose(got.values, wanted.numpy(), atol=1e-13)
        assert got.parameters == sum(p.numel() for p in parameters)


def test_constraints_remove_the_spike_of_shifted_inputs() -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(40, 30)) + 3.0
    plain = g_matrix(rows, "relu").spectrum()
    zero_sum = g_matrix(rows, "relu", without="ones").spectrum()
    aware = g_matrix(rows, "relu", without=rows.mean(0)).spectrum()
    assert plain.lambda_max > 20 * zero_sum.lambda_max
    assert zero_sum.condition < plain.condition / 10
    assert aware.condition < plain.condition / 10
    assert plain.effective_rank < 2 < 10 < zero_sum.effective_rank


def test_zero_sum_projection_is_the_gradient_of_the_free_parameters() -> None:
    from scipy.linalg import helmert

    rng = np.random.default_rng(2)
    rows, free = rng.normal(size=(5, 6)) + 1, rng.normal(size=(9, 5))
    basis = helmert(6).T
    weight = free @ basis.T
    slopes = (rows @ weight.T > 0).astype(float)
    # gradient by the free parameters v of w = Bv: Bᵀx
    jacobian = np.einsum("nm,nd->nmd", slopes, rows @ basis).reshape(5, -1)
    got = layer_g_matrix(rows, weight, "relu", without="ones")
    np.testing.assert_allclose(got.values, jacobian @ jacobian.T / 9, atol=1e-13)
    assert got.parameters == 9 * 5


def test_several_directions_and_a_repeated_one() -> None:
    rows = np.random.default_rng(5).normal(size=(4, 6))
    twice = np.stack([np.ones(6), 2 * np.ones(6)])
    one = layer_g_matrix(rows, np.eye(6), "identity", without="ones")
    two = layer_g_matrix(rows, np.eye(6), "identity", without=twice)
    np.testing.assert_allclose(one.values, two.values, atol=1e-14)
    assert one.parameters == two.parameters == 30


def test_more_samples_than_parameters_are_singular_by_structure() -> None:
    rng = np.random.default_rng(6)
    got = layer_g_matrix(rng.normal(size=(20, 3)), rng.normal(size=(4, 3)), "tanh").spectrum()
    assert got.singular
    assert got.lambda_min == 0
    assert got.condition == math.inf
    assert str(got) == "0 (more samples than parameters)"


def test_minimal_pair_angle() -> None:
    rows = np.array([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [-5.0, 5e-7, 0.0]])
    assert minimal_pair_angle(rows) == pytest.approx(1e-7, rel=1e-9)
    rng = np.random.default_rng(7)
    rows = rng.normal(size=(30, 4))
    angles = [
        math.acos(abs(rows[i] @ rows[j]) / np.linalg.norm(rows[i]) / np.linalg.norm(rows[j]))
        for i in range(30)
        for j in range(i)
    ]
    assert minimal_pair_angle(rows) == pytest.approx(min(angles), rel=1e-9)


def test_duplicates_and_opposites_are_singular() -> None:
    rng = np.random.default_rng(8)
    rows = rng.normal(size=(6, 3))
    doubled = np.concatenate([rows, 2 * rows[:1]])
    assert minimal_pair_angle(doubled) < 1e-15
    for name in ["relu", "tanh", "elu"]:
        unit = doubled / np.linalg.norm(doubled, axis=1, keepdims=True)
        assert not g_matrix(unit, name).spectrum().resolved
    assert g_matrix(rows, "relu").spectrum().resolved


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(9)
    rows, weight = rng.normal(size=(23, 5)), rng.normal(size=(8, 5))
    rows[4] = rows[3] * 2
    whole = [g_matrix(rows, "relu").values, layer_g_matrix(rows, weight, "gelu").values]
    bounds = [hermite_gershgorin(rows, "relu"), minimal_pair_angle(rows[:3])]
    monkeypatch.setattr("shiftscope.theory.gram_rows._BLOCK", 50)
    parts = [g_matrix(rows, "relu").values, layer_g_matrix(rows, weight, "gelu").values]
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-14)
    assert bounds == [hermite_gershgorin(rows, "relu"), minimal_pair_angle(rows[:3])]


@pytest.mark.parametrize("name", ["relu", "tanh"])
def test_one_matrix_is_all_the_memory_it_takes(name: str) -> None:
    rows = np.random.default_rng(11).normal(size=(1200, 10))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    g_matrix(rows[:5], name)
    tracemalloc.start()
    try:
        g_matrix(rows, name).spectrum(overwrite=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # at n = 10⁴ the matrix is 0.8 GB and the rest does not grow with n²
    assert peak < 1200 * 1200 * 8 * 1.6


def test_the_bound_holds_for_many_draws() -> None:
    rng = np.random.default_rng(10)
    useful = 0
    for name in ["relu", "elu", "tanh", "gelu"]:
        for inputs in (5, 50):
            rows = rng.normal(size=(10, inputs))
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            bound = hermite_gershgorin(rows, name)
            assert bound <= g_matrix(rows, name).spectrum().eigenvalues[0] + 1e-12
            useful += bound > 0
    assert useful >= 4


def test_kernels_take_the_route_they_should() -> None:
    same, mixed = np.ones(5), np.linspace(0.5, 1.5, 100)
    assert slope_kernel(resolve("relu"), mixed).takes_angle
    assert slope_kernel(resolve("elu"), same).takes_angle
    assert not slope_kernel(resolve("tanh"), same).takes_angle
    assert slope_kernel(resolve("sigmoid"), mixed).entry_error < 1e-14
    assert slope_kernel(resolve("elu"), mixed).entry_error > 1e-8


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: g_matrix([1.0, 2.0], "relu"), UsageError, "one sample or unit per row"),
        (lambda: g_matrix("digits", "relu"), UsageError, "matrix of numbers, got str"),
        (lambda: g_matrix([[1.0], [1.0, 2.0]], "relu"), UsageError, "matrix of numbers, got list"),
        (lambda: g_matrix([[1.0, math.nan]], "relu"), DataError, "not finite"),
        (lambda: g_matrix([[1.0, 0.0], [0.0, 0.0]], "relu"), DataError, "sample 1 is zero"),
        (lambda: g_matrix([[2.0, 1.0], [3.0, 3.0]], "relu", without="ones"), DataError, "sample 1"),
        (lambda: g_matrix([[1.0, 2.0]], "relu", without="one"), UsageError, "'ones' or vectors"),
        (lambda: g_matrix([[1.0, 2.0]], "relu", without=[1.0]), UsageError, "1 entries"),
        (lambda: layer_g_matrix([[1.0, 2.0]], [[1.0]], "relu"), UsageError, "do not fit"),
        (lambda: minimal_pair_angle([[1.0, 2.0]]), UsageError, "two samples"),
        (lambda: minimal_pair_angle([[1.0], [0.0]]), DataError, "sample 1 is zero"),
        (
            lambda: layer_g_matrix([[1.0]], [[-1.0]], "relu").spectrum(),
            DataError,
            "matrix is zero",
        ),
    ],
)
def test_wrong_arguments_are_refused(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("name", ["relu", "sigmoid", "silu"])
def test_three_thousand_samples_take_less_than_ten_seconds(name: str) -> None:
    rows = np.random.default_rng(12).normal(size=(3000, 64)) / 8
    start = time.process_time()
    got = g_matrix(rows, name)
    assert got.spectrum(overwrite=True).resolved
    assert time.process_time() - start < 10


@pytest.mark.parametrize("name", ["relu", "tanh", "square", "elu", "gelu"])
def test_the_matrix_is_symmetric_to_the_last_bit(name: str) -> None:
    rows = np.random.default_rng(13).normal(size=(400, 7))
    values = g_matrix(rows, name).values
    np.testing.assert_array_equal(values, values.T)
