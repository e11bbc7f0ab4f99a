"""What a probe is given, and under which conditions it measures."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

import shiftscope
from shiftscope.capture.arguments import check_model
from shiftscope.capture.belonging import check_optimizer
from shiftscope.capture.placement import existing
from shiftscope.capture.recorder import Settings
from shiftscope.errors import UsageError
from shiftscope.given import shown, whole

__all__ = ["check", "described", "is_capturing", "noted_on", "sample_budget"]


def described(model: nn.Module | None, phase: str, settings: Settings) -> dict[str, Any]:
    """The part of a manifest that says what was measured, and by what."""
    parameters = [] if model is None else existing(model)
    first = next((p for p in parameters if p.is_floating_point()), None)
    return {
        "shiftscope": shiftscope.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "device": "cpu" if first is None else str(first.device),
        "dtype": None if first is None else str(first.dtype).removeprefix("torch."),
        "mode": phase,
        "phase": phase,
        "model": type(model).__name__,
        "parameters": sum(p.numel() for p in parameters),
        "rows": settings.rows,
        "seed": settings.seed,
        "ranks": 1,
        "rank": settings.rank,
        "gradients": phase == "train",
    }


def check(
    model: Any, optimizer: Any, rows: int, scaler: Any, window: int | None, start: int | None
) -> None:
    """Refuse arguments of ``ss.watch`` that have no meaning."""
    check_model(model)
    whole("rows", rows, 2, "use the default of 1024")
    if window is not None:
        whole("window", window, 1, "leave window out")
    if start is not None:
        whole("start", start, 0, "give the number of steps done before, or leave it out")
    if scaler is not None and not callable(getattr(scaler, "is_enabled", None)):
        raise UsageError(
            f"scaler is {shown(scaler)}, expected a torch.amp.GradScaler",
            "give the scaler that scales the loss, or leave it out",
        )
    if scaler is not None and optimizer is None:
        raise UsageError(
            "with a scaler the steps that overflow are known by the optimizer only",
            "give ss.watch the optimizer as well",
        )
    check_optimizer(model, optimizer)


@contextmanager
def noted_on(error: BaseException | None, what: str) -> Iterator[None]:
    """Where an exception is under way a failure of ours is noted on it, and never replaces it."""
    try:
        yield
    except Exception as failure:
        if error is None:
            raise
        error.add_note(f"{what}: {failure!r}")


def sample_budget(model: nn.Module) -> int:
    """Bytes of row samples one site may hold."""
    modules = sum(1 for _ in model.modules())
    return max(2**18, 2**28 // max(1, modules))


def is_capturing() -> bool:
    """Whether a CUDA graph is being captured on the current stream."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
