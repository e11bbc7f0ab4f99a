"""Moments of linear layers against golden values and stored activations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import golden

from shiftscope.errors import UsageError
from shiftscope.theory.linear import iid_moments, isotropy, linear_moments

PROPERTIES = {
    "within": "within",
    "between": "between",
    "pooled": "pooled",
    "shift_share": "shift_share",
    "input_within": "input_within",
    "input_between": "input_between",
    "input_pooled": "input_pooled",
    "eta_mean": "eta",
    "xi_mean": "xi",
    "amp_fw_within_over_within": "eta_measured",
    "amp_fw_pooled_over_within": "eta_pooled",
    "amp_fw_pooled_over_pooled": "eta_pooled_over_pooled",
    "asymmetry_pooled_over_xi": "asymmetry",
}


def batch_moments(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and ddof-0 covariance of columns of samples, written out."""
    mean = a.mean(axis=1)
    centred = a - mean[:, None]
    return mean, centred @ centred.T / a.shape[1]


@pytest.mark.parametrize(
    "variant", ["standard", "with_bias", "lcw", "data_aware_lcw", "bias_absorbed"]
)
def test_golden_variance_decompositions(variant: str) -> None:
    stored = golden("variance_decomposition")
    w, a = np.array(stored["W"]), np.array(stored["A_columns_are_samples"])
    mean, covariance = batch_moments(a)
    if variant == "lcw":
        w = w - w.mean(axis=1, keepdims=True)
    if variant == "data_aware_lcw":
        unit = mean / np.linalg.norm(mean)
        w = w - np.outer(w @ unit, unit)
    bias = {"with_bias": np.array(stored["bias"]), "bias_absorbed": -w @ mean}.get(variant)
    result, expected = linear_moments(w, mean, covariance, bias), stored[variant]
    np.testing.assert_allclose(result.z_mean, expected["E_z"], atol=1e-12)
    np.testing.assert_allclose(result.z_var, expected["V_z"], atol=1e-12)
    for key, name in PROPERTIES.items():
        assert getattr(result, name) == pytest.approx(expected[key], rel=1e-12, abs=1e-12), key


def test_golden_expectations_for_iid_weights() -> None:
    case = golden("variance_decomposition")["expected_random_iid_weights"]
    law = iid_moments(case["m"], case["gamma"], case["sigma_a"], case["weight_std"])
    assert law.within == pytest.approx(case["E_within"], rel=1e-12)
    assert law.between == pytest.approx(case["E_between_over_rows"], rel=1e-12)
    assert law.shift_share == pytest.approx(case["shift_share"], rel=1e-12)
    assert law.asymmetry == pytest.approx(case["asymmetry_fw_over_bw"], rel=1e-12)
    assert law.lcw_within == pytest.approx(case["lcw_E_within"], rel=1e-12)


def test_golden_propositions_2_to_5() -> None:
    stored = golden("propositions")
    w, a = np.array(stored["W"]), np.array(stored["A_columns_are_samples"])
    empirical = linear_moments(w, *batch_moments(a))
    for k, row in enumerate(stored["prop2_empirical"]):
        assert empirical.z_mean[k] == pytest.approx(row["E_z"], abs=1e-12)
        assert empirical.z_var[k] == pytest.approx(row["V_z"], abs=1e-12)
    for name, rows in (("prop4", stored["prop3"]["W_lcw"]), ("prop4_general_w", stored["W"])):
        case = stored[name]
        result = linear_moments(rows, case["gamma"], case["sigma2"])
        np.testing.assert_allclose(result.z_mean, case["E_z"], atol=1e-12)
        np.testing.assert_allclose(result.z_var, case["V_z"], atol=1e-12)
    backward = linear_moments(w.T, 0.0, stored["prop5"]["sigma2_grad"])
    np.testing.assert_allclose(backward.z_var, stored["prop5"]["V_grad_a"], atol=1e-12)
    general = stored["prop5_general_empirical"]
    moments = batch_moments(np.array(general["grad_z_columns_are_samples"]))
    shifted = linear_moments(w.T, *moments)
    np.testing.assert_allclose(shifted.z_mean, general["E_grad_a"], atol=1e-12)
    np.testing.assert_allclose(shifted.z_var, general["V_grad_a"], atol=1e-12)
    fan = stored["fan_identity"]
    assert empirical.eta == pytest.approx(fan["mean_eta"], rel=1e-12)
    assert empirical.xi / empirical.eta == pytest.approx(fan["xi_over_eta"], rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_figure_1_stripes(seed: int) -> None:
    """Three quarters of the variance lie between the rows of Z, and none with centred rows."""
    rng = np.random.default_rng(seed)
    w, a = rng.uniform(-1, 1, (100, 100)), rng.uniform(0, 1, (100, 100))
    mean, covariance = batch_moments(a)
    assert linear_moments(w, mean, covariance).shift_share == pytest.approx(0.75, abs=0.10)
    centred = w - w.mean(axis=1, keepdims=True)
    assert linear_moments(centred, mean, covariance).shift_share <= 0.02


def test_torch_tensors_are_taken_and_stored_activations_agree() -> None:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(5, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    a = torch.rand(40, 7, generator=generator, dtype=torch.float64)
    result = linear_moments(w, a.mean(0), torch.cov(a.T, correction=0))
    z = (a @ w.T).detach().numpy()
    np.testing.assert_allclose(result.z_var, z.var(axis=0), rtol=1e-12)
    assert result.pooled == pytest.approx(z.var(), rel=1e-12)


def test_real_layers_show_how_far_their_premise_fails() -> None:
    rng = np.random.default_rng(1)
    w = rng.normal(size=(200, 64))
    free = rng.normal(size=(2000, 64))
    correlated = free + 1.2 * rng.normal(size=(2000, 1)) * np.cos(np.arange(64))
    norms = np.linalg.norm(w, axis=1)
    for a, holds in ((free, True), (correlated, False)):
        result = isotropy((a @ w.T).var(axis=0), norms, float(a.var(axis=0).mean()), 2000)
        assert result.premise_holds is holds
        assert result.ratio == pytest.approx(1.0, abs=0.1)
        assert result.neurons == 200
    assert result.cv > 0.2


def test_bad_shapes_say_what_was_expected() -> None:
    with pytest.raises(UsageError, match=r"weight must be \[out, in\]"):
        linear_moments(np.ones(3), 0.0, 1.0)
    with pytest.raises(UsageError, match="do not fit 3 inputs"):
        linear_moments(np.ones((2, 3)), np.zeros(4), 1.0)
    with pytest.raises(UsageError, match=r"bias must be \[2\]"):
        linear_moments(np.ones((2, 3)), 0.0, 1.0, np.zeros(3))
    with pytest.raises(UsageError, match="std must be positive"):
        iid_moments(10, 1.0, 0.0, 1.0)
    with pytest.raises(UsageError, match="no neuron has a predicted variance"):
        isotropy(np.ones(3), np.zeros(3), 1.0, 10)
