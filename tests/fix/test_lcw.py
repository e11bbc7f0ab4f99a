"""LCW through training: equal paths, sums that stay zero, convolutions, compilation."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from scipy.linalg import helmert
from support import golden
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from shiftscope.errors import UsageError
from shiftscope.fix.lcw import LCW, DataLCW, DataLCWProjection, LCWProjection
from shiftscope.fix.means import input_mean
from shiftscope.fix.unroll import Unroll

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


class Helmert(nn.Module):
    """The textbook basis, as a dense matrix: a reference, not part of the library."""

    def __init__(self, m: int) -> None:
        super().__init__()
        self.register_buffer("basis", torch.from_numpy(helmert(m).copy()))

    def forward(self, v: Tensor) -> Tensor:
        return v @ self.basis

    def right_inverse(self, w: Tensor) -> Tensor:
        return w @ self.basis.T


def row_layer(w0: Tensor, constraint: nn.Module) -> Any:
    layer = nn.Linear(w0.numel(), 1, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(w0.unsqueeze(0))
    return parametrize.register_parametrization(layer, "weight", constraint)


def path(layer: Any, optimizer: torch.optim.Optimizer, gold: dict[str, Any]) -> Iterator[Tensor]:
    matrix, y = double(gold["T"]), double(gold["y"])
    for _ in gold["w_after_each_step_sgd_all_parameterisations"]:
        optimizer.zero_grad()
        ((layer(matrix).flatten() - y).square().sum() / 10).backward()
        optimizer.step()
        yield layer.weight.detach().flatten()


def forms() -> dict[str, nn.Module]:
    unroll = Unroll((1, 4))
    return {"householder": LCW(unroll), "centering": LCWProjection(unroll), "helmert": Helmert(4)}


@pytest.mark.parametrize("form", forms())
def test_sgd_path_is_the_same_in_every_form(form: str) -> None:
    gold = golden("optim_equivalence")
    layer = row_layer(double(gold["w0"]), forms()[form])
    sgd = torch.optim.SGD(
        layer.parameters(), gold["lr"], gold["momentum"], weight_decay=gold["weight_decay"]
    )
    expected = gold["w_after_each_step_sgd_all_parameterisations"]
    for w, want in zip(path(layer, sgd, gold), expected, strict=True):
        torch.testing.assert_close(w, double(want), atol=1e-12, rtol=0)


@pytest.mark.parametrize("form", forms())
def test_adam_path_is_that_of_its_coordinates(form: str) -> None:
    gold = golden("optim_equivalence")
    layer = row_layer(double(gold["w0"]), forms()[form])
    adam = torch.optim.Adam(layer.parameters(), gold["lr"], betas=(0.9, 0.999), eps=1e-8)
    for w, want in zip(path(layer, adam, gold), gold[f"w_adam_{form}"], strict=True):
        torch.testing.assert_close(w, double(want), atol=1e-10, rtol=0)


def weights(
    net: nn.Module, steps: int, call: Callable[[Tensor], Tensor] | None = None
) -> list[Tensor]:
    """Train by calling the network, or what was compiled from it; return its weights."""
    call = call or net
    sgd = torch.optim.SGD(net.parameters(), 0.1, 0.9, weight_decay=1e-4, nesterov=True)
    generator = torch.Generator().manual_seed(5)
    for _ in range(steps):
        x = torch.rand(32, 16, generator=generator, dtype=torch.float64)
        y = torch.randint(4, (32,), generator=generator)
        sgd.zero_grad()
        F.cross_entropy(call(x), y).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        sgd.step()
    return [layer.weight.detach() for layer in net if isinstance(layer, nn.Linear)]


def sigmoid_net(form: type[LCW] | type[LCWProjection]) -> nn.Sequential:
    torch.manual_seed(3)
    sizes = (16, 24, 24, 24, 4)
    layers: list[nn.Module] = []
    for n, m in pairwise(sizes):
        layer = nn.Linear(n, m).double()
        layers += [
            parametrize.register_parametrization(layer, "weight", form(Unroll.of(layer))),
            nn.Sigmoid(),
        ]
    return nn.Sequential(*layers[:-1])


def test_thirty_steps_of_a_network_agree_between_the_forms_and_sum_to_zero() -> None:
    one, other = weights(sigmoid_net(LCW), 30), weights(sigmoid_net(LCWProjection), 30)
    for a, b in zip(one, other, strict=True):
        assert float((a - b).norm() / a.norm()) <= 1e-10
        for w in (a, b):
            bound = 1e-12 * w.norm(dim=1) * math.sqrt(w.shape[1])
            assert bool((w.sum(1).abs() <= bound).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("kind", "optimizer"),
    [("lcw", "sgd"), ("lcw", "adam"), ("projection", "adam"), ("data", "sgd")],
)
def test_constraint_holds_after_a_thousand_steps(
    dtype: torch.dtype, kind: str, optimizer: str
) -> None:
    torch.manual_seed(4)
    unroll, mean = Unroll((8, 48)), torch.rand(1, 48, dtype=torch.float64)
    constraint: Any = {
        "lcw": LCW(unroll),
        "projection": LCWProjection(unroll),
        "data": DataLCW(unroll, mean.to(torch.promote_types(dtype, torch.float32))),
    }[kind]
    start = torch.randn(8, 48).to(dtype)
    original = nn.Parameter(constraint.right_inverse(start))
    update: torch.optim.Optimizer = (
        torch.optim.SGD([original], 0.05, momentum=0.9, weight_decay=1e-4)
        if optimizer == "sgd"
        else torch.optim.AdamW([original], 1e-2, eps=1e-4)
    )
    target = (torch.rand(8, 48) + 1).to(dtype)
    for step in range(1000):
        update.zero_grad()
        (constraint(original) - target * math.cos(step / 50)).square().sum().backward()
        update.step()
    w = constraint(original).detach().double()
    assert float((w - start.double()).norm()) > 0.1 * float(w.norm())
    c = constraint.mean.double()[0] if kind == "data" else torch.ones(48, dtype=torch.float64)
    bound = torch.finfo(dtype).eps * math.sqrt(48) * w.norm(dim=1)
    assert bool(((w @ c).abs() <= bound * (c.norm() if kind == "data" else 1)).all())


LAYERS = {
    "linear": lambda: nn.Linear(7, 5),
    "conv1d": lambda: nn.Conv1d(4, 6, 3, padding=1),
    "conv2d": lambda: nn.Conv2d(4, 6, 3, stride=2),
    "conv3d": lambda: nn.Conv3d(2, 3, 2),
    "grouped": lambda: nn.Conv2d(4, 6, (3, 2), groups=2),
    "depthwise": lambda: nn.Conv2d(4, 8, 3, groups=4),
    "transposed1d": lambda: nn.ConvTranspose1d(4, 6, 3, stride=2),
    "transposed2d": lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, output_padding=1),
    "transposed3d": lambda: nn.ConvTranspose3d(2, 3, 2),
}


def rows_by_hand(layer: Any, weight: Tensor) -> list[Tensor]:
    """Row of every output channel by its definition: what its neuron multiplies."""
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    if not getattr(layer, "transposed", False):
        return [w.reshape(-1) for w in weight]
    inputs, per_group = weight.shape[0] // groups, weight.shape[1]
    return [
        torch.cat([weight[g * inputs + c, j].reshape(-1) for c in range(inputs)])
        for g in range(groups)
        for j in range(per_group)
    ]


@pytest.mark.parametrize("name", LAYERS)
def test_unrolling_matches_the_definition_and_folds_back(name: str) -> None:
    layer = LAYERS[name]()
    unroll = Unroll.of(layer)
    torch.testing.assert_close(
        unroll.rows(layer.weight), torch.stack(rows_by_hand(layer, layer.weight)), rtol=0, atol=0
    )
    assert torch.equal(unroll.fold(unroll.rows(layer.weight)), layer.weight)
    assert (unroll.neurons, unroll.fan_in) == tuple(unroll.rows(layer.weight).shape)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("form", [LCW, LCWProjection])
@pytest.mark.parametrize("channelwise", [False, True])
def test_weight_is_the_projection_of_what_was_there(
    name: str, form: Any, channelwise: bool
) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name]().double()
    if channelwise and Unroll.of(layer).taps == 1:
        with pytest.raises(UsageError, match="one tap"):
            form(Unroll.of(layer), channelwise=True)
        return
    before = rows_by_hand(layer, layer.weight.detach().clone())
    form_ = form(Unroll.of(layer), channelwise=channelwise)
    parametrize.register_parametrization(layer, "weight", form_)
    for row, old in zip(rows_by_hand(layer, layer.weight.detach()), before, strict=True):
        parts = old.reshape(-1, form_.length)
        torch.testing.assert_close(row, (parts - parts.mean(1, keepdim=True)).reshape(-1))
    assert layer.weight.is_contiguous()


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("form", [DataLCW, DataLCWProjection])
def test_data_aware_layer_has_mean_zero_on_its_data(name: str, form: Any) -> None:
    torch.manual_seed(1)
    layer = LAYERS[name]().double()
    unroll = Unroll.of(layer)
    inputs = layer.in_features if name == "linear" else layer.in_channels
    spatial = () if name == "linear" else (5,) * len(layer.kernel_size)
    x = torch.rand(16, inputs, *spatial, dtype=torch.float64) + torch.rand(
        inputs, *spatial, dtype=torch.float64
    )
    found = input_mean(layer, x)
    parametrize.register_parametrization(layer, "weight", form(unroll, found.mean))
    z = layer(x).detach()
    means = z.movedim(1, -1).flatten(0, -2).mean(0)
    torch.testing.assert_close(means, layer.bias.detach(), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    "case",
    [
        "no_pad",
        "pad1",
        "stride2_pad1",
        "dilated",
        "groups2",
        "depthwise",
        "constant_input_pad1_zero_sum_kernel",
    ],
)
def test_zero_sum_and_data_aware_kernels_of_the_golden_convolutions(case: str) -> None:
    gold = golden("conv")["cases"][case]
    weight, x, bias = double(gold["weight"]), double(gold["X"]), double(gold["bias"])
    unroll = Unroll(tuple(weight.shape), gold["groups"])
    arguments = {k: gold[k] for k in ("stride", "padding", "dilation", "groups")}

    def channel_means(constraint: nn.Module) -> Tensor:
        w = constraint(constraint.right_inverse(weight))  # type: ignore[operator]
        return F.conv2d(x, w, **arguments).mean((0, 2, 3))

    close = {"atol": 1e-12, "rtol": 0}
    for form in (LCW, LCWProjection):
        torch.testing.assert_close(
            channel_means(form(unroll)), double(gold["lcw_E_z_channel_no_bias"]), **close
        )
        expected = double(gold["channelwise_lcw_E_z_channel_no_bias"])
        torch.testing.assert_close(channel_means(form(unroll, channelwise=True)), expected, **close)
    layer = nn.Conv2d(
        x.shape[1], weight.shape[0], tuple(weight.shape[2:]), **arguments, dtype=torch.float64
    )
    mean = input_mean(layer, x).mean
    torch.testing.assert_close(mean, double(gold["mu_hat_per_group"]), **close)
    for data in (DataLCW(unroll, mean), DataLCWProjection(unroll, mean)):
        got = data(data.right_inverse(weight))
        torch.testing.assert_close(got, double(gold["data_aware_weight"]), **close)
        torch.testing.assert_close(channel_means(data), torch.zeros_like(bias), **close)


def test_following_a_mean_keeps_norms_and_the_constraint() -> None:
    torch.manual_seed(2)
    for form in (DataLCW, DataLCWProjection):
        layer: Any = nn.Conv2d(4, 6, 3, groups=2).double()
        unroll = Unroll.of(layer)
        constraint = form(unroll, torch.rand(2, 18, dtype=torch.float64))
        parametrize.register_parametrization(layer, "weight", constraint)
        norms = unroll.rows(layer.weight).norm(dim=1)
        mean = torch.rand(2, 18, dtype=torch.float64)
        constraint.follow_(layer.parametrizations.weight.original, mean)
        rows = unroll.rows(layer.weight)
        torch.testing.assert_close(rows.norm(dim=1), norms, rtol=1e-12, atol=0)
        products = torch.einsum("gnm,gm->gn", rows.view(2, 3, 18), mean)
        torch.testing.assert_close(products, torch.zeros_like(products), atol=1e-14, rtol=0)


@pytest.mark.parametrize(
    ("shape", "mean"),
    [
        ((3, 1), None),
        ((3, 4), torch.zeros(1, 4)),
        ((3, 4), torch.ones(4)),
        ((3, 4), torch.tensor([[1.0, math.nan, 0, 0]])),
    ],
)
def test_impossible_constraints_are_refused(shape: tuple[int, int], mean: Tensor | None) -> None:
    with pytest.raises(UsageError) as error:
        LCW(Unroll(shape)) if mean is None else DataLCW(Unroll(shape), mean)
    assert error.value.remedy


@pytest.mark.parametrize("kind", ["lcw", "projection", "data", "conv"])
def test_compiles_into_one_graph(kind: str) -> None:
    torch.manual_seed(6)
    torch._dynamo.reset()
    layer: Any = nn.Conv2d(3, 4, 3) if kind == "conv" else nn.Linear(12, 4)
    unroll = Unroll.of(layer)
    if kind == "data":
        constraint: nn.Module = DataLCW(unroll, torch.rand(1, unroll.fan_in))
    else:
        form = LCWProjection if kind == "projection" else LCW
        constraint = form(unroll, channelwise=kind == "conv")
    parametrize.register_parametrization(layer, "weight", constraint)
    x = torch.rand(8, 3, 6, 6) if kind == "conv" else torch.rand(8, 12)
    layer(x).square().sum().backward()
    original = layer.parametrizations.weight.original
    eager, original.grad = original.grad.clone(), None
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    compiled(x).square().sum().backward()
    torch.testing.assert_close(original.grad, eager)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_a_compiled_network_trains_like_the_eager_one_in_one_graph() -> None:
    torch._dynamo.reset()
    eager, net = sigmoid_net(LCW), sigmoid_net(LCW)
    compiled = torch.compile(net, fullgraph=True)
    for a, b in zip(weights(eager, 20), weights(net, 20, compiled), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
        bound = torch.finfo(b.dtype).eps * math.sqrt(b.shape[1]) * b.norm(dim=1)
        assert bool((b.sum(1).abs() <= bound).all())
