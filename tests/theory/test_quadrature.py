"""The rules against each other, against scipy's adaptive quadrature, and in their limits."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy import integrate

from shiftscope.theory import catalogue, quadrature
from shiftscope.theory.activations import gains, known

CONTINUOUS = [n for n in known() if n not in ("hardshrink", "threshold")]
KINKED = {"elu", "celu", "selu", "softsign"}
SMOOTH = [n for n in CONTINUOUS if catalogue.find(n, {}).reach > 0]


def adaptive(name: str, mean: float, std: float) -> tuple[float, float, float]:
    """E f, V f and E f'² by scipy, told the kinks."""
    function = catalogue.find(name, {})
    places = [(k - mean) / std for k in (*function.kinks, -30.0, -5.0, -1.0, 0.0, 1.0, 5.0, 30.0)]
    places = [p for p in places if -12 < p < 12]

    def expectation(g: object) -> float:
        def weighted(x: float) -> float:
            z = np.array([mean + std * x])
            return float(g(z)[0] * np.exp(-0.5 * x * x) / np.sqrt(2 * np.pi))  # type: ignore[operator]

        edges = sorted({-12.0, *places, 12.0})
        parts = [
            integrate.quad(weighted, a, b, epsabs=1e-14, epsrel=1e-13, limit=200)[0]
            for a, b in pairwise(edges)
        ]
        return sum(parts)

    average = expectation(function.value)
    spread = expectation(lambda z: (function.value(z) - average) ** 2)
    return average, spread, expectation(lambda z: function.derivative(z) ** 2)


@pytest.mark.parametrize("name", ["sigmoid", "gelu_tanh", "mish", "selu", "softsign", "hardswish"])
@pytest.mark.parametrize(("mean", "std"), [(-1.5, 0.4), (3.0, 7.0), (20.0, 60.0)])
def test_scipy_agrees(name: str, mean: float, std: float) -> None:
    value = gains(name, mean, std)
    average, spread, slopes = adaptive(name, mean, std)
    assert value.mean == pytest.approx(average, rel=1e-11)
    assert value.variance == pytest.approx(spread, rel=1e-11)
    assert value.phi_bw == pytest.approx(slopes, rel=1e-10)


@pytest.mark.parametrize("name", SMOOTH)
def test_the_trapezoid_agrees_with_panels(name: str) -> None:
    function = catalogue.find(name, {})
    mean = np.linspace(-6.0, 6.0, 25)
    for std in (0.05, 0.7, 2.0, 5.0):
        spread = np.full_like(mean, std)
        ours = gains(name, mean, spread)
        panels = quadrature.panels(function.value, function.derivative, mean, spread, ())
        np.testing.assert_allclose(ours.phi_fw, panels[1], rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(ours.mean_grad, panels[2], rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(ours.phi_bw, panels[3], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_nothing_jumps_where_one_rule_hands_over_to_the_next(name: str) -> None:
    std = np.array([2e-3, 0.02, 0.45 / 0.05, 0.2 / 0.05])
    below, above = gains(name, 0.3, std * (1 - 1e-12)), gains(name, 0.3, std * (1 + 1e-12))
    for field in ("mean", "phi_fw", "mean_grad", "phi_bw"):
        left, right = getattr(below, field), getattr(above, field)
        np.testing.assert_allclose(left, right, rtol=3e-11, atol=1e-12, err_msg=field)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_tiny_deviations_keep_their_digits(name: str) -> None:
    """φ → f'(μ)² although V f = φ σ² is 1e-16 beside a squared mean of order 1."""
    mean = np.array([-0.71, 0.33, 1.7])
    slope = catalogue.find(name, {}).derivative(mean)
    value = gains(name, mean, 1e-8)
    np.testing.assert_allclose(value.phi_fw, slope**2, rtol=1e-7, atol=1e-14)
    np.testing.assert_allclose(value.phi_bw, slope**2, rtol=1e-7, atol=1e-14)
    limit = gains(name, mean, 0.0)
    np.testing.assert_array_equal(limit.phi_fw, slope**2)
    np.testing.assert_array_equal(limit.variance, 0.0)


@pytest.mark.parametrize("name", ["elu", "selu", "softsign", "relu", "leaky_relu", "abs"])
def test_at_a_kink_tiny_deviations_see_the_two_slopes(name: str) -> None:
    function = catalogue.find(name, {})
    low, high = function.derivative(np.array([-1e-12, 1e-12]))
    value = gains(name, 0.0, 1e-9)
    bent = gains("leaky_relu", negative_slope=float(low / high))
    assert value.phi_fw == pytest.approx(float(high) ** 2 * bent.phi_fw, rel=1e-8)
    assert value.phi_bw == pytest.approx(float(low**2 + high**2) / 2, rel=1e-8)


def test_huge_deviations_leave_only_the_slopes_at_infinity() -> None:
    for name in ("gelu", "silu", "mish", "elu", "softplus", "hardswish"):
        value = gains(name, 0.0, 1000.0)
        assert value.phi_bw == pytest.approx(0.5, abs=2e-3)
        assert value.phi_fw == pytest.approx(gains("relu").phi_fw, abs=2e-3)
    # A saturating function becomes a sign: V → 1 for tanh, and φ_bw falls like 1/σ.
    value = gains("tanh", 0.0, 1000.0)
    assert value.variance == pytest.approx(1.0, abs=2e-3)
    assert value.phi_bw == pytest.approx(4 / 3 / np.sqrt(2 * np.pi) / 1000, rel=1e-5)


def test_what_is_not_measured_stays_not_measured() -> None:
    value = gains("gelu", [np.nan, 0.0, np.inf], [1.0, np.nan, 1.0])
    assert np.isnan(value.phi_fw).all()
    assert np.isnan(value.mean).all()


def test_many_neurons_at_once_give_what_one_gives() -> None:
    rng = np.random.default_rng(0)
    mean, std = rng.normal(size=(40, 256)), np.exp(rng.normal(size=(40, 256)))
    for name in ("tanh", "softsign", "selu", "relu"):
        table = gains(name, mean, std)
        for i, j in ((0, 0), (17, 200), (39, 255)):
            one = gains(name, float(mean[i, j]), float(std[i, j]))
            assert table.phi_fw[i, j] == pytest.approx(one.phi_fw, rel=1e-12)
            assert table.phi_bw[i, j] == pytest.approx(one.phi_bw, rel=1e-12)
