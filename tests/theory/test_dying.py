"""Dead units: golden probabilities, simulation, exact bounds, counts from data."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from support import golden

from shiftscope.errors import DataError, UsageError
from shiftscope.theory import dying
from shiftscope.theory.dying import (
    activity,
    layer_dead_probability,
    low_activity_probability,
    pair_dead_probability,
    rule_of_three,
    share_bounds,
    shift_dead_probability,
)
from shiftscope.theory.quadratic import quadratic_fit

NEAR = {"rel": 1e-10, "abs": 1e-300}


def test_dead_layers_meet_golden() -> None:
    for row in golden("dying_relu")["born_dead_zero_bias"]:
        wanted = row["p_all_zero_single_input_zero_bias"]
        assert layer_dead_probability(row["hidden_widths"]) == pytest.approx(wanted, **NEAR)


def test_pairs_meet_golden() -> None:
    for row in golden("dying_relu")["two_sample_neuron"]:
        angle = float(row["angle_rad"])
        assert pair_dead_probability(angle) == pytest.approx(row["p_neuron_dead_on_both"], **NEAR)
        wanted = row["p_layer_dead_on_both_width5"]
        assert pair_dead_probability(angle, 5) == pytest.approx(wanted, **NEAR)


@pytest.mark.parametrize("case", range(6))
def test_shift_induced_death_meets_golden(case: int) -> None:
    row = golden("dying_relu")["shift_induced_death"]["rows"][case]
    share = float(row["shift_share"])
    for samples in (1, 10, 100, 1000):
        wanted = row[f"p_dead_on_{samples}_independent_samples"]
        assert shift_dead_probability(share, samples) == pytest.approx(wanted, **NEAR)
    for active in (0.01, 0.1):
        wanted = row[f"p_active_fraction_below_{active}"]
        got = low_activity_probability(share, active)
        assert got == pytest.approx(wanted, rel=1e-10, abs=1e-17)


@pytest.mark.parametrize("name", ["relu", "sigmoid", "tanh", "silu", "gelu", "softplus", "elu_1"])
def test_quadratic_fits_meet_golden(name: str) -> None:
    row = golden("dying_relu")["quadratic_approximations"]["values"][name]
    for law, key in [("uniform", "uniform_minus1_1"), ("normal", "standard_normal")]:
        wanted = row[f"least_squares_{key}"]
        got = quadratic_fit(name.removesuffix("_1"), law)
        np.testing.assert_allclose(got, [wanted["c0"], wanted["c1"], wanted["c2"]], atol=1e-10)


def test_quadratic_fit_is_the_least_squares_one() -> None:
    x = np.linspace(-1, 1, 200_001)
    wanted = np.polynomial.polynomial.polyfit(x, np.clip(2 * x, -1, 1), 2)
    got = quadratic_fit(lambda z: torch.clamp(2 * z, -1, 1), "uniform")
    np.testing.assert_allclose(got, wanted, atol=1e-4)
    with pytest.raises(UsageError, match="normal"):
        quadratic_fit("relu", "cauchy")


@pytest.mark.parametrize("samples", [1, 2, 17, 10_000, 10**6])
def test_half_the_variance_between_neurons_gives_a_closed_form(samples: int) -> None:
    got = shift_dead_probability(0.5, samples)
    assert got == pytest.approx(1 / (samples + 1), rel=1e-11)


def test_one_sample_is_a_fair_coin_at_any_share() -> None:
    for share in [0.0, 1e-9, 0.01, 0.3, 0.9, 0.99999, 1.0]:
        assert shift_dead_probability(share, 1) == pytest.approx(0.5, rel=1e-12)


def test_two_samples_are_the_orthant_probability() -> None:
    # two preactivations of one unit have correlation c: P(both negative) = 1/4 + asin(c)/2π
    for share in [1e-6, 0.2, 0.77, 0.9999]:
        wanted = 0.25 + math.asin(share) / (2 * math.pi)
        assert shift_dead_probability(share, 2) == pytest.approx(wanted, rel=1e-12)


def test_more_shift_kills_more_units_and_more_samples_fewer() -> None:
    by_share = [shift_dead_probability(c, 30) for c in np.linspace(0, 1, 12)]
    assert by_share == sorted(by_share)
    by_samples = [shift_dead_probability(0.7, n) for n in (1, 3, 10, 100, 1000)]
    assert by_samples == sorted(by_samples, reverse=True)


def test_simulated_networks_agree() -> None:
    generator = torch.Generator().manual_seed(0)
    widths, runs, dead = [2, 3, 2], 20_000, 0
    a = torch.randn(runs, 1, 4, generator=generator).expand(runs, 1, 4)
    for width in widths:
        weight = torch.randn(runs, a.shape[2], width, generator=generator)
        a = torch.relu(a @ weight)
    dead = int((a.flatten(1) == 0).all(1).sum())
    bounds = share_bounds(dead, runs, 0.9999)
    assert bounds.low <= layer_dead_probability(widths) <= bounds.high


def test_simulated_shift_agrees() -> None:
    rng = np.random.default_rng(0)
    units, samples, share = 20_000, 20, 0.6
    z = math.sqrt(share) * rng.normal(size=units)
    z = z + math.sqrt(1 - share) * rng.normal(size=(samples, units))
    got = activity(z, 0.9999)
    assert got.dead.low <= shift_dead_probability(share, samples) <= got.dead.high
    # symmetric: always on is as likely
    assert got.always_on.low <= shift_dead_probability(share, samples) <= got.always_on.high


def test_activity_counts_by_hand() -> None:
    z = np.array([[-1.0, 0.0, 2.0, 1.0], [-2.0, -1.0, 1.0, -1.0]])
    got = activity(z)
    np.testing.assert_array_equal(got.active_fraction, [0.0, 0.0, 1.0, 0.5])
    assert got.dead.estimate == 0.5
    assert got.always_on.estimate == 0.25
    assert got.unseen == rule_of_three(2)


def test_bounds_are_scipys_and_cover() -> None:
    from scipy.stats import binom, binomtest

    for count, total in [(0, 10), (3, 10), (10, 10), (1, 1000), (0, 1)]:
        wanted = binomtest(count, total).proportion_ci(0.95, method="exact")
        got = share_bounds(count, total)
        assert (got.low, got.high) == pytest.approx((wanted.low, wanted.high), rel=1e-9)
    # coverage, summed exactly over all outcomes
    for truth in (0.01, 0.3, 0.5):
        covered = 0.0
        for count in range(31):
            bounds = share_bounds(count, 30, 0.9)
            covered += binom.pmf(count, 30, truth) * (bounds.low <= truth <= bounds.high)
        assert covered >= 0.9


def test_nothing_tried_says_nothing() -> None:
    got = share_bounds(0, 0)
    assert math.isnan(got.estimate)
    assert (got.low, got.high) == (0.0, 1.0)
    assert rule_of_three(0) == 1.0


def test_rule_of_three() -> None:
    assert rule_of_three(1000) == pytest.approx(3 / 1000, rel=0.01)
    for samples in (1, 10, 10**6):
        assert (1 - rule_of_three(samples)) ** samples == pytest.approx(0.05, rel=1e-9)


def test_nothing_goes_by_the_name_of_the_unread_method() -> None:
    assert not [name for name in dir(dying) if "lps" in name.lower()]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: layer_dead_probability([3, 0]), UsageError, "at least one unit"),
        (lambda: pair_dead_probability(4.0), UsageError, "angle"),
        (lambda: shift_dead_probability(1.1, 3), UsageError, "shift share"),
        (lambda: shift_dead_probability(0.1, 0), UsageError, "at least one sample"),
        (lambda: low_activity_probability(0.5, 0.0), UsageError, "between 0 and 1"),
        (lambda: share_bounds(4, 3), UsageError, "between 0 and its total"),
        (lambda: share_bounds(1, 3, 1.0), UsageError, "confidence"),
        (lambda: rule_of_three(-1), UsageError, "number of samples"),
        (lambda: activity([1.0]), UsageError, "samples, units"),
        (lambda: activity([[math.nan]]), DataError, "NaN"),
    ],
)
def test_wrong_arguments_are_refused(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()
