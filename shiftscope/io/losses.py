"""Losses by name, with checks that say what is wrong with a target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch.nn.functional as F
from torch import Tensor, nn

from shiftscope.errors import DataError, UsageError
from shiftscope.io.factories import resolve

__all__ = ["FORMS", "LossFunction", "load_loss"]

LossFunction: TypeAlias = Callable[[Any, Any], Tensor]

FORMS = "cross_entropy, nll, mse, bce, none, FILE.py:FUNCTION, PACKAGE.MODULE:FUNCTION"
"""The forms of a loss SPEC, for messages."""


def load_loss(
    spec: str | None, *, base: str | Path | None = None, folders: Sequence[Path] = ()
) -> LossFunction | None:
    """The loss a SPEC names.

    Args:
        spec: ``cross_entropy`` (logits and class labels), ``nll`` (log-probabilities and class
            labels), ``mse``, ``bce`` (logits and targets in [0, 1]), ``none``, the user's own
            ``file.py:function`` of (output, target), or None: the ``loss`` of the output where
            batches are mappings and the model gives one, else chosen by the first target
            (cross-entropy for integers, mean squared error for real numbers). Of a mapping the
            entry ``labels`` is the target; functions of the user's are given all of it.
        base: Folder for relative files; the working directory.
        folders: Further folders to look in (the checkpoint's).

    Returns:
        A function of (output, target) to a scalar; None for ``none``.

    Raises:
        UsageError: The SPEC cannot be meant.
    """
    if spec is None:
        return _by_target
    if spec == "none":
        return None
    if spec in _LOSSES:
        return _of_labels(_LOSSES[spec], spec)
    if ":" not in spec:
        raise UsageError(f"{spec!r} is no loss SPEC", f"use one of {FORMS}")
    found, shown = resolve(spec, [Path(base) if base is not None else Path.cwd(), *folders])
    if isinstance(found, type) and issubclass(found, nn.Module):
        found = found()
    if not callable(found):
        raise UsageError(f"{shown} is a {type(found).__name__}, not a function", FORMS)
    return _own(found, shown)


def _output(output: Any) -> Tensor:
    """The tensor to compare: logits of a named output, or the first tensor of several."""
    named = getattr(output, "logits", None)
    if isinstance(named, Tensor):
        return named
    if isinstance(output, dict):
        output = output.get("logits", next(iter(output.values()), None))
    while isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise DataError(
            f"the model returns a {type(output).__name__}, which no built-in loss understands",
            "give your own: --loss FILE.py:FUNCTION of (output, target)",
        )
    return output


def cross_entropy(output: Any, target: Tensor) -> Tensor:
    """Cross-entropy of logits, averaged.

    Args:
        output: Logits ``[rows, classes, ...]``.
        target: Class labels ``[rows, ...]``, or probabilities of the shape of the logits.

    Returns:
        A scalar.

    Raises:
        DataError: Labels are out of range, or shapes do not fit.
    """
    logits = _output(output)
    if target.is_floating_point():
        _check_shape(logits, target, "cross_entropy with probabilities")
    else:
        logits = _check_labels(logits, target, "cross_entropy")
    return F.cross_entropy(logits, target)


def nll(output: Any, target: Tensor) -> Tensor:
    """Negative log-likelihood, averaged.

    Args:
        output: Log-probabilities ``[rows, classes, ...]``.
        target: Class labels ``[rows, ...]``.

    Returns:
        A scalar.

    Raises:
        DataError: Labels are out of range, or shapes do not fit.
    """
    return F.nll_loss(_check_labels(_output(output), target, "nll"), target)


def mse(output: Any, target: Tensor) -> Tensor:
    """Mean squared error.

    Args:
        output: ``[rows, ...]``.
        target: The same shape; a vector fits a single column.

    Returns:
        A scalar.

    Raises:
        DataError: Shapes do not fit.
    """
    values = _output(output)
    fitted = _as_column(values, target)
    _check_shape(values, fitted, "mse")
    return F.mse_loss(values, fitted.to(values.dtype))


def bce(output: Any, target: Tensor) -> Tensor:
    """Binary cross-entropy of logits, averaged.

    Args:
        output: Logits ``[rows, ...]``.
        target: Numbers in [0, 1] of the same shape; a vector fits a single column.

    Returns:
        A scalar.

    Raises:
        DataError: Targets lie outside of [0, 1], or shapes do not fit.
    """
    logits = _output(output)
    fitted = _as_column(logits, target)
    _check_shape(logits, fitted, "bce")
    if fitted.numel() and (float(fitted.min()) < 0 or float(fitted.max()) > 1):
        raise DataError(
            f"bce expects targets in [0, 1], got {float(fitted.min()):g} to "
            f"{float(fitted.max()):g}",
            "use --loss cross_entropy for class labels, mse for real values",
        )
    return F.binary_cross_entropy_with_logits(logits, fitted.to(logits.dtype))


def _by_target(output: Any, target: Any) -> Tensor:
    """The model's own loss of a mapping; cross-entropy for labels, squared error for numbers."""
    if isinstance(target, Mapping):
        own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        if isinstance(own, Tensor) and own.numel() == 1:
            return own.reshape(())
        target = _labels(target, "the loss that was chosen")
    real = isinstance(target, Tensor) and target.is_floating_point()
    return mse(output, target) if real else cross_entropy(output, target)


def _of_labels(loss: LossFunction, name: str) -> LossFunction:
    """A loss that takes its target out of a batch that is a mapping."""

    def of_labels(output: Any, target: Any) -> Tensor:
        return loss(output, _labels(target, name) if isinstance(target, Mapping) else target)

    return of_labels


def _labels(batch: Mapping[str, Any], name: str) -> Tensor:
    labels = batch.get("labels")
    if not isinstance(labels, Tensor):
        raise DataError(
            f"{name} needs an entry 'labels' in the batch, which has {', '.join(map(str, batch))}",
            "add it, or give your own: --loss FILE.py:FUNCTION of (output, batch)",
        )
    return labels


_LOSSES: dict[str, LossFunction] = {
    "cross_entropy": cross_entropy,
    "nll": nll,
    "mse": mse,
    "bce": bce,
}


def _as_column(output: Tensor, target: Tensor) -> Tensor:
    column = output.ndim == target.ndim + 1 and output.shape[-1] == 1
    return target.unsqueeze(-1) if column else target


def _check_shape(output: Tensor, target: Tensor, loss: str) -> None:
    if output.shape != target.shape:
        raise DataError(
            f"{loss} expects a target of shape {list(output.shape)}, got {list(target.shape)}",
            "give targets of the shape of the output, or another --loss",
        )


def _check_labels(logits: Tensor, target: Tensor, loss: str) -> Tensor:
    """Shapes and range of class labels, told in their own terms."""
    if logits.ndim < 2 or logits.shape[:1] + logits.shape[2:] != target.shape:
        raise DataError(
            f"{loss} expects labels of shape {list(logits.shape[:1] + logits.shape[2:])} for an "
            f"output of shape {list(logits.shape)}, got {list(target.shape)}",
            "give one class number a row, or another --loss",
        )
    if target.dtype.is_floating_point or target.dtype.is_complex:
        raise DataError(f"{loss} expects class numbers, got {target.dtype}", "use --loss mse")
    valid = target[target != -100]  # torch's ignore_index
    if valid.numel() and (int(valid.min()) < 0 or int(valid.max()) >= logits.shape[1]):
        wrong = int(valid.max()) if int(valid.max()) >= logits.shape[1] else int(valid.min())
        raise DataError(
            f"label {wrong} is out of range: the model has {logits.shape[1]} outputs, "
            f"classes 0 to {logits.shape[1] - 1}",
            "check that data and model belong together, and that classes count from 0",
        )
    return logits


def _own(function: Callable[..., Any], shown: str) -> LossFunction:
    """The user's function, held to returning a scalar."""

    def loss(output: Any, target: Any) -> Tensor:
        value = function(output, target)
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise DataError(
                f"{shown} returns {got}, expected a scalar tensor", "return the mean over rows"
            )
        return value.reshape(())

    return loss
