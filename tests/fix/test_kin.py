"""CWN and GmP: golden conversions, and what each leaves free."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support import golden
from torch import Tensor, nn
from torch.autograd import gradcheck

from shiftscope.errors import UsageError
from shiftscope.fix.attach import scale_
from shiftscope.fix.constrain import constrain, release
from shiftscope.fix.kin import CWN, GmP
from shiftscope.fix.unroll import Unroll


def double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("case", range(8))
def test_angles_are_the_golden_ones_and_lead_back(case: int) -> None:
    gold = golden("gmp")["conversion"][case]
    w = double(gold["w"]).unsqueeze(0)
    gmp = GmP(Unroll(tuple(w.shape)))
    radius, angles = gmp.right_inverse(w)
    torch.testing.assert_close(radius, double([gold["r"]]), atol=1e-12, rtol=0)
    torch.testing.assert_close(angles, double([gold["theta"]]), atol=1e-12, rtol=0)
    torch.testing.assert_close(gmp(radius, angles), w, atol=1e-12, rtol=0)


@pytest.mark.parametrize("case", range(14))
def test_forward_is_the_golden_one(case: int) -> None:
    gold = golden("gmp")["forward"][case]
    layer: Any = nn.Linear(len(gold["x"]), 1).double()
    with torch.no_grad():
        layer.weight.copy_(double([gold["sp_weight"]]))
        layer.bias.fill_(gold["sp_bias"])
    constrain(layer, "gmp")
    z = layer(double(gold["x"])).detach()
    expected = gold["r"] * gold["u_dot_x_plus_lambda"]
    torch.testing.assert_close(z, double([expected]), atol=1e-12, rtol=0)
    distance = layer.parametrizations.bias.original * torch.sign(double(gold["r"]))
    torch.testing.assert_close(distance.detach(), double([gold["lambda"]]), atol=1e-12, rtol=0)
    if gold["r"] > 0:
        torch.testing.assert_close(z.relu(), double([gold["z_relu"]]), atol=1e-12, rtol=0)


def test_as_many_parameters_as_before() -> None:
    layer = nn.Conv2d(3, 5, 3)
    before = sum(p.numel() for p in layer.parameters())
    constrain(layer, "gmp")
    assert sum(p.numel() for p in layer.parameters()) == before


@pytest.mark.parametrize("inputs", [1, 2, 5])
def test_gmp_writes_any_dimension_in_other_coordinates(inputs: int) -> None:
    torch.manual_seed(inputs)
    layer = nn.Linear(inputs, 6).double()
    x = torch.randn(9, inputs, dtype=torch.float64)
    before = layer(x).detach()
    constrain(layer, "gmp")
    torch.testing.assert_close(layer(x), before)
    release(layer)
    torch.testing.assert_close(layer(x), before)


def test_moving_the_radius_moves_no_boundary() -> None:
    torch.manual_seed(0)
    layer: Any = nn.Linear(4, 6).double()
    location = -(layer.bias / layer.weight.square().sum(1)).unsqueeze(1) * layer.weight
    constrain(layer, "gmp")
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(3.0)
    moved = -(layer.bias / layer.weight.square().sum(1)).unsqueeze(1) * layer.weight
    torch.testing.assert_close(moved, location)


def test_gmp_refuses_a_bias_without_weights() -> None:
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight[1] = 0
    with pytest.warns(UserWarning, match="no layer was constrained"):
        (change,) = constrain(layer, "gmp")
    assert change.action == "skip"
    assert "neurons [1]" in change.reason
    with torch.no_grad():
        layer.bias[1] = 0
    (change,) = constrain(layer, "gmp")
    assert change.action == "constrain"


@pytest.mark.parametrize("scale", [None, 1.414])
def test_cwn_rows_have_their_norm_and_sum_to_zero(scale: float | None) -> None:
    torch.manual_seed(1)
    layer = nn.ConvTranspose2d(4, 6, 3, groups=2).double()
    unroll = Unroll.of(layer)
    rows = unroll.rows(layer.weight.detach())
    centred = rows - rows.mean(1, keepdim=True)
    constrain(layer, "cwn", scale=scale)
    got = unroll.rows(layer.weight.detach())
    expected = centred if scale is None else scale * centred / centred.norm(dim=1, keepdim=True)
    torch.testing.assert_close(got, expected)


def test_cwn_gradient_is_orthogonal_to_v_and_to_ones() -> None:
    torch.manual_seed(2)
    cwn = CWN(Unroll((3, 7)))
    v = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    g = torch.rand(3, dtype=torch.float64)
    (cwn(g, v) * torch.randn(3, 7, dtype=torch.float64)).sum().backward()
    gradient = v.grad
    assert gradient is not None
    torch.testing.assert_close((gradient * v).sum(1), torch.zeros(3).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(gradient.sum(1), torch.zeros(3).double(), atol=1e-12, rtol=0)
    assert gradcheck(cwn, (g.requires_grad_(), v))


def test_cwn_with_a_zero_row_stays_finite() -> None:
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight[0] = 1.0
    constrain(layer, "cwn")
    assert bool(layer.weight.isfinite().all())
    assert float(layer.weight[0].detach().abs().max()) < 1e-6


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_cwn_wants_a_positive_scale(value: float) -> None:
    with pytest.raises(UsageError, match="positive scale"):
        CWN(Unroll((2, 3)), scale=value)


METHODS = ["", "lcw", "lcw-projection", "lcw-data", "cwn", "weight_norm", "gmp"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("per_neuron", [False, True])
@pytest.mark.parametrize("kind", ["linear", "conv", "transposed"])
def test_scaling_keeps_the_constraint_and_the_bias(
    method: str, per_neuron: bool, kind: str
) -> None:
    torch.manual_seed(3)
    layer: Any = {
        "linear": nn.Linear(5, 6),
        "conv": nn.Conv2d(4, 6, 3, groups=2),
        "transposed": nn.ConvTranspose2d(4, 6, 3, groups=2),
    }[kind].double()
    x = torch.rand(7, 5) if kind == "linear" else torch.rand(7, 4, 6, 6)
    if method:
        constrain(layer, method, **({"batch": x.double()} if method == "lcw-data" else {}))
    unroll, weight, bias = Unroll.of(layer), layer.weight.detach().clone(), layer.bias.clone()
    factor = torch.rand(6, dtype=torch.float64) + 0.5 if per_neuron else double(2.5)
    keys = list(layer.state_dict())
    scale_(layer, factor)
    expected = unroll.fold(unroll.rows(weight) * factor.reshape(-1, 1))
    torch.testing.assert_close(layer.weight.detach(), expected)
    torch.testing.assert_close(layer.bias, bias)
    assert list(layer.state_dict()) == keys


@pytest.mark.parametrize("method", ["spectral_norm", "cwn"])
def test_scaling_a_fixed_scale_is_refused(method: str) -> None:
    layer = nn.Linear(5, 6)
    constrain(layer, method, **({"scale": 1.0} if method == "cwn" else {}))
    state = {k: v.clone() for k, v in layer.state_dict().items()}
    with pytest.raises(UsageError, match="fixes the"):
        scale_(layer, torch.tensor(2.0))
    assert all(torch.equal(v, state[k]) for k, v in layer.state_dict().items())
