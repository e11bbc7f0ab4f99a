"""What a batch is: inputs, perhaps a target, in the forms data loaders give."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from shiftscope.capture.placement import in_precision
from shiftscope.errors import DataError, MeasureError, ShiftscopeError

__all__ = ["Batch", "Score", "as_batch", "blaming", "loss_of"]

Loss = Callable[[Any, Any], Tensor]

_TOLD = 8
"""Inputs of a batch that an error names."""
_REMEDIES = {
    "the model": "check that the data have the shape, type and range the model was trained on",
    "the loss": "check that it takes (output, target), and that the target has the shape, "
    "type and range it expects",
    "the backward pass": "check that the model and the loss can be trained on such a batch",
    "the optimizer": "check that it can train this model, and its settings",
}


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
    def tensors(self) -> list[Tensor]:
        """All input tensors, however deep in tuples and mappings they lie."""
        return [value for _, value in self._inputs() if isinstance(value, Tensor)]

    @property
    def shapes(self) -> str:
        """Shapes of inputs and target, for error messages."""
        target = _leaves(self.target, "target") if self.paired else ()
        told = [f"{place}: {_told(value)}" for place, value in (*self._inputs(), *target)]
        return ", ".join(told[:_TOLD]) + (", ..." if len(told) > _TOLD else "")

    def _inputs(self) -> Iterator[tuple[str, Any]]:
        yield from _leaves(self.args)
        yield from _leaves(self.kwargs)

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
        return next((int(value.shape[0]) for value in self.tensors if value.dim()), 1)

    def require_input_grad(self) -> Batch:
        """The same batch with floating inputs that require grad, for models that are all frozen."""
        return Batch(
            _mapped(self.args, _leaf), _mapped(self.kwargs, _leaf), self.target, self.paired
        )


def as_batch(item: Any, with_target: bool, model: nn.Module | None = None) -> Batch:
    """Read one item of a data iterable.

    Args:
        item: A tensor; ``(x, y)`` or ``(x1, ..., y)``; ``(x,)``; or a mapping of keyword inputs.
        with_target: Whether a loss wants the last of several items as its target. Without one it
            is left aside where the model cannot take it.
        model: What will be run. Where it takes several inputs, an ``x`` that is a tuple or a
            mapping of them is taken apart; elsewhere it is passed on as it is.

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
            return Batch(*_inputs_for(model, item[0]))
        if len(item) == 2:
            return Batch(*_inputs_for(model, item[0]), item[1], paired=True)
        if with_target or _has_one_too_many(model, item):
            return Batch(tuple(item[:-1]), {}, item[-1], paired=True)
        return Batch(tuple(item), {})
    raise DataError(
        f"a batch is a tensor, (x, y) or a mapping of tensors; got {type(item).__name__}",
        "let the data iterable yield tensors or tuples of tensors (a DataLoader does); an object "
        "of another kind that the model takes is given as x of (x, y), or (x, None) without a loss",
    )


@contextmanager
def blaming(part: str, where: str, batch: Batch) -> Iterator[None]:
    """Say of what is raised inside which part raised it, and on which batch.

    Args:
        part: ``"the model"``, ``"the loss"``, ``"the backward pass"`` or ``"the optimizer"``.
        where: Such as ``"on batch 3"``.
        batch: The batch it was given.

    Raises:
        MeasureError: The part raised.
    """
    try:
        yield
    except ShiftscopeError:
        raise
    except Exception as error:
        words = (str(error).strip().splitlines() or [""])[0][:200]
        raise MeasureError(
            f"{part} raised {type(error).__name__} {where} ({batch.shapes}): {words}",
            _REMEDIES[part],
        ) from error


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


def _has_one_too_many(model: nn.Module | None, items: Iterable[Any]) -> bool:
    """Whether a model takes all of some items but the last."""
    takes = _signature(model)
    given = tuple(items)
    return takes is not None and not _binds(takes, given) and _binds(takes, given[:-1])


def _signature(model: nn.Module | None) -> inspect.Signature | None:
    try:
        return inspect.signature(model.forward) if model is not None else None
    except (TypeError, ValueError):  # a compiled or scripted forward may tell nothing
        return None


def _inputs_for(model: nn.Module | None, x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword inputs: ``x`` itself, or its parts where the model takes those."""
    takes = _signature(model)
    if takes is None or isinstance(x, Tensor):
        return (x,), {}
    if isinstance(x, Mapping):
        named = {p.name for p in takes.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD}
        named |= {p.name for p in takes.parameters.values() if p.kind is p.KEYWORD_ONLY}
        if set(x) <= named or (not _binds(takes, (x,)) and _binds(takes, (), x)):
            return (), dict(x)
    elif _is_plain(x) and not _binds(takes, (x,)) and _binds(takes, x):
        return tuple(x), {}
    return (x,), {}


def _binds(
    takes: inspect.Signature, args: Iterable[Any], kwargs: Mapping[str, Any] | None = None
) -> bool:
    try:
        takes.bind(*args, **(kwargs or {}))
    except TypeError:
        return False
    return True


def _is_plain(value: Any) -> bool:
    return isinstance(value, list | tuple) and not hasattr(value, "_fields")


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """What lies in nested tuples, lists and mappings, and where."""
    if isinstance(value, Mapping):
        items = [*value.items()]
    elif isinstance(value, list | tuple) and not isinstance(value, PackedSequence):
        items = [*enumerate(value)]
    else:
        yield place, value
        return
    for key, item in items:
        yield from _leaves(item, f"{place}.{key}" if place else str(key))


def _told(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same nest of dictionaries, lists and tuples, with what lies in it changed."""
    if isinstance(value, dict):
        return {key: _mapped(item, change) for key, item in value.items()}
    if _is_plain(value):
        return type(value)(_mapped(item, change) for item in value)
    return change(value)


def _moved(value: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    return _mapped(value, lambda item: _moved_leaf(item, device, dtype))


def _moved_leaf(value: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    if isinstance(value, Tensor):
        # An inference tensor cannot enter a graph; its copy made outside of inference mode can.
        value = value.clone() if value.is_inference() else value
        return value.to(device) if dtype is None else in_precision(value.to(device), dtype)
    mover = getattr(value, "to", None)
    return mover(device) if callable(mover) and not isinstance(value, nn.Module) else value


def _leaf(value: Any) -> Any:
    fits = isinstance(value, Tensor) and value.is_floating_point()
    return value.detach().requires_grad_() if fits else value
