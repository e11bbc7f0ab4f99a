"""Calls of a recorded step by compiled code, or by the Python classes that are its reference."""

import pytest

from shiftscope.capture import hooks, ops, probe
from shiftscope.capture.mode import PlainMode

__all__ = ["CALLS_BY", "calls_by"]

CALLS_BY = ("compiled", "python")


def calls_by(chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have calls recorded by compiled code, where it is built, or by Python."""
    if chosen == "compiled":
        return
    for module in (probe, ops):
        monkeypatch.setattr(module, "Mode", PlainMode)
    monkeypatch.setattr(hooks, "entered", lambda *_: False)
    monkeypatch.setattr(hooks, "left", lambda *_: False)
