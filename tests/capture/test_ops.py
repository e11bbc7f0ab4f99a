"""Every linear map and activation of torch is seen, in every spelling, under its right name."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import activation
from torch.overrides import TorchFunctionMode

import shiftscope as ss
from shiftscope.capture.activation_ops import ACTIVATION_OPS
from shiftscope.capture.coverage import weights_of
from shiftscope.capture.fused import FUSED_OPS
from shiftscope.capture.linear_ops import LINEAR_OPS
from shiftscope.capture.module_kinds import SINGLE, SITELESS, has_sites

# What torch calls activations, and is none of a single tensor.
NOT_ACTIVATIONS = {"MultiheadAttention", "Softmax2d"}
MODULE_OPS = {
    **{"SiLU": "silu", "LogSigmoid": "logsigmoid", "LogSoftmax": "log_softmax"},
    **{"LeakyReLU": "leaky_relu", "PReLU": "prelu", "RReLU": "rrelu"},
}
ARGUMENTS: dict[str, tuple[Any, ...]] = {"Threshold": (0.1, 0.2), "Softmax": (-1,)}
ARGUMENTS |= {"LogSoftmax": (-1,), "Softmin": (-1,)}

FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], ...]] = {
    "relu": (F.relu, torch.relu, Tensor.relu, lambda x: x.clamp(min=0), lambda x: x.clamp_min(0)),
    "relu_": (F.relu_, torch.relu_, Tensor.relu_, lambda x: x.clamp_(min=0)),
    "relu6": (F.relu6, lambda x: x.clamp(0, 6)),
    "leaky_relu": (F.leaky_relu, F.leaky_relu_),
    "rrelu": (F.rrelu,),
    "prelu": (lambda x: F.prelu(x, x.new_tensor([0.1])), lambda x: x.prelu(x.new_tensor([0.1]))),
    "elu": (F.elu, F.elu_),
    "selu": (F.selu, torch.selu, F.selu_),
    "celu": (F.celu, torch.celu, F.celu_),
    "gelu": (F.gelu,),
    "gelu_tanh": (lambda x: F.gelu(x, approximate="tanh"),),
    "silu": (F.silu, lambda x: F.silu(x, inplace=True)),
    "mish": (F.mish,),
    "softplus": (F.softplus,),
    "softsign": (F.softsign,),
    "sigmoid": (torch.sigmoid, Tensor.sigmoid, Tensor.sigmoid_, torch.special.expit, F.sigmoid),
    "logsigmoid": (F.logsigmoid,),
    "tanh": (torch.tanh, Tensor.tanh, Tensor.tanh_, F.tanh),
    "tanhshrink": (F.tanhshrink,),
    "hardtanh": (F.hardtanh, F.hardtanh_, lambda x: x.clamp(-1, 1), lambda x: x.clip(-1, 1)),
    "hardsigmoid": (F.hardsigmoid,),
    "hardswish": (F.hardswish,),
    "softshrink": (F.softshrink,),
    "hardshrink": (F.hardshrink, Tensor.hardshrink),
    "threshold": (lambda x: F.threshold(x, 0.1, 0.2), lambda x: torch.threshold(x, 0.1, 0.2)),
    "softmax": (
        lambda x: F.softmax(x, -1),
        lambda x: x.softmax(-1),
        lambda x: torch.softmax(x, -1),
    ),
    "log_softmax": (lambda x: F.log_softmax(x, -1), lambda x: x.log_softmax(-1)),
    "glu": (F.glu,),
    "erf": (torch.erf, torch.special.erf),
    "sin": (torch.sin,),
}


class Called(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor], train: bool = False) -> None:
        super().__init__()
        self.first, self.function = nn.Linear(4, 6, dtype=torch.float64), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.first(x))


def loss(out: Any, _: Any) -> Tensor:
    return (out * torch.linspace(1, 2, out.shape[-1])).square().mean()


def single_activation(model: nn.Module) -> Any:
    x = torch.randn(3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    snapshot = ss.analyze(model, [(x, None)], loss)
    rows = snapshot.sites[snapshot.sites.kind == "activation"]
    assert len(rows) == 1, list(snapshot.records)
    return rows.iloc[0]


def check_gains(row: Any) -> None:
    assert row["count"] == 15
    assert row.grad_a_var > 0
    if row.op not in ("softmax", "log_softmax", "softmin", "glu"):
        assert row.phi_fw > 0
        assert row.phi_bw >= 0
        assert math.isfinite(row.phi_fw_theory)


MODULES = sorted(set(activation.__all__) - NOT_ACTIVATIONS)


@pytest.mark.parametrize("name", MODULES)
def test_every_activation_module(name: str) -> None:
    module = getattr(nn, name)(*ARGUMENTS.get(name, ()))
    model = nn.Sequential(nn.Linear(4, 6), module).double().eval()
    row = single_activation(model)
    assert (row.site, row.op) == ("1", MODULE_OPS.get(name, name.lower()))
    check_gains(row)


@pytest.mark.parametrize(
    ("op", "function"), [(op, f) for op, functions in FUNCTIONS.items() for f in functions]
)
def test_every_activation_function(op: str, function: Callable[[Tensor], Tensor]) -> None:
    row = single_activation(Called(function))
    name = op.removesuffix("_")
    assert (row.site, row.op) == (f":{name}", name)
    check_gains(row)


def test_layers_that_compute_their_weight_keep_their_name() -> None:
    class Masked(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight * (self.weight > 0), self.bias)

    class Standardised(nn.Conv1d):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv1d(x, self.weight - self.weight.mean((1, 2), keepdim=True), self.bias)

    class Twice(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight * 2) + F.linear(x * x, self.weight**2).sqrt()

    model = nn.Sequential(Standardised(3, 4, 1), Masked(5, 6), nn.Tanh(), Twice(6, 6))
    assert list(ss.analyze(model, [torch.rand(8, 3, 5)] * 3).records) == [
        *("0", "1", "2", "3", "3:linear"),
    ]
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    with ss.watch(model, optimizer, every=1) as probe:
        for _ in range(3):
            model(torch.rand(8, 3, 5)).square().nan_to_num().mean().backward()
            optimizer.step()
        assert list(probe.snapshot().records) == ["0", "1", "2", "3", "3:linear"]


def test_a_weight_times_a_vector() -> None:
    class Vector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(3, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.w @ x

    model, x = Vector(), torch.randn(4)
    record = ss.analyze(model, [(x, None)], lambda out, _: out.sum()).records[":matmul"]
    assert record.streams["z"].moments.mean == pytest.approx((model.w @ x).tolist())
    assert record.streams["grad_z"].moments.mean == pytest.approx([1.0] * 3)
    assert record.info.fan_in == 4


@pytest.mark.parametrize("grad", [True, False])
def test_the_sine_of_a_position_is_no_activation(grad: bool) -> None:
    class Rotary(nn.Module):
        """Codes of positions, as rotary embeddings make them, and a layer with a sine behind."""

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            with torch.set_grad_enabled(grad):
                angles = torch.arange(x.shape[1])[:, None] * torch.ones(6)
                codes = torch.sin(angles)
            return self.head(torch.sin(self.inner(x)) + codes)

    assert list(ss.analyze(Rotary(), [torch.randn(3, 5, 4)]).records) == [
        *("inner", ":sin", "head"),
    ]


@pytest.mark.parametrize("name", ["relu", "sigmoid", "tanh", "gelu", "silu", "softplus"])
def test_measured_gains_equal_their_definition(name: str) -> None:
    function = getattr(F, name, None) or getattr(torch, name)
    model = Called(function)
    x = torch.randn(40, 4, dtype=torch.float64)
    snapshot = ss.analyze(model, [(x, None)], loss)
    z = model.first(x).detach().requires_grad_()
    a = function(z)
    a.retain_grad()
    loss(a, None).backward()
    row = snapshot.sites.iloc[1]
    assert a.grad is not None
    assert z.grad is not None
    want_fw = a.var(dim=0, correction=0).mean() / z.var(dim=0, correction=0).mean()
    want_bw = z.grad.var(dim=0, correction=0).mean() / a.grad.var(dim=0, correction=0).mean()
    assert row.phi_fw == pytest.approx(float(want_fw.detach()), rel=1e-10)
    assert row.phi_bw == pytest.approx(float(want_bw), rel=1e-10)


CONVOLUTIONS = [
    (dims, transposed, options)
    for dims in (1, 2, 3)
    for transposed in (False, True)
    for options in (
        {},
        {"stride": 2, "padding": 1},
        {"dilation": 2, "groups": 2},
        {"groups": 4},
        *(
            []
            if transposed
            else [{"padding": 1, "padding_mode": m} for m in ("circular", "replicate")]
        ),
        *([] if transposed else [{"padding": "same"}]),
        *([{"stride": 2, "output_padding": 1}] if transposed else []),
    )
]


@pytest.mark.parametrize(("dims", "transposed", "options"), CONVOLUTIONS)
@pytest.mark.parametrize("batched", [True, False])
def test_every_convolution(
    dims: int, transposed: bool, options: dict[str, Any], batched: bool
) -> None:
    torch.manual_seed(0)
    kind = getattr(nn, f"Conv{'Transpose' if transposed else ''}{dims}d")
    conv = kind(4, 8, 3, dtype=torch.float64, **options)
    x = torch.randn(*((3,) if batched else ()), 4, *(6, 7, 8)[:dims], dtype=torch.float64) + 0.5
    snapshot = ss.analyze(nn.Sequential(conv), [(x, None)], loss)
    row, neurons = snapshot.sites.iloc[0], snapshot.neurons
    assert row.op == f"conv{'_transpose' if transposed else ''}{dims}d"
    out = conv(x).detach()
    rows = out.movedim(1 if batched else 0, -1).reshape(-1, 8)
    np.testing.assert_allclose(neurons.z_mean, rows.mean(dim=0), rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(neurons.z_var, rows.var(dim=0, correction=0), rtol=1e-11)
    predicted = neurons.shift_predicted + neurons.bias
    np.testing.assert_allclose(predicted, neurons.z_mean, rtol=1e-10, atol=1e-12)
    assert row.fan_in == conv.weight.numel() // 8
    assert neurons.grad_z_var.notna().all()


class TransposedWeight(nn.Module):
    """A linear layer with weights ``[in, out]`` and addmm, as GPT-2 of Hugging Face has it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight)
        return flat.view(*x.shape[:-1], -1)


