"""Which sites are kept, and whose steps are counted.

The names of sites are known when a forward pass has run. Before, a pattern that begins as no module
does is refused; of one that no site seems to have a name for, a warning tells: modules may come.
"""

from __future__ import annotations

import fnmatch
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from torch import nn
from torch.optim import Optimizer

from shiftscope.capture.activation_ops import ACTIVATION_OPS
from shiftscope.capture.arguments import patterns
from shiftscope.capture.sites import clean_path, names_itself, place_of
from shiftscope.errors import UsageError
from shiftscope.record import SiteRecord

__all__ = ["matching", "no_match", "optimizer_of", "patterns_of", "some", "wanted"]

_LINEAR = ("linear", "bilinear", "addmm", "matmul", "einsum", "in_proj")
_LABELS = (
    *_LINEAR,
    *(f"conv{kind}{dims}d" for kind in ("", "_transpose") for dims in (1, 2, 3)),
    *{spelling.op: None for spelling in ACTIVATION_OPS.values()},
    *("gelu_tanh", "relu6", "rrelu_training"),
)
"""What stands behind the colon in the name of a site."""
_RECURRENT = ("ih", "hh", "hr", "gates", "candidate", "cell", "tanh", "relu")
"""Likewise inside recurrent layers, with the number of the layer behind it."""


def matching(records: Mapping[str, SiteRecord], patterns: Sequence[str]) -> dict[str, SiteRecord]:
    """The records of the sites that one of the patterns names."""
    return {name: record for name, record in records.items() if wanted(name, patterns)}


def wanted(site: str, patterns: Sequence[str]) -> bool:
    """Whether a site is to be kept: by its name, or as a further form of a place that is kept."""
    names = {site, place_of(site)}
    return any(p == "*" or fnmatch.fnmatchcase(name, p) for p in patterns for name in names)


def patterns_of(sites: Any, model: nn.Module, stacklevel: int = 3) -> tuple[str, ...]:
    """The patterns of ``sites=``, one of which can name a site of the model.

    A warning tells of each that names none of the model as it is now.

    Args:
        sites: A pattern, or several.
        model: The model.
        stacklevel: Frames between the warning and the user's own line.

    Raises:
        UsageError: They are no patterns, or begin as no module of the model does.
    """
    chosen = patterns("sites", sites)
    modules = {clean_path(name): module for name, module in model.named_modules()}
    alone = len(modules) == 1  # it may name its site after the op
    if not alone and not any(_may_match(pattern, path) for pattern in chosen for path in modules):
        raise UsageError(*no_match(chosen, filter(None, modules)))
    for pattern in chosen:
        if not _names_something(pattern, modules):
            reason, remedy = no_match([pattern], filter(None, modules))
            told = f"{reason} in the model as it is now"
            warnings.warn(f"{told}; {remedy}", UserWarning, stacklevel=stacklevel)
    return chosen


def _may_match(pattern: str, path: str) -> bool:
    """Whether a pattern can match ``path``, ``path:op`` or ``path~2`` (see :mod:`.sites`)."""
    literal = _chunks(pattern)[0]
    if path.startswith(literal):
        return literal != pattern or path == pattern
    return literal.startswith(path) and re.match(r":|~\d+", literal[len(path) :]) is not None


def _names_something(pattern: str, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a site of the modules may have a name that a pattern matches."""
    whole = [path for path, module in modules.items() if names_itself(module)]
    if wanted("", (pattern,)) or any(fnmatch.fnmatchcase(path, pattern) for path in whole):
        return True
    # further calls of a function are numbered: path:relu.2
    head, _, number = pattern.rpartition(".")
    forms = [pattern, *([head] if re.fullmatch(r"[\d*?\[\]!-]+", number) else [])]
    match = re.compile("|".join(map(fnmatch.translate, forms))).match
    return any(match(name) for name in _functions(modules))


def _functions(modules: Mapping[str, nn.Module]) -> Iterator[str]:
    """Names of sites of functions that modules may call."""
    for path, module in modules.items():
        labels: Iterable[str] = _LABELS
        if isinstance(module, nn.RNNBase):
            ends = [f"_l{k}{way}" for k in range(module.num_layers) for way in ("", "_reverse")]
            labels = (f"{name}{end}" for name in _RECURRENT for end in ends)
        elif isinstance(module, nn.RNNCellBase):
            labels = _RECURRENT
        yield from (f"{path}:{label}" for label in labels)
    if len(modules) == 1:
        yield from _LABELS


def no_match(wanted: Sequence[str], names: Iterable[str]) -> tuple[str, str]:
    """What to say, and what to do, where no name matches a pattern."""
    known = [*names]
    meant = next(filter(None, (_meant(pattern, known) for pattern in wanted)), None)
    guess = "" if meant is None else f"did you mean {meant!r}? "
    names = f"sites are named like: {some(known)}" if known else "leave sites out to keep all"
    return f"no site matches {list(wanted)}", f"{guess}{names}"


def some(names: Iterable[str]) -> str:
    """The first few names."""
    return ", ".join([*names][:5])


def _meant(pattern: str, names: Sequence[str]) -> str | None:
    """A pattern like the given one that matches one of the names."""
    stem = max(_chunks(pattern), key=len).strip(".")
    if not stem:
        return None
    segments = {end for name in names for end in _ends(name)}
    close = get_close_matches(stem, sorted(segments), 3, 0.7)
    tries = [f"{pattern}.*", f"*.{pattern}", f"{pattern}:*"]
    tries += [pattern.replace(stem, other) for other in close]
    tries += [f"*{pattern.replace(stem, other)}" for other in close]
    inside = [f"{name}:" for name in names]  # whose functions may be sites
    return next((t for t in tries if any(wanted(n, (t,)) for n in (*names, *inside))), None)


def _ends(name: str) -> Iterator[str]:
    """A dotted name and what remains of it from each of its segments on, and up to each."""
    parts = name.split(".")
    for place in range(len(parts)):
        yield ".".join(parts[place:])
        yield ".".join(parts[: place + 1])


def _chunks(pattern: str) -> list[str]:
    """What stands between the wildcards of a pattern."""
    return re.split(r"\[[^]]*\]|[*?\[]", pattern)


def optimizer_of(given: Any) -> Optimizer:
    """The torch optimizer that makes the steps, also inside a wrapper."""
    inner = given
    for _ in range(4):
        if isinstance(inner, Optimizer):
            return inner
        inner = getattr(inner, "optimizer", None)
    raise UsageError(
        f"steps are counted by the hooks of a torch optimizer, got {type(given).__name__}",
        "leave optimizer out and call probe.step() in each step, before the weights change",
    )
