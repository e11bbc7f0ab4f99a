"""The neurons of an activation's input are those of the layer its values come from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from neuron_cases import agree, doubt, trained, watched
from torch import Tensor, nn

import shiftscope as ss

Op = Callable[[Tensor], Tensor]

CONV1D: dict[str, Op] = {
    "as it is": lambda x: x,
    "slice": lambda x: x[:, :, :-2],
    "contiguous slice": lambda x: x[..., :-2].contiguous(),
    "pad": lambda x: F.pad(x, (1, 1)),
    "circular pad": lambda x: F.pad(x, (1, 1), mode="circular"),
    "cat": lambda x: torch.cat([x, x], 1),
    "cat of samples": lambda x: torch.cat([x, x], 0),
    "avg_pool1d": lambda x: F.avg_pool1d(x, 2),
    "max_pool1d": lambda x: F.max_pool1d(x, 2),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2),
    "flip": lambda x: x.flip(-1),
    "roll": lambda x: x.roll(1, -1),
    "where": lambda x: torch.where(x > 0, x, x * 0.1),
    "maximum": lambda x: torch.maximum(x, x * 0.5),
    "lerp": lambda x: torch.lerp(x, x * 2, 0.5),
    "chunk": lambda x: x.chunk(2, 1)[0],
    "split": lambda x: x.split(3, 1)[0] * x.split(3, 1)[1],
    "index": lambda x: x[:, [0, 2, 4]],
    "narrow": lambda x: x.narrow(2, 0, 4),
    "repeat": lambda x: x.repeat(1, 1, 2),
    "cumsum": lambda x: x.cumsum(-1),
    "stack and sum": lambda x: torch.stack([x, x]).sum(0),
    "layer norm": lambda x: F.layer_norm(x.transpose(1, 2), (6,)).transpose(1, 2),
    "transposed twice": lambda x: x.mT.contiguous().swapaxes(1, 2),
    "instance norm": F.instance_norm,
    "group norm": lambda x: F.group_norm(x, 2),
    "dropout": lambda x: F.dropout(x, 0.0),
    "scaled": lambda x: x / x.std() + 1,
    "normalize": lambda x: F.normalize(x, dim=1),
    "gated": lambda x: x * torch.sigmoid(x.mean(1, keepdim=True)),
    "squeeze and excite": lambda x: x * x.mean(2).unsqueeze(-1),
    "detached": lambda x: x + x.detach(),
    "shuffled": lambda x: x.unflatten(1, (2, 3)).transpose(1, 2).flatten(1, 2),
    "float and back": lambda x: x.float().double(),
}
CONV2D: dict[str, Op] = {
    "pool": lambda x: F.max_pool2d(x, 2),
    "crop": lambda x: x[:, :, 1:-1, 1:-1],
    "flatten": lambda x: x.flatten(2),
    "all flat": lambda x: x.flatten(1),
    "mean of a line": lambda x: x.mean(3),
    "mean of all": lambda x: x.mean((2, 3)),
    "maximum of a line": lambda x: x.max(dim=-1)[0],
    "selected": lambda x: x[:, :, 0],
    "stacked": lambda x: torch.stack([x, x], 2),
    "masked": lambda x: x[:, :, torch.eye(10, 8) > 0],
    "pixel shuffle": lambda x: x.view(-1, 2, 1, 3, 10, 8).permute(0, 1, 4, 2, 5, 3).flatten(-2),
}
ROWS: dict[str, Op] = {
    "as they are": lambda x: x,
    "layer norm": lambda x: F.layer_norm(x, (6,)),
    "contiguous": lambda x: x.contiguous(),
    "roll": lambda x: x.roll(1, 1),
    "crop": lambda x: x[:, 1:-1, 1:-1],
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "cat": lambda x: torch.cat([x, x], -1),
    "windows": lambda x: x.unflatten(1, (2, 5)).flatten(0, 1),
    "pad": lambda x: F.pad(x, (0, 0, 1, 1)),
    "flatten": lambda x: x.flatten(1, 2),
    "normed and rolled": lambda x: F.layer_norm(x, (6,)).roll(1, 1),
    "chunk": lambda x: x.chunk(2, -1)[0],
    "repeat": lambda x: x.repeat_interleave(2, 1),
    "maximum": lambda x: torch.maximum(x, x * 2),
    "residual": lambda x: x + F.layer_norm(x, (6,)),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "mean": lambda x: x.mean((1, 2)),
    "class token": lambda x: x.flatten(1, 2)[:, 0],
    "picked": lambda x: x[x.sum(-1) > 0],
    "heads": lambda x: x.unflatten(-1, (2, 3)).transpose(2, 3),
    "product": lambda x: torch.softmax(x @ x.mT, -1) @ x,
    "letters": lambda x: torch.einsum("nhwc,nhvc->nvhc", x, x),
}


class Net(nn.Module):
    """A layer, something that is done to its output, and an activation."""

    def __init__(self, layer: nn.Module, op: Op, before: Op = lambda x: x) -> None:
        super().__init__()
        self.layer, self.op, self.before = layer, op, before
        self.z = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        self.z = self.op(self.before(self.layer(x)))
        if self.z.requires_grad:
            self.z.retain_grad()
        return torch.tanh(self.z)


def cases() -> list[Any]:
    torch.manual_seed(0)
    one, two, rows = torch.randn(4, 3, 10), torch.randn(4, 3, 10, 8), torch.randn(4, 10, 8, 3)
    found = [("conv1d", op, lambda: nn.Conv1d(3, 6, 3, padding=1), one, 1) for op in CONV1D.items()]
    found += [("conv2d", op, lambda: nn.Conv2d(3, 6, 1), two, 1) for op in CONV2D.items()]
    found += [("linear", op, lambda: nn.Linear(3, 6), rows, -1) for op in ROWS.items()]
    found += [
        ("conv2d, NHWC", (name, lambda x, op=op: op(x.permute(0, 2, 3, 1))), conv, two, -1)
        for conv in [lambda: nn.Conv2d(3, 6, 1)]
        for name, op in ROWS.items()
    ]
    return [pytest.param(op[1], *rest, id=f"{kind}: {op[0]}") for kind, op, *rest in found]


def check(snapshot: ss.Snapshot, z: Tensor, dim: int) -> None:
    """A tanh was measured, neuron by neuron, and without a doubt."""
    agree(snapshot, ":tanh", "z", z, dim)
    agree(snapshot, ":tanh", "a", torch.tanh(z), dim)
    if z.grad is not None:
        agree(snapshot, ":tanh", "grad_z", z.grad, dim)
    assert not doubt(snapshot)


@pytest.mark.parametrize(("op", "layer", "x", "dim"), cases())
def test_neurons_follow_their_layer(
    op: Op, layer: Callable[[], nn.Module], x: Tensor, dim: int
) -> None:
    model = Net(layer().double(), op)
    check(trained(model, x.double()), model.z, dim)
    check(watched(model, x.double()), model.z, dim)
    check(ss.analyze(model, [x.double()]), model.z, dim)
    check(ss.analyze(model.requires_grad_(False), [x.double()]), model.z, dim)


def test_frozen_layers_are_followed() -> None:
    layer = nn.Conv1d(3, 6, 3).double().requires_grad_(False)
    scale = nn.Parameter(torch.ones(6, 1, dtype=torch.float64))
    x = torch.randn(4, 3, 10, dtype=torch.float64)
    model = Net(layer, lambda x: x.roll(1, -1), lambda x: x[..., 1:] * scale)
    model.register_parameter("scale", scale)
    check(trained(model, x), model.z, 1)


WEIGHTS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int]] = {
    "x @ w": (lambda x, w: x.mT @ w.t(), -1),
    "w @ x": (lambda x, w: w @ x[0], 0),
    "einsum, right": (lambda x, w: torch.einsum("nct,oc->not", x, w), 1),
    "einsum, left": (lambda x, w: torch.einsum("oc,nct->not", w, x), 1),
    "bmm": (lambda x, w: x.mT.bmm(w.t().expand(4, 3, 6)), -1),
    "addmm": (lambda x, w: torch.addmm(w[:, 0], x[0].t(), w.t()), -1),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_neurons_of_weights_that_functions_use(name: str) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(6, 3, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return WEIGHTS[name][0](x, self.w)

    x = torch.randn(4, 3, 10, dtype=torch.float64)
    model = Net(Own(), lambda x: x.roll(1, -1))
    check(trained(model, x), model.z, WEIGHTS[name][1])
    check(watched(model, x), model.z, WEIGHTS[name][1])


SPLIT: dict[str, tuple[Op, nn.Module | None]] = {
    "view": (lambda x: x.view(4, 8, 3, 3), nn.ConvTranspose2d(8, 2, 3)),
    "unflatten": (lambda x: x.unflatten(1, (8, 3, 3)), nn.ConvTranspose2d(8, 2, 3)),
    "batch norm": (lambda x: F.batch_norm(x.view(4, 8, 3, 3), None, None, training=True), None),
    "expand": (lambda x: x[:, :, None, None].expand(4, 72, 2, 2), nn.Conv2d(72, 2, 1)),
    "sequence of channels": (lambda x: x.view(4, 24, 3), nn.Conv1d(24, 2, 3)),
}


class Decoder(nn.Module):
    def __init__(self, op: Op, layer: nn.Module | None) -> None:
        super().__init__()
        self.first, self.op, self.last = nn.Linear(5, 72), op, layer or nn.Identity()
        self.z = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        self.z = self.op(self.first(x))
        if self.z.requires_grad:
            self.z.retain_grad()
        return self.last(torch.tanh(self.z))


@pytest.mark.parametrize("name", SPLIT)
def test_features_that_become_channels(name: str) -> None:
    model, x = Decoder(*SPLIT[name]).double(), torch.randn(4, 5, dtype=torch.float64)
    check(trained(model, x), model.z, 1)
    check(watched(model, x), model.z, 1)


class Chomp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :-4].contiguous()


class Temporal(nn.Module):
    """The residual block of a temporal convolutional network."""

    def __init__(self) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        first, second = (nn.Conv1d(n, 6, 3, padding=4, dilation=2) for n in (3, 6))
        self.net = nn.Sequential(
            *(norm(first), Chomp(), nn.ReLU(), nn.Dropout(0.0)),
            *(norm(second), Chomp(), nn.ReLU(), nn.Dropout(0.0)),
        )
        self.down, self.relu = nn.Conv1d(3, 6, 1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.net(x) + self.down(x))


class Windows(nn.Module):
    """A Swin block: NHWC, shifted windows, attention inside them."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm, self.norm2 = nn.Conv2d(3, 6, 2, 2), nn.LayerNorm(6), nn.LayerNorm(6)
        self.qkv, self.shifted, self.out = nn.Linear(6, 18), nn.GELU(), nn.Linear(6, 6)
        self.mlp = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6))
        self.gate, self.last = nn.Sigmoid(), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).permute(0, 2, 3, 1)
        n, h, w, c = x.shape
        y = self.shifted(torch.roll(self.norm(x), (-1, -1), (1, 2)))
        y = y.view(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
        q, k, v = self.qkv(y).view(-1, 4, 3, 2, 3).permute(2, 0, 3, 1, 4)
        y = self.out(F.scaled_dot_product_attention(q, k, self.gate(v)).transpose(1, 2).flatten(2))
        y = y.view(n, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
        x = x + torch.roll(y, (1, 1), (1, 2))
        return self.last(x + self.mlp(self.norm2(x)))


class ConvNeXt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 6, 2, 2), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 24), nn.Linear(24, 6)
        self.act, self.last = nn.GELU(), nn.ReLU()
        self.scale = nn.Parameter(torch.full((6,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.down(self.act(self.up(y)))
        return self.last(x + y.permute(0, 3, 1, 2))


class Excited(nn.Module):
    """Squeeze and excitation, by convolutions and by linear layers, in a residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.SiLU()
        self.fc = nn.Sequential(nn.Linear(6, 2), nn.ReLU(), nn.Linear(2, 6), nn.Sigmoid())
        self.point = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 6, 1), nn.Hardsigmoid())
        self.last = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.conv(x)))
        y = x * self.fc(x.mean((2, 3)))[:, :, None, None]
        y *= self.point(y)
        return self.last(y + x)


def generator() -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(5, 8 * 2 * 2), nn.Unflatten(1, (8, 2, 2)), nn.ReLU()),
        *(nn.ConvTranspose2d(8, 4, 4, 2, 1), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.ConvTranspose2d(4, 2, 4, 2, 1), nn.Tanh()),
    )


def heads() -> nn.Module:
    layer = nn.TransformerEncoderLayer(6, 2, 12, 0.0, nn.GELU(), batch_first=True, norm_first=True)
    return nn.Sequential(nn.Linear(3, 6), layer, nn.Softplus(), nn.Linear(6, 4), nn.ReLU())


IMAGES = (4, 3, 8, 12)
BLOCKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, int]]] = {
    "tcn": (Temporal, (4, 3, 10), {"net.2": 1, "net.6": 1, "relu": 1}),
    "swin": (Windows, IMAGES, {"shifted": -1, "gate": -1, "mlp.1": -1, "last": -1}),
    "convnext": (ConvNeXt, IMAGES, {"act": -1, "last": 1}),
    "se": (Excited, IMAGES, {"act": 1, "fc.1": 1, "fc.3": 1, "point.2": 1, "last": 1}),
    "dcgan": (generator, (4, 5), {"2": 1, "5": 1, "7": 1}),
    "transformer": (heads, (4, 7, 3), {"1.activation": -1, "2": -1, "4": -1}),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks(name: str) -> None:
    make, shape, sites = BLOCKS[name]
    torch.manual_seed(0)
    model, x = make().double(), torch.randn(shape, dtype=torch.float64)
    seen: dict[str, Tensor] = {}
    for site in sites:
        keep = lambda _, args, site=site: seen.__setitem__(site, args[0].detach().clone())  # noqa: E731
        model.get_submodule(site).register_forward_pre_hook(keep)
    for snapshot in (trained(model, x, 2), watched(model, x, 2), ss.analyze(model, [x, x])):
        for site, dim in sites.items():
            agree(snapshot, site, "z", torch.cat([seen[site]] * 2), dim)
            assert not doubt(snapshot, site)
