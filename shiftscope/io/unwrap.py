"""Finding the weights in what a training script saved around them.

A checkpoint file holds a state dict, or a dictionary around one, or a list around that, beside an
optimizer, an averaged copy, counters and settings. :func:`find_states` lists every state dict with
the path that leads to it, best first by a fixed order; :func:`strip_prefixes` takes off the
prefixes that wrappers put before every name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Candidate", "find_states", "plain_values", "strip_prefixes"]

_DEPTH = 5
_WIDTH = 64
"""How deep and how wide containers are searched; real files need 3 and a dozen."""

_PREFERRED = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "module",
    "weights",
    "params",
    "state",
)
_AVERAGED = frozenset({"ema", "averaged", "swa", "teacher", "shadow", "polyak"})
_NOT_WEIGHTS = frozenset(
    {"optim", "optims", "optimizer", "optimizers", "scheduler", "schedulers", "scaler"}
    | {"callbacks", "loops", "rng", "sampler", "criterion"}
    | {"hyper", "hyperparameters", "hparams", "args", "config"}
)
"""Words in a key: averaged copies of the weights, and what is saved beside weights."""

_PREFIXES = ("module.", "_orig_mod.", "model.")
"""Those of parallel and compiled modules, and of Lightning."""


@dataclass(frozen=True)
class Candidate:
    """One state dict and the way to it.

    Attributes:
        path: Keys and list positions from the top.
        tensors: Name -> tensor.
        others: Names of entries that are no tensors.
    """

    path: tuple[str | int, ...]
    tensors: dict[str, torch.Tensor]
    others: tuple[str, ...]

    @property
    def name(self) -> str:
        """The path as text: ``state_dict``, ``ema.model``, ``state_dict[0]``; "" for the top."""
        text = ""
        for key in self.path:
            text += f"[{key}]" if isinstance(key, int) else ("." if text else "") + key
        return text

    @property
    def route(self) -> str:
        """The path as a person would say it: ``dict['state_dict'] → list[0]``."""
        steps = (f"list[{k}]" if isinstance(k, int) else f"dict[{k!r}]" for k in self.path)
        return " → ".join(steps)

    @property
    def averaged(self) -> bool:
        """Whether a key on the way names an averaged copy of the weights."""
        return any(_words(key) & _AVERAGED for key in self.path if isinstance(key, str))

    @property
    def rank(self) -> tuple[bool, int, int, int]:
        """Sort key: live before averaged, usual names first, near the top, then the larger."""
        keys = [key for key in self.path if isinstance(key, str)]
        usual = min((_PREFERRED.index(k) for k in keys if k in _PREFERRED), default=len(_PREFERRED))
        elements = sum(tensor.numel() for tensor in self.tensors.values())
        return self.averaged, usual if self.path else -1, len(self.path), -elements


def find_states(content: object) -> list[Candidate]:
    """All state dicts in a loaded checkpoint, best first.

    The order is fixed: live weights before averaged ones (EMA, SWA, teacher), then the usual names
    (``state_dict``, ``model_state_dict``, ``model``, ...), then those nearest to the top, then the
    largest, then file order.

    Args:
        content: What torch.load gave.

    Returns:
        The candidates; empty where there are no named tensors.
    """
    found = list(_walk(content, ()))
    pure = [candidate for candidate in found if not candidate.others] or found
    return sorted(pure, key=lambda candidate: candidate.rank)


def _walk(content: object, path: tuple[str | int, ...]) -> Iterator[Candidate]:
    if isinstance(content, Mapping):
        candidate = _as_state(content, path)
        if candidate is not None:
            yield candidate
            if not candidate.others:
                return
    if len(path) >= _DEPTH:
        return
    for key, value in _children(content):
        yield from _walk(value, (*path, key))


def _children(content: object) -> Iterator[tuple[str | int, object]]:
    if isinstance(content, Mapping):
        if {"state", "param_groups"} <= set(map(str, content)):
            return  # an optimizer, whatever it is called
        for key, value in content.items():
            if isinstance(key, str) and not _set_aside(key) and _is_container(value):
                yield key, value
    elif isinstance(content, list | tuple):
        for position, value in enumerate(content[:_WIDTH]):
            if _is_container(value):
                yield position, value


def _is_container(value: object) -> bool:
    return isinstance(value, Mapping | list | tuple)


def _set_aside(key: str) -> bool:
    return bool(_words(key) & _NOT_WEIGHTS)


def _words(key: str) -> set[str]:
    """The words of a key: {"model", "ema"} of ``model_ema`` and ``modelEMA``."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key)
    return set(re.split(r"[^a-z]+", apart.lower()))


def _as_state(content: Mapping[Any, Any], path: tuple[str | int, ...]) -> Candidate | None:
    tensors = {
        key: value.detach()
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, torch.Tensor)
    }
    if not tensors:
        return None
    others = tuple(
        str(key)
        for key in content
        if key not in tensors and not str(key).endswith(("_extra_state", "_metadata"))
    )
    return Candidate(path, tensors, others)


def strip_prefixes(names: list[str], lightning: bool = True) -> tuple[dict[str, str], list[str]]:
    """Take wrapper prefixes off the names of a state dict.

    ``module.`` (DataParallel), ``_orig_mod.`` (torch.compile) and ``model.`` (Lightning) come off
    where every name carries them, in any nesting; ``_orig_mod.`` also inside a name (a compiled
    submodule).

    Args:
        names: All names of the state dict.
        lightning: Whether ``model.`` may be Lightning's.

    Returns:
        Old name -> new name, and the prefixes taken off, outermost first.
    """
    new, taken = list(names), []
    while prefix := _shared_prefix(new, lightning):
        new = [name.removeprefix(prefix) for name in new]
        taken.append(prefix)
    inner = [name.replace("._orig_mod.", ".").removeprefix("_orig_mod.") for name in new]
    if inner != new and len(set(inner)) == len(inner):
        new = inner
        taken.append("… _orig_mod.")
    return dict(zip(names, new, strict=True)), taken


def _shared_prefix(names: list[str], lightning: bool) -> str:
    for prefix in _PREFIXES if lightning else _PREFIXES[:-1]:
        if names and all(name.startswith(prefix) and len(name) > len(prefix) for name in names):
            return prefix
    return ""


def plain_values(content: object, depth: int = 2) -> dict[str, Any]:
    """The small plain values at the top of a checkpoint: epoch, accuracy, settings.

    Args:
        content: What torch.load gave.
        depth: How many levels of dictionaries to keep.

    Returns:
        Name -> number, text, None, or a dictionary or list of such; at most 64 a level.
    """
    if not isinstance(content, Mapping):
        return {}
    found: dict[str, Any] = {}
    for key, value in content.items():
        plain = _plain(value, depth)
        if plain is not _SKIP and len(found) < _WIDTH:
            found[str(key)] = plain
    return found


_SKIP = object()


def _plain(value: object, depth: int) -> Any:
    if isinstance(value, str):
        return value[:500]
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, torch.Tensor):
        readable = value.ndim == 0 and not value.is_meta and not value.is_complex()
        return value.item() if readable else _SKIP
    if isinstance(value, Mapping) and depth > 0:
        return plain_values(value, depth - 1) or _SKIP
    if isinstance(value, list | tuple) and len(value) <= _WIDTH:
        entries = [_plain(entry, 0) for entry in value]
        return _SKIP if _SKIP in entries else entries
    return _SKIP
