"""What an attachment has seen of its model: modules that were called, measured, passed over."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from torch import Tensor

from shiftscope.capture.site_state import EmptyCalls, SiteState

__all__ = ["Seen"]


class Seen:
    """Books of what was seen since watching began; safe from any thread.

    Attributes:
        forwards: Forward passes of the model.
        called: Paths of modules that were called.
        measured: Paths of modules whose weights were measured.
        passed: Path of a module that was called where nothing is recorded -> why.
        bypassed: The same of the step that runs.
        refused: Path of a module whose tensors cannot be measured -> why.
        empty: Site -> its calls without rows.
        parameters: Identities of the weights that were measured.
        idle: Identities of those in calls without rows.
        gaps: ``(place, reason)`` of what was found not to be measured while running.
    """

    def __init__(self) -> None:
        self.forwards = 0
        self.called: set[str] = set()
        self.measured: set[str] = set()
        self.passed: dict[str, str] = {}
        self.bypassed: dict[str, str] = {}
        self.refused: dict[str, str] = {}
        self.empty: dict[str, EmptyCalls] = {}
        self.parameters: set[int] = set()
        self.idle: set[int] = set()
        self.gaps: dict[tuple[str, str], None] = {}
        self._lock = threading.Lock()

    def gap(self, path: str, reason: str) -> None:
        """Note something that is not measured, once."""
        with self._lock:
            self.gaps.setdefault((path, reason))

    def pass_by(self, path: str, reason: str) -> None:
        """Note a module that is called where nothing is recorded."""
        self.passed.setdefault(path, reason)
        self.bypassed.setdefault(path, reason)

    def mark(self, state: SiteState, carriers: Iterable[str], weight: Tensor | None = None) -> None:
        """Note the modules whose weight, or activation, was measured at a site."""
        with self._lock:
            state.carriers.update(carriers)
            self.measured.update(carriers)
            if weight is not None:
                self.parameters.add(_identity(weight))

    def mark_empty(
        self, site: str, carriers: Iterable[str] = (), weight: Tensor | None = None
    ) -> None:
        """Note a call without rows, of a linear map with those whose weight it is."""
        with self._lock:
            calls = self.empty.setdefault(site, EmptyCalls())
            calls.calls += 1
            calls.carriers.update(carriers)
            if weight is not None:
                self.idle.add(_identity(weight))


def _identity(weight: Tensor) -> int:
    """That of a parameter, also of a view of it."""
    return id(weight if weight._base is None else weight._base)
