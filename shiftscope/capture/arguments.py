"""What a measurement is asked for, checked before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from shiftscope.errors import DataError, UsageError
from shiftscope.given import expect, shown

__all__ = [
    "check_data",
    "check_loss",
    "check_model",
    "device_named",
    "entries",
    "patterns",
    "precision_of",
]


def check_model(model: Any) -> None:
    """Refuse what is no module.

    Args:
        model: What was given as the model.

    Raises:
        UsageError: It is no ``torch.nn.Module``.
    """
    expect("the model", model, nn.Module)


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


def check_loss(loss_fn: Any) -> None:
    """Refuse a loss that cannot be called on an output and a target.

    Args:
        loss_fn: What was given as the loss; None is one.

    Raises:
        UsageError: It is no function, or a class where an instance was meant.
    """
    if isinstance(loss_fn, type) and issubclass(loss_fn, nn.Module):
        raise UsageError(
            f"loss_fn is the class {loss_fn.__name__}, expected a function of (output, target)",
            f"give an instance: {loss_fn.__name__}()",
        )
    if loss_fn is not None and not callable(loss_fn):
        raise UsageError(
            f"loss_fn is {shown(loss_fn)}, expected a function of (output, target)",
            "give one such as torch.nn.functional.cross_entropy, or None",
        )


def patterns(name: str, value: Any) -> tuple[str, ...]:
    """Patterns of names, of which there may be one.

    Args:
        name: What the argument is called.
        value: What was given for it: a pattern, or several.

    Returns:
        The patterns.

    Raises:
        UsageError: It is none.
    """
    remedy = "give a pattern such as 'encoder.*', or a list of them"
    if not isinstance(value, str | Iterable):
        raise UsageError(f"{name} is {shown(value)}, expected patterns of names", remedy)
    found = (value,) if isinstance(value, str) else tuple(value)
    if not found or not all(isinstance(pattern, str) for pattern in found):
        raise UsageError(f"{name} is {found!r:.60}, expected patterns of names", remedy)
    return found


def entries(name: str, value: Any) -> dict[str, Any]:
    """Entries of a mapping, none where it was left out.

    Args:
        name: What the argument is called.
        value: What was given for it.

    Returns:
        A new dictionary.

    Raises:
        UsageError: It is no mapping.
    """
    if value is None or isinstance(value, Mapping):
        return dict(value or {})
    raise UsageError(f"{name} is {shown(value)}, expected a mapping", "give a dictionary")


def device_named(device: Any) -> torch.device | None:
    """The device that was asked for.

    Args:
        device: A device, its name, or None.

    Returns:
        The device, or None.

    Raises:
        UsageError: No device is called so.
    """
    if device is None:
        return None
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UsageError(
            f"device is {shown(device)}, which is none", "give 'cpu' or 'cuda'"
        ) from error


def precision_of(dtype: Any) -> torch.dtype | None:
    """The floating dtype that was asked for.

    Args:
        dtype: A dtype, its name, or None.

    Returns:
        The dtype, or None.

    Raises:
        UsageError: It is no floating dtype.
    """
    if dtype is None:
        return None
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if isinstance(found, torch.dtype) and found.is_floating_point:
        return found
    told = str(dtype) if isinstance(dtype, torch.dtype) else shown(dtype)
    raise UsageError(f"dtype is {told}, expected a floating dtype", "give torch.float64")
