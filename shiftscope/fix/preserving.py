"""Constrained weights in a trained network: the mean they lose goes into the bias.

A trained layer ``z = W a + b`` becomes ``z' = W' a + b + (W − W') μ̂`` with rows of ``W'`` on the
constraint. For zero-sum rows that is ``b_i + w̄_i E(Σ_j a_j)``: the layer computes what it did
wherever the sum of the inputs is at its mean, and every mean of ``z`` is what it was.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from shiftscope.capture.visits import walk
from shiftscope.errors import UsageError
from shiftscope.fix.attach import attach
from shiftscope.fix.choose import Sites
from shiftscope.fix.constrain import Change, constrain
from shiftscope.fix.means import input_mean, neuron_rows

__all__ = ["preserve_means_"]

_METHODS = ("lcw", "lcw-projection", "lcw-data")


def preserve_means_(
    model: nn.Module, batch: Any, method: str = "lcw", sites: Sites = "*"
) -> list[Change]:
    """Constrain trained weights, and let the biases keep every mean preactivation.

    Layers are treated in order of execution, each on the inputs that the treated layers before it
    give. The shift of ``z`` stays, since its means do; what changes is where it comes from: the
    bias, which an optimiser can move freely, and no longer ``w·μ̂``, which moves with every change
    of the layer before.

    Args:
        model: Changed in place; the layers keep the constraint until it is released.
        batch: Inputs, ``(x, y)`` or a mapping, over which means are preserved.
        method: ``lcw``, ``lcw-projection`` or ``lcw-data``.
        sites: Which layers, as of :func:`shiftscope.fix.constrain.constrain`.

    Returns:
        One entry a chosen layer, with the reason where it is left alone: a layer without a bias
        cannot make up for its mean.

    Raises:
        UsageError: Another method, or no layer selected.

    Source:
        The identity ``w·a + b = Pw·a + b + w̄ (1·a)`` behind Kutsuna, ECML-PKDD 2019, Section 4.
    """
    if method not in _METHODS:
        raise UsageError(f"{method!r} preserves no means", f"Use one of {', '.join(_METHODS)}.")
    plan = constrain(model, "lcw", sites, dry_run=True)
    layers = {c.site: model.get_submodule(c.site) for c in plan if c.action == "constrain"}
    failed = {path: "no bias to keep its mean" for path, m in layers.items() if m.bias is None}
    todo = {path: layer for path, layer in layers.items() if path not in failed}

    def visit(path: str, layer: Any, x: Tensor, z: Tensor) -> bool:
        failure = _treat(layer, x, z, method)
        if failure:
            failed[path] = failure
        return not failure

    reached = walk(model, batch, todo.items(), visit) if todo else set()
    failed |= {path: "the batch never called it as a layer" for path in todo if path not in reached}
    return [_told(change, method, failed) for change in plan]


def _treat(layer: Any, x: Tensor, z: Tensor, method: str) -> str:
    """Constrain one layer and shift its bias; the reason where that cannot be."""
    found = input_mean(layer, x)
    options: dict[str, Any] = {}
    if method == "lcw-data":
        if found.is_noise():
            return f"its mean input is zero within 2 standard errors ({found.rows} rows)"
        options["mean"] = found.mean
    try:
        attach(layer, method, **options)
    except UsageError as error:
        return error.reason
    with torch.no_grad():
        lost = neuron_rows(layer, z).mean(0) - neuron_rows(layer, layer.forward(x)).mean(0)
        layer.bias.add_(lost.to(layer.bias))
    return ""


def _told(change: Change, method: str, failed: dict[str, str]) -> Change:
    if change.action != "constrain":
        return change
    if change.site in failed:
        return Change(change.site, change.layer, method, "skip", failed[change.site])
    return Change(change.site, change.layer, method, "constrain")
