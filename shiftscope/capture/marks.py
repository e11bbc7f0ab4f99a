"""What is known of the dimensions of a tensor, and of an operation that it passes through.

Each dimension has a mark: whether it tells neurons apart, alone or with positions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

__all__ = ["MIXED", "NEURONS", "POSITIONS", "Marks", "Shape", "Step", "none_of", "one_of", "plain"]

Shape = tuple[int, ...]
Marks = tuple[int, ...]

POSITIONS, MIXED, NEURONS = 0, 1, 2
"""Marks of a dimension: samples or positions; neurons merged with positions; neurons (a part)."""

_TAIL = re.compile(r"(Backward\d*)?$")


@lru_cache(maxsize=4096)
def plain(name: str) -> str:
    """The name of an operation without the signs of where it was found.

    Example:
        >>> plain("AvgPool2DBackward0"), plain("avg_pool2d"), plain("__add__"), plain("relu_")
        ('avgpool2d', 'avgpool2d', 'add', 'relu')
    """
    name = name.rpartition("::")[2].partition(".")[0]
    return _TAIL.sub("", name, count=1).replace("_", "").lower()


@dataclass(frozen=True)
class Step:
    """An operation between one of its operands and one of its outputs.

    Attributes:
        name: Its plain name.
        before: Shape of the operand.
        after: Shape of the output.
        dims: The dimensions it was called with; none where it has none, or they are not known.
        operand: Number of the operand.
    """

    name: str
    before: Shape
    after: Shape
    dims: tuple[int, ...] = ()
    operand: int = 0


def one_of(dims: int, dim: int) -> Marks:
    """The marks of that many dimensions, one of which tells neurons apart."""
    return tuple(NEURONS if place == dim else POSITIONS for place in range(dims))


def none_of(shape: Shape) -> Marks:
    """The marks of a tensor that has no neurons."""
    return (POSITIONS,) * len(shape)
