"""Deep copies that train alone: a model with its optimizer and loss, and data read from the start.

What a copy does must not reach the original: neither through an optimizer that steps the original's
parameters, nor through a loader whose running workers or generators are shared.
"""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from shiftscope.errors import MeasureError, UsageError

__all__ = ["copied", "fresh", "needs_closure", "optimizer_for", "preserved_generators", "twin"]

Factory = Callable[[list[nn.Parameter]], Optimizer]

_LR, _MOMENTUM = 0.1, 0.9
_HOLDERS = ("sampler", "batch_sampler", "dataset", "generator", "data_source", "rng")


def copied(
    model: nn.Module, optimizer: Optimizer | Factory | None, loss_fn: Any
) -> tuple[nn.Module, Optimizer | Factory | None, Any]:
    """Copy a model together with the optimizer of its parameters and a loss that is a module.

    One memo serves all, so that the copied optimizer holds the copied parameters, with their state
    (momenta, counters). Wrappers that a learning rate scheduler put around ``step`` are left out:
    they would step the original.

    Args:
        model: The model.
        optimizer: An optimizer of its parameters, or anything else, which is passed on.
        loss_fn: The loss; copied when it is a module.

    Returns:
        ``(model, optimizer, loss)`` of the copies.

    Raises:
        MeasureError: The model cannot be copied.
        UsageError: The optimizer holds no parameter of this model.
    """
    memo: dict[int, Any] = {}
    try:
        other = twin(model, memo)
    except Exception as error:
        words = str(error).strip().splitlines()
        raise MeasureError(
            f"the model cannot be copied for a trial: {words[0] if words else type(error)}",
            "give a model that copy.deepcopy takes, such as a freshly built one",
        ) from error
    if isinstance(optimizer, Optimizer):
        _check_owner(model, optimizer)
        optimizer = _twin_of(optimizer, memo)
    if isinstance(loss_fn, nn.Module):
        loss_fn = copy.deepcopy(loss_fn, memo)
    return other, optimizer, loss_fn


def twin(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy of a model, of scripted ones and of those that keep parts of a graph too.

    Args:
        model: The model.
        memo: As of ``copy.deepcopy``.
    """
    memo = {} if memo is None else memo
    for module in model.modules():
        # An older weight norm keeps the effective weight, a node of the last graph, as attribute.
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    with torch.no_grad():  # else the parameters of scripted copies are nodes of a graph
        other = copy.deepcopy(model, memo)
    for mine, its in zip(model.parameters(), other.parameters(), strict=False):
        its.requires_grad_(mine.requires_grad)
    return other


def optimizer_for(model: nn.Module, optimizer: Optimizer | Factory | None) -> Optimizer:
    """The optimizer of a copied model.

    Args:
        model: The copy.
        optimizer: The copied optimizer; a factory ``parameters -> optimizer``; or None for SGD
            with learning rate 0.1 and momentum 0.9 (Kutsuna, ECML-PKDD 2019, Section 6.1).

    Returns:
        An optimizer that steps the copy.

    Raises:
        UsageError: Nothing can be trained, or the factory makes no optimizer.
    """
    if isinstance(optimizer, Optimizer):
        # Loading its own state moves it to the precision and device of the parameters.
        optimizer.load_state_dict(optimizer.state_dict())
        return optimizer
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise UsageError(
            "no parameter of the model requires a gradient: there is nothing to train",
            "unfreeze some by requires_grad_(True), or use ss.analyze",
        )
    made = (
        torch.optim.SGD(trainable, lr=_LR, momentum=_MOMENTUM)
        if optimizer is None
        else optimizer(trainable)
    )
    if not isinstance(made, Optimizer):
        raise UsageError(
            f"the optimizer factory returned {type(made).__name__}, not a torch optimizer",
            "give an optimizer, or a function such as lambda p: torch.optim.Adam(p, lr=1e-3)",
        )
    return made


def needs_closure(optimizer: Optimizer) -> bool:
    """Whether ``step`` cannot do without a closure (L-BFGS)."""
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def fresh(data: Iterable[Any]) -> Iterator[Any]:
    """Iterate from the start, without touching an iteration of the same loader that is under way.

    A torch loader with persistent workers has one iterator only and would restart it; a shallow
    copy gets one of its own. A one-shot iterator has no start to go back to: it is used up.
    """
    if hasattr(data, "_iterator") and hasattr(data, "persistent_workers"):
        data = copy.copy(data)
        object.__setattr__(data, "_iterator", None)
    return iter(data)


@contextmanager
def preserved_generators(data: Any) -> Iterator[None]:
    """Restore the random generators that a loader, its samplers and its data set hold."""
    states = [(generator, _state(generator)) for generator in _generators(data)]
    try:
        yield
    finally:
        for generator, state in states:
            _restore(generator, state)


def _check_owner(model: nn.Module, optimizer: Optimizer) -> None:
    own = {id(parameter) for parameter in model.parameters()}
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    if not own.intersection(held):
        raise UsageError(
            f"the {type(optimizer).__name__} holds no parameter of this model",
            "give the optimizer made from model.parameters(), or a function that makes one",
        )


def _twin_of(optimizer: Optimizer, memo: dict[int, Any]) -> Optimizer:
    twin = copy.deepcopy(optimizer, memo)  # torch keeps defaults, state and groups only
    for name, value in vars(optimizer).items():
        # What is left are an optimizer's own fields (L-BFGS keeps its list of parameters in one);
        # callables are patches around its methods.
        if name not in vars(twin) and not callable(value) and not name.endswith("_hooks"):
            setattr(twin, name, copy.deepcopy(value, memo))
    return twin


def _generators(data: Any) -> list[Any]:
    """Generators found on a loader and on what it holds, two steps deep."""
    found: dict[int, Any] = {}
    layer = [data]
    for _ in range(4):
        held = [value for item in layer for value in _held(item)]
        kinds = torch.Generator | np.random.Generator | np.random.RandomState | random.Random
        found |= {id(value): value for value in held if isinstance(value, kinds)}
        layer = [value for value in held if id(value) not in found]
    return list(found.values())


def _held(item: Any) -> list[Any]:
    own = getattr(item, "__dict__", {})
    kinds = torch.Generator | np.random.Generator | np.random.RandomState | random.Random
    return [value for name, value in own.items() if isinstance(value, kinds) or name in _HOLDERS]


def _state(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return copy.deepcopy(generator.bit_generator.state)
    return generator.get_state() if hasattr(generator, "get_state") else generator.getstate()


def _restore(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif hasattr(generator, "set_state"):
        generator.set_state(state)
    else:
        generator.setstate(state)