class Columns(nn.Module):
    """Samples in columns: W @ X."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight @ x.flatten(0, -2).T).T


class Masked(nn.Module):
    """A weight computed from a parameter inside the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.randn(6, 4))
        self.register_buffer("mask", (torch.rand(6, 4) > 0.3).double())

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.raw * self.mask).T


@pytest.mark.parametrize(
    ("model", "site"),
    [
        (lambda: nn.Sequential(TransposedWeight(4, 6)), "0"),
        (lambda: nn.Sequential(Columns()), "0"),
        (lambda: nn.Sequential(Masked()), "0:matmul"),
        (lambda: nn.Sequential(nn.Linear(4, 6, bias=False)), "0"),
    ],
)
def test_matrix_products_with_weights(model: Callable[[], nn.Module], site: str) -> None:
    torch.manual_seed(0)
    net = model().double()
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    snapshot = ss.analyze(net, [(x, None)], loss)
    assert list(snapshot.records) == [site]
    rows = net(x).detach().reshape(-1, 6)
    neurons = snapshot.neurons
    np.testing.assert_allclose(neurons.z_mean, rows.mean(dim=0), rtol=1e-11, atol=1e-13)
    shift = neurons.shift_predicted + neurons.bias.fillna(0)
    np.testing.assert_allclose(shift, neurons.z_mean, rtol=1e-10, atol=1e-12)
    assert neurons.grad_z_var.notna().all()
    assert snapshot.gaps == () or site == "0:matmul"


