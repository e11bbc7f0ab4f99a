"""Constraining many layers: one after the other, or as a batch reaches them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from shiftscope.capture.visits import walk
from shiftscope.errors import UsageError
from shiftscope.fix.attach import attach, detach
from shiftscope.fix.means import input_mean

__all__ = ["attach_all", "attach_by_data"]

_SAME_FUNCTION = ("weight_norm", "gmp")
"""Other coordinates of the same weights, up to rounding."""
_NOTABLE = 1e-3
"""Relative change of such weights that is told."""


def attach_all(
    todo: dict[str, nn.Module], method: str, options: dict[str, Any], dry_run: bool
) -> tuple[dict[str, str], dict[str, str]]:
    """Constrain layers, each by itself.

    Args:
        todo: Path -> layer.
        method: The constraint.
        options: As of :func:`shiftscope.fix.attach.attach`.
        dry_run: Check only.

    Returns:
        What is to be known of the layers that were constrained, and why others could not be.
    """
    notes: dict[str, str] = {}
    failed: dict[str, str] = {}
    for path, layer in todo.items():
        try:
            notes[path] = _attach_one(layer, method, dry_run=dry_run, **options)
        except UsageError as error:
            failed[path] = error.reason
        except NotImplementedError:
            failed[path] = "its weight is on the meta device, which holds no numbers"
    return notes, failed


def attach_by_data(
    model: nn.Module, todo: dict[str, nn.Module], batch: Any, momentum: float | None
) -> tuple[dict[str, str], dict[str, str]]:
    """Constrain layers in order of execution, each by the mean of the input it then has.

    Args:
        model: The whole model.
        todo: Path -> layer.
        batch: Its inputs.
        momentum: Whether, and how fast, the mean follows later batches.

    Returns:
        As :func:`attach_all`.

    Raises:
        MeasureError: The model raised on the batch.
    """
    notes: dict[str, str] = {}
    failed: dict[str, str] = {}

    def visit(path: str, layer: nn.Module, x: Tensor, _: Tensor) -> bool:
        found = input_mean(layer, x)
        if not bool(found.mean.isfinite().all()):
            failed[path] = "its input holds NaN or infinite values"
            return False
        if found.rows < 2:
            failed[path] = "one row does not tell a mean"
            return False
        if found.is_noise():
            failed[path] = f"its mean input is zero within 2 standard errors ({found.rows} rows)"
            return False
        try:
            notes[path] = _attach_one(layer, "lcw-data", mean=found.mean, momentum=momentum)
        except UsageError as error:
            failed[path] = error.reason
            return False
        return True

    reached = walk(model, batch, todo.items(), visit)
    missed = {path: "the batch never reached it" for path in todo if path not in reached}
    return notes, failed | missed


def _attach_one(layer: Any, method: str, *, dry_run: bool = False, **options: Any) -> str:
    """Constrain a layer; what is to be known of it, or nothing.

    Raises:
        UsageError: It cannot be constrained, or its weights would no longer be finite.
    """
    notes = (
        [] if layer.weight.requires_grad else ["frozen: its values are projected once, and stay"]
    )
    before, bias = (None if t is None else t.detach().clone() for t in (layer.weight, layer.bias))
    attach(layer, method, dry_run=dry_run, **options)
    if dry_run or before is None or before.is_meta:
        return "; ".join(notes)
    after = _weight_of(layer)
    if bool(before.isfinite().all()) and not bool(after.isfinite().all()):
        _undo(layer, before, bias)
        raise UsageError(
            f"under {method} its weights leave the range of {before.dtype}",
            "Use a wider dtype, or smaller weights.",
        )
    if method in _SAME_FUNCTION:
        away = (after.double() - before.double()).norm() / before.double().norm()
        if float(away) > _NOTABLE:
            name = str(before.dtype).removeprefix("torch.")
            notes.append(f"rounding in {name} changes its weights by {float(away):.1%}")
    return "; ".join(notes)


@torch.no_grad()
def _weight_of(layer: Any) -> Tensor:
    """The constrained weight; read in evaluation, since a spectral norm moves in training."""
    weights = layer.parametrizations["weight"]
    training = weights.training
    weights.eval()
    try:
        weight: Tensor = layer.weight.detach()
    finally:
        weights.train(training)
    return weight


@torch.no_grad()
def _undo(layer: Any, weight: Tensor, bias: Tensor | None) -> None:
    """Put back a layer that the constraint could not hold."""
    detach(layer)
    layer.weight.copy_(weight)
    if bias is not None:
        layer.bias.copy_(bias)
