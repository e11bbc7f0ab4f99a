"""The factor that gives a layer, or each of its neurons, preactivations of a given deviation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from shiftscope.errors import MeasureError, UsageError
from shiftscope.fix.means import neuron_rows
from shiftscope.fix.unroll import Unroll

__all__ = ["bias_of", "neuron_factors", "pooled_factor", "refuse_dead"]


def pooled_factor(
    path: str, layer: nn.Module, z: Tensor, ddof: int, target: float
) -> tuple[Tensor, Tensor]:
    """Solve ``Var(c·s + b) = target²`` for the factor ``c`` of the part ``s`` without bias.

    Args:
        path: Path of the layer, for messages.
        layer: A linear layer or convolution.
        z: Its output.
        ddof: Subtracted from the number of values.
        target: Standard deviation wanted, pooled over neurons and rows.

    Returns:
        The factor, shape ``()``, and the deviation before.

    Raises:
        MeasureError: The layer does not vary, or a neuron has no weights.
        UsageError: The biases alone spread more than the target.
    """
    rows, dtype = neuron_rows(layer, z), z.dtype
    bias = bias_of(layer, z).expand(rows.shape[1])
    inner = rows - bias
    _refuse_zero_rows(path, layer)
    count = _count(path, rows.numel(), ddof)
    centred, offsets = inner - inner.mean(), bias - bias.mean()
    a = centred.square().sum() / count
    b = (centred.sum(0) * offsets).sum() / count
    c = offsets.square().sum() * len(rows) / count
    refuse_dead(path, a.sqrt(), inner, dtype)
    root = b * b - a * (c - target**2)
    factor = (root.clamp_min(0).sqrt() - b) / a
    if root < 0 or factor <= 0:
        raise UsageError(
            f"the biases of {path or 'the model'} alone spread by {float(c.sqrt()):.3g}, "
            f"the target is {target}",
            "Set them to zero before rescaling.",
        )
    return factor, (a + 2 * b + c).sqrt()


def neuron_factors(
    path: str, layer: nn.Module, z: Tensor, ddof: int, target: float
) -> tuple[Tensor, Tensor]:
    """Divide the target by every neuron's own deviation, on which its bias has no effect.

    Args:
        path: Path of the layer, for messages.
        layer: A linear layer or convolution.
        z: Its output.
        ddof: Subtracted from the number of rows.
        target: Standard deviation wanted.

    Returns:
        The factors and the deviations before, each ``(neurons,)``.

    Raises:
        MeasureError: A neuron does not vary.
    """
    rows, dtype = neuron_rows(layer, z), z.dtype
    _count(path, len(rows), ddof)
    std = rows.std(0, correction=ddof)
    refuse_dead(path, std, rows, dtype)
    return target / std, std


def _count(path: str, values: int, ddof: int) -> int:
    if values - ddof < 1:
        raise MeasureError(
            f"{values} value(s) at {path or 'the model'} give no variance with ddof={ddof}",
            "Use a larger batch.",
        )
    return values - ddof


def refuse_dead(path: str, std: Tensor, rows: Tensor, dtype: torch.dtype) -> None:
    """Refuse what does not vary beyond the rounding of its dtype, or is not finite.

    Args:
        path: Path of the layer, for messages.
        std: Deviations, shape ``()`` for the layer or ``(neurons,)``.
        rows: Preactivations ``(rows, neurons)``.
        dtype: The dtype they were computed in.

    Raises:
        MeasureError: Names the neurons.
    """
    largest = rows.abs().amax(0) if std.ndim else rows.abs().amax()
    alive = std.isfinite() & (std > torch.finfo(dtype).eps * largest)
    if not bool(alive.all()):
        _raise_dead(path, (~alive).nonzero().flatten().tolist() if std.ndim else None)


def _refuse_zero_rows(path: str, layer: Any) -> None:
    rows = Unroll.of(layer).rows(layer.weight.detach())
    dead = (rows == 0).all(1)
    if bool(dead.any()):
        _raise_dead(path, dead.nonzero().flatten().tolist())


def _raise_dead(path: str, neurons: list[int] | None) -> None:
    where = path or "the model"
    names = [f"{where}[{i}]" for i in (neurons or [])[:8]]
    more = len(neurons or []) - len(names)
    what = ", ".join(names) + (f" and {more} more" if more else "") if names else where
    raise MeasureError(
        f"no spread to rescale: {what} did not vary over the batch, or is not finite",
        "Re-draw these weights, leave the layer out (sites=…), or use a larger batch.",
    )


def bias_of(layer: Any, like: Tensor) -> Tensor:
    """Return a layer's bias in float64; one zero, on the device of ``like``, where it has none."""
    if layer.bias is None:
        return torch.zeros(1, dtype=torch.float64, device=like.device)
    bias: Tensor = layer.bias.detach().double()
    return bias
