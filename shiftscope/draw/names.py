"""Site names as text in a figure: inert, of bounded length, printable in the font at hand.

A name comes from a checkpoint, so it is data: it may hold mathtext, control characters, scripts
the font lacks, or four hundred letters.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from functools import cache
from itertools import accumulate

import numpy as np
from matplotlib.font_manager import findfont
from matplotlib.ft2font import FT2Font, LoadFlags

__all__ = [
    "FONT",
    "NAME_LENGTH",
    "display_name",
    "display_names",
    "plain_name",
    "strided",
    "thinned",
]

FONT = "DejaVu Sans"
"""The font of every figure: the one that matplotlib itself brings along."""

NAME_LENGTH = 28
"""Room for a site name in a figure, in average characters."""

_AVERAGE = 0.55
"""Width of an average character in em."""

_MISSING = "\N{WHITE SQUARE}"


def display_name(name: object, length: int = NAME_LENGTH) -> str:
    """Make a name safe and short enough to stand in a figure.

    Args:
        name: The name as it came.
        length: Room in average characters, at least 5; wider names lose their middle.

    Returns:
        One line without control characters and without mathtext; never empty. matplotlib shows
        the escaped dollar as a dollar.
    """
    return plain_name(name, length).replace("$", r"\$")


def plain_name(name: object, length: int = NAME_LENGTH) -> str:
    """A name as :func:`display_name` shows it, for text outside of figures."""
    text = "".join(map(_printable, unicodedata.normalize("NFC", str(name))))
    return _shorten(" ".join(text.split()) or "(unnamed)", max(length, 5))


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


def _shorten(text: str, room: float) -> str:
    if _width(text) <= room:
        return text
    # The end of a path tells more than its start: layer numbers and the op stand there.
    room -= _advance("…")
    tail = _fitting(text[::-1], room * 0.6)[::-1]
    return f"{_fitting(text, room - _width(tail))}…{tail}"


def _fitting(text: str, room: float) -> str:
    """The longest beginning that takes no more room."""
    used = accumulate(map(_advance, text))
    return text[: sum(width <= room for width in used)]


def _width(text: str) -> float:
    return sum(map(_advance, text))


@cache
def _advance(character: str) -> float:
    """Width of a character in average ones."""
    glyph = _font().load_char(ord(character), flags=LoadFlags.NO_SCALE)
    return float(glyph.horiAdvance) / _font().units_per_EM / _AVERAGE


def _printable(character: str) -> str:
    kind = unicodedata.category(character)
    if kind.startswith("Z") or character in "\t\n\r":
        return " "
    if kind in {"Cc", "Cf", "Mn", "Me"}:
        return ""
    return character if ord(character) in _glyphs() else _MISSING


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(_font().get_charmap())


@cache
def _font() -> FT2Font:
    return FT2Font(findfont(FONT, fallback_to_default=True))
