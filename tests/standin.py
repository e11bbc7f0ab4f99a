"""Snapshots of multilayer perceptrons measured the plain way: every tensor kept, autograd asked.

A second, naive implementation beside the probes, for tests of what reads snapshots.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from shiftscope.record import SiteInfo, SiteRecord, Stream, WeightFacts
from shiftscope.snapshot import Snapshot
from shiftscope.tally import Counts, Extrema, Moments, RowSample
from shiftscope.theory.saturation import saturation_bounds

OPS = {"Sigmoid": "sigmoid", "Tanh": "tanh", "ReLU": "relu", "GELU": "gelu", "Softmax": "softmax"}


def mlp(
    widths: Sequence[int],
    activation: type[nn.Module],
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    """Linear, activation, ..., linear, with PyTorch's default initialisation."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers[:-1]).to(dtype or torch.float64)


def measure(
    model: nn.Sequential, x: Tensor, y: Tensor | None = None, sample: int = 256, **manifest: Any
) -> Snapshot:
    """Run one batch forward (and backward, with labels) and keep everything."""
    inputs, outputs = [], []
    value = x
    for module in model:
        inputs.append(value)
        value = module(value)
        if value.requires_grad:
            value.retain_grad()
        outputs.append(value)
    if y is not None:
        nn.functional.cross_entropy(value, y).backward()
    records = {}
    for order, (name, module) in enumerate(model.named_children()):
        record = _record(name, order, module, inputs[order], outputs[order], sample)
        records[name] = record
    return Snapshot(
        records=records,
        manifest={"samples": len(x), "batches": 1, "seed": 0, "dtype": str(x.dtype), **manifest},
        coverage=_coverage(model),
        inputs={"shape": list(x.shape), "mean": float(x.mean()), "std": float(x.std())},
    )


def _coverage(model: nn.Module) -> dict[str, Any]:
    total = sum(p.numel() for p in model.parameters())
    return {"parameters": {"seen": total, "total": total}}


def _record(
    name: str, order: int, module: nn.Module, a: Tensor, out: Tensor, sample: int
) -> SiteRecord:
    linear = isinstance(module, nn.Linear)
    op = "linear" if linear else OPS[type(module).__name__]
    info = SiteInfo(
        site=name,
        kind="linear" if linear else "activation",
        op=op,
        module=name,
        neurons=out.shape[1],
        fan_in=a.shape[1] if linear else 0,
        elementwise=op != "softmax",
        order=order,
    )
    pairs = {"a": a, "z": out} if linear else {"a": out, "z": a}
    gradients = {"grad_z": out.grad} if linear else {"grad_z": a.grad, "grad_a": out.grad}
    if linear and out.grad is not None:
        gradients["grad_a"] = out.grad @ module.weight.detach()
    streams = {key: _stream(value.detach(), op, sample) for key, value in pairs.items()}
    streams |= {key: _stream(g, op, sample) for key, g in gradients.items() if g is not None}
    weights = _weights(module, a.detach()) if linear else None
    return SiteRecord(info, 1, len(a), streams, weights)


def _stream(rows: Tensor, op: str, sample: int) -> Stream:
    return Stream(
        Moments.of(rows),
        Extrema.of(rows),
        Counts.of(rows, saturated_outside=saturation_bounds(op)),
        RowSample.of(rows, sample),
    )


def _weights(module: nn.Linear, a: Tensor) -> WeightFacts:
    weight = module.weight.detach().double()
    mu = a.double().mean(0)
    norm = weight.norm(dim=1)
    cosine = weight.sum(1) / norm / weight.shape[1] ** 0.5
    return WeightFacts(
        rows=len(a),
        norm2=(norm**2).numpy(),
        row_sum=weight.sum(1).numpy(),
        theta_ones=cosine.clamp(-1, 1).arccos().numpy(),
        bias=module.bias.detach().double().numpy(),
        shift=(weight @ mu).numpy(),
        mu=mu[None].numpy(),
        group=torch.zeros(len(weight), dtype=torch.int64).numpy(),
        xi=float((weight**2).sum() / weight.shape[1]),
        eta_map=float((norm**2).mean()),
    )
