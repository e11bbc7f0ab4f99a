"""What the inputs look like to the model: the first thing to check in any report.

Accumulated in float64, one batch at a time, with Chan's rule for merging (Chan, Golub & LeVeque
1979, "Updating formulae and a pairwise algorithm for computing sample variances").
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shiftscope.io.batches import first_input

__all__ = ["input_statistics"]

_MOST_CHANNELS = 16
"""Inputs with more channels than this are pooled: a table of 2048 lines tells nobody anything."""


@dataclass
class _Running:
    """Moments and range per channel; non-finite values are counted and left out."""

    count: Tensor
    mean: Tensor
    m2: Tensor
    low: Tensor
    high: Tensor
    nonfinite: Tensor

    @classmethod
    def empty(cls, channels: int) -> _Running:
        zero = torch.zeros(channels, dtype=torch.float64)
        whole = torch.zeros(channels, dtype=torch.int64)
        return cls(whole, zero, zero, zero + torch.inf, zero - torch.inf, whole)

    def add(self, values: Tensor) -> None:
        """Merge ``[channels, values]``."""
        finite = torch.isfinite(values)
        kept = torch.where(finite, values, 0)
        count = finite.sum(1)
        mean = kept.sum(1) / count.clamp(min=1)
        m2 = torch.where(finite, kept - mean[:, None], 0).square().sum(1)
        total = self.count + count
        delta = mean - self.mean
        share = count / total.clamp(min=1)
        self.m2 = self.m2 + m2 + delta.square() * self.count * share
        self.mean = self.mean + delta * share
        self.low = torch.minimum(self.low, torch.where(finite, values, torch.inf).amin(1))
        self.high = torch.maximum(self.high, torch.where(finite, values, -torch.inf).amax(1))
        self.nonfinite = self.nonfinite + (~finite).sum(1)
        self.count = total


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
    running: _Running | None = None
    rows, labels = 0, torch.zeros(0, dtype=torch.int64)
    shape: list[int] = []
    dtype = ""
    for batch in data:
        x = first_input(batch)
        if not x.numel():
            continue
        values = _by_channel(x)
        running = running or _Running.empty(values.shape[0])
        running.add(values)
        rows += x.shape[0]
        shape, dtype = list(x.shape[1:]), str(x.dtype).removeprefix("torch.")
        labels = _count(labels, _target(batch))
    table = _table(running)
    classes = {str(i): int(n) for i, n in enumerate(labels)} if len(labels) else None
    return {"rows": rows, "shape": shape, "dtype": dtype, **table, "classes": classes}


def _target(batch: Any) -> Any:
    if isinstance(batch, dict):
        return batch.get("labels")
    return batch[-1] if isinstance(batch, tuple | list) and len(batch) > 1 else None


def _by_channel(x: Tensor) -> Tensor:
    """``[channels, values]`` in float64."""
    real = x.detach().abs() if x.is_complex() else x.detach()
    wide = real.to("cpu", torch.float64)
    if x.ndim >= 3 and x.shape[1] <= _MOST_CHANNELS:
        return wide.transpose(0, 1).reshape(x.shape[1], -1)
    return wide.reshape(1, -1)


def _count(labels: Tensor, y: object) -> Tensor:
    """Add class labels to a histogram that grows as needed."""
    if not isinstance(y, Tensor) or y.dtype != torch.int64 or y.ndim != 1 or not y.numel():
        return labels
    if int(y.min()) < 0 or int(y.max()) > 2**20:
        return labels
    counts = torch.bincount(y.cpu(), minlength=len(labels))
    counts[: len(labels)] += labels
    return counts


def _table(running: _Running | None) -> dict[str, Any]:
    if running is None:
        return {"mean": [], "std": [], "min": [], "max": [], "nonfinite": None}
    some = running.count > 0
    std = (running.m2 / running.count.clamp(min=1)).sqrt()
    columns = {"mean": running.mean, "std": std, "min": running.low, "max": running.high}
    seen = int(running.count.sum() + running.nonfinite.sum())
    return {
        **{
            name: [float(v) if ok else None for v, ok in zip(column, some, strict=True)]
            for name, column in columns.items()
        },
        "nonfinite": int(running.nonfinite.sum()) / seen,
    }
