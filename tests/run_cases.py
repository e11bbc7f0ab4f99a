"""Small runs made of windows measured the plain way, for tests of what reads traces."""

from __future__ import annotations

import torch
from standin import measure, mlp
from torch import Tensor, nn

from shiftscope.trace import Trace, Window

WIDTH, DEPTH, ROWS = 32, 12, 120


def batch(seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64)
    return x, torch.randint(10, (ROWS,), generator=generator)


def network(shift: float) -> nn.Sequential:
    """A sigmoid network whose rows carry a mean: none at 0, all shift at 1."""
    model = mlp([WIDTH] * (DEPTH + 1) + [10], nn.Sigmoid)
    with torch.no_grad():
        for layer in (m for m in model if isinstance(m, nn.Linear)):
            nn.init.normal_(layer.weight, std=4 * layer.in_features**-0.5)
            layer.weight -= (1 - shift) * layer.weight.mean(dim=1, keepdim=True)
            layer.bias.zero_()
    return model


def run(shifts: list[float], losses: list[float] | None = None, phase: str = "train") -> Trace:
    x, y = batch()
    told = losses or [2.3] * len(shifts)
    snaps = [measure(network(s), x, y, loss=v) for s, v in zip(shifts, told, strict=True)]
    return Trace(Window(5 * k, 5 * k, phase, snap) for k, snap in enumerate(snaps))
