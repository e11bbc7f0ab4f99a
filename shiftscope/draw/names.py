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
from matplotlib.ft2font import FT2Font, LoadFlags

from shiftscope.draw.elide import elide

__all__ = [
    "FONT",
    "NAME_LENGTH",
    "display_name",
    "display_names",
    "plain_name",
    "plain_names",
    "strided",
    "thinned",
]

FONT = "DejaVu Sans"
"""The font of every figure: the one that matplotlib itself brings along."""

NAME_LENGTH = 28
"""Room for a site name in a figure, in average characters."""

_AVERAGE = 0.55
"""Width of an average character in em."""


def display_name(name: object, length: int = NAME_LENGTH) -> str:
    """Make a name safe and short enough to stand in a figure.

    Args:
        name: The name as it came.
        length: Room in average characters, at least 5; wider names lose their middle.

    Returns:
        One line without control characters and without mathtext; never empty. What the font has
        no glyph for stands as an escape. matplotlib shows the escaped dollar as a dollar.
    """
    return display_names([name], length)[0]


def display_names(names: Sequence[object], length: int = NAME_LENGTH) -> list[str]:
    """:func:`display_name` of each name; different ones keep apart what differs between them."""
    return [name.replace("$", r"\$") for name in plain_names(names, length)]


def plain_name(name: object, length: int = NAME_LENGTH) -> str:
    """A name as :func:`display_name` shows it, for text outside of figures."""
    return plain_names([name], length)[0]


def plain_names(names: Sequence[object], length: int = NAME_LENGTH) -> list[str]:
    """Names as :func:`display_names` shows them, for text outside of figures."""
    return elide(list(map(_tokens, names)), max(length, 5), _width)


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


def _width(token: str) -> float:
    return sum(map(_advance, token))


@cache
def _advance(character: str) -> float:
    """Width of a character in average ones."""
    glyph = _font().load_char(ord(character), flags=LoadFlags.NO_SCALE)
    return float(glyph.horiAdvance) / _font().units_per_EM / _AVERAGE


def _tokens(name: object) -> tuple[str, ...]:
    """The characters of a name as they can be shown; single spaces, none at the ends."""
    shown = list(filter(None, map(_printable, unicodedata.normalize("NFC", str(name)))))
    kept = [c for k, c in enumerate(shown) if c != " " or shown[k - 1 : k] not in ([], [" "])]
    while kept and kept[-1] == " ":
        kept.pop()
    return tuple(kept) or tuple("(unnamed)")


def _printable(character: str) -> str:
    kind = unicodedata.category(character)
    if kind.startswith("Z") or character in "\t\n\r":
        return " "
    if kind in {"Cc", "Cf", "Mn", "Me"}:
        return ""
    if ord(character) in _glyphs():
        return character
    return character.encode("unicode_escape").decode()


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(_font().get_charmap())


@cache
def _font() -> FT2Font:
    return FT2Font(findfont(FONT, fallback_to_default=True))
