"""Initialisation from the statistics of a minibatch, layer by layer in order of execution."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from shiftscope.capture.visits import walk
from shiftscope.errors import UsageError
from shiftscope.fix.attach import method_of, scale_
from shiftscope.fix.choose import Sites, called, choose
from shiftscope.fix.factors import bias_of, neuron_factors, pooled_factor, refuse_dead
from shiftscope.fix.means import neuron_rows
from shiftscope.fix.unroll import Unroll, is_linear_map

__all__ = ["Rescaled", "absorb_bias_", "lsuv_", "rescale_", "standardize_"]


@dataclass(frozen=True)
class Rescaled:
    """What was done to one layer.

    Args:
        site: Path of the layer.
        factor: What its weights were multiplied by, shape ``()`` or ``(neurons,)``; 1 if nothing.
        std: Standard deviation of its preactivations before, pooled or for each neuron.
        rows: Samples behind it: batch × positions.
        reason: Why nothing was done; empty otherwise.
    """

    site: str
    factor: Tensor
    std: Tensor
    rows: int
    reason: str = ""


def rescale_(
    model: nn.Module,
    batch: Any,
    per_neuron: bool = False,
    ddof: int = 0,
    target: float = 1.0,
    *,
    sites: Sites = "*",
) -> list[Rescaled]:
    """Scale each layer's weights so that its preactivations have a given standard deviation.

    For ``l = 1 … L`` in order of execution, ``W_l ← W_l · target / std(z_l)`` with ``z_l`` computed
    through the layers already scaled; one pass of the batch. Constraints are kept, since their free
    parameters are scaled. Biases are left alone: with biases that differ, the pooled deviation
    counts them, and the factor is the one that meets the target beside them.

    Only weights change: gradients, random state, buffers, and the modes of all modules stay.
    A layer called several times is scaled by its first call.

    Args:
        model: In the mode it will train in.
        batch: Inputs ``x``, a pair ``(x, y)`` (``y`` is left aside), or a mapping of keywords.
        per_neuron: One factor a neuron, from its own deviation, instead of one a layer from the
            deviation pooled over neurons and rows.
        ddof: Subtracted from the number of values in the variance.
        target: The standard deviation wanted.
        sites: Which layers, as of :func:`shiftscope.fix.constrain.constrain`.

    Returns:
        One entry a layer in order of execution, then the layers that could not be treated.

    Raises:
        MeasureError: A layer or, with ``per_neuron``, a neuron does not vary over the batch, or is
            not finite; pooled, also a neuron whose weights are all zero. No weight is changed then.
        UsageError: A constraint fixes the scale, or the target cannot be met.

    Example:
        >>> import torch, shiftscope as ss
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4, bias=False))
        >>> x = torch.randn(64, 8)
        >>> _ = ss.rescale_(model, x)
        >>> round(model(x).std(correction=0).item(), 5)
        1.0

    Source:
        Kutsuna, ECML-PKDD 2019, Section 4.3.
    """
    if not target > 0 or ddof < 0:
        raise UsageError(
            f"expected target > 0 and ddof >= 0, got {target} and {ddof}", "Use 1.0 and 0."
        )
    measure = neuron_factors if per_neuron else pooled_factor

    def treat(path: str, layer: nn.Module, x: Tensor, z: Tensor) -> Rescaled:
        factor, std = measure(path, layer, z, ddof, target)
        scale_(layer, factor)
        return Rescaled(path, factor, std, z.numel() // Unroll.of(layer).neurons)

    return _treat_all(model, batch, sites, treat)


def lsuv_(
    model: nn.Module,
    batch: Any,
    tolerance: float = 0.1,
    max_trials: int = 10,
    *,
    sites: Sites = "*",
) -> list[Rescaled]:
    """Initialise layer by layer to unit variance from orthonormal weights.

    All chosen weights are drawn orthonormal first (constrained ones projected). Then each layer, in
    order of execution, is divided by the standard deviation of its output until the variance is
    within the tolerance of 1. Where :func:`rescale_` finds the factor at once, this loop also
    settles when biases take part. The mean is not treated.

    Args:
        model: In the mode it will train in.
        batch: As of :func:`rescale_`.
        tolerance: Largest deviation of the variance from 1.
        max_trials: Most divisions a layer.
        sites: Which layers.

    Returns:
        One entry a layer in order of execution, then the layers that could not be treated.

    Raises:
        MeasureError: A layer does not vary over the batch; no weight is changed then.
        UsageError: A constraint fixes the scale.

    Source:
        Mishkin and Matas, ICLR 2016, Algorithm 1.
    """

    def treat(path: str, layer: nn.Module, x: Tensor, z: Tensor) -> Rescaled:
        total = torch.ones((), dtype=torch.float64, device=z.device)
        rows = neuron_rows(layer, z)
        before = rows.std(correction=0)
        for _ in range(max_trials):
            std = rows.std(correction=0)
            refuse_dead(path, std, rows, z.dtype)
            if abs(float(std.square()) - 1) < tolerance:
                break
            scale_(layer, 1 / std)
            total = total / std
            rows = neuron_rows(layer, layer.forward(x))
        return Rescaled(path, total, before, len(rows))

    return _treat_all(model, batch, sites, treat, prepare=_draw_orthonormal_)


def standardize_(
    model: nn.Module, batch: Any, draw: float | None = None, *, sites: Sites = "*"
) -> list[Rescaled]:
    """Give every neuron preactivations of mean 0 and variance 1 by its scale and its bias.

    ``w ← w/σ[w·a]`` and ``b ← −μ[w·a]/σ[w·a]``, layer by layer in order of execution: the
    data-dependent initialisation of weight normalisation, where it sets ``g`` and ``b``. It
    cancels the shift, it does not remove its cause: ``w·μ̂`` is as large as before.

    Args:
        model: In the mode it will train in.
        batch: As of :func:`rescale_`.
        draw: First draw the weights from ``N(0, draw²)`` (the source: 0.05); None keeps them.
        sites: Which layers; all of them need a bias.

    Returns:
        One entry a layer in order of execution, then the layers that could not be treated.

    Raises:
        MeasureError: A neuron does not vary over the batch; no weight is changed then.
        UsageError: A layer has no bias, or a constraint fixes the scale.

    Source:
        Salimans and Kingma, NeurIPS 2016, Section 3.
    """

    def treat(path: str, layer: nn.Module, x: Tensor, z: Tensor) -> Rescaled:
        rows = neuron_rows(layer, z) - bias_of(layer, z)
        factor, std = neuron_factors(path, layer, z, 0, 1.0)
        scale_(layer, factor)
        _set_bias_(path, layer, -rows.mean(0) * factor)
        return Rescaled(path, factor, std, len(rows))

    def prepare(layer: Any) -> None:
        if draw is not None:
            shape = Unroll.of(layer).shape
            _set_weight_(layer, draw * torch.randn(shape, device=layer.weight.device))

    return _treat_all(model, batch, sites, treat, prepare=prepare)


def absorb_bias_(model: nn.Module, batch: Any, *, sites: Sites = "*") -> list[Rescaled]:
    """Set every bias to ``b = −w·μ̂``, so that each preactivation has mean zero on the batch.

    The alternative to a constraint: the same forward means at this moment, but ``w`` keeps its
    component along ``μ̂``, and the cancellation drifts as ``μ̂`` moves.

    Args:
        model: In the mode it will train in.
        batch: As of :func:`rescale_`.
        sites: Which layers; all of them need a bias.

    Returns:
        One entry a layer (factor 1) in order of execution, then those that could not be treated.

    Raises:
        UsageError: A layer has no bias.

    Source:
        Kutsuna, ECML-PKDD 2019, Section 2 (there found insufficient when done only once).
    """

    def treat(path: str, layer: nn.Module, x: Tensor, z: Tensor) -> Rescaled:
        rows = neuron_rows(layer, z)
        _set_bias_(path, layer, bias_of(layer, z) - rows.mean(0))
        return Rescaled(path, torch.ones(()), rows.std(correction=0), len(rows))

    return _treat_all(model, batch, sites, treat)


_Treat = Callable[[str, nn.Module, Tensor, Tensor], Rescaled]


def _treat_all(
    model: nn.Module,
    batch: Any,
    sites: Sites,
    treat: _Treat,
    prepare: Callable[[nn.Module], None] | None = None,
) -> list[Rescaled]:
    """Treat the chosen layers in order of execution; put every parameter back if one fails."""
    done: list[Rescaled] = []
    chosen = choose(model, sites)
    layers = [(path, layer) for path, layer in chosen if not _obstacle(layer)]
    saved = [(p, p.detach().clone()) for _, layer in layers for p in layer.parameters()]

    def visit(path: str, layer: nn.Module, x: Tensor, z: Tensor) -> bool:
        done.append(treat(path, layer, x, z))
        return True

    try:
        for _, layer in layers if prepare else ():
            cast(Callable[[nn.Module], None], prepare)(layer)
        reached = walk(model, batch, layers, visit)
    except BaseException:
        with torch.no_grad():
            for parameter, value in saved:
                parameter.copy_(value)
        raise
    return done + [_left(path, layer) for path, layer in chosen if path not in reached]


def _obstacle(layer: nn.Module) -> str:
    """Why a layer cannot be treated; empty if it can."""
    if not is_linear_map(layer):
        return f"{called(layer)} is neither nn.Linear nor a convolution"
    if any(p.is_complex() for p in layer.parameters()):
        return "complex weights: variances of complex numbers are not defined here"
    return ""


def _left(path: str, layer: nn.Module) -> Rescaled:
    reason = _obstacle(layer) or "the batch never called it as a layer"
    return Rescaled(path, torch.ones(()), torch.tensor(math.nan), 0, reason)


@torch.no_grad()
def _set_bias_(path: str, layer: Any, bias: Tensor) -> None:
    if layer.bias is None:
        raise UsageError(
            f"{path or 'the model'} has no bias to take up the mean",
            "Leave it out (sites=…), or build it with bias=True.",
        )
    if isinstance(layer.bias, nn.Parameter):
        layer.bias.copy_(bias)
    else:
        layer.bias = bias.to(layer.bias)


@torch.no_grad()
def _set_weight_(layer: Any, weight: Tensor) -> None:
    if method_of(layer):
        layer.weight = weight.to(layer.weight)
    else:
        layer.weight.copy_(weight)


def _draw_orthonormal_(layer: nn.Module) -> None:
    unroll = Unroll.of(layer)
    rows = torch.empty(unroll.neurons, unroll.fan_in)
    nn.init.orthogonal_(rows)
    _set_weight_(layer, unroll.fold(rows))
