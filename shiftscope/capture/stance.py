"""Compiled models run eagerly while somebody watches; their graphs stay as they are."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["Eager", "call_untraced", "untraced"]

_LOCK = threading.Lock()
_HOLDERS: set[int] = set()
_BEFORE: list[Any] = []
"""The stance that ours replaced, while ours is in force."""
_OURS: list[Any] = []
_UNTRACED: dict[Callable[..., Any], Callable[..., Any]] = {}


class Eager:
    """A claim on eager execution; the stance is set by the first claim and put back by the last.

    A stance that the user sets meanwhile stays.
    """

    def hold(self) -> None:
        """Claim it; where nothing is compiled in this process nothing happens."""
        if "torch._dynamo" not in sys.modules:
            return
        with _LOCK:
            _HOLDERS.add(id(self))
            if not _BEFORE:
                call_untraced(_take)

    def release(self) -> None:
        """Give the claim back; idempotent."""
        with _LOCK:
            _HOLDERS.discard(id(self))
            if not _HOLDERS and _BEFORE and not sys.is_finalizing():
                call_untraced(_give_back)


def untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as ``torch.compile`` leaves it alone, also when a compiled region calls it."""
    if "torch._dynamo" not in sys.modules:
        return function
    disabled: Callable[..., Any] = torch.compiler.disable(function)
    return disabled


def call_untraced(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function that lasts, as :func:`untraced` gives it."""
    known = _UNTRACED.get(function)
    if known is None:
        known = untraced(function)
        if known is not function:
            _UNTRACED[function] = known
    return known(*args)


def _take() -> None:
    # What was before is noted first, and read back last: an interrupt in between loses nothing.
    _BEFORE.append(_stance())
    torch.compiler.set_stance("force_eager")
    _OURS[:] = [_stance()]


def _give_back() -> None:
    before, now = _BEFORE[0], _stance()
    ours = _OURS[0] if _OURS else now
    if now.stance == "force_eager" and now is ours:
        _frames()._set_stance(before)
    if ours is not before and ours.stance == "force_eager":
        # Who put another stance on top of ours will put ours back: it is then what was before.
        vars(ours).update(vars(before))
    _OURS.clear()
    _BEFORE.clear()


def _frames() -> Any:
    return sys.modules["torch._dynamo.eval_frame"]


def _stance() -> Any:
    """The stance in force; private to torch, so a test pins it."""
    return _frames()._stance
