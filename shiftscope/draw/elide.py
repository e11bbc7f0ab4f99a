"""Long names made short, each kept apart from the others that stand beside it.

A name is a sequence of tokens that are never cut: characters, or an escape that stands for one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

__all__ = ["elide"]

_TAIL = 0.6
"""Share of the room for the end: it tells more than the start, layer numbers and the op stand
there."""

_DOTS = "…"
_SEPARATORS = ".:/"

Name = tuple[str, ...]
Width = Callable[[str], float]


def elide(names: Sequence[Sequence[str]], room: float, width: Width = len) -> list[str]:
    """Shorten names so that different ones stay different.

    A name that is too wide loses its middle. Where that would make several alike, what differs
    between them is kept and the room for their common start and end is smaller.

    Args:
        names: Each as a string or as a sequence of tokens.
        room: Widest result, in the unit of ``width``.
        width: Width of a token.

    Returns:
        One text a name; equal only for equal names, as far as the room allows two numbers.
    """
    kept = list(dict.fromkeys(tuple(name) for name in names))
    told = dict(zip(kept, map("".join, _fitted(kept, room, width)), strict=True))
    return [told[tuple(name)] for name in names]


def _fitted(names: Sequence[Name], room: float, width: Width) -> list[Name]:
    """Different names as different ones that fit."""
    short = {name: _middle_out(name, room, width) for name in names}
    for group in _like_built(_alike(short)):
        short |= zip(group, _by_parts(group, room, width), strict=True)
    for method in (_by_parts, _by_letters):
        for group in _alike(short):
            short |= zip(group, method(group, room, width), strict=True)
    for group in _alike(short):
        for number, name in enumerate(group, 1):
            sign = (*"#", *str(number))
            left = room - sum(map(width, sign))
            short[name] = (*_middle_out(short[name], left, width), *sign)
    return [short[name] for name in names]


def _alike(short: dict[Name, Name]) -> list[list[Name]]:
    """The names that were shortened to the same, group by group."""
    groups: dict[str, list[Name]] = {}
    for name, text in short.items():
        groups.setdefault("".join(text), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _like_built(groups: list[list[Name]]) -> list[list[Name]]:
    """All names of the groups, those of equally many parts together."""
    built: dict[int, list[Name]] = {}
    for name in (name for group in groups for name in group):
        built.setdefault(len(_parts(name)), []).append(name)
    return list(built.values())


def _by_parts(names: Sequence[Name], room: float, width: Width) -> list[Name]:
    """Names of one structure: the parts that differ, and of the others as many as fit."""
    rows = [_parts(name) for name in names]
    count = len(rows[0])
    if any(len(row) != count for row in rows):
        return [_middle_out(name, room, width) for name in names]
    kept = {k for k in range(count) if len({row[k] for row in rows}) > 1}
    short = [_joined(row, kept) for row in rows]
    if not _fit(short, room, width):
        return [_middle_out(name, room, width) for name in names]
    for k in (count - 1, 0, *range(count - 2, 0, -1)):
        more = [_joined(row, kept | {k}) for row in rows]
        if _fit(more, room, width):
            kept, short = kept | {k}, more
    return short


def _parts(name: Name) -> list[Name]:
    """The parts of a path, each with the separator behind it."""
    ends = [place + 1 for place, token in enumerate(name) if token in _SEPARATORS]
    cuts = [0, *ends, len(name)]
    return [name[start:end] for start, end in pairwise(cuts)]


def _joined(parts: Sequence[Name], kept: set[int]) -> Name:
    out: Name = ()
    for k, part in enumerate(parts):
        if k in kept:
            gap = k + 1 < len(parts) and k + 1 not in kept
            out += part[:-1] if gap else part
        elif not out or out[-1] != _DOTS:
            out += (_DOTS,)
    return out


def _fit(names: Sequence[Name], room: float, width: Width) -> bool:
    return all(sum(map(width, name)) <= room for name in names)


def _by_letters(names: Sequence[Name], room: float, width: Width) -> list[Name]:
    """Names with a common start and end, shortened there and not where they differ."""
    head = _common(names)
    rest = [name[len(head) :] for name in names]
    tail = _common([name[::-1] for name in rest])[::-1]
    cores = [name[: len(name) - len(tail)] for name in rest]
    dots = width(_DOTS)
    widest = max(sum(map(width, core)) for core in cores)
    left = max(room - widest, 2 * dots)
    end = _ending(tail, max((left - dots) * _TAIL, dots), width)
    start = _beginning(head, left - sum(map(width, end)), width)
    inner = room - sum(map(width, start + end))
    if not (head or tail) or inner < min(widest, 3 * dots):
        return [_middle_out(name, room, width) for name in names]
    return [(*start, *core, *end) for core in _fitted(cores, inner, width)]


def _common(names: Sequence[Name]) -> Name:
    """The longest common beginning."""
    first, last = min(names), max(names)
    pairs = enumerate(zip(first, last, strict=False))
    return first[: next((k for k, (one, other) in pairs if one != other), len(first))]


def _middle_out(name: Name, room: float, width: Width) -> Name:
    if sum(map(width, name)) <= room:
        return name
    room -= width(_DOTS)
    tail = _first(name[::-1], room * _TAIL, width)[::-1]
    return (*_first(name, room - sum(map(width, tail)), width), _DOTS, *tail)


def _beginning(name: Name, room: float, width: Width) -> Name:
    whole = sum(map(width, name)) <= room
    return name if whole else (*_first(name, room - width(_DOTS), width), _DOTS)


def _ending(name: Name, room: float, width: Width) -> Name:
    return _beginning(name[::-1], room, width)[::-1]


def _first(name: Name, room: float, width: Width) -> Name:
    """The longest beginning that takes no more room."""
    used = accumulate(map(width, name))
    return name[: sum(total <= room for total in used)]
