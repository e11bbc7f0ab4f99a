"""The formats that a report can have, chosen by name."""

from __future__ import annotations

from collections.abc import Iterable

from shiftscope.errors import UsageError
from shiftscope.given import each

__all__ = ["FORMATS", "chosen"]

FORMATS = ("html", "png", "json")
"""What reports, verifications and comparisons can be written as."""


def chosen(formats: Iterable[str]) -> set[str]:
    """The formats that were asked for.

    Args:
        formats: Any of :data:`FORMATS`, or one of them.

    Raises:
        UsageError: One of them is not known, or no name.
    """
    known = f"choose among {', '.join(FORMATS)}"
    wanted = set(each("formats", formats, str, remedy=known))
    unknown = sorted(wanted - set(FORMATS))
    if unknown:
        raise UsageError(f"a report has no format {unknown[0]!r}", known)
    return wanted
