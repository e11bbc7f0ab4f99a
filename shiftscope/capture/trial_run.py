"""The training run of a trial: a copy of a model, watched at every step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import shiftscope
from shiftscope.capture.batches import Batch, Score, as_batch, blaming, loss_of
from shiftscope.capture.copies import copied, fresh, needs_closure, optimizer_for
from shiftscope.capture.coverage import coverage, missing
from shiftscope.capture.pictures import pictures
from shiftscope.capture.placement import device_of, existing, float_dtype, place
from shiftscope.capture.probe import Attachment
from shiftscope.capture.recorder import Recorder, Settings
from shiftscope.errors import DataError, MeasureError
from shiftscope.snapshot import Snapshot

__all__ = ["Factory", "Loss", "NoLossError", "Progress", "TrialRun"]

Loss = Callable[[Any, Any], Tensor]
Progress = Callable[[int, int], None]
Factory = Callable[[list[nn.Parameter]], Optimizer]


class NoLossError(DataError):
    """There is no loss to train on: none was given, and the output carries none."""


class TrialRun:
    """A training run of a copy.

    Args:
        model: The model; a copy of it is trained.
        loss_fn: The loss, or None for the one that the output carries.
        optimizer: What is to train it (see :func:`shiftscope.capture.trial.trial`).
        options: Learning rate, precision and device; None stays.

    Attributes:
        settings: What to record.
        described: Further entries for the manifests, and statistics of the inputs.
        ran_out: Updates done when the data ran out before the last step; 0 where they did not.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Loss | None,
        optimizer: Optimizer | Factory | None,
        options: tuple[float | None, torch.dtype | None, torch.device | None],
    ) -> None:
        lr, dtype, device = options
        self.model, given, self.loss_fn = copied(model, optimizer, loss_fn)
        for part in (self.model, self.loss_fn):
            if isinstance(part, nn.Module):
                _place(part, device, dtype)
        self.optimizer = optimizer_for(self.model, given)
        if lr is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = lr
        if not self.model.training:
            self.model.train()
        self.settings = Settings()
        self.described: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
        self.ran_out = 0

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
                self.ran_out = step
                return
            snapshot, loss = self._watched(step, batch)
            yield snapshot
            if progress is not None:
                progress(step, steps)
            if step == steps or not math.isfinite(loss):
                return
            with blaming("the optimizer", f"in update {step + 1} of the trial", batch):
                self._update(batch, f"in update {step + 1} of the trial")

    def _batches(self, data: Iterable[Any]) -> Iterator[Batch]:
        found = True
        while found:
            found = False
            for item in fresh(data):
                batch = as_batch(item, self.loss_fn is not None, self.model)
                if batch.samples:
                    found = True
                    yield batch.to(device_of(self.model), float_dtype(self.model))

    def _watched(self, step: int, batch: Batch) -> tuple[Snapshot, float]:
        """Forward and backward under watch, up to the gradients that the update will use."""
        recorder = Recorder(self.settings)
        attachment = Attachment(self.model, recorder, unfuse=True)
        self.optimizer.zero_grad(set_to_none=True)
        where = f"at step {step} of the trial"
        with attachment:
            output, loss = self._forward(batch, where)
            self._backward(loss, batch, where)
        score = Score()
        score.add(output, batch, loss)
        return self._snapshot(step, batch, attachment, score), float(loss.detach())

    def _forward(self, batch: Batch, where: str) -> tuple[Any, Tensor]:
        with blaming("the model", where, batch):
            output = self.model(*batch.args, **batch.kwargs)
        with blaming("the loss", where, batch):
            loss = loss_of(output, batch, self.loss_fn)
        if loss is None or not loss.requires_grad:
            raise NoLossError(
                "a trial trains, and there is no loss to train on",
                "give loss_fn, and data that yield (x, y) pairs",
            )
        return output, loss

    def _backward(self, loss: Tensor, batch: Batch, where: str) -> None:
        with blaming("the backward pass", where, batch):
            loss.backward()

    def _update(self, batch: Batch, where: str) -> None:
        if not needs_closure(self.optimizer):
            self.optimizer.step()
            return

        def closure() -> float:
            self.optimizer.zero_grad(set_to_none=True)
            loss = self._forward(batch, where)[1]
            self._backward(loss, batch, where)
            return float(loss.detach())

        self.optimizer.step(closure)

    def _snapshot(self, step: int, batch: Batch, attachment: Attachment, score: Score) -> Snapshot:
        recorder, (manifest, inputs) = attachment.recorder, self.described
        return Snapshot(
            records=recorder.records(),
            gaps=tuple(missing(attachment, recorder)),
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
            "parameters": sum(p.numel() for p in existing(self.model)),
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


def _place(module: nn.Module, device: torch.device | None, dtype: torch.dtype | None) -> None:
    try:
        place(module, device, dtype)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        words = (str(error).splitlines() or [""])[0]
        raise MeasureError(
            f"the copy cannot be moved to {device or dtype}: {words}",
            "move the model yourself, by model.to(...), and leave device and dtype out",
        ) from error
