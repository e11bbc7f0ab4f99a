"""Patch maps against golden values, naive loops and the layers of torch."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import golden

from shiftscope import geometry as geo


def close(got: torch.Tensor, want: Any, atol: float = 1e-12, rtol: float = 1e-12) -> None:
    expected = torch.as_tensor(np.asarray(want, dtype=np.float64))
    torch.testing.assert_close(got, expected, atol=atol, rtol=rtol, equal_nan=True)


def test_golden_convolutions() -> None:
    for case in golden("conv")["cases"].values():
        x, w = (torch.tensor(case[key], dtype=torch.float64) for key in ("X", "weight"))
        conv = geo.PatchMap.of_conv(
            x.shape[2:],
            w.shape[2:],
            case["stride"],
            case["padding"],
            case["dilation"],
            groups=case["groups"],
        )
        assert [x.shape[0], w.shape[0], *conv.output_size] == case["output_shape"]
        mu, rows = conv.patch_mean(x.mean(0)), conv.unroll(w)
        groups = conv.group_of_output(w.shape[0])
        bias = torch.tensor(case["bias"], dtype=torch.float64)
        close(mu, case["mu_hat_per_group"])
        close(conv.reads(), case["valid_reads_per_tap"])
        close(geo.shift(rows, mu, groups) + bias, case["E_z_channel"])
        close(geo.angle_to_mean(rows, mu, groups), case["theta_channel"])
        close(geo.angle_to_ones(rows), case["theta_to_ones_channel"])
        close(geo.eta(w), case["eta_kernel_norm2"])
        close(conv.xi_map(w), case["xi_map_C_H_W"])
        close(conv.xi_map(w).mean((1, 2)), case["xi_channel_mean"])
        close(conv.xi_map(w).mean(), case["xi_map_mean"])
        close(conv.eta_map(w).mean(), case["eta_map_mean"])
        close(torch.stack([conv.eta_map(w).sum(), conv.xi_map(w).sum()]), case["sum_identity"])


def test_golden_shift_left_by_zero_sum_kernels() -> None:
    for case in golden("conv")["cases"].values():
        x, w = (torch.tensor(case[key], dtype=torch.float64) for key in ("X", "weight"))
        conv = geo.PatchMap.of_conv(
            x.shape[2:], w.shape[2:], case["stride"], case["padding"], case["dilation"],
            groups=case["groups"],
        )  # fmt: skip
        mu, groups = conv.patch_mean(x.mean(0)), conv.group_of_output(w.shape[0])
        rows = conv.unroll(w)
        kernelwise = conv.unroll(w - w.mean((2, 3), keepdim=True))
        aware = conv.unroll(torch.tensor(case["data_aware_weight"], dtype=torch.float64))
        zero_sum = rows - rows.mean(1, keepdim=True)
        close(geo.shift(zero_sum, mu, groups), case["lcw_E_z_channel_no_bias"])
        close(geo.shift(kernelwise, mu, groups), case["channelwise_lcw_E_z_channel_no_bias"])
        close(geo.shift(aware, mu, groups), np.zeros(len(rows)))


CONVS: list[dict[str, Any]] = [
    {"size": (9,), "kernel": (3,), "stride": 2, "padding": 1},
    {"size": (8,), "kernel": (3,), "padding": 1, "padding_mode": "circular"},
    {"size": (8,), "kernel": (5,), "padding": 2, "padding_mode": "reflect", "stride": 2},
    {
        "size": (6, 7),
        "kernel": (3, 2),
        "padding": (2, 1),
        "padding_mode": "replicate",
        "dilation": (1, 2),
    },
    {"size": (5, 5), "kernel": (5, 5), "padding": 2, "padding_mode": "reflect", "groups": 2},
    {"size": (3, 3), "kernel": (5, 5), "padding": 2, "padding_mode": "circular"},
    {
        "size": (4, 5, 6),
        "kernel": (2, 3, 3),
        "padding": (0, 1, 2),
        "stride": (1, 2, 2),
        "groups": 2,
    },
    {"size": (7, 6), "kernel": (4, 3), "padding": "same", "dilation": (1, 2)},
    {
        "size": (5,),
        "kernel": (3,),
        "transposed": True,
        "stride": 2,
        "padding": 1,
        "output_padding": 1,
    },
    {
        "size": (4, 3),
        "kernel": (3, 2),
        "transposed": True,
        "stride": (2, 3),
        "groups": 2,
        "dilation": (2, 1),
    },
    {"size": (3, 3, 2), "kernel": (2, 2, 3), "transposed": True, "padding": (1, 0, 1), "groups": 2},
]


def build(case: dict[str, Any]) -> tuple[torch.nn.Module, geo.PatchMap]:
    torch.manual_seed(0)
    args = {k: v for k, v in case.items() if k not in ("size", "kernel", "transposed")}
    n, back = len(case["size"]), case.get("transposed", False)
    layer = getattr(torch.nn, f"Conv{'Transpose' if back else ''}{n}d")
    conv = geo.PatchMap.of_conv(case["size"], case["kernel"], **args, transposed=back)
    return layer(4, 6, case["kernel"], **args, dtype=torch.float64), conv


@pytest.mark.parametrize("case", CONVS, ids=str)
@pytest.mark.filterwarnings("ignore:Using padding=.same.")
def test_patch_mean_predicts_the_mean_of_torchs_own_layer(case: dict[str, Any]) -> None:
    layer, conv = build(case)
    x = torch.randn(3, 4, *case["size"], dtype=torch.float64) + 1
    z = layer(x).detach()
    assert tuple(z.shape[2:]) == conv.output_size
    rows = conv.unroll(layer.weight)
    assert torch.equal(conv.fold(rows), layer.weight)
    mean = geo.shift(rows, conv.patch_mean(x.mean(0)), conv.group_of_output(6)) + layer.bias
    close(z.transpose(0, 1).flatten(1).mean(1), mean.detach())


@pytest.mark.parametrize("case", CONVS, ids=str)
@pytest.mark.filterwarnings("ignore:Using padding=.same.")
def test_norm_maps_equal_those_of_the_whole_matrix(case: dict[str, Any]) -> None:
    layer, conv = build(case)
    zero = torch.zeros(1, 4, *case["size"], dtype=torch.float64)
    with torch.no_grad():
        layer.bias.zero_()
    matrix = torch.autograd.functional.jacobian(layer, zero).reshape(
        6 * np.prod(conv.output_size), 4 * np.prod(case["size"])
    )
    eta, xi = conv.eta_map(layer.weight), conv.xi_map(layer.weight)
    close(eta.flatten(), matrix.square().sum(1))
    close(xi.flatten(), matrix.square().sum(0))
    close(eta.sum(), xi.sum())
    columns = geo.row_facts(conv.unroll(layer.weight)).columns
    for known in (None, columns):
        close(
            torch.stack(conv.mean_gains(layer.weight, known)), [xi.mean().item(), eta.mean().item()]
        )


def test_reads_count_by_hand() -> None:
    conv = geo.PatchMap.of_conv((5, 4), (3, 2), (2, 1), ((1, 0), (0, 2)), (1, 2))
    want = np.zeros((3, 2))
    sizes = conv.output_size
    for i, j, p, q in product(range(3), range(2), range(sizes[0]), range(sizes[1])):
        want[i, j] += 0 <= p * 2 - 1 + i < 5 and 0 <= q + 2 * j < 4
    close(conv.reads(), want)


def test_uneven_padding_equals_padding_first() -> None:
    torch.manual_seed(0)
    x, w = torch.randn(2, 3, 5, 6), torch.randn(4, 3, 2, 3)
    conv = geo.PatchMap.of_conv((5, 6), (2, 3), padding=((1, 0), (0, 2)))
    z = F.conv2d(F.pad(x, (0, 2, 1, 0)), w)
    mean = geo.shift(conv.unroll(w), conv.patch_mean(x.mean(0)))
    close(z.mean((0, 2, 3)).double(), mean, atol=1e-5)


def test_a_long_signal_needs_no_table_of_inputs_by_outputs() -> None:
    conv = geo.PatchMap.of_conv((200_000,), 10, stride=5)
    assert conv.patch_mean(torch.ones(1, 200_000)).tolist() == [[1.0] * 10]
    assert conv.xi_map(torch.ones(1, 1, 10)).shape == (1, 200_000)


def test_nothing_waits_for_the_device() -> None:
    conv = geo.PatchMap.of_conv((6, 6), 3, padding=1, groups=2)
    w, image = torch.zeros(4, 2, 3, 3, device="meta"), torch.zeros(4, 6, 6, device="meta")
    mu, rows = conv.patch_mean(image), conv.unroll(w)
    assert geo.shift(rows, mu, conv.group_of_output(4, "meta")).shape == (4,)
    assert geo.angle_to_mean(rows, mu, conv.group_of_output(4, "meta")).shape == (4,)
    assert conv.xi_map(w).is_meta
    assert conv.mean_gains(w)[0].is_meta
    assert geo.lcw_residual(rows).shape == geo.p_gamma_index(mu[0]).shape == ()
    assert geo.angle_to_ones(rows).shape == geo.eta(rows).shape == (4,)
