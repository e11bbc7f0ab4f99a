"""Which layers of a model are meant by a name, a pattern or a predicate, and which cannot be."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from shiftscope.errors import UsageError
from shiftscope.fix.unroll import is_linear_map
from shiftscope.given import expect, shown

__all__ = ["Sites", "called", "choose", "obstacle"]

Sites = str | Iterable[str] | Callable[[str, nn.Module], bool]
"""Glob pattern(s) on module paths, or a predicate on (path, module)."""


def choose(model: nn.Module, sites: Sites = "*") -> list[tuple[str, nn.Module]]:
    """List the weight-carrying modules that ``sites`` selects, in the order of the model.

    Args:
        model: Any module, a single layer included (its path is the empty string).
        sites: Pattern(s) as of :mod:`fnmatch`, case-sensitive, or ``predicate(path, module)``.

    Returns:
        Pairs of path and module, each module once; paths do not show ``torch.compile``'s wrapper.

    Raises:
        UsageError: Nothing is selected, a pattern matches nothing, or an argument is of another
            kind.
    """
    expect("the model", model, nn.Module)
    patterns = _patterns(sites)
    named = [(path.replace("_orig_mod.", ""), module) for path, module in model.named_modules()]
    carriers = [pair for pair in named if _carries(*pair)]
    if patterns is None:
        chosen = [pair for pair in carriers if cast(Any, sites)(*pair)]
        idle = [] if chosen else [sites]
    else:
        chosen = [pair for pair in carriers if any(fnmatchcase(pair[0], p) for p in patterns)]
        idle = [p for p in patterns if not any(fnmatchcase(path, p) for path, _ in carriers)]
    if idle or not chosen:
        known = ", ".join(path or "(the model itself)" for path, _ in carriers[:8]) or "none"
        raise UsageError(
            f"no weight-carrying layer matches sites={(idle[0] if idle else sites)!r}",
            f"Layers of this model are: {known}{', …' if len(carriers) > 8 else ''}.",
        )
    return chosen


def obstacle(model: nn.Module, module: nn.Module) -> str:
    """Say why the weight of a chosen module cannot be constrained; empty if it can."""
    if not is_linear_map(module):
        if isinstance(module, nn.MultiheadAttention):
            return "the fused in-projection is three maps in one tensor (out_proj is its own site)"
        return f"{called(module)} is neither nn.Linear nor a convolution"
    parameters = dict(_own_weights(module))
    weight = parameters.get("weight")
    if isinstance(weight, UninitializedParameter):
        return "a lazy layer has no weight yet: run it once"
    if weight is None:
        return "its weight is no plain parameter (quantised, or set by a hook)"
    if weight.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        return f"weights of dtype {weight.dtype} cannot be constrained"
    if weight.numel() == 0:
        return f"its weight of shape {tuple(weight.shape)} has no elements"
    owners = [path for path, other in model.named_modules() if _holds(other, weight)]
    if len(owners) > 1:
        return f"its weight is shared by {', '.join(owners)}"
    return ""


def called(module: nn.Module) -> str:
    """The class of a module, with its package where torch has another one of that name.

    Args:
        module: The module.
    """
    kind = type(module)
    foreign = hasattr(nn, kind.__name__) and not kind.__module__.startswith("torch.nn")
    return f"{kind.__module__}.{kind.__name__}" if foreign else kind.__name__


def _patterns(sites: Sites) -> list[str] | None:
    """The patterns; None for a predicate."""
    if callable(sites):
        return None
    patterns = [sites] if isinstance(sites, str) else sites
    if not isinstance(patterns, Iterable) or not all(isinstance(p, str) for p in patterns):
        raise UsageError(
            f"sites is {shown(sites)}, neither a pattern, nor patterns, nor a predicate",
            'Give e.g. sites="features.*" or sites=lambda path, module: ...',
        )
    return list(patterns)


def _carries(path: str, module: nn.Module) -> bool:
    """Own matrices, not vectors: norm layers are no linear maps between neurons."""
    if "parametrizations" in path.split("."):
        return False
    return is_linear_map(module) or any(
        isinstance(p, UninitializedParameter) or p.ndim > 1 for _, p in _own_weights(module)
    )


def _own_weights(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(module.named_parameters(recurse=False))


def _holds(module: nn.Module, weight: nn.Parameter) -> bool:
    return any(p is weight for _, p in _own_weights(module))
