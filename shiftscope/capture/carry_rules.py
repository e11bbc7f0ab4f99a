"""The rules by which operations carry marks: what they do to the dimensions of their operand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from shiftscope.capture.marks import MIXED, NEURONS, POSITIONS, Marks, Shape, Step, none_of

__all__ = ["RULES", "kept"]


def kept(step: Step, marks: Marks) -> Marks | None:
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
    made, behind = list(none_of(after)), 0
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
    made, spans = list(none_of(after)), _spans(before)
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
RULES: dict[str, _Rule] = {name: rule for rule, names in _TABLE for name in names.split()}
