"""Data from the user's own code: arrays, a data set with indices, or an iterable of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shiftscope.errors import DataError, LoadError
from shiftscope.io.batches import Batch, LoadedData, Plan, from_source
from shiftscope.io.factories import call_factory, resolve
from shiftscope.io.sources import ArraySource, Source, as_labels, check_finite, to_inputs

__all__ = ["from_loader"]


def from_loader(spec: str, folder: Path, plan: Plan) -> LoadedData:
    """Batches of the user's own code: arrays, a map-style data set, or an iterable of batches."""
    found, shown = resolve(spec, [folder])
    values = {"batch_size": plan.batch_size, "seed": plan.seed}
    content = call_factory(found, shown, values, "values offered")[0] if callable(found) else found
    source = _as_source(content, shown)
    if source is not None:
        return from_source(source, spec, plan)
    if not isinstance(content, Iterable):
        raise LoadError(
            f"{shown} gives a {type(content).__name__}, not data",
            "return batches, a pair of arrays (x, y), or a data set with len() and indices",
        )
    again: Any = content
    if isinstance(content, Iterator):
        # A generator runs out: call the factory anew for each pass, or keep what it gives
        again = (
            _Fresh(lambda: call_factory(found, shown, values, "")[0])
            if callable(found)
            else [*content]
        )
    return _from_batches(again, spec, shown, plan)


@dataclass(frozen=True)
class _Fresh:
    """An iterable that starts anew each time."""

    make: Callable[[], Iterable[Any]]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.make())


def _as_source(content: Any, shown: str) -> Source | None:
    """Arrays or a map-style data set as a source, None for anything else."""
    if isinstance(content, dict) and "x" in content:
        content = (content["x"], content.get("y"))
    if isinstance(content, np.ndarray | Tensor):
        return ArraySource(content, None, shown)
    if isinstance(content, tuple) and len(content) == 2 and _is_array(content[0]):
        return ArraySource(content[0], content[1], shown)
    if isinstance(content, torch.utils.data.Dataset) and hasattr(content, "__len__"):
        return _DatasetSource(content, shown)
    return None


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | Tensor)


class _DatasetSource:
    """A map-style torch data set of samples ``(x, y)`` or ``x``."""

    def __init__(self, dataset: Any, shown: str) -> None:
        self.dataset, self.shown = dataset, shown
        names = getattr(dataset, "classes", None)
        self.classes = tuple(map(str, names)) if isinstance(names, Sequence) else None
        if not len(dataset):
            raise DataError(f"{shown}: the data set is empty", "give at least one row")
        self.labelled = isinstance(dataset[0], tuple | list) and len(dataset[0]) > 1

    def __len__(self) -> int:
        return len(self.dataset)

    def rows(self, indices: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        samples = [self.dataset[index] for index in indices]
        try:
            batch = torch.utils.data.default_collate(samples)
        except (TypeError, RuntimeError, KeyError) as error:
            raise DataError(
                f"{self.shown}: samples do not stack: {str(error).splitlines()[0]:.150}",
                "return tensors of one shape; convert images with ToTensor",
            ) from None
        return _split(batch, self.shown, 0)


def _from_batches(content: Iterable[Any], spec: str, shown: str, plan: Plan) -> LoadedData:
    first = next(_seeded(content, plan.seed), _NOTHING)
    if first is _NOTHING:
        raise DataError(f"{shown}: the data set is empty", "return at least one batch")
    x, y = _split(first, shown, 0)
    if plan.normalization is not None:
        plan.normalization(x)
    shape = "x".join(str(size) for size in x.shape[1:])
    return LoadedData(
        description=f"{spec}: batches of {x.shape[0]} rows of {shape}, in the loader's own order",
        rows=None,
        classes=None,
        has_labels=y is not None,
        synthetic=False,
        class_names=None,
        normalization=plan.normalization.name if plan.normalization else "none",
        _batches=lambda: _iterate_batches(content, shown, plan),
    )


def _iterate_batches(content: Iterable[Any], shown: str, plan: Plan) -> Iterator[Batch]:
    """Whole batches go to the processes in turn."""
    for number, batch in enumerate(_seeded(content, plan.seed)):
        if plan.batches is not None and number >= plan.batches:
            return
        if number % plan.world_size != plan.rank:
            continue
        x, y = _split(batch, shown, number)
        if plan.normalization is not None:
            x = plan.normalization(x)
        yield x if y is None else (x, y)


def _seeded(content: Iterable[Any], seed: int) -> Iterator[Any]:
    """Iterate with the same shuffling each time, and leave the global random state alone.

    A torch DataLoader draws its seeds from the global generator when it starts and with its first
    batch; both happen in here.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        batches = iter(content)
        first = next(batches, _NOTHING)
    if first is not _NOTHING:
        yield first
    yield from batches


_NOTHING = object()


def _split(batch: Any, shown: str, number: int) -> tuple[Tensor, Tensor | None]:
    """Inputs and targets of a batch of the user's, checked."""
    if isinstance(batch, dict) and "x" in batch:
        batch = (batch["x"], batch.get("y"))
    x, y = (
        (batch[0], batch[1])
        if isinstance(batch, tuple | list) and len(batch) > 1
        else (batch, None)
    )
    x = x[0] if isinstance(x, tuple | list) and len(x) == 1 else x
    x, y = (torch.as_tensor(v) if isinstance(v, np.ndarray) else v for v in (x, y))
    if not isinstance(x, Tensor) or not isinstance(y, Tensor | None):
        raise DataError(
            f"{shown}: batch {number} is a {type(batch).__name__} of "
            f"{type(x).__name__} and {type(y).__name__}",
            "give tensors: x, or (x, y)",
        )
    check_finite(x, f"{shown}, batch {number}", "x")
    return to_inputs(x), None if y is None else as_labels(y, shown)
