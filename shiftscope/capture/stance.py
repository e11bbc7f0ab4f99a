"""Compiled models run eagerly while somebody watches; their graphs stay as they are."""

from __future__ import annotations

import sys
import threading
from typing import Any

import torch

__all__ = ["Eager"]

_LOCK = threading.Lock()
_HOLDERS: set[int] = set()
_STANCE: list[Any] = []


class Eager:
    """A claim on eager execution; the stance is set by the first claim and put back by the last."""

    def hold(self) -> None:
        """Claim it; where nothing is compiled in this process nothing happens."""
        if "torch._dynamo" not in sys.modules:
            return
        with _LOCK:
            _HOLDERS.add(id(self))
            if not _STANCE:
                _STANCE.append(torch.compiler.set_stance("force_eager"))

    def release(self) -> None:
        """Give the claim back; idempotent."""
        with _LOCK:
            _HOLDERS.discard(id(self))
            if not _HOLDERS and _STANCE and not sys.is_finalizing():
                _STANCE.pop().__exit__(None, None, None)
