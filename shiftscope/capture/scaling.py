"""The loss scale of a training loop: found by itself, and steps it made overflow told apart."""

from __future__ import annotations

import sys
from typing import Any

import torch

__all__ = ["LossScale"]

_FRAMES = 20
"""Calls between an optimizer's step and the scaler that made it, wrappers included."""


class LossScale:
    """The ``GradScaler`` that makes the steps of an optimizer.

    Args:
        scaler: The one the user gave, or None.

    Attributes:
        scaler: The one in use; None for none, and where it is not enabled.
    """

    def __init__(self, scaler: Any) -> None:
        self.scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self._states: Any = None
        self._stepped = False

    def begins(self) -> None:
        """A recorded forward pass begins; from now on the scaler is looked at."""
        if self._states is None and self.scaler is not None:
            self._states = self.scaler._per_optimizer_states

    def stepped(self) -> None:
        """The optimizer makes a step."""
        self._stepped = True

    def found(self) -> bool:
        """Whether the step under way turns out to be made by a scaler that nobody gave.

        To be called while the optimizer makes its step: the scaler is among the callers.
        """
        if self.scaler is None:
            self.scaler = _calling_scaler()
            if self.scaler is not None:
                self._states = self.scaler._per_optimizer_states
                return True
        return False

    def overflowed(self) -> bool:
        """Whether a scaled step has ended without an update of the weights, since last asked.

        A scaler begins a new table of its optimizers each time it updates its scale.
        """
        if self.scaler is None or self._states is None:
            return False
        states = self.scaler._per_optimizer_states
        if states is self._states:
            return False
        stepped, self._states, self._stepped = self._stepped, states, False
        return not stepped


def _calling_scaler() -> Any:
    frame = sys._getframe(2)
    for _ in range(_FRAMES):
        if frame is None:
            return None
        caller = frame.f_locals.get("self") if "grad_scaler" in frame.f_code.co_filename else None
        if isinstance(caller, torch.amp.GradScaler) and caller.is_enabled():
            return caller
        frame = frame.f_back  # type: ignore[assignment]
    return None
