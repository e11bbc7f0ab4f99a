"""The arguments of a convolution, in every form torch takes, made explicit."""

from __future__ import annotations

from collections.abc import Sequence

from shiftscope.errors import UsageError

__all__ = ["Padding", "Size", "each", "pairs"]

Size = int | Sequence[int]
"""One number, or one for each dimension."""
Padding = str | int | Sequence[int | tuple[int, int]]
"""Likewise, or (left, right) pairs, or `same` or `valid`."""


def each(value: Size, n: int, name: str) -> tuple[int, ...]:
    """One number for each of `n` dimensions.

    Args:
        value: A number for all, or one each.
        n: Number of dimensions.
        name: What it is, for the message.

    Returns:
        [n] numbers.

    Raises:
        UsageError: There are more or fewer.
    """
    values = (value,) * n if isinstance(value, int) else tuple(int(v) for v in value)
    if len(values) != n:
        raise UsageError(
            f"{name} has {len(values)} values for {n} dimensions", "Give one number or one each."
        )
    return values


def pairs(
    padding: Padding,
    taps: tuple[int, ...],
    dilation: tuple[int, ...],
) -> tuple[tuple[int, int], ...]:
    """(left, right) padding for each dimension, from any of the ways to write it.

    Args:
        padding: Numbers, pairs, `same` (the odd element goes to the right) or `valid`.
        taps: Kernel size of each dimension.
        dilation: Dilation of each dimension.

    Returns:
        One pair for each dimension.

    Raises:
        UsageError: It cannot be meant.
    """
    if padding == "same":
        spans = [dil * (k - 1) for k, dil in zip(taps, dilation, strict=True)]
        return tuple((span // 2, span - span // 2) for span in spans)
    if isinstance(padding, str):
        if padding != "valid":
            raise UsageError(f"unknown padding {padding!r}", "Use numbers, 'same' or 'valid'.")
        padding = 0
    values = (padding,) * len(taps) if isinstance(padding, int) else tuple(padding)
    if len(values) != len(taps):
        raise UsageError(
            f"padding has {len(values)} values for {len(taps)} dimensions",
            "Give one number, one for each dimension, or (left, right) pairs.",
        )
    return tuple((v, v) if isinstance(v, int) else (int(v[0]), int(v[1])) for v in values)
