"""``ss.analyze``: run a model over data once, measured, and leave no trace."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import shiftscope
from shiftscope.capture import distributed
from shiftscope.capture.arguments import (
    check_data,
    check_loss,
    check_model,
    device_named,
    entries,
    precision_of,
)
from shiftscope.capture.batches import Batch, Score, as_batch, blaming, loss_of
from shiftscope.capture.choice import matching, no_match, patterns_of
from shiftscope.capture.copies import twin
from shiftscope.capture.coverage import coverage, forward_flops, missing
from shiftscope.capture.graph import reaches
from shiftscope.capture.norms import norm_statistics
from shiftscope.capture.pictures import pictures
from shiftscope.capture.placement import device_of, existing, float_dtype, place
from shiftscope.capture.preserve import preserved
from shiftscope.capture.probe import Attachment
from shiftscope.capture.recorder import Recorder, Settings
from shiftscope.capture.sites import unwrapped
from shiftscope.errors import DataError, MeasureError, UsageError
from shiftscope.given import whole
from shiftscope.snapshot import Snapshot

__all__ = ["analyze"]

Progress = Callable[[int, int | None], None]


def analyze(
    model: nn.Module,
    data: Iterable[Any],
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    batches: int | None = None,
    *,
    sites: str | Iterable[str] = "*",
    rows: int = 1024,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    inputs: Mapping[str, Any] | None = None,
    manifest: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Snapshot:
    """Measure means, variances, angles and gains at every linear and activation site.

    The model is run as it stands (training or evaluation mode) on each batch, forward and, with a
    loss, backward. Its parameters, gradients, buffers, modes and hooks, and all random
    generators, are afterwards what they were before, also when the model raises. Under an
    initialised ``torch.distributed`` group every rank measures the batches it is given and all
    get the merged result; shard the data without duplicates for exact counts.

    Args:
        model: Any module; data-parallel and compile wrappers are looked through, and compiled
            models run eagerly.
        data: Iterable of ``x``, ``(x, y)`` or mappings of keyword inputs. A model of several inputs
            may be given them as ``(x1, x2, y)``, ``((x1, x2), y)`` or ``({name: x1, ...}, y)``.
        loss_fn: ``loss_fn(output, y) -> scalar``. None measures forward only, unless the output
            carries a ``loss``.
        batches: Number of batches to use; None for all.
        sites: Pattern or patterns (``fnmatch``) of the sites to keep.
        rows: Largest row sample for quantiles; exact quantiles up to that many rows.
        dtype: Precision to run in, or its name. A different one than the model's is used on a copy;
            ``torch.float64`` keeps the gradients of very deep networks above underflow.
        device: Device to run on, on a copy if the model lives elsewhere; None stays.
        seed: Seed of the row sample.
        inputs: Statistics of the data, kept in the snapshot.
        manifest: Further entries for the manifest (names, paths, specs).
        progress: Called as ``progress(batches done, batches in all or None)``.

    Returns:
        The snapshot: ``.sites``, ``.neurons``, ``.gaps``, ``.save(path)``.

    Raises:
        UsageError: An argument has no meaning.
        DataError: No batch, or batches the loss cannot take.
        MeasureError: The model raised on a batch; or measuring failed on another rank.
    """
    check_model(model)
    check_data(data)
    check_loss(loss_fn)
    if batches is not None:
        batches = whole("batches", batches, 1, "leave it out to use all data")
    rows = whole("rows", rows, 2, "use the default of 1024")
    precision, place = precision_of(dtype), device_named(device)
    chosen, given = patterns_of(sites, unwrapped(model)), entries("manifest", manifest)
    told = entries("inputs", inputs)
    job = _Job(_placed(unwrapped(model), precision, place), loss_fn, precision, rows, seed)
    if distributed.world_size() == 1:
        snapshot = job.run(data, batches, progress)
    else:
        snapshot = _on_all_ranks(job, data, batches, progress)
    return _described(_selected(snapshot, chosen), told, given)


class _Job:
    """One analysis on one process."""

    def __init__(
        self, model: nn.Module, loss_fn: Any, dtype: torch.dtype | None, rows: int, seed: int
    ) -> None:
        self.model, self.loss_fn, self.dtype = model, loss_fn, dtype
        self.rows, self.seed = rows, seed
        self.device = device_of(model)
        self.frozen = not any(p.requires_grad for p in model.parameters())
        self.score = Score()
        self.done, self.samples, self.backward, self.flops = 0, 0, False, 0.0
        self.empty = 0

    def run(self, data: Iterable[Any], batches: int | None, progress: Progress | None) -> Snapshot:
        modules = sum(1 for _ in self.model.modules())
        budget = max(2**19, 2**29 // max(1, modules))
        recorder = Recorder(Settings(self.rows, self.seed, distributed.rank(), budget))
        attachment = Attachment(self.model, recorder, unfuse=True)
        total = batches if batches is not None else _length(data)
        with preserved(self.model), _eagerly(), torch.inference_mode(False), torch.enable_grad():
            for item in self._taken(data, batches):
                self._measure(item, attachment)
                if progress is not None:
                    progress(self.done, total)
        if not self.done:
            found = "no batch with samples" if self.empty else "no batch"
            raise DataError(f"the data gave {found}", "give an iterable with at least one batch")
        return Snapshot(
            records=recorder.records(backward=self.backward),
            gaps=tuple(missing(attachment, recorder)),
            manifest=self._manifest(),
            coverage=coverage(attachment, recorder, self.flops * self.samples),
            pictures=pictures(recorder.states),
        )

    def _taken(self, data: Iterable[Any], batches: int | None) -> Iterator[Batch]:
        for index, item in enumerate(data):
            if batches is not None and index >= batches:
                return
            batch = as_batch(item, self.loss_fn is not None, self.model)
            self.empty += not batch.samples
            if batch.samples:
                yield batch.to(self.device, self.dtype or float_dtype(self.model))

    def _measure(self, batch: Batch, attachment: Attachment) -> None:
        if self.frozen:
            batch = batch.require_input_grad()
        where = f"on batch {self.done}"
        with blaming("the model", where, batch):
            if not self.done:
                counted = forward_flops(self.model, lambda: self.model(*batch.args, **batch.kwargs))
                self.flops = counted / batch.samples
        with attachment:
            with blaming("the model", where, batch):
                output = self.model(*batch.args, **batch.kwargs)
            with blaming("the loss", where, batch):
                loss = loss_of(output, batch, self.loss_fn)
            if loss is not None and loss.requires_grad:
                self.backward = True
                with blaming("the backward pass", where, batch):
                    _backward(loss, self.model, batch)
        self.score.add(output, batch, loss)
        self.done, self.samples = self.done + 1, self.samples + batch.samples

    def _manifest(self) -> dict[str, Any]:
        return {
            "shiftscope": shiftscope.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "device": str(self.device),
            "dtype": str(float_dtype(self.model)).removeprefix("torch."),
            "mode": "train" if self.model.training else "eval",
            "model": type(self.model).__name__,
            "parameters": sum(p.numel() for p in existing(self.model)),
            "batches": self.done,
            "samples": self.samples,
            "rows": self.rows,
            "seed": self.seed,
            "ranks": distributed.world_size(),
            "gradients": self.backward,
            **self.score.summary(),
            **norm_statistics(self.model),
            **({"empty_batches": self.empty} if self.empty else {}),
        }


def _on_all_ranks(
    job: _Job, data: Iterable[Any], batches: int | None, progress: Progress | None
) -> Snapshot:
    try:
        mine = job.run(data, batches, progress)
    except Exception as error:
        distributed.merge_over_ranks(
            None, str(error).splitlines()[0] if str(error) else repr(error)
        )
        raise
    return distributed.merge_over_ranks(mine)


def _backward(loss: Tensor, model: nn.Module, batch: Batch) -> None:
    """Run the backward pass for its hooks; gradients are neither accumulated nor kept."""
    wanted: list[Tensor] = [p for p in existing(model) if p.requires_grad]
    wanted += [value for value in batch.tensors if value.requires_grad]
    if not reaches(loss, "Checkpoint"):
        torch.autograd.grad(loss, wanted, allow_unused=True)
        return
    # Reentrant checkpointing refuses autograd.grad; `preserved` puts the gradients back.
    for tensor in wanted:
        tensor.grad = None
    loss.backward()


def _placed(model: nn.Module, dtype: torch.dtype | None, device: torch.device | None) -> nn.Module:
    here, current = device_of(model), float_dtype(model)
    target = here if device is None else device
    moves = target.type != here.type or (target.index is not None and target.index != here.index)
    if not moves and dtype in (None, current):
        return model
    try:
        other = twin(model)
        place(other, target if moves else None, dtype)
        return other
    except (RuntimeError, TypeError, AssertionError) as error:
        raise MeasureError(
            f"the model cannot be copied to {target}: {str(error).splitlines()[0]}",
            "move it yourself, by model.to(...), and leave device and dtype out",
        ) from error


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except TypeError:
        return None


def _eagerly() -> Any:
    return torch.compiler.set_stance("force_eager")


def _selected(snapshot: Snapshot, patterns: Sequence[str]) -> Snapshot:
    if "*" in patterns:
        return snapshot
    keep = matching(snapshot.records, patterns)
    if not keep:
        raise UsageError(*no_match(patterns, snapshot.records))
    return Snapshot(
        keep,
        snapshot.gaps,
        snapshot.manifest,
        snapshot.coverage,
        snapshot.inputs,
        snapshot.pictures,
    )


def _described(
    snapshot: Snapshot, inputs: Mapping[str, Any] | None, manifest: Mapping[str, Any] | None
) -> Snapshot:
    return Snapshot(
        snapshot.records,
        snapshot.gaps,
        {**snapshot.manifest, **(manifest or {})},
        snapshot.coverage,
        dict(inputs or snapshot.inputs),
        snapshot.pictures,
        snapshot.kept_quantiles,
    )