def test_a_bilinear_map_is_linear_in_the_products_of_its_inputs() -> None:
    torch.manual_seed(0)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Bilinear(3, 4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.map(x[..., :3], x[..., 3:])  # type: ignore[no-any-return]

    model = Model().double()
    x = torch.rand(20, 7, dtype=torch.float64)
    snapshot = ss.analyze(model, [(x, None)], loss)
    neurons, row = snapshot.neurons, snapshot.sites.iloc[0]
    assert (row.op, row.fan_in) == ("bilinear", 12)
    np.testing.assert_allclose(neurons.z_mean, neurons.shift_predicted + neurons.bias, rtol=1e-11)
    products = (x[:, :3, None] * x[:, None, 3:]).flatten(1).numpy()
    want = neurons.z_var.mean() / products.var(axis=0).mean()
    assert row.eta_measured == pytest.approx(want, rel=1e-10)


def test_products_of_two_activations_are_no_site() -> None:
    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x @ x.transpose(-1, -2)) @ x

    assert ss.analyze(Attention(), [torch.rand(2, 3, 4)]).records == {}


def test_an_exported_program_has_the_names_of_the_original() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv1d(2, 4, 3, padding="same"), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.stem(x)).mean(dim=-1))  # type: ignore[no-any-return]

    model, x = Model().eval(), torch.rand(4, 2, 9)
    exported = torch.export.export(model, (x,)).module()
    want, got = (ss.analyze(m, [(x, None)], loss) for m in (model, exported))
    assert list(got.records) == list(want.records) == ["stem", ":relu", "head"]
    np.testing.assert_allclose(got.neurons.z_var, want.neurons.z_var, rtol=1e-6)
    np.testing.assert_allclose(got.neurons.grad_z_var, want.neurons.grad_z_var, rtol=1e-5)


