"""What a batch is: inputs, perhaps a target, in the forms data loaders give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shiftscope.errors import DataError

__all__ = ["Batch", "Score", "as_batch", "loss_of"]

Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Batch:
    """Inputs of one forward pass and the target of its loss.

    Attributes:
        args: Positional inputs.
        kwargs: Keyword inputs (a mapping batch, as Hugging Face models take it).
        target: The target, or None.
        paired: Whether the item had a place for a target.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    target: Any = None
    paired: bool = False

    @property
    def shapes(self) -> str:
        """Shapes of the tensors, for error messages."""
        items = [*enumerate(self.args), *self.kwargs.items()]
        return ", ".join(f"{k}: {tuple(v.shape)}" for k, v in items if isinstance(v, Tensor))

    def to(self, device: torch.device, dtype: torch.dtype | None) -> Batch:
        """The same batch on another device, floating tensors in another precision."""
        return Batch(
            _moved(self.args, device, dtype),
            _moved(self.kwargs, device, dtype),
            _moved(self.target, device, dtype),
            self.paired,
        )

    @property
    def samples(self) -> int:
        """Samples in the batch: first dimension of the first tensor."""
        tensors = [
            v for v in (*self.args, *self.kwargs.values()) if isinstance(v, Tensor) and v.dim()
        ]
        return int(tensors[0].shape[0]) if tensors else 1

    def require_input_grad(self) -> Batch:
        """The same batch with floating inputs that require grad, for models that are all frozen."""
        args = tuple(_leaf(value) for value in self.args)
        kwargs = {key: _leaf(value) for key, value in self.kwargs.items()}
        return Batch(args, kwargs, self.target, self.paired)


def as_batch(item: Any, with_target: bool) -> Batch:
    """Read one item of a data iterable.

    Args:
        item: A tensor; ``(x, y)`` or ``(x1, ..., y)``; ``(x,)``; or a mapping of keyword inputs.
        with_target: Whether a loss wants the last of several items as its target.

    Returns:
        The batch.

    Raises:
        DataError: The item is none of these.
    """
    if isinstance(item, Tensor):
        return Batch((item,), {})
    if isinstance(item, Mapping):
        return Batch((), dict(item))
    if isinstance(item, list | tuple) and item:
        if len(item) == 1:
            return Batch((item[0],), {})
        if len(item) == 2 or with_target:
            return Batch(tuple(item[:-1]), {}, item[-1], paired=True)
        return Batch(tuple(item), {})
    raise DataError(
        f"a batch is a tensor, (x, y) or a mapping of tensors; got {type(item).__name__}",
        "let the data iterable yield tensors or tuples of tensors (a DataLoader does)",
    )


def loss_of(output: Any, batch: Batch, loss_fn: Loss | None) -> Tensor | None:
    """The scalar loss of one output, or None when there is none to take.

    Args:
        output: What the model returned.
        batch: The batch it was given.
        loss_fn: ``loss_fn(output, target)``; None uses ``output.loss`` where the model sets it.

    Returns:
        A scalar that requires grad, or None.

    Raises:
        DataError: The loss is no scalar tensor, or a target is missing.
    """
    if loss_fn is None:
        loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        return loss if isinstance(loss, Tensor) and loss.dim() == 0 else None
    if not batch.paired and not batch.kwargs:
        raise DataError(
            "a loss was given, but the data have no targets",
            "yield (x, y) pairs, or pass loss_fn=None",
        )
    loss = loss_fn(output, batch.target if batch.paired else batch.kwargs)
    if not isinstance(loss, Tensor) or loss.dim() != 0:
        kind = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise DataError(
            f"the loss must be a scalar tensor, got {kind}", "reduce it, by loss.mean()"
        )
    return loss


@dataclass
class Score:
    """Mean loss, and accuracy where output and target are those of a classifier."""

    loss: float = 0.0
    rows: int = 0
    correct: int = 0
    judged: int = 0
    classes: dict[int, int] | None = None

    def add(self, output: Any, batch: Batch, loss: Tensor | None) -> None:
        """Count one batch."""
        if loss is not None:
            self.loss += float(loss.detach()) * batch.samples
            self.rows += batch.samples
        logits, target = _classifier(output, batch.target)
        if logits is None or target is None:
            return
        self.correct += int((logits.detach().argmax(dim=1) == target).sum())
        self.judged += int(target.numel())
        self.classes = self.classes or {}
        for label, count in zip(*target.unique(return_counts=True), strict=True):
            self.classes[int(label)] = self.classes.get(int(label), 0) + int(count)

    def summary(self) -> dict[str, Any]:
        """Entries for the manifest; keys are left out where they do not apply."""
        out: dict[str, Any] = {}
        if self.rows:
            out["loss"] = self.loss / self.rows
        if self.judged and self.classes:
            out |= {
                "accuracy": self.correct / self.judged,
                "accuracy_rows": self.judged,
                "chance_accuracy": max(self.classes.values()) / self.judged,
                "class_counts": {str(label): n for label, n in sorted(self.classes.items())},
            }
        return out


def _classifier(output: Any, target: Any) -> tuple[Tensor | None, Tensor | None]:
    logits = (
        output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    )
    if not isinstance(logits, Tensor) or not isinstance(target, Tensor):
        return None, None
    labels = not target.is_floating_point() and target.dim() == logits.dim() - 1
    fits = labels and logits.dim() >= 2 and target.shape == logits.shape[:1] + logits.shape[2:]
    return (logits, target) if fits and logits.shape[1] > 1 else (None, None)


def _moved(value: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    if isinstance(value, Tensor):
        # An inference tensor cannot enter a graph; its copy made outside of inference mode can.
        value = value.clone() if value.is_inference() else value
        return value.to(device, dtype) if value.is_floating_point() else value.to(device)
    if isinstance(value, dict):
        return {key: _moved(item, device, dtype) for key, item in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(_moved(item, device, dtype) for item in value)
    mover = getattr(value, "to", None)
    return mover(device) if callable(mover) and not isinstance(value, nn.Module) else value


def _leaf(value: Any) -> Any:
    fits = isinstance(value, Tensor) and value.is_floating_point()
    return value.detach().requires_grad_() if fits else value
