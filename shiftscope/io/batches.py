"""Batches in a fixed order: which rows, in which batch, on which process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from shiftscope.errors import UsageError
from shiftscope.io.normalize import Normalization, parse_normalization
from shiftscope.io.sources import Source

__all__ = ["Batch", "LoadedData", "Plan", "first_input", "from_source", "make_plan"]

Batch: TypeAlias = "Tensor | tuple[Tensor, ...] | dict[str, Any]"
"""Inputs; inputs and a target, last; or keyword inputs (from a user's own loader)."""


@dataclass(frozen=True)
class LoadedData:
    """Batches that can be iterated any number of times, each time the same.

    Attributes:
        description: What the data are, in one line.
        rows: Number of rows over all processes; None where a user's loader does not tell.
        batches: Number of batches of this process; None likewise.
        classes: Number of classes, None without class labels.
        has_labels: Whether batches are ``(x, y)``.
        synthetic: Whether the inputs are made up, so that a report must say so.
        class_names: Names of the classes, where known.
        normalization: As the user wrote it, "none" without.
    """

    description: str
    rows: int | None
    batches: int | None
    classes: int | None
    has_labels: bool
    synthetic: bool
    class_names: tuple[str, ...] | None
    normalization: str
    _batches: Callable[[], Iterator[Batch]] = field(repr=False)

    def __iter__(self) -> Iterator[Batch]:
        """Batches ``(x, y)``, or ``x`` without labels."""
        return self._batches()

    def __len__(self) -> int:
        """Number of batches; TypeError where a user's loader does not tell."""
        if self.batches is None:
            raise TypeError("the number of batches is not known before they are read")
        return self.batches

    def __bool__(self) -> bool:
        """True: data are never empty."""
        return True


@dataclass(frozen=True)
class Plan:
    """How rows become batches."""

    batch_size: int
    batches: int | None
    seed: int
    rank: int
    world_size: int
    normalization: Normalization | None

    def indices(self, rows: int) -> list[list[int]]:
        """Row numbers of this process's batches.

        The first ``batches * batch_size`` rows of one permutation. Whole batches are dealt out in
        turn, so that the processes see together the very batches that one would: the gradient of
        a mean loss depends on the batch a row is in. Only where there are fewer batches than
        processes are rows dealt out instead.
        """
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(rows, generator=generator).tolist()
        if self.batches is not None:
            order = order[: self.batches * self.batch_size]
        cut = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        if len(cut) >= self.world_size:
            return cut[self.rank :: self.world_size]
        mine = order[self.rank :: self.world_size]
        return [mine] if mine else []


def make_plan(
    batch_size: int, batches: int | None, seed: int, rank: int, world_size: int, spec: str | None
) -> Plan:
    """Check the numbers and the normalisation of a request.

    Args:
        batch_size: Rows a batch.
        batches: Batches over all processes, None for all rows.
        seed: Fixes the order.
        rank: This process.
        world_size: Number of processes.
        spec: Normalisation SPEC.

    Returns:
        The plan.

    Raises:
        UsageError: A number is out of range, or the SPEC cannot be read.
    """
    for name, value in (("batch size", batch_size), ("number of batches", batches)):
        if value is not None and value < 1:
            raise UsageError(f"the {name} is {value}", "give a number of at least 1")
    if not 0 <= rank < world_size:
        raise UsageError(f"rank {rank} of {world_size} processes", "0 <= rank < world_size")
    return Plan(batch_size, batches, seed, rank, world_size, parse_normalization(spec))


def from_source(source: Source, spec: str, plan: Plan, synthetic: bool = False) -> LoadedData:
    """Batches of a source's rows.

    Args:
        source: The rows.
        spec: As the user wrote it.
        plan: Order, batches and normalisation.
        synthetic: Whether the rows are made up.

    Returns:
        The data.
    """
    used = len(source)
    if plan.batches is not None:
        used = min(used, plan.batches * plan.batch_size)
    first, labels = source.rows([0])
    if plan.normalization is not None:
        plan.normalization(first)  # a wrong number of channels is told before any work
    classes = _count_classes(source, labels)
    shape = "x".join(str(size) for size in first.shape[1:])
    what = "synthetic standard normal rows" if synthetic else "rows"
    return LoadedData(
        description=f"{spec}: {used} {what} of {shape}",
        rows=used,
        batches=len(plan.indices(len(source))),
        classes=classes,
        has_labels=source.labelled,
        synthetic=synthetic,
        class_names=source.classes,
        normalization=plan.normalization.name if plan.normalization else "none",
        _batches=lambda: _iterate(source, plan),
    )


def _iterate(source: Source, plan: Plan) -> Iterator[Batch]:
    for indices in plan.indices(len(source)):
        x, y = source.rows(indices)
        if plan.normalization is not None:
            x = plan.normalization(x)
        yield x if y is None else (x, y)


def _count_classes(source: Source, labels: Tensor | None) -> int | None:
    if labels is None or labels.dtype != torch.int64 or labels.ndim != 1:
        return None
    if source.classes is not None:
        return len(source.classes)
    y = getattr(source, "y", None)
    return int(y.max()) + 1 if isinstance(y, Tensor) else None


def first_input(batch: Any) -> Tensor:
    """The tensor that stands for the inputs of a batch, in any form a batch may have.

    Args:
        batch: A tensor, ``(x, ..., y)``, or keyword inputs.

    Returns:
        The first tensor; of keyword inputs the one with a usual name, where there is one.
    """
    if isinstance(batch, tuple | list) and batch:
        return first_input(batch[0])
    if isinstance(batch, dict):
        named = [batch[name] for name in ("pixel_values", "input_ids", "input") if name in batch]
        batch = next(value for value in (*named, *batch.values()) if isinstance(value, Tensor))
    return batch if isinstance(batch, Tensor) else torch.zeros(0)
