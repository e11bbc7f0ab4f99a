"""Every stream against a second, naive implementation: store everything, then numpy float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import shiftscope as ss

Taps = dict[str, list[Tensor]]


def tap(taps: Taps, name: str, tensor: Tensor) -> Tensor:
    """Keep a tensor and its gradient; an identity, so that every consumer has its own share."""
    own = tensor * 1.0
    if own.requires_grad:
        own.register_hook(lambda grad: taps.setdefault(f"grad {name}", []).append(grad))
    taps.setdefault(name, []).append(own.detach())
    return own


class Written(nn.Module):
    """A model written twice: as users write it, and with every stream tapped."""

    inputs: tuple[Tensor, ...]
    sites: dict[str, tuple[str, str, int]]  # site -> (input tap, output tap, feature dim)

    def tapped(self, taps: Taps, *inputs: Tensor) -> Tensor:
        raise NotImplementedError


class Mlp(Written):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(5, 7), nn.Linear(7, 3, bias=False)
        self.inputs = (torch.rand(11, 5),)
        self.sites = {
            "one": ("x", "z1", -1),
            ":sigmoid": ("z1", "a1", -1),
            "two": ("a1", "z2", -1),
        }

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.sigmoid(self.one(x)))

    def tapped(self, taps: Taps, *inputs: Tensor) -> Tensor:
        z1 = tap(taps, "z1", self.one(tap(taps, "x", inputs[0])))
        a1 = tap(taps, "a1", torch.sigmoid(z1))
        return tap(taps, "z2", self.two(a1))


class InPlaceOnView(Written):
    """Linear with bias on three dimensions gives a view; relu_ on it silences tensor hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(5, 6), nn.Linear(6, 4)
        self.inputs = (torch.randn(3, 4, 5),)
        self.sites = {"one": ("x", "z1", -1), ":relu": ("z1", "a1", -1), "two": ("a1", "z2", -1)}

    def forward(self, x: Tensor) -> Tensor:
        return self.two(F.relu_(self.one(x)))

    def tapped(self, taps: Taps, *inputs: Tensor) -> Tensor:
        z1 = tap(taps, "z1", self.one(tap(taps, "x", inputs[0])))
        return tap(taps, "z2", self.two(tap(taps, "a1", F.relu(z1))))


class Residual(Written):
    """A branch: the input tensor's gradient sums all consumers, a site's share does not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.branch = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.act = nn.ReLU(inplace=True)
        self.inputs = (torch.randn(2, 3, 6, 5),)
        self.sites = {
            "stem": ("x", "z1", 1),
            ":silu": ("z1", "a1", 1),
            "branch": ("b in", "z2", 1),
            "act": ("z3", "a3", 1),
        }

    def forward(self, x: Tensor) -> Tensor:
        a = F.silu(self.stem(x))
        out = self.branch(a)
        out += a
        return self.act(out)

    def tapped(self, taps: Taps, *inputs: Tensor) -> Tensor:
        z1 = tap(taps, "z1", self.stem(tap(taps, "x", inputs[0])))
        a = tap(taps, "a1", F.silu(z1))
        z2 = tap(taps, "z2", self.branch(tap(taps, "b in", a)))
        return tap(taps, "a3", F.relu(tap(taps, "z3", z2 + a)))


class Functional(Written):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(6, 4))
        self.b, self.e = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(2, 2, 3))
        self.inputs = (torch.randn(4, 3, 5),)
        self.sites = {
            ":linear": ("x", "z1", -1),
            ":softsign": ("z1", "a1", -1),
            ":matmul": ("a1", "z2", -1),
            ":tanhshrink": ("z2", "a2", -1),
            ":einsum": ("e in", "z3", -1),
        }

    def forward(self, x: Tensor) -> Tensor:
        a = F.softsign(F.linear(x, self.w, self.b))
        a = F.tanhshrink(a @ self.v)
        return torch.einsum("bthi,hio->btho", a.unflatten(-1, (2, 2)), self.e)

    def tapped(self, taps: Taps, *inputs: Tensor) -> Tensor:
        z1 = tap(taps, "z1", F.linear(tap(taps, "x", inputs[0]), self.w, self.b))
        a = tap(taps, "a1", F.softsign(z1))
        a = tap(taps, "a2", F.tanhshrink(tap(taps, "z2", a @ self.v)))
        heads = tap(taps, "e in", a).unflatten(-1, (2, 2))
        z3 = torch.einsum("bthi,hio->btho", heads, self.e).flatten(-2)
        return tap(taps, "z3", z3)


class Reused(Written):
    """One linear and one activation module called three times: all calls pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.act = nn.Linear(4, 4), nn.Tanh()
        self.inputs = (torch.randn(6, 4),)
        self.sites = {"cell": ("h", "z", -1), "act": ("z", "a", -1)}

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.act(self.cell(x))
        return x

    def tapped(self, taps: Taps, *inputs: Tensor) -> Tensor:
        h = inputs[0]
        for _ in range(3):
            h = tap(taps, "a", self.act(tap(taps, "z", self.cell(tap(taps, "h", h)))))
        return h


