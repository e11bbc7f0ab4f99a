"""Expectations over correlated pairs: closed forms, symmetry, kinks, callables."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shiftscope.errors import UsageError
from shiftscope.theory.pairs import mean_of, pair_mean, resolve

CORRELATIONS = [-1.0, -0.999, -0.3, 0.0, 1e-9, 0.5, 0.99, 1 - 1e-9, 1 - 1e-15, 1.0]


def _both(name: str, correlation: float, **options: Any) -> float:
    f = resolve(name)
    return pair_mean(f.value, f.value, correlation, kinks=f.kinks, **options)


@pytest.mark.parametrize("c", CORRELATIONS)
def test_relu_meets_the_arc_cosine_kernels(c: float) -> None:
    relu = resolve("relu")
    first = (math.sqrt((1 - c) * (1 + c)) + c * (math.pi - math.acos(c))) / (2 * math.pi)
    zeroth = (math.pi - math.acos(c)) / (2 * math.pi)
    slopes = pair_mean(relu.derivative, relu.derivative, c, kinks=relu.kinks)
    assert _both("relu", c) == pytest.approx(first, abs=1e-15)
    assert slopes == pytest.approx(zeroth, abs=1e-15)


@pytest.mark.parametrize("c", CORRELATIONS)
@pytest.mark.parametrize("stds", [(1.0, 1.0), (0.3, 7.0), (20.0, 20.0)])
def test_erf_and_sine_meet_their_closed_forms(c: float, stds: tuple[float, float]) -> None:
    a, b = stds
    arc = c * a * b * 2 / math.sqrt((1 + 2 * a * a) * (1 + 2 * b * b))
    assert _both("erf", c, stds=stds) == pytest.approx(2 / math.pi * math.asin(arc), abs=1e-13)
    if max(stds) < 20:
        wave = math.exp(-(a * a + b * b) / 2) * math.sinh(c * a * b)
        assert _both("sin", c, stds=stds) == pytest.approx(wave, abs=1e-13)


@pytest.mark.parametrize("c", [-0.7, 0.2, 0.98])
def test_jumps_away_from_the_origin_meet_the_bivariate_normal(c: float) -> None:
    from scipy.integrate import quad
    from scipy.stats import norm

    hard = resolve("hardtanh")
    got = pair_mean(
        hard.derivative, hard.derivative, c, kinks=hard.kinks, means=(0.3, -0.2), stds=(1.0, 2.0)
    )

    def conditional(z: float) -> float:
        law = norm(-0.2 + 2 * c * (z - 0.3), 2 * math.sqrt(1 - c * c))
        return float(norm.pdf(z, 0.3, 1.0) * (law.cdf(1.0) - law.cdf(-1.0)))

    wanted, _ = quad(conditional, -1.0, 1.0, epsabs=1e-14)
    assert got == pytest.approx(wanted, abs=1e-13)


@pytest.mark.parametrize("name", ["tanh", "gelu", "elu", "hardswish", "softsign"])
def test_ends_are_the_moments_of_one_variable(name: str) -> None:
    f = resolve(name)
    square = mean_of(lambda z: f.value(z) ** 2, f.kinks, 0.4, 1.7)
    mean = mean_of(f.value, f.kinks, 0.4, 1.7)
    options = {"means": (0.4, 0.4), "stds": (1.7, 1.7)}
    assert _both(name, 1.0, **options) == pytest.approx(square, rel=1e-13)
    assert _both(name, 1 - 1e-14, **options) == pytest.approx(square, rel=1e-12)
    assert _both(name, 0.0, **options) == pytest.approx(mean**2, rel=1e-12)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["relu6", "selu", "silu", "softshrink"]),
    st.floats(-1, 1),
    st.tuples(st.floats(-2, 2), st.floats(-2, 2)),
    st.tuples(st.floats(0.05, 4), st.floats(0.05, 4)),
)
def test_order_does_not_matter(
    name: str, c: float, means: tuple[float, float], stds: tuple[float, float]
) -> None:
    one = _both(name, c, means=means, stds=stds)
    other = _both(name, c, means=means[::-1], stds=stds[::-1])
    assert one == pytest.approx(other, abs=1e-12)


def test_a_seeded_sample_agrees() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 1_000_000))
    f = resolve("elu")
    products = f.value(x) * f.value(0.6 * x + 0.8 * y)
    standard_error = products.std() / 1000
    assert abs(products.mean() - _both("elu", 0.6)) < 5 * standard_error


def test_resolve_knows_modules_and_activations() -> None:
    leaky = resolve(torch.nn.LeakyReLU(0.2))
    assert leaky.parameters["negative_slope"] == 0.2
    assert resolve(leaky) is leaky
    with pytest.raises(UsageError, match="one parameter per neuron"):
        resolve(torch.nn.PReLU(3))
    with pytest.raises(UsageError, match="no activation is called"):
        resolve("reluu")


def test_impossible_correlations_are_refused() -> None:
    with pytest.raises(UsageError, match="correlation"):
        _both("relu", 1.01)
