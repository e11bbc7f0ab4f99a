"""``ss.trial``: a short training run on a copy, watched at every step.

Initialisation alone is nearly blind: a network with normalised weights can start without any
shift and be all shift after five steps. Some twenty steps tell what will learn from what will not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import shiftscope
from shiftscope.capture import distributed
from shiftscope.capture.batches import Batch, Score, as_batch, loss_of
from shiftscope.capture.copies import (
    copied,
    fresh,
    needs_closure,
    optimizer_for,
    preserved_generators,
)
from shiftscope.capture.coverage import coverage, missing
from shiftscope.capture.pictures import pictures
from shiftscope.capture.placement import device_of, float_dtype
from shiftscope.capture.preserve import preserved
from shiftscope.capture.probe import Attachment
from shiftscope.capture.recorder import Recorder, Settings
from shiftscope.capture.sites import unwrapped
from shiftscope.errors import DataError, MeasureError, ShiftscopeError, UsageError
from shiftscope.snapshot import Snapshot
from shiftscope.trace import Trace

__all__ = ["trial"]

Loss = Callable[[Any, Any], Tensor]
Progress = Callable[[int, int], None]
Factory = Callable[[list[nn.Parameter]], Optimizer]

_SAMPLES = 2**27
"""Bytes of row samples that all windows of a trial may hold together."""


def trial(
    model: nn.Module,
    data: Iterable[Any],
    loss_fn: Loss | None = None,
    optimizer: Optimizer | Factory | None = None,
    steps: int = 20,
    *,
    lr: float | None = None,
    rows: int = 256,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    inputs: Mapping[str, Any] | None = None,
    manifest: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Trace:
    """Train a copy of a model for a few steps and watch every one of them.

    The copy is trained by plain steps (forward, backward, update), in training mode unless the
    model is in training mode already, with whatever modes its parts have. The model, the
    optimizer, a loss that is a module, all random generators and those the data hold are
    afterwards what they were before. Not taken over from a training loop of one's own: clipping,
    schedules, gradient accumulation, mixed precision.

    Args:
        model: Any module that ``copy.deepcopy`` takes, constrained ones included.
        data: Iterable of ``x``, ``(x, y)`` or mappings, read from its start, several times if it
            is shorter than the steps. A one-shot iterator is used up.
        loss_fn: ``loss_fn(output, y) -> scalar``. None takes the output's own ``loss``.
        optimizer: An optimizer of this model's parameters, whose settings and state are taken
            over; or a function ``parameters -> optimizer``; or None for SGD with learning rate 0.1
            and momentum 0.9.
        steps: Number of updates.
        lr: Learning rate of all parameter groups, in place of the optimizer's.
        rows: Largest row sample for quantiles in each window.
        dtype: Precision to train in; None stays.
        device: Device to train on; None stays.
        seed: Seed of the row sample.
        inputs: Statistics of the data, kept in every snapshot.
        manifest: Further entries for the manifests.
        progress: Called as ``progress(steps done, steps in all)``.

    Returns:
        The trace: window ``k`` was measured after ``k`` updates, ``k = 0 ... steps``, on the batch
        that update ``k + 1`` used. It ends early at a loss that is not finite.

    Raises:
        UsageError: An argument has no meaning, or the optimizer is another model's.
        DataError: No batch, or batches the loss cannot take.
        MeasureError: The model cannot be copied, or raised on a batch.

    Example:
        >>> import torch, shiftscope as ss
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU())
        >>> data = [(torch.randn(32, 8), torch.randint(2, (32,)))]
        >>> trace = ss.trial(model, data, torch.nn.functional.cross_entropy, steps=3)
        >>> trace.steps
        (0, 1, 2, 3)
    """
    _check(steps, rows, lr)
    model = unwrapped(model)
    with ExitStack() as keep:
        keep.enter_context(preserved(model))
        keep.enter_context(preserved_generators(data))
        keep.enter_context(torch.inference_mode(False))
        keep.enter_context(torch.enable_grad())
        keep.enter_context(torch.compiler.set_stance("force_eager"))
        run = _Run(model, loss_fn, optimizer, (lr, dtype, device))
        run.settings = Settings(rows, seed, sample_budget=_budget(model, steps))
        run.described = dict(manifest or {}), dict(inputs or {})
        return Trace.of(run.windows(data, steps, progress))


class _Run:
    """A training run of a copy."""

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Loss | None,
        optimizer: Optimizer | Factory | None,
        options: tuple[float | None, torch.dtype | None, torch.device | str | None],
    ) -> None:
        lr, dtype, device = options
        self.model, given, self.loss_fn = copied(model, optimizer, loss_fn)
        self.model.to(device=device, dtype=dtype)
        if isinstance(self.loss_fn, nn.Module):
            self.loss_fn.to(device=device, dtype=dtype)
        self.optimizer = optimizer_for(self.model, given)
        if lr is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = lr
        if not self.model.training:
            self.model.train()
        self.settings = Settings()
        self.described: tuple[dict[str, Any], dict[str, Any]] = ({}, {})

    def windows(
        self, data: Iterable[Any], steps: int, progress: Progress | None
    ) -> Iterator[Snapshot]:
        """One snapshot a step, and one of the network after the last update."""
        batches = self._batches(data)
        for step in range(steps + 1):
            batch = next(batches, None)
            if batch is None and step == 0:
                raise DataError(
                    "the data gave no batch", "give an iterable with at least one batch"
                )
            if batch is None:
                return
            snapshot, loss = self._watched(step, batch)
            yield snapshot
            if progress is not None:
                progress(step, steps)
            if step == steps or not math.isfinite(loss):
                return
            self._update(batch)

    def _batches(self, data: Iterable[Any]) -> Iterator[Batch]:
        found = True
        while found:
            found = False
            for item in fresh(data):
                batch = as_batch(item, self.loss_fn is not None)
                if batch.samples:
                    found = True
                    yield batch.to(device_of(self.model), float_dtype(self.model))

    def _watched(self, step: int, batch: Batch) -> tuple[Snapshot, float]:
        """Forward and backward under watch, up to the gradients that the update will use."""
        recorder = Recorder(self.settings)
        attachment = Attachment(self.model, recorder, unfuse=True)
        self.optimizer.zero_grad(set_to_none=True)
        try:
            with attachment:
                output, loss = self._forward(batch)
                loss.backward()
        except ShiftscopeError:
            raise
        except Exception as error:
            words = str(error).strip().splitlines()
            raise MeasureError(
                f"the model raised {type(error).__name__} at step {step} of the trial "
                f"({batch.shapes}): {words[0][:200] if words else ''}",
                "check that the data have the shape, type and range the model is trained on",
            ) from error
        score = Score()
        score.add(output, batch, loss)
        return self._snapshot(step, batch, attachment, score), float(loss.detach())

    def _forward(self, batch: Batch) -> tuple[Any, Tensor]:
        output = self.model(*batch.args, **batch.kwargs)
        loss = loss_of(output, batch, self.loss_fn)
        if loss is None or not loss.requires_grad:
            raise DataError(
                "a trial trains, and there is no loss to train on",
                "give loss_fn, and data that yield (x, y) pairs",
            )
        return output, loss

    def _update(self, batch: Batch) -> None:
        if not needs_closure(self.optimizer):
            self.optimizer.step()
            return

        def closure() -> float:
            self.optimizer.zero_grad(set_to_none=True)
            loss = self._forward(batch)[1]
            loss.backward()
            return float(loss.detach())

        self.optimizer.step(closure)

    def _snapshot(self, step: int, batch: Batch, attachment: Attachment, score: Score) -> Snapshot:
        recorder, (manifest, inputs) = attachment.recorder, self.described
        return Snapshot(
            records=recorder.records(),
            gaps=tuple(missing(attachment, recorder.measured)),
            manifest=self._manifest(step, batch) | score.summary() | manifest,
            coverage=coverage(attachment, recorder, 0.0),
            inputs=inputs,
            pictures=pictures(recorder.states),
        )

    def _manifest(self, step: int, batch: Batch) -> dict[str, Any]:
        return {
            "shiftscope": shiftscope.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "device": str(device_of(self.model)),
            "dtype": str(float_dtype(self.model)).removeprefix("torch."),
            "mode": "train",
            "model": type(self.model).__name__,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "batches": 1,
            "samples": batch.samples,
            "rows": self.settings.rows,
            "seed": self.settings.seed,
            "gradients": True,
            "trial": True,
            "step": step,
            "phase": "train",
            "optimizer": type(self.optimizer).__name__,
            "learning_rate": float(self.optimizer.param_groups[0]["lr"]),
        }


def _budget(model: nn.Module, steps: int) -> int:
    """Bytes of row samples for one site in one window."""
    return max(2**12, _SAMPLES // max(1, (steps + 1) * sum(1 for _ in model.modules())))


def _check(steps: int, rows: int, lr: float | None) -> None:
    if steps < 1:
        raise UsageError(f"steps must be at least 1, got {steps}", "leave it at 20")
    if rows < 2:
        raise UsageError(f"rows must be at least 2, got {rows}", "leave it at 256")
    if lr is not None and not (math.isfinite(lr) and lr > 0):
        raise UsageError(f"lr must be a positive number, got {lr}", "leave it out, or give 0.1")
    if distributed.world_size() > 1:
        raise UsageError(
            f"a trial runs in one process, here are {distributed.world_size()}",
            "run it without torchrun",
        )
