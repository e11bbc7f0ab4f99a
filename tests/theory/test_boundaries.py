"""Activation boundaries: golden values, moves between steps, effective parameters."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support import golden
from torch import Tensor, nn

from shiftscope.errors import UsageError
from shiftscope.geometry.angles import angle
from shiftscope.theory.boundaries import (
    crossing_share,
    effective_batch_norm,
    effective_geometric,
    effective_weight_norm,
    locate,
    move,
    spread,
    worst_rotation,
)
from shiftscope.theory.hyperspherical import direction


def _tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _close(got: Tensor, wanted: object, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(got, _tensor(wanted), atol=tolerance, rtol=0)


def test_locations_meet_golden() -> None:
    for row in golden("gmp")["standard_to_spatial"]:
        got = locate(_tensor([row["w"]]), _tensor([row["b"]]))
        _close(got.offsets[0], row["lambda"])
        _close(got.locations[0], row["spatial_location"])


def test_geometric_units_meet_golden() -> None:
    for row in golden("gmp")["forward"]:
        u, x = direction(_tensor(row["theta"])), _tensor(row["x"])
        offset, radius = _tensor([row["lambda"]]), _tensor([row["r"]])
        weight, bias = effective_geometric(u[None], offset, radius)
        _close(weight[0], row["sp_weight"])
        _close(bias[0], row["sp_bias"])
        active = torch.relu(torch.sign(radius[0]) * (weight[0] @ x + bias[0]))
        _close(torch.sign(radius[0]) * active, row["z_relu"])
        here = locate(weight, bias)
        _close(here.locations[0], row["spatial_location"])
        _close(here.distances[0], row["distance_to_origin"])


def test_batch_norm_folding_meets_golden() -> None:
    for row in golden("gmp")["batchnorm_folded"]:
        weight, bias = effective_batch_norm(
            _tensor([row["w"]]),
            _tensor([row["b"]]),
            _tensor([row["running_mean"]]),
            _tensor([row["running_var"]]),
            _tensor([row["gamma"]]),
            _tensor([row["beta"]]),
            row["eps"],
        )
        _close(weight[0], row["w_eff"])
        _close(bias[0], row["b_eff"])
        here = locate(weight, bias)
        _close(here.offsets[0], row["lambda"])
        _close(here.locations[0], row["spatial_location"])


def test_cartesian_instability_meets_golden() -> None:
    for row in golden("gmp")["sp_instability"]:
        weight, change = _tensor(row["w"]), _tensor(row["eps"])
        _close(angle(weight, weight + change), row["sp_angular_change"])
        got = worst_rotation(torch.linalg.vector_norm(weight), torch.linalg.vector_norm(change))
        _close(got, row["worst_case_angle_for_this_norm"])


@pytest.mark.parametrize("ratio", [0.1, 0.7, 0.999])
def test_worst_rotation_is_attained_and_never_exceeded(ratio: float) -> None:
    around = torch.linspace(0, 2 * math.pi, 200_001, dtype=torch.float64)
    moved = torch.stack([1 + ratio * around.cos(), ratio * around.sin()], 1)
    seen = angle(moved, _tensor([1.0, 0.0])).max()
    bound = worst_rotation(_tensor(1.0), _tensor(ratio))
    assert seen <= bound + 1e-12
    assert float(seen) == pytest.approx(float(bound), rel=1e-5)


def test_worst_rotation_at_its_ends() -> None:
    got = worst_rotation(_tensor([1.0, 1.0, 0.0, 0.0]), _tensor([0.0, 1.0, 1e-9, 0.0]))
    _close(got, [0.0, math.pi / 2, math.pi, 0.0])


def test_dynamics_metrics_meet_golden() -> None:
    row = golden("gmp")["dynamics_metrics"]
    start, end = _tensor(row["locations_t0"]), _tensor(row["locations_t1"])
    # a location is its own boundary: w along it, at the distance of its norm
    states = [locate(-x, x.square().sum(1)) for x in (start, end)]
    _close(states[0].locations, row["locations_t0"])
    got = move(*states)
    _close(got.displacement, row["displacement"])
    _close(got.angular_change, row["angular_change_of_locations"])
    _close(_tensor(got.mean_displacement), row["mean_displacement"])
    _close(_tensor(got.max_displacement), row["max_displacement"])
    _close(_tensor([got.spread_before, got.spread_after]), [row[f"spread_rms_t{k}"] for k in "01"])


def test_move_against_explicit_loops() -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(2, 5, 7))
    biases = rng.normal(size=(2, 5))
    states = [locate(_tensor(w), _tensor(b)) for w, b in zip(weights, biases, strict=True)]
    got = move(*states)
    for unit in range(5):
        places, lams, units = [], [], []
        for w, b in zip(weights[:, unit], biases[:, unit], strict=True):
            places.append(-b * w / (w @ w))
            lams.append(b / np.sqrt(w @ w))
            units.append(w / np.sqrt(w @ w))
        apart = np.linalg.norm(places[1] - places[0])
        rotation = math.acos(units[0] @ units[1])
        assert float(got.displacement[unit]) == pytest.approx(apart, rel=1e-12)
        assert float(got.angular_change[unit]) == pytest.approx(rotation, rel=1e-9)
        assert float(got.offset_change[unit]) == pytest.approx(lams[1] - lams[0], rel=1e-12)
        # the law of cosines that makes O(1) bookkeeping per unit possible
        law = (lams[1] - lams[0]) ** 2 + 4 * lams[0] * lams[1] * math.sin(rotation / 2) ** 2
        assert apart**2 == pytest.approx(law, rel=1e-9)


def test_weights_and_signs_that_leave_the_boundary_alone() -> None:
    weight, bias = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    one, other = locate(weight, bias), locate(-3 * weight, -3 * bias)
    torch.testing.assert_close(one.locations, other.locations)
    torch.testing.assert_close(one.offsets, -other.offsets)


def test_a_zero_weight_has_no_boundary_and_is_left_out() -> None:
    before = locate(_tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]]), _tensor([1.0, 1.0, 2.0]))
    after = locate(_tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]]), _tensor([1.0, 2.0, 2.0]))
    got = move(before, after)
    assert torch.isnan(got.displacement[0])
    assert torch.isnan(got.angular_change[0])
    assert got.mean_displacement == 0.5
    assert got.max_displacement == 1.0
    assert got.spread_before == pytest.approx(math.sqrt(0.5))
    nothing = locate(_tensor([[0.0, 0.0]]))
    assert math.isnan(spread(nothing.locations))
    assert math.isnan(move(nothing, nothing).max_displacement)


def test_float32_keeps_weights_whose_squares_underflow() -> None:
    got = locate(torch.tensor([[3e-30, -4e-30]]), torch.tensor([5e-30]))
    assert got.directions.dtype == torch.float32
    _close(got.locations[0], [-0.6, 0.8], 1e-6)


def test_convolution_kernels_are_flattened() -> None:
    layer = nn.Conv2d(3, 4, 3)
    got = locate(layer.weight, layer.bias)
    assert got.directions.shape == (4, 27)
    assert not got.directions.requires_grad


def test_crossing_share_counts_units_with_data_on_both_sides() -> None:
    weight, bias = _tensor([[1.0], [1.0], [1.0], [-1.0]]), _tensor([0.0, 10.0, -10.0, 0.5])
    data = _tensor([[-1.0], [0.25], [1.0]])
    assert crossing_share(weight, bias, data) == 0.5
    assert crossing_share(weight, bias, data, block=1) == 0.5
    assert crossing_share(weight, None, data) == 1.0


def test_effective_weight_norm_is_torchs() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Conv1d(3, 4, 5))
    gain, v = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
    torch.testing.assert_close(effective_weight_norm(v, gain), layer.weight)


def test_effective_batch_norm_is_torchs() -> None:
    layer, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    for values in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(values)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    norm.eval()
    x = torch.randn(2, 3, 6, 6)
    weight, bias = effective_batch_norm(
        layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias
    )
    torch.testing.assert_close(torch.conv2d(x, weight, bias), norm(layer(x)), atol=1e-5, rtol=1e-4)
    bare, moved = effective_batch_norm(layer.weight, None, norm.running_mean, norm.running_var)
    torch.testing.assert_close(moved, -norm.running_mean * torch.rsqrt(norm.running_var + 1e-5))
    assert bare.shape == layer.weight.shape


def test_shapes_that_do_not_fit_are_refused() -> None:
    weight = torch.randn(4, 3)
    with pytest.raises(UsageError, match="one bias per unit"):
        locate(weight, torch.randn(3))
    with pytest.raises(UsageError, match=r"weights \[units, inputs\]"):
        locate(torch.randn(3))
    with pytest.raises(UsageError, match="same shape"):
        move(locate(weight), locate(torch.randn(4, 2)))
    with pytest.raises(UsageError, match=r"data \[samples, 3\]"):
        crossing_share(weight, None, torch.randn(5, 2))
