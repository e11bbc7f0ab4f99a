"""A small network, trained for a few steps while it is watched."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import shiftscope as ss

SGD = torch.optim.SGD


def network(width: int = 5, last: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), last or nn.Linear(width, 2))


def train(model: nn.Module, steps: int = 2, **options: Any) -> ss.Probe:
    optimizer = SGD(model.parameters(), lr=0.1)
    with ss.watch(model, optimizer, every=1, window=1, **options) as probe:
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.ones(3, 4)).square().mean().backward()
            optimizer.step()
    return probe


def hooks_left(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
