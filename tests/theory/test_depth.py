"""Depth maps: golden recursion, a measured network of width 800, slopes of the paper's nets."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support import golden

from shiftscope.errors import UsageError
from shiftscope.theory.activations import gains, known
from shiftscope.theory.depth import chi, depth_map, fixed_point
from shiftscope.theory.depth_profile import depth_scale, predict_profile, trainable_depth
from shiftscope.theory.site_profile import profile_for_sites

NAMES = ["sigmoid", "tanh", "relu", "gelu", "silu", "softplus"]
KINDS = [(False, "standard"), (True, "lcw")]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("constrained", "kind"), KINDS)
def test_maps_meet_golden(name: str, constrained: bool, kind: str) -> None:
    row = golden("meanfield")["activations"][name]
    got = depth_map(name, constrained=constrained)
    near = {"abs": 1e-8, "rel": 1e-8}
    assert got.value_mean == pytest.approx(row["E_f"], **near)
    assert got.value_var == pytest.approx(row["V_f"], **near)
    assert got.slope_square == pytest.approx(row["E_df2"], **near)
    assert 1 / got.power == pytest.approx(row[f"fc_amplification_needed_{kind}"], **near)
    assert got.chi == chi(name, constrained=constrained)
    assert got.chi == pytest.approx(row[f"grad_gain_{kind}"], **near)
    assert got.slope(1.0) == pytest.approx(row[f"c_map_slope_at_1_{kind}"], **near)
    if constrained:
        assert got.slope(0.0) == pytest.approx(row["c_map_slope_at_0_lcw"], **near)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("constrained", "kind"), KINDS)
def test_trajectories_meet_golden(name: str, constrained: bool, kind: str) -> None:
    row = golden("meanfield")["activations"][name]
    for trajectory in row["trajectories"]:
        got = predict_profile(20, name, constrained=constrained, c0=trajectory["c0"])
        wanted = trajectory[f"shift_share_{kind}"]
        np.testing.assert_allclose(got.shift_share, wanted, rtol=1e-8, atol=1e-8)
        ratio = row["grad_var_ratio_first_over_last"][kind]
        assert got.log10_grad_var[0] == pytest.approx(math.log10(ratio), abs=1e-8)
        assert got.log10_grad_var[-1] == 0


@pytest.mark.parametrize(("constrained", "kind"), KINDS)
def test_golden_monte_carlo_run_is_predicted(constrained: bool, kind: str) -> None:
    row = golden("meanfield")["monte_carlo_width800_sigmoid"][kind]
    got = predict_profile(20, "sigmoid", constrained=constrained)
    assert row["per_layer_gain"] == pytest.approx(got.chi, rel=0.05)
    np.testing.assert_allclose(row["shift_share"], got.shift_share, atol=0.01)


def _run_network(
    activation: torch.nn.Module, constrained: bool, depth: int, width: int, samples: int
) -> tuple[np.ndarray, np.ndarray, dict[str, list[float]]]:
    """A chain initialised at unit pooled variance: its shares, Var(∇z), and what it was made of."""
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(samples, width, generator=generator)
    shares, gradients, outputs = [], [], []
    made: dict[str, list[float]] = {"eta": [], "xi": [], "z_mean": [], "z_std": []}
    for _ in range(depth):
        weight = torch.randn(width, width, generator=generator)
        if constrained:
            weight = weight - weight.mean(1, keepdim=True)
        weight = weight / (a.detach() @ weight.T).std(correction=0)
        z = (a @ weight.T).requires_grad_()
        z.retain_grad()
        gradients.append(z)
        wide = z.detach().double()
        means, within = wide.mean(0), float(wide.var(0, correction=0).mean())
        between = max(float(means.var(correction=0)) - within / samples, 0.0)
        shares.append(between / (between + within))
        made["eta"].append(float(weight.square().sum(1).mean()))
        made["xi"].append(float(weight.square().sum(0).mean()))
        made["z_mean"].append(float(wide.mean()))
        made["z_std"].append(float(wide.std(correction=0)))
        a = activation(z)
        a.retain_grad()
        outputs.append(a)
    a.backward(torch.randn(a.shape, generator=generator))
    variances = np.array([_pooled(z.grad) for z in gradients])
    forward = [_pooled(z) / _pooled(a) for z, a in zip(gradients[1:], outputs, strict=False)]
    backward = [
        _pooled(a.grad) / _pooled(z.grad) for z, a in zip(gradients[1:], outputs, strict=False)
    ]
    made_of = {**made, "asymmetry": [f / b for f, b in zip(forward, backward, strict=True)]}
    return np.array(shares), variances, made_of


def _pooled(values: torch.Tensor) -> float:
    return float(values.detach().double().var(correction=0))


@pytest.mark.parametrize(
    ("constrained", "gain"), [(False, 0.153), (True, 1.034)], ids=["standard", "lcw"]
)
def test_a_measured_sigmoid_network_of_width_800(constrained: bool, gain: float) -> None:
    shares, variances, made = _run_network(torch.nn.Sigmoid(), constrained, 20, 800, 200)
    asymmetry = float(np.mean(made.pop("asymmetry")))
    wanted, noise = (1.0, 0.02) if constrained else (6.76, 0.6)
    assert depth_map("sigmoid", constrained=constrained).asymmetry == pytest.approx(
        wanted, abs=0.01
    )
    assert asymmetry == pytest.approx(wanted, abs=noise)
    predicted = predict_profile(20, "sigmoid", constrained=constrained)
    measured = (variances[0] / variances[-1]) ** (1 / 19)
    assert predicted.chi == pytest.approx(gain, abs=1e-3)
    assert measured == pytest.approx(gain, rel=0.05)
    np.testing.assert_allclose(shares, predicted.shift_share, atol=0.02)
    slope = np.polyfit(np.arange(20), np.log10(variances), 1)[0]
    assert slope == pytest.approx(predicted.gradient_slope, abs=0.04 if gain < 1 else 0.012)

    sites = profile_for_sites(["sigmoid"] * 20, **made, constrained=constrained)
    np.testing.assert_allclose(shares, sites.shift_share, atol=0.02)
    # a variance over 800 neurons has a relative standard error of sqrt(2/800) = 0.05
    noise = 0.05 if constrained else 0.2
    np.testing.assert_allclose(sites.z_var[1:], np.square(made["z_std"])[1:], rtol=noise)
    per_layer = 10 ** (sites.log10_grad_var[0] / 19)
    assert per_layer == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize(
    ("name", "constrained", "slope", "tolerance"),
    [
        ("sigmoid", False, 0.816, 0.04),
        ("sigmoid", True, -0.014, 0.012),
        ("relu", True, -0.166, 0.010),
        ("tanh", True, -0.071, 0.008),
        ("relu", False, 0.0, 0.04),
    ],
)
def test_a_measured_network_has_the_predicted_slope(
    name: str, constrained: bool, slope: float, tolerance: float
) -> None:
    predicted = predict_profile(20, name, constrained=constrained).gradient_slope
    assert predicted == pytest.approx(slope, abs=1e-3)
    module = {"sigmoid": torch.nn.Sigmoid, "relu": torch.nn.ReLU, "tanh": torch.nn.Tanh}[name]()
    shares, variances, made = _run_network(module, constrained, 20, 256, 100)
    expected = depth_map(name, constrained=constrained).asymmetry
    noise = 0.02 if expected == pytest.approx(1.0) else 0.08 * expected
    assert np.mean(made["asymmetry"]) == pytest.approx(expected, abs=noise)
    if name == "sigmoid" and not constrained:
        assert shares[1] == pytest.approx(0.85, abs=0.03)
        assert (shares[4:] >= 0.99).all()
    if name == "sigmoid" and constrained:
        assert (shares <= 0.02).all()
    measured = np.polyfit(np.arange(20), np.log10(variances), 1)[0]
    assert measured == pytest.approx(predicted, abs=tolerance)


def test_site_profile_of_equal_layers_is_the_plain_profile() -> None:
    for constrained in (False, True):
        step = depth_map("gelu", constrained=constrained)
        norms = [1.0, *[1 / step.power] * 4]
        got = profile_for_sites(["gelu"] * 5, norms, norms, constrained=constrained, c0=0.3)
        wanted = predict_profile(5, "gelu", constrained=constrained, c0=0.3)
        np.testing.assert_allclose(got.shift_share, wanted.shift_share, rtol=1e-12)
        np.testing.assert_allclose(got.z_var, 1.0, rtol=1e-12)
        np.testing.assert_allclose(got.log10_grad_var, wanted.log10_grad_var, rtol=1e-12)
        np.testing.assert_allclose(got.gradient_gain[:-1], wanted.chi, rtol=1e-12)


def test_a_normalised_layer_starts_again_at_no_share() -> None:
    got = profile_for_sites(["sigmoid"] * 4, [3.4] * 4, [3.4] * 4, normalized=True)
    step = depth_map("sigmoid")
    np.testing.assert_allclose(got.shift_share, 0.0)
    # the norm divides the gradient by what it divided the signal by: weights of any size, same gain
    np.testing.assert_allclose(got.gradient_gain[:-1], step.slope_square / step.value_var)
    np.testing.assert_allclose(got.z_var[1:], 3.4 * step.power)


def test_a_measured_batch_norm_network_is_predicted() -> None:
    torch.manual_seed(0)
    layers = [torch.nn.Linear(256, 256, bias=False) for _ in range(6)]
    norms = [torch.nn.BatchNorm1d(256, affine=False) for _ in layers]
    a, kept = torch.randn(512, 256), []
    for layer, norm in zip(layers, norms, strict=True):
        z = norm(layer(a))
        z.retain_grad()
        kept.append(z)
        a = torch.sigmoid(z)
    a.backward(torch.randn_like(a))
    measured = np.log10([float(z.grad.var()) for z in kept])
    norms_of = [layer.weight.detach().square().sum(1).mean().item() for layer in layers]
    got = profile_for_sites(["sigmoid"] * 6, norms_of, norms_of, normalized=True)
    np.testing.assert_allclose(measured - measured[-1], got.log10_grad_var, atol=0.1)


def test_mixed_layers_against_explicit_formulas() -> None:
    got = profile_for_sites(
        ["relu", "tanh", "identity"],
        [2.0, 0.5, 0.25],
        [2.0, 1.5, 4.0],
        z_std=[1.0, math.nan, math.nan],
        constrained=[False, False, True],
        c0=0.5,
    )
    kernel = (math.sqrt(0.75) + 0.5 * (math.pi - math.acos(0.5))) / (2 * math.pi)
    assert got.shift_share[1] == pytest.approx(2 * kernel, rel=1e-12)
    assert got.z_var[1] == pytest.approx(0.25, rel=1e-12)
    tanh = depth_map("tanh", constrained=True, std=0.5)
    assert got.shift_share[2] == pytest.approx(tanh(2 * kernel), rel=1e-12)
    assert got.gradient_gain[0] == pytest.approx(0.5 * 1.5, rel=1e-12)
    assert got.gradient_gain[1] == pytest.approx(tanh.slope_square * 4.0, rel=1e-12)
    assert math.isnan(got.gradient_gain[2])


@pytest.mark.parametrize("name", known())
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.7, 2.5)])
def test_moments_are_those_of_the_gains(name: str, mean: float, std: float) -> None:
    step, wanted = depth_map(name, mean=mean, std=std), gains(name, mean, std)
    assert step.value_mean == pytest.approx(wanted.mean, rel=1e-12, abs=1e-13)
    assert step.value_var == pytest.approx(wanted.variance, rel=1e-12)
    assert step.slope_square == pytest.approx(wanted.phi_bw, rel=1e-12)


def test_slopes_are_derivatives() -> None:
    for name, std in [("relu", 1.0), ("elu", 2.0), ("sigmoid", 0.5)]:
        step = depth_map(name, std=std)
        numeric = (step(0.4 + 1e-5) - step(0.4 - 1e-5)) / 2e-5
        assert step.slope(0.4) == pytest.approx(numeric, rel=1e-8)


@pytest.mark.parametrize("name", [*NAMES, "elu", "selu", "leaky_relu", "softsign"])
@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("std", [0.5, 2.0])
def test_fixed_point_is_where_the_recursion_ends(name: str, constrained: bool, std: float) -> None:
    step = depth_map(name, constrained=constrained, std=std)
    got = fixed_point(step)
    assert step(got.share) == pytest.approx(got.share, abs=1e-12)
    assert got.slope <= 1 + 1e-9
    if got.slope < 0.9:
        end = predict_profile(50, name, constrained=constrained, c0=0.6, std=std).shift_share[-1]
        assert end == pytest.approx(got.share, abs=1e-2)


def test_zero_sum_gain_never_falls_below_one() -> None:
    assert chi("selu") == pytest.approx(1.0716, abs=1e-4)
    assert chi("relu", constrained=True) == pytest.approx(math.pi / (math.pi - 1), rel=1e-12)
    for name in [*NAMES, "elu", "softsign", "hardtanh"]:
        assert chi(name, constrained=True, std=1.5) >= 1


def test_std_matters_as_the_definition_says() -> None:
    scaled = chi(lambda z: torch.sigmoid(2.0 * z))
    assert scaled == pytest.approx(chi("sigmoid", std=2.0), rel=1e-9)


def test_depths() -> None:
    assert depth_scale(chi("sigmoid")) == pytest.approx(-1 / math.log(0.1528270117), rel=1e-9)
    assert trainable_depth(0.1) == pytest.approx(3.3)
    assert trainable_depth(10.0, decades=2.0) == pytest.approx(2.0)
    assert trainable_depth(1.0) == math.inf
    # standard sigmoid networks were seen to train up to 3 to 5 layers
    assert 3 < trainable_depth(chi("sigmoid")) < 6


def test_a_constant_activation_has_no_map() -> None:
    step = depth_map(lambda z: 0.0 * z + 3.0)
    assert math.isnan(step.chi)
    assert math.isnan(step(0.5))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: predict_profile(0, "relu"), "at least one layer"),
        (lambda: predict_profile(3, "relu", c0=1.5), "correlation"),
        (lambda: depth_map("relu", std=0.0), "positive standard deviation"),
        (lambda: trainable_depth(-1.0), "positive"),
        (lambda: profile_for_sites([], [], []), "at least one layer"),
        (lambda: profile_for_sites(["relu"], [1.0, 2.0], [1.0]), "eta has shape"),
        (lambda: profile_for_sites(["relu"], [0.0], [1.0]), "must be positive"),
        (lambda: profile_for_sites(["relu"], [1.0], [1.0], constrained=[True, True]), "constrain"),
    ],
)
def test_wrong_arguments_are_refused(call: object, words: str) -> None:
    assert callable(call)
    with pytest.raises(UsageError, match=words):
        call()
