"""Putting weights into a model, all of them or none.

A tensor that silently keeps its random initial value makes every number of a report wrong, so names
and shapes must agree exactly. Only a wrapper prefix common to all names is repaired, and told; and
a tied tensor may stand in the file under one of its names, as safetensors files have it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from shiftscope.errors import LoadError

__all__ = ["fit"]

_SHOWN = 10
"""How many names of each kind a message lists."""


def fit(model: nn.Module, state: dict[str, Tensor], source: str) -> list[str]:
    """Load a state dict strictly, in place.

    Args:
        model: The module.
        state: Name -> tensor.
        source: Where the weights come from, for messages.

    Returns:
        What was done beside copying: a prefix repaired, a conversion.

    Raises:
        LoadError: Names or shapes differ, listed; the model is then as it was.
    """
    wanted = model.state_dict()
    tied = _other_names(model)
    matched, notes = _match_names(set(wanted), tied, state)
    _refuse_torn(type(model).__name__, source, matched, tied)
    matched, filled = _filled(matched, tied)
    notes += [f"{', '.join(filled)} read under the other name of a tied tensor"] if filled else []
    missing = [name for name in wanted if name not in matched and not _optional(name)]
    unexpected = [name for name in matched if name not in wanted]
    shapes = [
        f"{name} {list(tensor.shape)} in the file, {list(wanted[name].shape)} in the model"
        for name, tensor in matched.items()
        if name in wanted and _shape_differs(wanted[name], tensor)
    ]
    if missing or unexpected or shapes:
        raise _mismatch(type(model).__name__, source, missing, unexpected, shapes)
    notes += _conversions(matched, wanted)
    try:
        model.load_state_dict({**_kept(wanted, matched), **matched}, strict=True)
    except (RuntimeError, ValueError, TypeError) as error:
        raise LoadError(
            f"{type(model).__name__} does not take the weights of {source}: "
            f"{str(error).splitlines()[-1].strip():.200}",
            "check that the model is the one that was saved",
        ) from None
    return notes


def _match_names(
    wanted: set[str], tied: dict[str, set[str]], state: dict[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """The state under the model's names, where a shared prefix is all that differs."""
    required = {name for name in wanted if not _optional(name)}

    def complete(names: set[str]) -> bool:
        return all(name in names or tied.get(name, set()) & names for name in required)

    if complete(set(state)):
        return state, []
    # Of several first parts too: a tied head may be all that stands beside "model.".
    for prefix in sorted({f"{name.partition('.')[0]}." for name in wanted if "." in name}):
        if complete({prefix + name for name in state}):
            return _renamed(state, prefix, ""), [f"prefix {prefix!r} put back before every name"]
    prefix = _first_part(state)
    if prefix and complete({name.removeprefix(prefix) for name in state}):
        return _renamed(state, "", prefix), [f"prefix {prefix!r} taken off every name"]
    return state, []


def _other_names(model: nn.Module) -> dict[str, set[str]]:
    """For each name of a tied parameter its other names."""
    groups: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), set()).add(name)
    return {name: group - {name} for group in groups.values() for name in group if len(group) > 1}


def _filled(
    state: dict[str, Tensor], tied: dict[str, set[str]]
) -> tuple[dict[str, Tensor], list[str]]:
    """The state with the names of tied tensors that it leaves out, and those names."""
    found = {
        name: state[next(iter(sorted(others & set(state))))]
        for name, others in tied.items()
        if name not in state and others & set(state)
    }
    return state | found, sorted(found)


def _refuse_torn(
    model: str, source: str, state: dict[str, Tensor], tied: dict[str, set[str]]
) -> None:
    """A tensor of the model cannot hold two of the file."""
    for name, others in tied.items():
        for other in sorted(others & set(state)):
            if name in state and not torch.equal(state[name], state[other]):
                raise LoadError(
                    f"{name} and {other} are one tensor in {model} and differ in {source}",
                    "build the model without tying them, as it was when it was saved",
                )


def _renamed(state: dict[str, Tensor], add: str, remove: str) -> dict[str, Tensor]:
    return {add + name.removeprefix(remove): tensor for name, tensor in state.items()}


def _first_part(names: Iterable[str]) -> str:
    """The first component with its dot, where all names share it."""
    heads = {name.partition(".")[0] if "." in name else "" for name in names}
    head = heads.pop() if len(heads) == 1 else ""
    return f"{head}." if head else ""


def _optional(name: str) -> bool:
    """BatchNorm's counter, absent from files of torch before 0.4.1, changes no output."""
    return name.rpartition(".")[2] == "num_batches_tracked"


def _kept(wanted: dict[str, Tensor], matched: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: wanted[name] for name in wanted if name not in matched and _optional(name)}


def _shape_differs(wanted: object, tensor: Tensor) -> bool:
    if not isinstance(wanted, Tensor) or nn.parameter.is_lazy(wanted):
        return False
    return wanted.shape != tensor.shape


def _conversions(matched: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    pairs = {
        (str(tensor.dtype).removeprefix("torch."), str(wanted[name].dtype).removeprefix("torch."))
        for name, tensor in matched.items()
        if isinstance(wanted[name], Tensor) and tensor.is_floating_point()
    }
    return [f"weights stored as {a}, used as {b}" for a, b in sorted(pairs) if a != b]


def _mismatch(
    model: str, source: str, missing: list[str], unexpected: list[str], shapes: list[str]
) -> LoadError:
    parts = [
        f"{len(found)} {kind} ({', '.join(found[:_SHOWN])}{', …' if len(found) > _SHOWN else ''})"
        for kind, found in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", shapes),
        )
        if found
    ]
    return LoadError(
        f"the weights of {source} are not those of {model}: {'; '.join(parts)}",
        "give the model these weights were saved from, with the same settings",
    )
