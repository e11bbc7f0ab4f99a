"""The golden values, met through ss.analyze."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support import golden
from torch import nn

import shiftscope as ss

ACTIVATIONS = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU}
NETS = ("sigmoid_3layer", "relu_3layer", "sigmoid_lcw")
CONVS = (
    *("no_pad", "pad1", "stride2_pad1", "dilated", "groups2", "depthwise"),
    "constant_input_pad1_zero_sum_kernel",
)


def close(got: Any, want: Any, tolerance: float) -> None:
    np.testing.assert_allclose(
        np.asarray(got, dtype=float), np.asarray(want, dtype=float), rtol=tolerance, atol=tolerance
    )


def mlp(net: dict[str, Any]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number, (weight, bias) in enumerate(zip(net["weights"], net["biases"], strict=True)):
        if number:
            layers.append(ACTIVATIONS[net["activation"]]())
        layer = nn.Linear(len(weight[0]), len(weight), dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(weight, dtype=torch.float64))
            layer.bias.copy_(torch.tensor(bias, dtype=torch.float64))
        layers.append(layer)
    return nn.Sequential(*layers)


@pytest.fixture(scope="module", params=NETS)
def tiny(request: pytest.FixtureRequest) -> tuple[dict[str, Any], ss.Snapshot]:
    net = golden("tiny_mlp")["nets"][request.param]
    x = torch.tensor(net["X_rows_are_samples"], dtype=torch.float64)
    y = torch.tensor(net["labels"])
    model = mlp(net)
    snapshot = ss.analyze(model, [(x, y)], nn.functional.cross_entropy)
    # The gradient of a batch mean is that of one row, divided by the rows.
    assert snapshot.manifest["loss"] == pytest.approx(net["loss_value"], rel=1e-10)
    return net, snapshot


def test_tiny_mlp_neurons(tiny: tuple[dict[str, Any], ss.Snapshot]) -> None:
    net, snapshot = tiny
    for number, want in enumerate(net["linear_layers"]):
        own = snapshot.neurons[snapshot.neurons.site == str(2 * number)]
        inputs = snapshot.input_neurons[snapshot.input_neurons.site == str(2 * number)]
        close(inputs.a_mean, want["mu_hat"], 1e-10)
        close(own.z_mean, want["E_z"], 1e-10)
        close(own.z_var, want["V_z"], 1e-10)
        close(own.theta_mean, want["theta_w_mu_hat"], 1e-10)
        close(own.theta_ones, want["theta_w_ones"], 1e-10)
        close(own.weight_norm**2, want["eta"], 1e-10)
        close(own.shift_predicted + own.bias, want["E_z"], 1e-10)
        close(own.grad_z_mean, want["E_grad_z"], 1e-10)
        close(own.grad_z_var, want["V_grad_z"], 1e-10)
        # The sum over rows of the gradient of z is the gradient of the bias.
        close(own.grad_z_mean * own["count"], want["grad_bias"], 1e-10)


def test_tiny_mlp_sites(tiny: tuple[dict[str, Any], ss.Snapshot]) -> None:
    net, snapshot = tiny
    sites = snapshot.sites.set_index("site")
    for number, want in enumerate(net["linear_layers"]):
        site = sites.loc[str(2 * number)]
        close(site.within_var, want["within"], 1e-10)
        close(site.between_var, want["between"], 1e-10)
        close(site.shift_share_raw, want["shift_share"], 1e-10)
        close(site.eta, np.mean(want["eta"]), 1e-10)
        close(site.xi, np.mean(want["xi"]), 1e-10)
        close(site.eta_measured, want["lin_fw_within"], 1e-10)
        close(np.arccos(np.sqrt(site.p_gamma_index)), _acute(want["theta_mu_ones"]), 1e-8)
        pooled = (site.within_var + site.between_var) / want["within_var_in"]
        close(site.eta_pooled, pooled, 1e-10)


def test_tiny_mlp_pooled_ratios_from_the_tables(tiny: tuple[dict[str, Any], ss.Snapshot]) -> None:
    net, snapshot = tiny
    for number, want in enumerate(net["linear_layers"]):
        inputs = snapshot.input_neurons[snapshot.input_neurons.site == str(2 * number)]
        own = snapshot.neurons[snapshot.neurons.site == str(2 * number)]
        close(_pooled(inputs.a_mean, inputs.a_var), want["pooled_var_in"], 1e-10)
        close(_pooled(own.grad_z_mean, own.grad_z_var), want["pooled_var_grad_z"], 1e-10)
        if number:
            got = _pooled(inputs.grad_a_mean, inputs.grad_a_var)
            close(got, want["pooled_var_grad_in"], 1e-10)
            ratio = got / _pooled(own.grad_z_mean, own.grad_z_var)
            close(ratio, want["lin_bw_pooled"], 1e-10)


def test_tiny_mlp_activations(tiny: tuple[dict[str, Any], ss.Snapshot]) -> None:
    net, snapshot = tiny
    sites = snapshot.sites.set_index("site")
    for number, want in enumerate(net["activation_layers"]):
        name = str(2 * number + 1)
        own = snapshot.neurons[snapshot.neurons.site == name]
        close(own.a_mean, want["E_a"], 1e-10)
        close(own.a_var, want["V_a"], 1e-10)
        close(sites.loc[name].phi_fw, want["phi_fw_within"], 1e-10)
        pooled_bw = _pooled(own.grad_z_mean, own.grad_z_var) / _pooled(
            own.grad_a_mean, own.grad_a_var
        )
        close(pooled_bw, want["phi_bw_pooled"], 1e-10)
        for column, values in zip(
            ("a_q01", "a_q25", "a_q50", "a_q75", "a_q99"),
            want["quantiles_a_1_25_50_75_99"],
            strict=True,
        ):
            close(own[column], values, 1e-10)


@pytest.mark.parametrize("case", CONVS)
def test_conv(case: str) -> None:
    want = golden("conv")["cases"][case]
    weight = torch.tensor(want["weight"], dtype=torch.float64)
    conv = nn.Conv2d(
        weight.shape[1] * want["groups"],
        weight.shape[0],
        tuple(weight.shape[2:]),
        stride=want["stride"],
        padding=want["padding"],
        dilation=want["dilation"],
        groups=want["groups"],
        dtype=torch.float64,
    )
    with torch.no_grad():
        conv.weight.copy_(weight)
        assert conv.bias is not None
        conv.bias.copy_(torch.tensor(want["bias"], dtype=torch.float64))
    snapshot = ss.analyze(nn.Sequential(conv), [torch.tensor(want["X"], dtype=torch.float64)])
    neurons, site = snapshot.neurons, snapshot.sites.iloc[0]
    facts = snapshot.records["0"].weights
    assert facts is not None
    close(facts.mu, want["mu_hat_per_group"], 1e-12)
    close(neurons.z_mean, want["E_z_channel"], 1e-12)
    close(neurons.z_var, want["V_z_channel"], 1e-12)
    close(neurons.theta_mean, want["theta_channel"], 1e-12)
    close(neurons.theta_ones, want["theta_to_ones_channel"], 1e-12)
    close(neurons.weight_norm**2, want["eta_kernel_norm2"], 1e-12)
    close(neurons.shift_predicted + neurons.bias, want["E_z_channel"], 1e-12)
    close(site.xi, want["xi_map_mean"], 1e-12)
    close(facts.eta_map, want["eta_map_mean"], 1e-12)


@pytest.mark.parametrize(
    "case", ["standard", "with_bias", "lcw", "data_aware_lcw", "bias_absorbed"]
)
def test_variance_decomposition(case: str) -> None:
    data = golden("variance_decomposition")
    want = data[case]
    weight = torch.tensor(data["W"], dtype=torch.float64)
    x = torch.tensor(data["A_columns_are_samples"], dtype=torch.float64).T
    mu = x.mean(dim=0)
    bias = torch.zeros(len(weight), dtype=torch.float64)
    if case == "with_bias":
        bias = torch.tensor(data["bias"], dtype=torch.float64)
    elif case == "lcw":
        weight = weight - weight.mean(dim=1, keepdim=True)
    elif case == "data_aware_lcw":
        weight = weight - torch.outer(weight @ mu, mu) / (mu @ mu)
    elif case == "bias_absorbed":
        bias = -weight @ mu
    layer = nn.Linear(x.shape[1], len(weight), dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    snapshot = ss.analyze(layer, [x])
    neurons, site = snapshot.neurons, snapshot.sites.iloc[0]
    close(neurons.z_mean, want["E_z"], 1e-12)
    close(neurons.z_var, want["V_z"], 1e-12)
    close(site.within_var, want["within"], 1e-12)
    close(site.between_var, want["between"], 1e-12)
    close(site.shift_share_raw, want["shift_share"], 1e-12)
    close(site.eta, want["eta_mean"], 1e-12)
    close(site.xi, want["xi_mean"], 1e-12)
    close(site.eta_measured, want["amp_fw_within_over_within"], 1e-12)
    close(site.eta_pooled, want["amp_fw_pooled_over_within"], 1e-12)
    close(site.eta_pooled / site.xi, want["asymmetry_pooled_over_xi"], 1e-12)


def test_proposition_2_on_the_golden_layer() -> None:
    data = golden("propositions")
    x = torch.tensor(data["A_columns_are_samples"], dtype=torch.float64).T
    layer = nn.Linear(data["m_in"], data["m_out"], bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(data["W"], dtype=torch.float64))
    snapshot = ss.analyze(layer, [x])
    for row, want in zip(snapshot.neurons.itertuples(), data["prop2_empirical"], strict=True):
        close(row.z_mean, want["E_z"], 1e-12)
        close(row.shift_predicted, want["w_dot_mu"], 1e-12)
        close(row.theta_mean, want["theta_to_mu"], 1e-12)
        close(row.weight_norm, want["norm_w"], 1e-12)
        close(row.z_var, want["V_z"], 1e-12)
        close(snapshot.sites.mu_norm.iloc[0], want["norm_mu"], 1e-12)


def _pooled(mean: Any, variance: Any) -> float:
    return float(np.mean(variance) + np.var(mean))


def _acute(angle: float) -> float:
    return min(angle, np.pi - angle)
