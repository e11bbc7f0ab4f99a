"""Site names as text in a figure: inert, of bounded length, printable in the font at hand.

A name comes from a checkpoint, so it is data: it may hold mathtext, control characters, scripts
the font lacks, or four hundred letters.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from functools import cache

import numpy as np
from matplotlib.font_manager import findfont
from matplotlib.ft2font import FT2Font

__all__ = ["FONT", "NAME_LENGTH", "display_name", "display_names", "strided", "thinned"]

FONT = "DejaVu Sans"
"""The font of every figure: the one that matplotlib itself brings along."""

NAME_LENGTH = 28
"""Longest site name in a figure, in characters."""

_MISSING = "\N{WHITE SQUARE}"


def display_name(name: object, length: int = NAME_LENGTH) -> str:
    """Make a name safe and short enough to stand in a figure.

    Args:
        name: The name as it came.
        length: Longest result in characters, at least 5; longer names lose their middle.

    Returns:
        One line without control characters and without mathtext; never empty.
    """
    text = "".join(map(_printable, unicodedata.normalize("NFC", str(name))))
    text = " ".join(text.split()) or "(unnamed)"
    return _shorten(text, max(length, 5)).replace("$", r"\$")


def thinned(count: int, limit: int) -> list[int]:
    """Evenly spaced positions out of ``count``, the first and the last among them.

    Args:
        count: How many there are.
        limit: How many may be kept, at least 2.

    Returns:
        At most ``limit`` rising positions.
    """
    if count <= limit:
        return list(range(count))
    return [round(float(place)) for place in np.linspace(0, count - 1, max(limit, 2))]


def strided(count: int, limit: int) -> range:
    """Positions 0, k, 2k, ... with the smallest k that keeps at most ``limit`` of ``count``."""
    return range(0, count, max(math.ceil(count / max(limit, 1)), 1))


def display_names(names: Sequence[object], length: int = NAME_LENGTH) -> list[str]:
    """:func:`display_name` of each name."""
    return [display_name(name, length) for name in names]


def _shorten(text: str, length: int) -> str:
    if len(text) <= length:
        return text
    # The end of a path tells more than its start: layer numbers and the op stand there.
    tail = (length - 1) * 3 // 5
    return f"{text[: length - 1 - tail]}…{text[-tail:]}"


def _printable(character: str) -> str:
    kind = unicodedata.category(character)
    if kind.startswith("Z") or character in "\t\n\r":
        return " "
    if kind in {"Cc", "Cf", "Mn", "Me"}:
        return ""
    return character if ord(character) in _glyphs() else _MISSING


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(FT2Font(findfont(FONT, fallback_to_default=True)).get_charmap())
