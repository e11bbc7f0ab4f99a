"""The predicted depth profile beside measured networks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import shiftscope as ss
from shiftscope.prediction import DepthPrediction, predict_depth


def mlp(
    width: int, depth: int, activation: type[nn.Module], zero_sum: bool, *, mean: float = 0.0
) -> DepthPrediction:
    """A rescaled network, measured in float64 on normal inputs."""
    generator = torch.Generator().manual_seed(7)
    options = {"activation": activation, "seed": 3, "dtype": torch.float64}
    model = ss.experiments.mlp(64, width, depth, **options)
    x = mean + torch.randn(200, 64, generator=generator, dtype=torch.float64)
    y = torch.randint(10, (200,), generator=generator)
    if zero_sum:
        ss.constrain(model, "lcw")
    ss.rescale_(model, x)
    return predict_depth(ss.analyze(model, [(x, y)], cross_entropy, dtype=torch.float64))


@pytest.mark.parametrize(("zero_sum", "gain"), [(False, 0.152827), (True, 1.033592)])
def test_twenty_sigmoid_layers_of_width_800(zero_sum: bool, gain: float) -> None:
    got = mlp(800, 20, nn.Sigmoid, zero_sum)
    assert got.cuts == ()
    hidden = slice(0, 19)  # gains between the twenty hidden layers
    for gains in (got.gradient_gain, got.measured_gain):
        assert float(np.exp(np.log(gains[hidden]).mean())) == pytest.approx(gain, rel=0.05)
    np.testing.assert_allclose(got.log10_grad_var, got.measured_log10_grad_var, atol=0.25)
    np.testing.assert_allclose(got.shift_share[:20], got.measured_share[:20], atol=0.02)
    if not zero_sum:
        np.testing.assert_allclose(got.measured_share[1:4], [0.850, 0.978, 0.997], atol=0.01)
        assert 3 < got.trainable_depth < 5
    else:
        assert got.trainable_depth > 100


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.Tanh, nn.ELU])
@pytest.mark.parametrize("zero_sum", [False, True])
def test_other_activations(activation: type[nn.Module], zero_sum: bool) -> None:
    got = mlp(256, 6, activation, zero_sum, mean=0.4)
    assert got.cuts == ()
    np.testing.assert_allclose(got.log10_grad_var, got.measured_log10_grad_var, atol=0.2)
    np.testing.assert_allclose(got.shift_share[:6], got.measured_share[:6], atol=0.15)
    assert got.predicted_chi == pytest.approx(got.measured_chi, rel=0.1)


def test_inputs_with_a_mean_shift_the_first_layer_as_predicted() -> None:
    got = mlp(800, 1, nn.Sigmoid, False, mean=1.0)
    assert got.shift_share[0] == pytest.approx(0.5, abs=0.01)
    assert got.measured_share[0] == pytest.approx(0.5, abs=0.05)
    assert mlp(800, 1, nn.Sigmoid, True, mean=1.0).shift_share[0] == pytest.approx(0.0, abs=0.01)


def test_biases_are_shift_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 512), nn.Tanh(), nn.Linear(512, 512), nn.Tanh())
    for layer in (model[0], model[2]):
        nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        nn.init.normal_(layer.bias, std=0.7)
    got = predict_depth(ss.analyze(model, [torch.randn(500, 256)]))
    assert got.measured_share[0] == pytest.approx(0.49 / 1.49, abs=0.03)
    np.testing.assert_allclose(got.shift_share, got.measured_share, atol=0.03)
    assert np.isnan(got.log10_grad_var).all()  # no loss, no gradients, no line
    assert math.isnan(got.measured_chi)


class Residual(nn.Module):
    """A small pre-activation residual network."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1, bias=False)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *(nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1, bias=False)),
                *(nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1, bias=False)),
            )
            for _ in range(2)
        )
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        out: Tensor = self.head(torch.relu(x).mean((2, 3)))
        return out


def test_a_residual_network_is_cut_where_branches_meet_and_predicted_between() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(64, 3, 12, 12), torch.randint(10, (64,))
    got = predict_depth(ss.analyze(Residual(), [(x, y)], cross_entropy))
    assert [site for site, _ in got.cuts] == ["blocks.1.2", "head"]
    assert all("a sum of branches" in reason for _, reason in got.cuts)
    assert got.chain == (0, 0, 0, 1, 1, 2)
    assert math.isnan(got.trainable_depth)
    inside = np.isfinite(got.gradient_gain)
    assert inside.tolist() == [True, True, False, True, False, False]
    np.testing.assert_allclose(got.gradient_gain[inside], got.measured_gain[inside], rtol=0.15)
    # behind batch norm and ReLU the share is 1/π
    assert got.shift_share[2] == pytest.approx(1 / math.pi, abs=1e-3)
    assert got.measured_share[2] == pytest.approx(1 / math.pi, abs=0.12)


def test_the_frame_has_a_row_a_layer_and_a_file_predicts_the_same(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 3))
    data = [(torch.randn(50, 5), torch.randint(3, (50,)))]
    snapshot = ss.analyze(model, data, cross_entropy)
    frame = predict_depth(snapshot).frame()
    assert frame["site"].tolist() == ["0", "2"]
    assert frame["log10_grad_z_var_predicted"].iloc[1] == frame["log10_grad_z_var"].iloc[1]
    snapshot.save(tmp_path / "run.npz")
    again = predict_depth(ss.load(tmp_path / "run.npz")).frame()
    np.testing.assert_allclose(again.iloc[:, 1:], frame.iloc[:, 1:], rtol=1e-12)


def test_odd_snapshots_predict_nothing_and_do_not_fail() -> None:
    empty = predict_depth(ss.Snapshot(records={}))
    assert len(empty.frame()) == 0
    assert math.isnan(empty.predicted_chi)
    dead = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    nn.init.zeros_(dead[0].weight)
    assert predict_depth(ss.analyze(dead, [torch.randn(8, 4)])).sites == ("2",)
    nan = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    nn.init.constant_(nan[0].weight, math.nan)
    assert predict_depth(ss.analyze(nan, [torch.randn(8, 4)])).sites == ()
    same = predict_depth(ss.analyze(nn.Linear(4, 4), [torch.zeros(8, 4)]))
    assert same.shift_share.tolist() == [1.0]  # biases alone
