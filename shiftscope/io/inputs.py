"""What the inputs look like to the model: the first thing to check in any report."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from shiftscope.io.batches import first_input
from shiftscope.tally import Extrema, Moments

__all__ = ["input_statistics"]

_MOST_CHANNELS = 16
"""Inputs with more channels than this are pooled: a table of 2048 lines tells nobody anything."""
_MOST_CLASSES = 2**20
"""Labels beyond this are no classes but identifiers."""


def input_statistics(data: Iterable[Any]) -> dict[str, Any]:
    """Describe the batches a model will be fed.

    Args:
        data: Batches ``x``, ``(x, y)`` or keyword inputs, x of shape ``[rows, channels, ...]``.
            Channels are told apart for inputs of three and more dimensions with at most 16 of
            them, else pooled.

    Returns:
        Plain values: ``rows``, ``shape`` (of one row), ``dtype``, per channel ``mean``, ``std``
        (population), ``min``, ``max``, the share ``nonfinite`` of all values, and ``classes``
        (label -> rows; None without class labels). None stands for "no finite value".
    """
    moments: Moments | None = None
    extrema: Extrema | None = None
    rows, values, labels = 0, 0, torch.zeros(0, dtype=torch.int64)
    shape: list[int] = []
    dtype = ""
    for batch in data:
        x = first_input(batch)
        if not x.numel():
            continue
        channels = _by_channel(x)
        seen, range_ = Moments.of(channels, 0), Extrema.of(channels, 0)
        moments = seen if moments is None else moments.merge(seen)
        extrema = range_ if extrema is None else extrema.merge(range_)
        rows, values = rows + x.shape[0], values + x.numel()
        shape, dtype = list(x.shape[1:]), str(x.dtype).removeprefix("torch.")
        labels = _count(labels, _target(batch))
    table = _table(moments, extrema, values)
    classes = {str(i): int(n) for i, n in enumerate(labels)} if len(labels) else None
    return {"rows": rows, "shape": shape, "dtype": dtype, **table, "classes": classes}


def _target(batch: Any) -> Any:
    if isinstance(batch, dict):
        return batch.get("labels")
    return batch[-1] if isinstance(batch, tuple | list) and len(batch) > 1 else None


def _by_channel(x: Tensor) -> Tensor:
    """``[channels, values]``: real numbers on the CPU."""
    real = (x.detach().abs() if x.is_complex() else x.detach()).cpu()
    real = real.float() if real.dtype is torch.bool else real
    if x.ndim >= 3 and x.shape[1] <= _MOST_CHANNELS:
        return real.transpose(0, 1).reshape(x.shape[1], -1)
    return real.reshape(1, -1)


def _count(labels: Tensor, y: object) -> Tensor:
    """Add class labels to a histogram that grows as needed."""
    if not isinstance(y, Tensor) or y.dtype != torch.int64 or y.ndim != 1 or not y.numel():
        return labels
    if int(y.min()) < 0 or int(y.max()) > _MOST_CLASSES:
        return labels
    counts = torch.bincount(y.cpu(), minlength=len(labels))
    counts[: len(labels)] += labels
    return counts


def _table(moments: Moments | None, extrema: Extrema | None, values: int) -> dict[str, Any]:
    if moments is None or extrema is None:
        return {"mean": [], "std": [], "min": [], "max": [], "nonfinite": None}
    some = moments.count > 0
    columns = {
        "mean": moments.mean,
        "std": moments.variance.sqrt(),
        "min": extrema.low,
        "max": extrema.high,
    }
    plain = {
        name: [float(v) if ok else None for v, ok in zip(column, some, strict=True)]
        for name, column in columns.items()
    }
    return {**plain, "nonfinite": (values - int(moments.count.sum())) / values}
