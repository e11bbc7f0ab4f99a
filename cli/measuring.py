"""From the specs on the command line to a snapshot; imports torch, so only commands import it."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

import shiftscope
from shiftscope.capture.bare_weights import weights_only
from shiftscope.capture.trial import NoLossError
from shiftscope.errors import UsageError
from shiftscope.io import (
    Checkpoint,
    LoadedData,
    input_statistics,
    load_checkpoint,
    load_data,
    load_loss,
    load_model,
)

from . import ranks
from .terminal import note

if TYPE_CHECKING:
    from shiftscope.snapshot import Snapshot
    from shiftscope.trace import Trace

__all__ = ["Loaded", "attempt", "load", "measure", "run"]

Update = Callable[[str, int, int], None]


def measure(arguments: argparse.Namespace, update: Update) -> Snapshot:
    """Read the checkpoint, and measure the model on the data where both are given.

    Args:
        arguments: The parsed command line of ``analyze``.
        update: Told ``(stage, done, total)``.

    Returns:
        The snapshot, merged over all processes.
    """
    update("reading the checkpoint", 0, 0)
    checkpoint = _checkpoint(arguments)
    if arguments.data is None:
        return weights_only(checkpoint.state, _origin(checkpoint), checkpoint.left_out)
    loaded = _load(arguments, checkpoint, update)
    return run(arguments, loaded, loaded.model, update)


@dataclass(frozen=True)
class Loaded:
    """What the specs name, read and built.

    Attributes:
        checkpoint: The file that was given.
        model: The model with its weights, on the CPU.
        data: Batches.
        loss: Function of output and target, or None.
        device: Where to run.
        manifest: Where all of it comes from.
    """

    checkpoint: Checkpoint
    model: torch.nn.Module
    data: LoadedData
    loss: Any
    device: torch.device
    manifest: dict[str, Any]


def load(arguments: argparse.Namespace, update: Update) -> Loaded:
    """Read the checkpoint, build the model, read the data.

    Args:
        arguments: The parsed command line, with model and data.
        update: Told ``(stage, done, total)``.

    Returns:
        All of it.
    """
    update("reading the checkpoint", 0, 0)
    checkpoint = _checkpoint(arguments)
    return _load(arguments, checkpoint, update)


def run(
    arguments: argparse.Namespace, loaded: Loaded, model: torch.nn.Module, update: Update
) -> Snapshot:
    """Measure a model on the loaded data.

    Args:
        arguments: The parsed command line.
        loaded: What :func:`load` returned.
        model: The loaded model, or one derived from it.
        update: Told ``(stage, done, total)``.

    Returns:
        The snapshot.
    """
    total = _batches(arguments, loaded.data)
    snapshot: Snapshot = shiftscope.analyze(
        model,
        loaded.data,
        loaded.loss,
        arguments.batches,
        dtype=getattr(torch, arguments.dtype) if arguments.dtype else None,
        device=loaded.device,
        seed=arguments.seed,
        inputs=_inputs(arguments, loaded.data),
        manifest=loaded.manifest,
        progress=lambda done, known: update("measuring", done, known or total),
    )
    return snapshot


def attempt(arguments: argparse.Namespace, update: Update) -> Trace:
    """Train a copy of the model for a few steps on the data, watched at every step.

    Args:
        arguments: The parsed command line of ``analyze``, with ``trial`` and ``lr``.
        update: Told ``(stage, done, total)``.

    Returns:
        The trace.
    """
    loaded = load(arguments, update)
    try:
        return _tried(arguments, loaded, update)
    except NoLossError as error:
        raise UsageError(
            "--trial needs a loss to train on, and neither --loss nor the model's output gives one",
            "name one, e.g. --loss cross_entropy, and data with labels",
        ) from error


def _tried(arguments: argparse.Namespace, loaded: Loaded, update: Update) -> Trace:
    trace: Trace = shiftscope.trial(
        loaded.model,
        _First(loaded.data, arguments.batches),
        loaded.loss,
        steps=arguments.trial,
        lr=arguments.lr,
        dtype=arguments.dtype,
        device=loaded.device,
        seed=arguments.seed,
        inputs=_inputs(arguments, loaded.data),
        manifest=loaded.manifest,
        progress=lambda done, total: update("trying", done, total),
    )
    return trace


class _First:
    """The first batches of data that can be read several times."""

    def __init__(self, data: LoadedData, batches: int | None) -> None:
        self.data, self.batches = data, batches

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.data), self.batches)


def _checkpoint(arguments: argparse.Namespace) -> Checkpoint:
    checkpoint = load_checkpoint(
        arguments.checkpoint, trust_pickle=arguments.trust_pickle, prefer=arguments.state
    )
    for line in checkpoint.notes:
        note(f"{checkpoint.path}: {line}")
    return checkpoint


def _origin(checkpoint: Checkpoint) -> dict[str, Any]:
    return {"checkpoint": str(checkpoint.path), "wrapping": checkpoint.wrapping}


def _load(arguments: argparse.Namespace, checkpoint: Checkpoint, update: Update) -> Loaded:
    """Model, data and loss for a checkpoint."""
    device = _device(arguments.device)
    update("building the model", 0, 0)
    model = load_model(arguments.model, checkpoint, trust_pickle=arguments.trust_pickle)
    for line in model.report:
        note(f"{model.description}: {line}")
    update("reading the data", 0, 0)
    data = _data(arguments, ranks.rank(), ranks.world_size())
    loss = _loss(arguments, data, checkpoint)
    manifest = {
        **_origin(checkpoint),
        "architecture": model.description,
        "data": data.description,
        "normalization": data.normalization,
        "loss_function": arguments.loss or ("by target" if loss else "none"),
    }
    return Loaded(checkpoint, model.model, data, loss, device, manifest)


def _data(arguments: argparse.Namespace, rank: int, world_size: int) -> LoadedData:
    return load_data(
        arguments.data,
        batch_size=arguments.batch_size,
        batches=arguments.batches,
        normalize=arguments.normalize,
        seed=arguments.seed,
        rank=rank,
        world_size=world_size,
    )


def _loss(arguments: argparse.Namespace, data: LoadedData, checkpoint: Checkpoint) -> Any:
    """The loss that was asked for; without a word, one that fits the labels, if there are any."""
    if arguments.loss is None and not data.has_labels:
        return None
    return load_loss(arguments.loss, folders=[checkpoint.path.absolute().parent])


def _batches(arguments: argparse.Namespace, data: LoadedData) -> int:
    """Batches this process will see; 0 where the data do not tell."""
    if data.rows is None:
        return arguments.batches or 0
    mine: int = math.ceil(data.rows / (arguments.batch_size * ranks.world_size()))
    return min(mine, int(arguments.batches or mine))


def _inputs(arguments: argparse.Namespace, data: LoadedData) -> dict[str, Any]:
    """What the data look like, over all rows whatever this process sees of them."""
    whole = data if ranks.world_size() == 1 else _data(arguments, 0, 1)
    told = {"description": data.description, "synthetic": data.synthetic}
    return {**told, "normalization": data.normalization, **input_statistics(whole)}


def _device(name: str) -> torch.device:
    """The device by name; ``auto`` is a CUDA device of this process's own, else the CPU."""
    if name == "auto":
        found = torch.cuda.device_count()
        return torch.device("cuda", ranks.local() % found) if found else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {name} cannot be used: {reason}", "give --device cpu") from None
    return device
