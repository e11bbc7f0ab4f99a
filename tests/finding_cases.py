"""Deep networks whose fault is known, and healthy ones; what is found in them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from standin import measure, mlp
from torch import Tensor, nn

from shiftscope.findings import Finding, diagnose
from shiftscope.snapshot import Snapshot

DEPTH, WIDTH, ROWS = 20, 128, 200


def data(rows: int = ROWS, width: int = WIDTH, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    return x, torch.randint(10, (rows,), generator=generator)


def deep(activation: type[nn.Module], depth: int = DEPTH, seed: int = 0) -> nn.Sequential:
    model = mlp([WIDTH] * (depth + 1) + [10], activation, seed)
    for layer in linears(model):
        nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        nn.init.zeros_(layer.bias)
    return model


def linears(model: nn.Sequential) -> list[nn.Linear]:
    return [module for module in model if isinstance(module, nn.Linear)]


@torch.no_grad()
def rescale(model: nn.Sequential, x: Tensor) -> nn.Sequential:
    """Unit pooled variance of z, layer by layer (Kutsuna 2019, Section 4.3)."""
    value = x
    for module in model:
        if isinstance(module, nn.Linear):
            module.weight /= module(value).std(correction=0)
        value = module(value)
    return model


@torch.no_grad()
def zero_sum(model: nn.Sequential) -> nn.Sequential:
    for layer in linears(model):
        layer.weight -= layer.weight.mean(1, keepdim=True)
    return model


def plain(activation: type[nn.Module]) -> nn.Sequential:
    return rescale(deep(activation), data()[0])


def lcw(activation: type[nn.Module]) -> nn.Sequential:
    return rescale(zero_sum(deep(activation)), data()[0])


@cache
def case(kind: Callable[[type[nn.Module]], nn.Sequential], activation: type[nn.Module]) -> Snapshot:
    """A network of this file, measured once."""
    return measure(kind(activation), *data())


def findings_of(
    kind: Callable[[type[nn.Module]], nn.Sequential], activation: type[nn.Module]
) -> dict[str, Finding]:
    return {finding.cause: finding for finding in diagnose(case(kind, activation))}


def found(model: nn.Sequential, backward: bool = True, **manifest: Any) -> dict[str, Finding]:
    x, y = data()
    findings = diagnose(measure(model, x, y if backward else None, **manifest))
    return {finding.cause: finding for finding in findings}


def severe(findings: dict[str, Finding]) -> set[str]:
    return {c for c, finding in findings.items() if finding.severity in {"serious", "critical"}}


def scaled(model: nn.Sequential, factor: float) -> nn.Sequential:
    with torch.no_grad():
        for layer in linears(model):
            layer.weight *= factor
    return model
