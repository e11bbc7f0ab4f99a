"""The exceptions shiftscope raises on purpose.

Every one carries two sentences: what is wrong (with the values and the place), and what to do
about it. The command line prints exactly these two lines and exits with code 2.
"""

from __future__ import annotations

__all__ = ["DataError", "LoadError", "MeasureError", "ShiftscopeError", "UsageError"]


class ShiftscopeError(Exception):
    """Something the user can act on.

    Args:
        reason: One line: what was expected, what was found, where.
        remedy: One line: what to do about it.
    """

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason if not remedy else f"{reason}\n{remedy}")
        self.reason = reason
        self.remedy = remedy

    def __reduce__(self) -> tuple[type[ShiftscopeError], tuple[str, str]]:
        """Pickle by the two lines, so that errors cross process borders whole."""
        return type(self), (self.reason, self.remedy)


class UsageError(ShiftscopeError):
    """An argument or option has a value that cannot be meant."""


class LoadError(ShiftscopeError):
    """A checkpoint, model, data set or snapshot cannot be read."""


class DataError(ShiftscopeError):
    """The data can be read but do not fit the model or the loss."""


class MeasureError(ShiftscopeError):
    """The model cannot be measured as asked."""