class Log(TorchFunctionMode):
    """Notes the functions that are called under it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


_HANDLED = {*LINEAR_OPS, *ACTIVATION_OPS, *FUSED_OPS}
_ARGS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("Linear", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d"), (4,)),
    **dict.fromkeys(("InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"), (4,)),
    **dict.fromkeys(("Conv1d", "Conv2d", "Conv3d"), (4, 3, 3, 1, "same", 1, 1, True, "circular")),
    **dict.fromkeys(("ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"), (4, 3, 3)),
    **dict.fromkeys(("MaxPool1d", "MaxPool2d", "MaxPool3d", "AvgPool1d", "AvgPool2d"), (2,)),
    **dict.fromkeys(("AdaptiveAvgPool1d", "AdaptiveAvgPool2d", "AdaptiveAvgPool3d"), (2,)),
    **{"Linear": (4, 3), "Threshold": (0.1, 20.0), "LayerNorm": (4,), "RMSNorm": (4,)},
    **{"GroupNorm": (2, 4), "LocalResponseNorm": (2,), "AvgPool3d": (2,), "Upsample": (None, 2)},
    **{
        "AdaptiveMaxPool2d": (2,),
        "Unflatten": (1, (2, 2)),
        "PixelShuffle": (2,),
        "ZeroPad2d": (1,),
    },
}


def _made(kind: type[nn.Module]) -> tuple[nn.Module, Tensor]:
    """A module of the kind, and something it takes."""
    name = kind.__name__
    dims = int(name[-2]) if name.endswith("d") and name[-2].isdigit() else 0
    dims = 2 if name in ("PixelShuffle", "Upsample", "LocalResponseNorm") else dims
    return kind(*_ARGS.get(name, ())), torch.randn(2, 4, *[4] * dims)


@pytest.mark.parametrize("kind", sorted(SINGLE, key=lambda kind: kind.__name__))
def test_a_module_that_ends_with_its_op_runs_no_other(kind: type[nn.Module]) -> None:
    """These get no hook at their end: the last function of their forward has the only handler."""
    module, x = _made(kind)
    with Log() as log:
        module(x)
    assert [func in _HANDLED for func in log.seen] == [False] * (len(log.seen) - 1) + [True]
    assert log.seen[-1] in LINEAR_OPS or log.seen[-1] in ACTIVATION_OPS


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", sorted(SITELESS, key=lambda kind: kind.__name__))
def test_modules_without_sites_call_nothing_that_has_a_handler(
    kind: type[nn.Module], training: bool
) -> None:
    module, x = _made(kind)
    with Log() as log:
        module.train(training)(x)
    assert not _HANDLED.intersection(log.seen)
    assert not weights_of(module)  # else coverage asks whether it was called
    assert not has_sites(module)
    module.register_forward_hook(lambda *_: None)
    assert has_sites(module)


@pytest.mark.parametrize("how", ["alone", "inside", "raising", "hooked"])
def test_leaf_modules_leave_nothing_behind(how: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.act, self.last = nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.act(self.first(x))
            if how == "raising" and self.training:
                with contextlib.suppress(RuntimeError):
                    self.last(x)  # of another width: its op never ends
                h = torch.tanh(h)
            return self.last(h)  # type: ignore[no-any-return]

    net = Net()
    if how == "hooked":
        net.first.register_forward_hook(lambda *_: ([torch.sigmoid(torch.zeros(2))], None)[1])
    with ss.watch(net, every=1) as probe:
        for _ in range(3):
            if how == "alone":
                net.last(net.act(net.first(torch.randn(5, 3)))).sum().backward()
            else:
                net(torch.randn(5, 3)).sum().backward()
            assert torch._C._len_torch_function_stack() == 0
            torch.relu(torch.zeros(2))  # outside of the model: no site
            probe.step()
        found = set(probe.snapshot().records)
    extra = {"raising": {":tanh"}, "hooked": {"first:sigmoid"}}.get(how, set())
    assert found == {"first", "act", "last"} | extra