class Transposed(Written):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv1d(2, 4, 3, stride=2, padding=1, padding_mode="circular")
        self.up = nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.inputs = (torch.randn(3, 2, 8),)
        self.sites = {"down": ("x", "z1", 1), ":gelu": ("z1", "a1", 1), "up": ("a1", "z2", 1)}

    def forward(self, x: Tensor) -> Tensor:
        return self.up(F.gelu(self.down(x)))

    def tapped(self, taps: Taps, *inputs: Tensor) -> Tensor:
        padded = F.pad(tap(taps, "x", inputs[0]), (1, 1), mode="circular")
        z1 = tap(taps, "z1", F.conv1d(padded, self.down.weight, self.down.bias, stride=2))
        return tap(taps, "z2", self.up(tap(taps, "a1", F.gelu(z1))))


class Columns(Written):
    """Weights from the left, on a stack of matrices with positions in columns."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.w = nn.Linear(5, 6, bias=False), nn.Parameter(torch.randn(3, 6))
        self.inputs = (torch.randn(4, 5, 7),)
        self.sites = {
            "part": ("x", "z1", 1),
            ":softplus": ("z1", "a1", 1),
            ":matmul": ("a1", "z2", 1),
        }

    def forward(self, x: Tensor) -> Tensor:
        return self.w @ F.softplus(self.part.weight @ x)

    def tapped(self, taps: Taps, *inputs: Tensor) -> Tensor:
        z1 = tap(taps, "z1", self.part.weight @ tap(taps, "x", inputs[0]))
        return tap(taps, "z2", self.w @ tap(taps, "a1", F.softplus(z1)))


MODELS: tuple[Callable[[], Written], ...] = (
    *(Mlp, InPlaceOnView, Residual, Functional, Reused, Transposed, Columns),
)


def loss(out: Tensor, _: Any) -> Tensor:
    weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).reshape(out.shape)
    return (out * weights).sum() + out.square().sum()


def stored(taps: Taps, name: str, dim: int) -> npt.NDArray[np.float64] | None:
    """All rows of one tap, ``[rows, neurons]``, in float64."""
    if name not in taps:
        return None
    parts = [t.movedim(dim, -1).reshape(-1, t.shape[dim]).double().numpy() for t in taps[name]]
    return np.concatenate(parts)


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_streams_equal_the_stored_ones(make: Callable[[], Written], dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    model = make().to(dtype)
    inputs = tuple(x.to(dtype) for x in model.inputs)
    snapshot = ss.analyze(model, [(*inputs, torch.zeros(1))], loss)
    taps: Taps = {}
    out = model.tapped(taps, *inputs)
    loss(out, None).backward()
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    assert set(snapshot.records) == set(model.sites)
    for site, (before, after, dim) in model.sites.items():
        record = snapshot.records[site]
        linear = record.info.kind == "linear"
        names = {"a": before, "z": after} if linear else {"z": before, "a": after}
        for stream, name in names.items():
            # The taps of a padded convolution see the unpadded input; the site the padded one.
            if not (stream == "a" and site == "down"):
                compare(record, stream, stored(taps, name, dim), tolerance)
            compare(record, f"grad_{stream}", stored(taps, f"grad {name}", dim), tolerance)


def compare(
    record: Any, stream: str, rows: npt.NDArray[np.float64] | None, tolerance: float
) -> None:
    if rows is None:
        assert stream not in record.streams
        return
    moments = record.streams[stream].moments
    scale = np.abs(rows).max()
    assert (moments.count.numpy() == len(rows)).all()
    close = {"rtol": tolerance, "atol": tolerance * scale}
    np.testing.assert_allclose(moments.mean.numpy(), rows.mean(axis=0), **close)
    close = {"rtol": 10 * tolerance, "atol": 10 * tolerance * scale**2}
    np.testing.assert_allclose(moments.variance.numpy(), rows.var(axis=0), **close)


@pytest.mark.parametrize("make", MODELS)
def test_batches_merge_to_the_whole(make: Callable[[], Written]) -> None:
    torch.manual_seed(3)
    model = make().double()
    x = model.inputs[0].double()
    whole = ss.analyze(model, [x])
    parts = ss.analyze(model, [x[:2], x[2:]])
    numbers = whole.neurons.select_dtypes("number")
    np.testing.assert_allclose(
        parts.neurons[numbers.columns].to_numpy(), numbers.to_numpy(), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("make", MODELS)
def test_predicted_shift_is_the_measured_one(make: Callable[[], Written]) -> None:
    torch.manual_seed(3)
    model = make().double()
    neurons = ss.analyze(model, [model.inputs[0].double()]).neurons.dropna(subset="shift_predicted")
    assert len(neurons)
    np.testing.assert_allclose(
        neurons.z_mean, neurons.shift_predicted + neurons.bias.fillna(0.0), rtol=1e-11, atol=1e-12
    )
