"""Data from the user's own code: arrays, a data set with indices, or an iterable of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shiftscope.errors import DataError, LoadError
from shiftscope.io.batches import Batch, LoadedData, Plan, first_input, from_source
from shiftscope.io.factories import call_factory, resolve
from shiftscope.io.sources import ArraySource, Source, as_labels, check_finite, to_inputs

__all__ = ["from_loader"]


def from_loader(spec: str, folders: Sequence[Path], plan: Plan) -> LoadedData:
    """Batches of the user's own code: arrays, a map-style data set, or an iterable of batches.

    Args:
        spec: ``file.py:name`` or ``package.module:name``: the data, or a function that returns
            them, called with ``batch_size`` and ``seed`` where it takes them.
        folders: Where the file is looked for, in order.
        plan: Order, batches and normalisation.

    Returns:
        The data; each pass starts anew, with the same random transforms.

    Raises:
        UsageError: The SPEC names nothing.
        LoadError: The code fails, or returns no data.
        DataError: The first batch is none.
    """
    found, shown = resolve(spec, folders)
    values = {"batch_size": plan.batch_size, "seed": plan.seed}
    content = call_factory(found, shown, values, "values offered")[0] if callable(found) else found
    source = _as_source(content, shown, plan.seed)
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


def _as_source(content: Any, shown: str, seed: int) -> Source | None:
    """Arrays or a map-style data set as a source, None for anything else."""
    if isinstance(content, dict) and "x" in content:
        content = (content["x"], content.get("y"))
    if isinstance(content, np.ndarray | Tensor):
        return ArraySource(content, None, shown)
    if isinstance(content, tuple) and len(content) == 2 and _is_array(content[0]):
        return ArraySource(content[0], content[1], shown)
    if isinstance(content, torch.utils.data.Dataset) and hasattr(content, "__len__"):
        return _DatasetSource(content, shown, seed)
    return None


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | Tensor)


class _DatasetSource:
    """A map-style torch data set of samples ``(x, y)`` or ``x``."""

    def __init__(self, dataset: Any, shown: str, seed: int) -> None:
        self.dataset, self.shown, self.seed = dataset, shown, seed
        names = getattr(dataset, "classes", None)
        self.classes = tuple(map(str, names)) if isinstance(names, Sequence) else None
        if not len(dataset):
            raise DataError(f"{shown}: the data set is empty", "give at least one row")
        self.labelled = self.rows([0])[1] is not None

    def __len__(self) -> int:
        return len(self.dataset)

    def rows(self, indices: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + indices[0])  # random transforms, the same each time
            samples = [self.dataset[index] for index in indices]
        try:
            batch = _clean(torch.utils.data.default_collate(samples), self.shown)
        except (TypeError, RuntimeError, KeyError) as error:
            raise DataError(
                f"{self.shown}: samples do not stack: {str(error).splitlines()[0]:.150}",
                "return tensors of one shape; convert images with ToTensor",
            ) from None
        x, y = batch if isinstance(batch, tuple) and len(batch) == 2 else (batch, None)
        if not isinstance(x, Tensor) or not isinstance(y, Tensor | None):
            raise DataError(
                f"{self.shown}: samples are neither x nor (x, y)",
                "return a DataLoader, which may yield several inputs or mappings",
            )
        return x, y


def _from_batches(content: Iterable[Any], spec: str, shown: str, plan: Plan) -> LoadedData:
    first = next(_seeded(content, plan.seed), None)
    if first is None:
        raise DataError(f"{shown}: the data set is empty", "return at least one batch")
    batch = _normalized(_clean(first, f"{shown}, batch 0"), plan, shown)
    x = first_input(batch)
    shape = "x".join(str(size) for size in x.shape[1:])
    return LoadedData(
        description=f"{spec}: batches of {x.shape[0]} rows of {shape}, in the loader's own order",
        rows=None,
        batches=None,
        classes=None,
        has_labels=isinstance(batch, tuple) or (isinstance(batch, dict) and "labels" in batch),
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
        if number % plan.world_size == plan.rank:
            yield _normalized(_clean(batch, f"{shown}, batch {number}"), plan, shown)


def _seeded(content: Iterable[Any], seed: int) -> Iterator[Any]:
    """Iterate with a random state of its own: the same each time, and the global one untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        batches = iter(content)
        state = torch.get_rng_state()
    while True:
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(state)
            try:
                batch = next(batches)
            except StopIteration:
                return
            state = torch.get_rng_state()
        yield batch


def _normalized(batch: Batch, plan: Plan, shown: str) -> Batch:
    """The batch with its (first) input normalised."""
    if plan.normalization is None:
        return batch
    if isinstance(batch, dict):
        raise DataError(
            f"{shown} gives mappings, which --normalize does not know how to change",
            "normalise in the loader",
        )
    if isinstance(batch, tuple):
        return (plan.normalization(batch[0]), *batch[1:])
    return plan.normalization(batch)


def _clean(batch: Any, where: str) -> Batch:
    """A batch in one of the forms a model is fed: x, (x, ..., y), or keyword inputs; checked."""
    if isinstance(batch, Mapping) and "x" in batch:
        batch = (batch["x"], batch["y"]) if batch.get("y") is not None else batch["x"]
    if isinstance(batch, Mapping):
        found = {str(key): _tensor(value) for key, value in batch.items()}
        values: list[Any] = [value for value in found.values() if isinstance(value, Tensor)]
    else:
        several = list(batch) if isinstance(batch, tuple | list) else [batch]
        values = [_tensor(value) for value in several]
    if not values or not all(isinstance(value, Tensor) for value in values):
        kinds = ", ".join(type(value).__name__ for value in values) or "no tensors"
        raise DataError(
            f"{where} is a {type(batch).__name__} of {kinds}", "give tensors: x, or (x, y)"
        )
    for value in values:
        check_finite(value, where, "x" if value is values[0] else "y")
    if isinstance(batch, Mapping):
        return found
    if len(values) == 1:
        return to_inputs(values[0])
    return (*map(to_inputs, values[:-1]), as_labels(values[-1], where))


def _tensor(value: Any) -> Any:
    """Arrays as tensors, anything else as it is."""
    return torch.as_tensor(value) if isinstance(value, np.ndarray) else value
