"""The claims of the paper under test: verdicts, error control, reproducibility."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from support import golden

import shiftscope as ss
from shiftscope.errors import UsageError
from shiftscope.theory.activations import gains
from shiftscope.theory.propositions import (
    by_absolute_gamma,
    by_mean_angle,
    by_signed_angle,
    by_theta,
    isotropic,
    quadratic,
)
from shiftscope.theory.samplers import LAWS, Source
from shiftscope.theory.verification import CLAIMS, Verification, verifications_frame, verify

SUBSET = ("prop1", "prop4", "prop6", "shift_share", "erratum1", "erratum5", "sigmoid_table")
"""Claims of every kind of estimator and control, cheap enough to repeat."""


@pytest.fixture(scope="module")
def run() -> list[Verification]:
    return ss.verify(samples=20_000, seed=1)


def test_every_claim_comes_out_as_expected(run: list[Verification]) -> None:
    assert [v for v in run if not v.passed] == []
    assert {v.claim for v in run} == {c.id for c in CLAIMS}
    assert {n for c in CLAIMS for n in c.propositions} == set(range(1, 7))


def test_every_proposition_has_a_negative_control_and_every_erratum_both_wordings(
    run: list[Verification],
) -> None:
    for claim in CLAIMS:
        kinds = {v.kind for v in run if v.claim == claim.id}
        wanted = {"negative control"} if "claim" in kinds else {"as printed", "corrected"}
        assert wanted <= kinds, claim.id


def test_controls_and_misprints_are_refuted_by_a_wide_margin(run: list[Verification]) -> None:
    for v in run:
        if v.kind in ("negative control", "as printed"):
            assert v.verdict == "refuted"
            assert abs(v.z) > 12, (v.claim, v.case)


def test_samplers_cover_the_assumptions() -> None:
    text = " ".join(case.assumptions for claim in CLAIMS for case in claim.cases)
    for word in ("Gaussian", "uniform", "heavy-tailed", "correlations", "two-point", "mean -"):
        assert word in text


def test_seed_and_case_alone_decide_the_numbers(run: list[Verification]) -> None:
    state = torch.random.get_rng_state()
    alone = verify(["prop2"], samples=20_000, seed=1)
    again = {(v.claim, v.case): v.estimate for v in run}
    assert all(again[v.claim, v.case] == v.estimate for v in alone)
    assert verify(["prop2"], samples=20_000, seed=2)[0].estimate != alone[0].estimate
    assert torch.equal(state, torch.random.get_rng_state())


def test_numbers_of_propositions_bring_their_consequences() -> None:
    ids = {v.claim for v in verify([5], samples=1000)}
    assert ids == {"prop5", "eta_xi", "asymmetry", "erratum4", "erratum5"}


def test_adjusted_p_values_are_holms(run: list[Verification]) -> None:
    raw = np.array([min(1.0, len(v.comparisons) * min(c.p for c in v.comparisons)) for v in run])
    order, best = np.argsort(raw, kind="stable"), 0.0
    for rank, index in enumerate(order):
        best = max(best, min(1.0, (len(run) - rank) * raw[index]))
        assert run[index].p_adjusted == pytest.approx(best)


def test_progress_ends_at_the_total() -> None:
    seen: list[tuple[int, int, str]] = []
    verify(["prop3", "asymmetry"], samples=3000, progress=lambda *args: seen.append(args))
    done, total, label = seen[-1]
    assert done == total
    assert label.startswith("asymmetry: ")
    assert [d for d, _, _ in seen] == sorted(d for d, _, _ in seen)


def test_rows_and_frame_are_plain_data(run: list[Verification]) -> None:
    frame = verifications_frame(run)
    assert len(frame) == len(run)
    assert bool(frame["passed"].all())
    row = run[0].to_row()
    assert row["comparisons"] == 8
    assert row["rows"] == 20_000
    assert all(isinstance(v, str | int | float | bool) for v in row.values())


def test_unusable_arguments_are_explained() -> None:
    with pytest.raises(UsageError, match="no proposition or claim is called 7"):
        verify([7])
    with pytest.raises(UsageError, match="at least 1000"):
        verify(samples=10)
    with pytest.raises(UsageError, match="alpha must lie"):
        verify(alpha=1.0)
    with pytest.raises(UsageError, match="device 'nonsense' cannot be used"):
        verify([3], device="nonsense")


def test_predictions_of_propositions_1_to_5_meet_the_golden_values() -> None:
    stored = golden("propositions")
    w = torch.tensor(stored["W"], dtype=torch.float64)
    for key in ("prop1_gamma_pos", "prop1_gamma_neg", "prop1_gamma_zero"):
        rows = stored[key]
        ones = torch.ones(w.shape[1], dtype=torch.float64)
        a = Source(LAWS["gaussian"], rows[0]["gamma"] * ones, 1.0)
        expected = [r["E_z"] for r in rows]
        np.testing.assert_allclose(by_theta(w, a), expected, atol=1e-12)
        printed = [r["printed_abs_gamma_formula"] for r in rows]
        np.testing.assert_allclose(by_absolute_gamma(w, a), printed, atol=1e-12)
        if rows[0]["gamma"]:
            np.testing.assert_allclose(by_signed_angle(w, a), expected, atol=1e-12)
    mean = torch.tensor(stored["A_columns_are_samples"], dtype=torch.float64).mean(dim=1)
    predicted = by_mean_angle(w, Source(LAWS["gaussian"], mean, 1.0))
    np.testing.assert_allclose(predicted, [r["E_z"] for r in stored["prop2_empirical"]], atol=1e-12)
    case = stored["prop4_general_w"]
    law = Source(LAWS["gaussian"], mean, math.sqrt(case["sigma2"]))
    np.testing.assert_allclose(isotropic(w, law), case["V_z"], atol=1e-12)
    np.testing.assert_allclose(quadratic(w, law), case["V_z"], atol=1e-12)


def test_proposition_6_meets_the_golden_values() -> None:
    case = golden("propositions")["prop6"]
    value = gains("relu", 0.0, math.sqrt(case["sigma2_z"]))
    assert value.variance == pytest.approx(case["V_a"], abs=1e-12)
    assert value.phi_bw * case["sigma2_grad"] == pytest.approx(case["V_grad_z"], abs=1e-12)


@pytest.mark.parametrize("name", ["relu", "tanh", "sigmoid", "gelu"])
def test_a_million_rows_give_the_gains_to_two_in_a_thousand(name: str) -> None:
    generator = torch.Generator().manual_seed(5)
    z = torch.randn(1_000_000, generator=generator, dtype=torch.float64, requires_grad=True)
    a = getattr(torch.nn.functional, name)(z)
    (slope,) = torch.autograd.grad(a.sum(), z)
    value = gains(name)
    assert float(a.detach().var()) == pytest.approx(value.phi_fw, rel=2e-3)
    assert float(slope.square().mean()) == pytest.approx(value.phi_bw, rel=2e-3)


def false_alarms(seeds: range, samples: int) -> tuple[int, int]:
    """Runs with a true claim refuted, and runs with a control or misprint missed."""
    runs = [verify(SUBSET, samples=samples, seed=seed) for seed in seeds]
    alarms = sum(any(v.expected == "holds" and not v.passed for v in r) for r in runs)
    missed = sum(any(v.expected == "refuted" and not v.passed for v in r) for r in runs)
    return alarms, missed


def test_error_control_over_ten_seeds() -> None:
    alarms, missed = false_alarms(range(10), 3000)
    assert alarms <= 1  # two of ten at rate 0.01 would happen four times in a thousand
    assert missed == 0


@pytest.mark.slow
def test_error_control_over_two_hundred_seeds() -> None:
    alarms, missed = false_alarms(range(100, 300), 4000)
    assert stats.binom.sf(alarms - 1, 200, 0.01) > 1e-3
    assert missed <= 1


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_claims_hold_on_cuda() -> None:
    assert all(v.passed for v in verify(samples=50_000, device="cuda"))
