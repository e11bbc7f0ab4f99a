"""How torch's operations carry the neurons of a layer from dimension to dimension.

One table for both ways of looking: backwards along the nodes of the autograd graph, and forwards
along the functions that are called where there is no graph. Both give an operation by its plain
name (``PermuteBackward0`` and ``Tensor.permute`` are ``permute``), its shapes and its dimensions.
Each dimension of a tensor has a mark: whether it tells neurons apart, alone or with positions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

__all__ = [
    "MIXED",
    "NEURONS",
    "POSITIONS",
    "Marks",
    "Shape",
    "Step",
    "carry",
    "keeps",
    "plain",
    "source",
]

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


_LAST = (
    *("addmm", "addmv", "mv", "linear", "mkldnnlinear", "embedding", "bilinear", "trilinear"),
    *("convtbc", "scaleddotproduct", "multiheadattention", "lstm", "gru", "rnn", "cudnnrnn"),
    *("mkldnnrnn", "miopenrnn", "thnnfused"),
)
_SECOND = ("batchnorm", "groupnorm", "instancenorm")
_CONVOLUTIONS = re.compile(r"conv(?:transpose)?(\d)d")


@lru_cache(maxsize=4096)
def source(name: str, dims: int, normalized: int = 0) -> Marks | None:
    """The marks of the output of a layer; None for an operation that is none.

    Args:
        name: The plain name of the operation.
        dims: Number of dimensions of its output.
        normalized: Number of dimensions that a layer normalisation works on.
    """
    last = dims - 1
    if last < 0:
        return None
    if name.startswith(_LAST):
        return _one(dims, last)
    if "layernorm" in name or "rmsnorm" in name:
        return _one(dims, last) if normalized == 1 else None
    if any(word in name for word in _SECOND):
        return _one(dims, min(1, last))
    called = _CONVOLUTIONS.fullmatch(name)
    if called:
        return _one(dims, max(0, last - int(called.group(1))))
    if "convolution" in name or name.startswith(("slowconv", "thnnconv", "convdepth")):
        return _one(dims, min(1, last))
    return None


@lru_cache(maxsize=4096)
def keeps(name: str) -> bool:
    """Whether an operation leaves dimensions where they are, as far as is known."""
    return name not in _RULES and source(name, 4, 1) is None


def carry(step: Step, marks: Marks) -> Marks:
    """The marks of an operation's output, given those of an operand.

    Args:
        step: The operation.
        marks: The marks of the operand.

    Returns:
        One mark for each dimension; no :data:`NEURONS` among them where they got lost.
    """
    if not any(marks) or len(marks) != len(step.before):
        return _none(step.after)
    made = _RULES.get(step.name, _kept)(step, marks)
    return made if made is not None and len(made) == len(step.after) else _none(step.after)


def _one(dims: int, dim: int) -> Marks:
    return tuple(NEURONS if place == dim else POSITIONS for place in range(dims))


def _none(shape: Shape) -> Marks:
    return (POSITIONS,) * len(shape)


def _kept(step: Step, marks: Marks) -> Marks | None:
    """Elementwise, padding, pooling, cutting: and the best guess for what is not in the table."""
    return marks if len(step.before) == len(step.after) else None


def _from_the_right(step: Step, marks: Marks) -> Marks | None:
    """Broadcasting puts new dimensions in front."""
    return (POSITIONS,) * (len(step.after) - len(step.before)) + marks


def _ordered(marks: Marks, order: Sequence[int]) -> Marks:
    return tuple(marks[place] for place in order)


def _permuted(step: Step, marks: Marks) -> Marks | None:
    return _ordered(marks, step.dims) if len(step.dims) == len(marks) else None


def _transposed(step: Step, marks: Marks) -> Marks | None:
    if len(step.dims) != 2:
        return None
    order = list(range(len(marks)))
    one, other = (dim % len(marks) for dim in step.dims)
    order[one], order[other] = other, one
    return _ordered(marks, order)


def _reversed(step: Step, marks: Marks) -> Marks:
    return marks[::-1]


def _matrix_transposed(step: Step, marks: Marks) -> Marks:
    return (*marks[:-2], *marks[:-3:-1])


def _moved(step: Step, marks: Marks) -> Marks | None:
    """``movedim``: first half of the dimensions to the places of the second."""
    half, size = len(step.dims) // 2, len(marks)
    if len(step.dims) != 2 * half:
        return None
    taken, put = ([d % size for d in part] for part in (step.dims[:half], step.dims[half:]))
    rest = iter([place for place in range(size) if place not in taken])
    goes = dict(zip(put, taken, strict=True))
    return _ordered(marks, [goes[p] if p in goes else next(rest) for p in range(size)])


def _inserted(step: Step, marks: Marks) -> Marks | None:
    if len(step.dims) != 1:
        return None
    place = step.dims[0] % len(step.after)
    return (*marks[:place], POSITIONS, *marks[place:])


def _dropped(step: Step, marks: Marks) -> Marks | None:
    """A reduction, or one slice of a dimension."""
    if len(step.before) == len(step.after):
        return marks
    gone = {dim % len(marks) for dim in step.dims}
    return tuple(mark for place, mark in enumerate(marks) if place not in gone)


def _squeezed(step: Step, marks: Marks) -> Marks:
    wanted = {dim % len(marks) for dim in step.dims} or set(range(len(marks)))
    kept = [place for place in range(len(marks)) if place not in wanted or step.before[place] != 1]
    return _ordered(marks, kept)


def _appended(step: Step, marks: Marks) -> Marks | None:
    if len(step.after) == len(step.before) + 1:
        return (*marks, POSITIONS)
    return _with_patches(step, marks)


def _with_patches(step: Step, marks: Marks) -> Marks:
    """Between images and columns of patches: channels stay in dimension 1, all else is mixed."""
    return (*marks[:2], *(POSITIONS,) * (len(step.after) - 2))


def _cut(step: Step, marks: Marks) -> Marks:
    return marks[:-1]


def _matched(step: Step, marks: Marks) -> Marks:
    """Advanced indexing: what lies before and behind the indexed dimensions stays as it is."""
    before, after = step.before, step.after
    if len(before) == len(after):
        return marks
    made, behind = list(_none(after)), 0
    while behind < min(len(before), len(after)) and before[-1 - behind] == after[-1 - behind]:
        behind += 1
        made[-behind] = marks[-behind]
    for place in range(min(len(before), len(after)) - behind):
        if before[place] != after[place]:
            break
        made[place] = marks[place]
    return tuple(made)


def _multiplied(step: Step, marks: Marks) -> Marks | None:
    """A product of matrices: rows of the left operand, columns of the right one remain.

    Where neurons are what is summed over, those of the layer above are gone.
    """
    if len(step.before) < 2 or len(step.after) < 2:
        return None
    summed = -1 if step.operand == 0 else -2
    if marks[summed] != POSITIONS:
        return None
    return (POSITIONS,) * (len(step.after) - len(marks)) + marks


def _added_product(step: Step, marks: Marks) -> Marks | None:
    if step.operand == 0:
        return _from_the_right(step, marks)
    return _multiplied(Step(step.name, step.before, step.after, (), step.operand - 1), marks)


def _reshaped(step: Step, marks: Marks) -> Marks | None:
    """Dimensions that are split mark each part; those that are merged mark the whole."""
    before, after = step.before, step.after
    if prod(before) != prod(after) or prod(after) == 0:
        return None
    made, spans = list(_none(after)), _spans(before)
    for place, (low, high) in enumerate(_spans(after)):
        old = zip(marks, spans, strict=True)
        seen = [mark for mark, span in old if max(span[0], low) < min(span[1], high)]
        if seen and max(seen) != POSITIONS:
            made[place] = NEURONS if min(seen) == NEURONS else MIXED
    for place, mark in enumerate(marks):
        if mark and before[place] == 1:
            _put_single(made, after, place, place - len(before), mark)
    return tuple(made)


def _spans(shape: Shape) -> list[tuple[int, int]]:
    """Steps in memory of each dimension: to its next number, and over all of them."""
    found, high = [], prod(shape)
    for size in shape:
        found.append((high // size, high))
        high //= size
    return found


def _put_single(made: list[int], after: Shape, place: int, from_end: int, mark: int) -> None:
    """A single channel has no size to be followed by: it stays where it was, if it can."""
    for spot in (place, len(after) + from_end):
        if 0 <= spot < len(after) and after[spot] == 1:
            made[spot] = mark
            return


def _strided(step: Step, marks: Marks) -> Marks | None:
    """A view by steps in memory, of a tensor that lies in order."""
    if 0 in step.before:
        return None
    known = {low: mark for mark, (low, high) in zip(marks, _spans(step.before), strict=True)
             if low < high}  # fmt: skip
    return tuple(known.get(stride, POSITIONS) for stride in step.dims)


def _lost(step: Step, marks: Marks) -> None:
    return None


_Rule = Callable[[Step, Marks], Marks | None]

_TABLE: tuple[tuple[_Rule, str], ...] = (
    (_permuted, "permute"),
    (_transposed, "transpose swapaxes swapdims"),
    (_reversed, "t numpyt"),
    (_matrix_transposed, "mt mh adjoint"),
    (_moved, "movedim moveaxis"),
    (_inserted, "unsqueeze stack"),
    (_dropped, "select unbind sum nansum mean nanmean amax amin max min prod std var stdmean"),
    (_dropped, "varmean norm linalgvectornorm vectornorm logsumexp median nanmedian mode"),
    (_dropped, "kthvalue quantile countnonzero any all argmax argmin"),
    (_squeezed, "squeeze"),
    (_appended, "unfold viewasreal"),
    (_with_patches, "im2col col2im fold"),
    (_cut, "viewascomplex"),
    (_strided, "asstrided"),
    (_matched, "index getitem indexselect gather packpaddedsequence"),
    (_multiplied, "mm bmm matmul"),
    (_added_product, "baddbmm"),
    (_reshaped, "view unsafeview reshapealias reshape reshapeas viewas flatten unflatten ravel"),
    (_from_the_right, "expand expandas broadcastto repeat tile add radd iadd sub rsub isub mul"),
    (_from_the_right, "rmul imul div truediv rtruediv pow where maximum minimum fmax fmin lerp"),
    (_from_the_right, "addcmul addcdiv atan2 multiply subtract divide truedivide"),
    (_lost, "cdist outer kron tensordot dot"),
)
_RULES: dict[str, _Rule] = {name: rule for rule, names in _TABLE for name in names.split()}
