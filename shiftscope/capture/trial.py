"""``ss.trial``: a short training run on a copy, watched at every step.

Initialisation alone is nearly blind: a network with normalised weights can start without any
shift and be all shift after five steps. Some twenty steps tell what will learn from what will not.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from shiftscope.capture import distributed
from shiftscope.capture.arguments import (
    check_data,
    check_loss,
    check_model,
    device_named,
    entries,
    precision_of,
)
from shiftscope.capture.copies import preserved_generators
from shiftscope.capture.preserve import preserved
from shiftscope.capture.recorder import Settings
from shiftscope.capture.sites import unwrapped
from shiftscope.capture.trial_run import Factory, Loss, NoLossError, Progress, TrialRun
from shiftscope.errors import UsageError
from shiftscope.given import positive, shown, whole
from shiftscope.trace import Trace

__all__ = ["NoLossError", "trial"]

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
    dtype: torch.dtype | str | None = None,
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
        data: Iterable of batches as :func:`~shiftscope.capture.analyze.analyze` takes them, read
            from its start, several times if it is shorter than the steps. A one-shot iterator is
            used up; where it runs out early the trial ends, with a RuntimeWarning and a gap.
        loss_fn: ``loss_fn(output, y) -> scalar``. None takes the output's own ``loss``.
        optimizer: An optimizer of this model's parameters, whose settings and state are taken
            over; or a function ``parameters -> optimizer``; or None for SGD with learning rate 0.1
            and momentum 0.9.
        steps: Number of updates.
        lr: Learning rate of all parameter groups, in place of the optimizer's.
        rows: Largest row sample for quantiles in each window.
        dtype: Precision to train in, or its name; None stays.
        device: Device to train on; None stays.
        seed: Seed of the row sample.
        inputs: Statistics of the data, kept in every snapshot.
        manifest: Further entries for the manifests.
        progress: Called as ``progress(steps done, steps in all)``.

    Returns:
        The trace: window ``k`` was measured after ``k`` updates, ``k = 0 ... steps``, on the batch
        that update ``k + 1`` used. It ends early at a loss that is not finite, and where the
        data run out.

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
    check_model(model)
    check_data(data)
    check_loss(loss_fn)
    steps, rows = _checked(steps, rows, lr, optimizer)
    options = lr, precision_of(dtype), device_named(device)
    model = unwrapped(model)
    with ExitStack() as keep:
        keep.enter_context(preserved(model))
        keep.enter_context(preserved_generators(data))
        keep.enter_context(torch.inference_mode(False))
        keep.enter_context(torch.enable_grad())
        keep.enter_context(torch.compiler.set_stance("force_eager"))
        run = TrialRun(model, loss_fn, optimizer, options)
        run.settings = Settings(rows, seed, sample_budget=_budget(model, steps))
        run.described = entries("manifest", manifest), entries("inputs", inputs)
        trace = Trace.of(run.windows(data, steps, progress))
    return _shortened(trace, run.ran_out, steps) if run.ran_out else trace


def _budget(model: nn.Module, steps: int) -> int:
    """Bytes of row samples for one site in one window."""
    return max(2**12, _SAMPLES // max(1, (steps + 1) * sum(1 for _ in model.modules())))


def _shortened(trace: Trace, done: int, steps: int) -> Trace:
    """A trace whose last window says that the data ran out, not the network."""
    told = f"the data ran out: {done} windows of {steps + 1} were measured"
    warnings.warn(
        f"{told}; give data that can be iterated anew, such as a list or a DataLoader",
        RuntimeWarning,
        stacklevel=3,
    )
    last = trace.windows[-1]
    snapshot = replace(
        last.snapshot,
        gaps=(*last.snapshot.gaps, ("", told)),
        manifest={**last.snapshot.manifest, "steps_asked": steps, "data_ran_out": True},
    )
    trace.windows[-1] = replace(last, snapshot=snapshot)
    return trace


def _checked(steps: Any, rows: Any, lr: Any, optimizer: Any) -> tuple[int, int]:
    if lr is not None:
        positive("lr", lr, "leave it out, or give 0.1")
    if isinstance(optimizer, nn.Module) or not (
        optimizer is None or isinstance(optimizer, Optimizer) or callable(optimizer)
    ):
        raise UsageError(
            f"optimizer is {shown(optimizer)}, expected a torch optimizer or a function making one",
            "give the optimizer of this model, or lambda p: torch.optim.Adam(p, lr=1e-3)",
        )
    if distributed.world_size() > 1:
        raise UsageError(
            f"a trial runs in one process, here are {distributed.world_size()}",
            "run it without torchrun",
        )
    return whole("steps", steps, 1, "leave it at 20"), whole("rows", rows, 2, "leave it at 256")
