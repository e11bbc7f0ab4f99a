"""What a measurement is asked for, checked before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from shiftscope.errors import DataError, UsageError

__all__ = ["check_data", "check_model", "precision_of"]


def check_model(model: Any) -> None:
    """Refuse what is no module.

    Args:
        model: What was given as the model.

    Raises:
        UsageError: It is no ``torch.nn.Module``.
    """
    if isinstance(model, nn.Module):
        return
    kind = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
    raise UsageError(
        f"the model is {kind}, expected a torch.nn.Module",
        "give the module itself, built and with its weights loaded",
    )


def check_data(data: Any) -> None:
    """Refuse what would be iterated by mistake: one batch instead of an iterable of batches.

    Args:
        data: What was given as the data.

    Raises:
        DataError: It is one tensor, one pair of tensors, one mapping, or not iterable.
    """
    if isinstance(data, Tensor):
        raise DataError("data is a tensor, expected an iterable of batches", "give [x] or [(x, y)]")
    if isinstance(data, Mapping):
        raise DataError("data is a mapping, expected an iterable of batches", "give [batch]")
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(v, Tensor) for v in data):
        raise DataError(
            "data is a pair of tensors, expected an iterable of batches",
            "give [(x, y)] for one batch with a target, [x1, x2] for two without",
        )
    if not isinstance(data, Iterable) and not hasattr(data, "__getitem__"):
        raise DataError(
            f"data is {type(data).__name__}, expected an iterable of batches",
            "give a DataLoader or a list such as [(x, y)]",
        )


def precision_of(dtype: Any) -> torch.dtype | None:
    """The floating dtype that was asked for.

    Args:
        dtype: A dtype, its name, or None.

    Returns:
        The dtype, or None.

    Raises:
        UsageError: It is no floating dtype.
    """
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found is None and dtype is None:
        return None
    if isinstance(found, torch.dtype) and found.is_floating_point:
        return found
    raise UsageError(f"dtype is {dtype!r}, expected a floating dtype", "give torch.float64")
