"""Which dimension of an activation's input holds the neurons.

It is decided by where the values come from: the layer above, a convolution or a linear map for
instance, says where its neurons lie, and what was done since carries them on
(:mod:`shiftscope.capture.carry`). The autograd graph tells what was done; where there is none, the
trail of the functions that were called does. Where neither says it, what the layers of the model
take does; a guess is told in the notes of the site.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from shiftscope.capture.activation_ops import ActivationOp
from shiftscope.capture.carry import carry, source
from shiftscope.capture.marks import MIXED, NEURONS, POSITIONS, Marks, Shape, Step, plain

__all__ = ["Lies", "Takers", "marks_above", "neurons_lie"]

_LIMIT = 200
_ASIDE = 8
"""Nodes to go up along the main operand before the next one is looked at."""
_WRAPPED = 2**63
_CHANNELS_FROM = 4
"""Tensors of so many dimensions are images, where nothing else is known of them."""
_GONE = "the channels of the layer above were summed or picked out"
_UNSEEN = "no layer was found above it"
_SPLIT = "the features of the layer above are split into several dimensions"


class Lies(NamedTuple):
    """Where the neurons of a tensor lie.

    Attributes:
        dim: Their dimension; -1 for the last one.
        doubt: A note, where that is a guess; else empty.
    """

    dim: int
    doubt: str = ""


@dataclass(frozen=True)
class Takers:
    """What the layers of a model take, by the dimension they take it from.

    Attributes:
        second: ``(dimensions of the input or 0 for any, channels)`` of layers of channels.
        last: Features of layers of rows.
    """

    second: frozenset[tuple[int, int]]
    last: frozenset[int]

    @classmethod
    def of(cls, modules: Iterable[nn.Module]) -> Takers:
        """Those of some modules."""
        second: set[tuple[int, int]] = set()
        last: set[int] = set()
        for module in modules:
            if isinstance(module, nn.modules.conv._ConvNd):
                second.add((len(module.kernel_size) + 2, module.in_channels))
            elif isinstance(module, nn.modules.batchnorm._NormBase):
                second.add((0, module.num_features))
            elif isinstance(module, nn.GroupNorm):
                second.add((0, module.num_channels))
            elif isinstance(module, nn.Linear):
                last.add(module.in_features)
            elif isinstance(module, nn.LayerNorm):
                last.add(module.normalized_shape[-1])
        return cls(frozenset(second), frozenset(last))

    def choose(self, shape: Shape) -> int | None:
        """Dimension 1 or the last one, if only one of them is taken by a layer."""
        width = shape[1]
        second = (0, width) in self.second or (len(shape), width) in self.second
        if second == (shape[-1] in self.last):
            return None
        return 1 if second else len(shape) - 1


def neurons_lie(
    op: ActivationOp,
    marks_of: Callable[[Tensor], Marks | None],
    modules: Iterable[nn.Module],
    before: Lies | None = None,
) -> Lies:
    """Where the neurons of an activation's input lie.

    Args:
        op: The activation.
        marks_of: Tells what is known of the dimensions of a tensor; None for nothing.
        modules: The modules of the model, whose layers are asked where nothing else is known.
        before: Where they lay when the same call was made first, if it is made again.
    """
    shape = tuple(op.x.shape)
    if before is not None and -len(shape) <= before.dim < len(shape):
        return before
    along = op.dim if op.dim is not None and -len(shape) <= op.dim < len(shape) else None
    if along is not None and (op.op == "glu" or along in (-1, len(shape) - 1)):
        return _at(along, shape)
    marks = marks_of(op.x)
    found = [] if marks is None else _best(marks)
    if not found and along is not None:
        return _at(along, shape)
    if not found:
        return _guess(shape, modules, _UNSEEN if marks is None else _GONE)
    others = [place for place in range(1, len(shape)) if place not in found and shape[place] > 1]
    if len(found) == 1 or others:
        return _at(found[-1], shape)  # heads: what is left of the features is the last part
    return _guess(shape, modules, _SPLIT)


def _guess(shape: Shape, modules: Iterable[nn.Module], why: str) -> Lies:
    if len(shape) < 3:
        return _at(-1, shape, "" if why is _UNSEEN else why)
    taken = Takers.of(modules).choose(shape)
    if taken is not None:
        return _at(taken, shape)
    return _at(1 if len(shape) >= _CHANNELS_FROM else -1, shape, why)


def _best(marks: Marks) -> list[int]:
    pure = [place for place, mark in enumerate(marks) if mark == NEURONS]
    return pure or [place for place, mark in enumerate(marks) if mark == MIXED]


def _at(dim: int, shape: Shape, why: str = "") -> Lies:
    place = dim % len(shape)
    doubt = f"neurons are taken to lie in dimension {place} of {len(shape)}: {why}" if why else ""
    return Lies(-1 if place == len(shape) - 1 else place, doubt)


# -- along the autograd graph ---------------------------------------------------------------------


class _Reached(NamedTuple):
    """A node on the way up, and the way back down to the tensor."""

    node: Any
    number: int
    step: Step | None = None
    below: _Reached | None = None

    @property
    def before(self) -> Shape | None:
        """Shape of its output, where that is an operand of the node below."""
        return None if self.step is None else self.step.before

    def marks(self, marks: Marks) -> Marks:
        """Those of the tensor, given those of this node's output."""
        at: _Reached | None = self
        while at is not None and at.step is not None:
            marks, at = carry(at.step, marks), at.below
        return marks


