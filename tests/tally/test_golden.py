"""Moments against the golden values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import golden

from shiftscope.tally import Moments


@pytest.mark.parametrize("case", ["standard", "with_bias", "lcw", "data_aware_lcw"])
def test_golden_decomposition(case: str) -> None:
    data = golden("variance_decomposition")
    w, a = (torch.tensor(data[k], dtype=torch.float64) for k in ("W", "A_columns_are_samples"))
    mean = a.mean(1)
    if case == "lcw":
        w = w - w.mean(1, keepdim=True)
    elif case == "data_aware_lcw":
        w = w - torch.outer(w @ mean, mean) / (mean @ mean)
    bias = torch.tensor(data["bias"], dtype=torch.float64) if case == "with_bias" else 0.0
    want, got = data[case], Moments.of((w @ a).T + bias)
    pooled, inputs = got.pooled(), Moments.of(a.T).pooled()
    for value, name in (
        (got.mean, "E_z"),
        (got.variance, "V_z"),
        (pooled.within, "within"),
        (pooled.between, "between"),
        (pooled.total, "pooled"),
        (pooled.shift_share_raw, "shift_share"),
        (inputs.within, "input_within"),
        (inputs.between, "input_between"),
        (inputs.total, "input_pooled"),
    ):
        np.testing.assert_allclose(value, want[name], rtol=1e-12, atol=1e-12, err_msg=name)
    gain = pooled.total / inputs.within
    np.testing.assert_allclose(gain, want["amp_fw_pooled_over_within"], rtol=1e-12)


def test_golden_bias_absorbed() -> None:
    data = golden("variance_decomposition")
    w, a = (torch.tensor(data[k], dtype=torch.float64) for k in ("W", "A_columns_are_samples"))
    got, want = Moments.of((w @ (a - a.mean(1, keepdim=True))).T), data["bias_absorbed"]
    np.testing.assert_allclose(got.mean, want["E_z"], atol=1e-12)
    np.testing.assert_allclose(got.variance, want["V_z"], rtol=1e-12)
    np.testing.assert_allclose(got.pooled().shift_share_raw, want["shift_share"], atol=1e-12)


def test_golden_propositions() -> None:
    data = golden("propositions")
    w, a = (torch.tensor(data[k], dtype=torch.float64) for k in ("W", "A_columns_are_samples"))
    got = Moments.of((w @ a).T)
    for name, value in (("E_z", got.mean), ("V_z", got.variance)):
        want = [row[name] for row in data["prop2_empirical"]]
        np.testing.assert_allclose(value, want, rtol=1e-12, atol=1e-12)
    part = data["prop5_general_empirical"]
    grad_z = torch.tensor(part["grad_z_columns_are_samples"], dtype=torch.float64)
    back = Moments.of((w.T @ grad_z).T)
    np.testing.assert_allclose(back.mean, part["E_grad_a"], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(back.variance, part["V_grad_a"], rtol=1e-12, atol=1e-12)


def test_golden_convolution_outputs() -> None:
    for case in golden("conv")["cases"].values():
        x, w, b = (torch.tensor(case[k], dtype=torch.float64) for k in ("X", "weight", "bias"))
        args = (case["stride"], case["padding"], case["dilation"], case["groups"])
        got = Moments.of(torch.nn.functional.conv2d(x, w, b, *args), feature_dim=1)
        np.testing.assert_allclose(got.mean, case["E_z_channel"], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(got.variance, case["V_z_channel"], rtol=1e-12, atol=1e-12)
