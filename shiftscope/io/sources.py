"""Where rows come from: a source is indexed, never iterated; here, arrays in memory.

Arrays keep the type they are stored in (bytes stay bytes) and become floating point one batch at a
time: unsigned 8-bit values are divided by 255.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shiftscope.errors import DataError

__all__ = ["ArraySource", "Source", "as_labels", "to_inputs"]


class Source(Protocol):
    """Rows by index."""

    classes: tuple[str, ...] | None
    labelled: bool

    def __len__(self) -> int:
        """Number of rows."""

    def rows(self, indices: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Inputs ``[rows, ...]`` and labels ``[rows, ...]`` (None without labels)."""


class ArraySource:
    """Inputs and labels in memory.

    Args:
        x: Inputs, ``[rows, ...]``.
        y: Targets, ``[rows]`` or ``[rows, ...]``, or None.
        name: Where they come from, for messages.
        classes: Names of the classes, where known.
    """

    def __init__(
        self,
        x: npt.NDArray[Any] | Tensor,
        y: npt.NDArray[Any] | Tensor | None,
        name: str,
        classes: Sequence[str] | None = None,
    ) -> None:
        """Check the arrays and keep them as they are stored."""
        self.x = _tensor(x, name, "x")
        self.y = None if y is None else as_labels(_tensor(y, name, "y"), name)
        self.classes = tuple(classes) if classes is not None else None
        self.labelled = self.y is not None
        _check(self.x, self.y, name)

    def __len__(self) -> int:
        """Number of rows."""
        return self.x.shape[0]

    def rows(self, indices: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """The named rows, inputs in floating point.

        Args:
            indices: Row numbers.

        Returns:
            Inputs and labels.
        """
        chosen = torch.as_tensor(indices)
        return to_inputs(self.x[chosen]), None if self.y is None else self.y[chosen]


def to_inputs(x: Tensor) -> Tensor:
    """What a model is fed: bytes as fractions of 255, halves as float32, the rest as it is.

    Args:
        x: A batch.

    Returns:
        The same shape; integers other than bytes stay integers (tokens).
    """
    if x.dtype is torch.uint8:
        return x.to(torch.float32) / 255
    if x.dtype in (torch.float16, torch.bfloat16, torch.bool):
        return x.to(torch.float32)
    return x


def as_labels(y: Tensor, name: str) -> Tensor:
    """Labels as int64, one-column labels as a vector; real-valued targets as float.

    Args:
        y: As stored.
        name: Where they come from, for messages.

    Returns:
        The targets.

    Raises:
        DataError: A class label is negative.
    """
    if y.is_floating_point() or y.is_complex():
        return y.to(torch.float32) if y.dtype in (torch.float16, torch.bfloat16) else y
    y = y.to(torch.int64)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.numel() and y.ndim == 1 and int(y.min()) < 0:
        row = int(torch.argmin(y))
        raise DataError(
            f"{name}: label {int(y[row])} in row {row} is negative",
            "classes are numbered from 0; remove rows without a label",
        )
    return y


def _tensor(values: npt.NDArray[Any] | Tensor, name: str, what: str) -> Tensor:
    if isinstance(values, Tensor):
        return values
    values = np.asarray(values)
    if values.dtype.kind not in "biufc":
        raise DataError(
            f"{name}: {what} has the type {values.dtype}, not numbers", "save a numeric array"
        )
    native = values.astype(values.dtype.newbyteorder("="), copy=False)
    if native.dtype.kind == "u" and native.dtype.itemsize > 1:
        native = native.astype(np.int64)
    if native.dtype.itemsize > 8 and native.dtype.kind == "f":
        native = native.astype(np.float64)
    return torch.from_numpy(np.require(native, requirements=["C", "W"]))


def _check(x: Tensor, y: Tensor | None, name: str) -> None:
    """Empty sets, lengths that differ, and values no model can take."""
    if x.ndim == 0 or x.shape[0] == 0 or x.numel() == 0:
        raise DataError(
            f"{name}: the data set is empty (x has shape {list(x.shape)})",
            "give at least one row",
        )
    if x.ndim == 1:
        raise DataError(
            f"{name}: x has shape {list(x.shape)}, expected [rows, features, ...]",
            "give one row a sample: x.reshape(-1, 1) for single numbers",
        )
    if y is not None and y.shape[:1] != x.shape[:1]:
        raise DataError(
            f"{name}: x has {x.shape[0]} rows, y has {y.shape[0] if y.ndim else 'none'}",
            "give one target a row",
        )
    for what, values in (("x", x), ("y", y)):
        if values is not None:
            check_finite(values, name, what)


def check_finite(values: Tensor, name: str, what: str) -> None:
    """Refuse NaN and infinities in data.

    Args:
        values: ``[rows, ...]``.
        name: Where they come from.
        what: "x" or "y".

    Raises:
        DataError: There are some, with their number and first row.
    """
    if not (values.is_floating_point() or values.is_complex()):
        return
    bad = ~torch.isfinite(values)
    count = int(bad.sum())
    if count:
        row = int(bad.reshape(bad.shape[0], -1).any(dim=1).nonzero()[0, 0])
        raise DataError(
            f"{name}: {what} holds {count} values that are NaN or infinite (first in row {row})",
            "clean or impute the data; a model fed with NaN gives NaN everywhere",
        )
