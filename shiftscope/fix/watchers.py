"""What else holds the parameters of a model, and would not follow when they are replaced."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from shiftscope.errors import UsageError

__all__ = ["on_a_copy", "refuse_wrapped", "shapes_of", "warn_of_nothing", "warn_of_optimizers"]

_COPY: ContextVar[bool] = ContextVar("_COPY", default=False)


@contextmanager
def on_a_copy() -> Iterator[None]:
    """No optimizer knows what is changed inside: looking for one would only take time."""
    token = _COPY.set(True)
    try:
        yield
    finally:
        _COPY.reset(token)


def refuse_wrapped(model: nn.Module) -> None:
    """Refuse a model inside DistributedDataParallel: it waits for the parameters it was given.

    Raises:
        UsageError: The model, or a part of it, is wrapped.
    """
    if any(isinstance(m, nn.parallel.DistributedDataParallel) for m in model.modules()):
        raise UsageError(
            "the model is wrapped in DistributedDataParallel, which would wait for parameters "
            "that are gone",
            "Constrain (or release) the model first, and wrap it afterwards.",
        )


def shapes_of(layers: Iterable[nn.Module]) -> list[tuple[nn.Parameter, torch.Size]]:
    """The parameters of some layers, and the shapes that they have now."""
    return [(p, p.shape) for layer in layers for p in layer.parameters()]


def warn_of_optimizers(model: nn.Module, held: Iterable[tuple[nn.Parameter, torch.Size]]) -> None:
    """Warn where an optimizer does not fit the parameters of a constrained model.

    It would step tensors that the model no longer uses, or fail over the shape of its state.

    Args:
        model: The model as it is now.
        held: Parameters and their shapes of before, as of :func:`shapes_of`.
    """
    if _COPY.get():
        return
    now = {id(p) for p in model.parameters()}
    gone = {id(p) for p, _ in held if id(p) not in now or not p.numel()}
    changed = gone | {id(p) for p, shape in held if p.shape != shape}
    if changed and any(_stale(found, changed, gone) for found in _optimizers()):
        warnings.warn(
            "an optimizer was built before the model was constrained: build it anew; it would "
            "leave weights as they are, or fail over the shapes of its state",
            UserWarning,
            stacklevel=3,
        )


def warn_of_nothing(reasons: Sequence[str], selected: Sequence[Any]) -> None:
    """Warn where every selected layer was skipped: training would go on without a constraint."""
    if len(reasons) < len(selected) or _COPY.get():
        return
    told = "; ".join(dict.fromkeys(reasons))
    warnings.warn(f"no layer was constrained: {told}", UserWarning, stacklevel=3)


def _optimizers() -> Iterator[Any]:
    for found in gc.get_objects():
        # The type itself: a proxy may do anything when asked for its class.
        if issubclass(type(found), torch.optim.Optimizer):
            yield found


def _stale(optimizer: Any, changed: set[int], gone: set[int]) -> bool:
    held = [p for group in getattr(optimizer, "param_groups", []) for p in group["params"]]
    # A parameter of another shape fits until the optimizer has a state for it.
    return any(id(p) in changed and (id(p) in gone or optimizer.state.get(p)) for p in held)