def marks_above(x: Tensor, known: Any = None) -> Marks | None:
    """What the autograd graph of a tensor tells about its dimensions.

    Args:
        x: The tensor.
        known: Marks of the outputs of some nodes, by node.

    Returns:
        One mark a dimension, none of them set where the neurons of the layers above got lost; None
        where no layer was found.
    """
    waiting = [(0, 0, _Reached(x.grad_fn, x.output_nr))]
    seen: set[tuple[Any, int]] = set()
    lost: Marks | None = None
    rows: Marks | None = None
    while waiting and len(seen) < _LIMIT:
        cost, _, at = heappop(waiting)
        shape = None if at.node is None else _shape(at.node, at.number)
        if shape is None or (at.node, at.number) in seen:
            continue
        seen.add((at.node, at.number))
        name = plain(at.node.name())
        made = _source(at, name, shape, known or {})
        if made is not None:
            lost = at.marks(made)
            if any(lost):
                return lost
            continue
        for place, other in enumerate(_in_order(_operands(at, name, shape), shape)):
            price = cost + 1 + min(place, 3) * _ASIDE
            heappush(waiting, (price, len(seen) * _LIMIT + place, other))
        if rows is None and name == "bmm" and _is_weight(at.node.next_functions[0][0]):
            rows = at.marks((POSITIONS, NEURONS, POSITIONS))
    # A weight on the left mixes rows: tokens or nodes, where columns are neurons already.
    return rows if rows is not None and any(rows) else lost


def _source(at: _Reached, name: str, shape: Shape, known: Any) -> Marks | None:
    made: Marks | None = known.get(at.node)
    if made is not None and len(made) == len(shape):
        return made
    if name == "mm":
        children = at.node.next_functions
        columns = _is_weight(children[0][0]) and not _is_weight(children[1][0])
        return (NEURONS, POSITIONS) if columns else (POSITIONS, NEURONS)
    if name == "bmm" and _is_weight(at.node.next_functions[1][0]):
        return (POSITIONS, POSITIONS, NEURONS)
    return source(name, len(shape), len(_numbers(at.node, "_saved_normalized_shape")))


def _operands(at: _Reached, name: str, shape: Shape) -> Iterator[_Reached]:
    dims = _dims(at.node, name)
    for operand, (child, number) in enumerate(at.node.next_functions):
        before = None if child is None else _shape(child, number)
        if before is not None:
            yield _Reached(child, number, Step(name, before, shape, dims, operand), at)


def _in_order(operands: Iterable[_Reached], shape: Shape) -> list[_Reached]:
    """The operands, first those as large as the output: others are gates, masks, biases."""
    return sorted(operands, key=lambda other: other.before != shape)


def _is_weight(node: Any) -> bool:
    """Whether a node is a parameter, or a parameter in another shape."""
    for _ in range(10):
        if node is None:
            return False
        if isinstance(getattr(node, "variable", None), nn.Parameter):
            return True
        if plain(node.name()) not in _SHAPING:
            return False
        node = node.next_functions[0][0]
    return False


_SHAPING = (
    *("t", "transpose", "permute", "view", "unsafeview", "reshapealias", "unsqueeze", "squeeze"),
    *("expand", "clone", "tocopy"),
)


def _shape(node: Any, number: int) -> Shape | None:
    """Shape of an output: every node describes what it takes gradients of."""
    described = getattr(node, "_input_metadata", ())
    try:
        shape = tuple(described[number].shape)
    except (IndexError, RuntimeError):
        return None
    return shape if all(type(size) is int for size in shape) else None  # else a nested tensor's


def _dims(node: Any, name: str) -> tuple[int, ...]:
    if name == "transpose":
        return (*_numbers(node, "_saved_dim0"), *_numbers(node, "_saved_dim1"))
    if name == "asstrided":
        return _numbers(node, "_saved_stride")
    return _numbers(node, "_saved_dim") or _numbers(node, "_saved_dims")


def _numbers(node: Any, name: str) -> tuple[int, ...]:
    """A saved number, or numbers; never a saved tensor, whose hooks would run."""
    try:
        saved = getattr(node, name, ())
    except RuntimeError:  # freed
        return ()
    values = (saved,) if isinstance(saved, int) else saved
    if not isinstance(values, tuple | list | torch.Size):
        return ()
    # Negative dimensions come as unsigned numbers.
    return tuple(int(v) - 2 * _WRAPPED if int(v) >= _WRAPPED else int(v) for v in values)
