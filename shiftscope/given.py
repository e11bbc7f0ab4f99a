"""What public functions are given: of a kind they work on, or refused in words."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

from shiftscope.errors import UsageError

__all__ = ["each", "expect", "positive", "shown", "whole"]

_KINDS = {
    "Comparison": ("a comparison", "give what ss.compare gave"),
    "Figure": ("a matplotlib figure", "give what a function of ss.draw gave"),
    "Finding": ("findings", "give what ss.diagnose gave"),
    "Mapping": ("a mapping", "give a dictionary"),
    "Module": (
        "a torch.nn.Module",
        "give the module itself, built and with its weights loaded",
    ),
    "Snapshot": ("a snapshot", "give what ss.analyze, probe.snapshot() or ss.load gave"),
    "Thresholds": ("thresholds", "give ss.Thresholds(...), or leave them out"),
    "Trace": ("a trace", "give probe.trace, or what ss.trial or ss.load gave"),
    "Verification": ("verifications", "give what ss.verify gave"),
    "Window": ("windows of a trace", "give probe.trace, or what ss.trial or ss.load gave"),
}
"""Name of a kind -> what to call it in a sentence, and where to get one."""

_CLOSE = {
    ("Module", "Snapshot"): "measure it first, by ss.analyze(model, data)",
    ("Module", "Trace"): "watch its training first, by ss.watch or ss.trial",
    ("Probe", "Snapshot"): "give probe.snapshot(), or probe.trace.last",
    ("Probe", "Trace"): "give probe.trace",
    ("Snapshot", "Trace"): "give the trace of a run, or ss.Trace.of([snapshot])",
    ("Snapshot", "Window"): "give the trace of a run, or ss.Trace.of([snapshot])",
    ("Trace", "Snapshot"): "give trace.last, the latest window, or trace.merge()",
    ("Window", "Snapshot"): "give window.snapshot",
    ("OrderedDict", "Module"): "load the weights into a module: model.load_state_dict(weights)",
    ("PathLike", "Snapshot"): "read the file first, by ss.load",
    ("PathLike", "Trace"): "read the file first, by ss.load",
    ("str", "Snapshot"): "read the file first, by ss.load",
    ("str", "Trace"): "read the file first, by ss.load",
}
"""What was given and what was wanted -> how to come from one to the other."""


def expect(name: str, value: Any, *kinds: type, remedy: str = "") -> None:
    """Refuse what is of another kind than a function works on.

    Args:
        name: What the argument is called.
        value: What was given for it.
        kinds: The kinds that are taken, the usual one first.
        remedy: What to do about another one; none says where such a thing comes from.

    Raises:
        UsageError: It is of none of them.
    """
    if isinstance(value, kinds):
        return
    wanted = " or ".join(_KINDS.get(kind.__name__, (_article(kind), ""))[0] for kind in kinds)
    told = remedy or _way_out(value, [kind.__name__ for kind in kinds])
    raise UsageError(f"{name} is {shown(value)}, expected {wanted}", told)


def each(name: str, values: Any, *kinds: type, remedy: str = "") -> tuple[Any, ...]:
    """Things of one kind, or of several.

    Args:
        name: What the argument is called.
        values: What was given for it.
        kinds: The kinds that are taken, the usual one first.
        remedy: As of :func:`expect`.

    Returns:
        The things.

    Raises:
        UsageError: It is no collection, or one of them is of another kind.
    """
    if isinstance(values, str | type) or not isinstance(values, Iterable):
        expect(name, values, *kinds, remedy=remedy)
        return (values,)
    found = tuple(values)
    for place, value in enumerate(found):
        expect(f"{name}[{place}]", value, *kinds, remedy=remedy)
    return found


def shown(value: Any) -> str:
    """What was given, short and on one line: a plain value itself, of other things the kind."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    plain = value is None or isinstance(value, bool | int | float | str)
    return f"{value!r:.60}" if plain else _article(type(value))


def whole(name: str, value: Any, least: int, remedy: str, most: int | None = None) -> int:
    """A whole number, from the least that has a meaning on.

    Args:
        name: What the argument is called.
        value: What was given for it.
        least: The smallest value that has a meaning.
        remedy: What to do about another one.
        most: The largest value that has a meaning; None for no end.

    Returns:
        The number.

    Raises:
        UsageError: It is no such number.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise UsageError(f"{name} must be a whole number, got {shown(value)}", remedy)
    if int(value) < least:
        raise UsageError(f"{name} must be at least {least}, got {value}", remedy)
    if most is not None and int(value) > most:
        raise UsageError(f"{name} must be at most {most}, got {value}", remedy)
    return int(value)


def positive(name: str, value: Any, remedy: str) -> float:
    """A finite number above zero.

    Args:
        name: What the argument is called.
        value: What was given for it.
        remedy: What to do about another one.

    Returns:
        The number.

    Raises:
        UsageError: It is no such number.
    """
    known = isinstance(value, Real) and not isinstance(value, bool)
    if known and 0 < float(value) < math.inf:
        return float(value)
    raise UsageError(f"{name} must be a positive number, got {shown(value)}", remedy)


def _way_out(value: Any, wanted: list[str]) -> str:
    """The nearest way from what was given to what is wanted."""
    is_path = isinstance(value, os.PathLike)
    own = () if isinstance(value, type) else (*type(value).__mro__,)
    names = [kind.__name__ for kind in own] + ["PathLike"] * is_path
    for kind in wanted:
        for name in names:
            if (name, kind) in _CLOSE:
                return _CLOSE[name, kind]
    return _KINDS.get(wanted[0], ("", f"give {' or '.join(wanted)}"))[1]


def _article(kind: type) -> str:
    return f"a{'n' if kind.__name__[:1] in 'AEIOUaeiou' else ''} {kind.__name__}"
