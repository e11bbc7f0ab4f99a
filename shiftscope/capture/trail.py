"""Where the neurons lie in tensors that have no history in the autograd graph.

Without gradients (``torch.no_grad``, frozen layers, ``ss.analyze`` without a loss) nothing but the
calls themselves tells what was done to the output of a layer. The trail of one forward pass follows
them: it holds marks of tensors, by weak references, and is forgotten when the pass ends.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from shiftscope.capture.calls import known_as
from shiftscope.capture.carry import carry, keeps, source
from shiftscope.capture.marks import NEURONS, POSITIONS, Marks, Step, plain
from shiftscope.capture.neuron_dims import marks_above

__all__ = ["Trail"]

_GETTERS = {
    Tensor.T.__get__: "numpyt",  # type: ignore[attr-defined]
    Tensor.mT.__get__: "mt",  # type: ignore[attr-defined]
    Tensor.H.__get__: "mh",  # type: ignore[attr-defined]
    Tensor.mH.__get__: "mh",  # type: ignore[attr-defined]
    Tensor.data.__get__: "detach",  # type: ignore[attr-defined]
}
_DIMS_AT = {
    **dict.fromkeys(("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis"), 1),
    **dict.fromkeys(("unsqueeze", "squeeze", "select", "unbind", "stack", "sum", "nansum"), 1),
    **dict.fromkeys(("mean", "nanmean", "amax", "amin", "max", "min", "prod", "std", "var"), 1),
    **dict.fromkeys(("logsumexp", "median", "nanmedian", "mode", "any", "all"), 1),
    **dict.fromkeys(("argmax", "argmin", "countnonzero"), 1),
    **dict.fromkeys(("norm", "quantile", "kthvalue", "vectornorm", "linalgvectornorm"), 2),
}
"""The place of the dimensions among the positional arguments."""
_RESHAPING = ("squeeze", "unsqueeze", "transpose", "swapaxes", "swapdims", "t")


@dataclass(slots=True)
class _Call:
    """One call of a function that has run.

    Attributes:
        name: Its plain name.
        args: Positional arguments.
        kwargs: Keyword arguments.
        operands: The plain tensors among both, in order.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    operands: list[Tensor]


@known_as("trail")
class Trail:
    """The marks of tensors without history, in one thread's forward pass.

    Attributes:
        tensors: Id of a tensor -> a weak reference to it, and its marks.
    """

    __slots__ = ("_nodes", "tensors")

    def __init__(self) -> None:
        self.tensors: dict[int, tuple[Any, Marks]] = {}
        self._nodes: dict[Any, Marks] = {}

    def clear(self) -> None:
        """Forget everything: the forward pass ended."""
        self.tensors.clear()
        self._nodes.clear()

    def marks(self, x: Tensor) -> Marks | None:
        """What is known of the dimensions of a tensor; None for nothing."""
        found, marks = self.tensors.get(id(x), _NEVER)
        if found() is x and len(marks) == x.dim():
            return marks
        return None if x.grad_fn is None else marks_above(x, self._nodes)

    def origin(self, x: Tensor) -> Any:
        """Whence a tensor comes, as far as that is known at once: to tell it from others."""
        node = x.grad_fn
        if node is not None:
            return type(node)
        found, marks = self.tensors.get(id(x), _NEVER)
        return marks if found() is x else None

    def follow(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:
        """Carry what is known of the operands of a call that has run to its outputs."""
        first = out
        if type(out) is not Tensor:
            first = out[0] if _is_several(out) and out else None
            if type(first) is not Tensor:
                return
        alone = first.grad_fn is None
        if not (alone or self.tensors) or first.is_nested:
            return
        name = _GETTERS.get(func) or plain(getattr(func, "__name__", ""))
        if alone and first is out and args and self._usual(name, args[0], out):
            return
        call = _Call(name, args, kwargs, list(_tensors((*args, *kwargs.values()))))
        if alone or any(self._alone(x) for x in call.operands):
            for made in _tensors((out,)):
                if made.is_floating_point() or made.is_complex():
                    self._follow(call, made)

    def _usual(self, name: str, x: Any, out: Tensor) -> bool:
        """The usual cases at once: a layer, or what leaves all dimensions where they are."""
        marks = source(name, out.dim())
        if marks is None:
            found, marks = self.tensors.get(id(x), _NEVER)
            if found() is not x or not keeps(name) or x.shape != out.shape:
                return False
        self.tensors[id(out)] = (weakref.ref(out), marks)
        return True

    def _follow(self, call: _Call, made: Tensor) -> None:
        known = self.tensors.get(id(made), _NEVER)[0]() is made
        if known and call.name in _RESHAPING and any(made is x for x in call.operands):
            del self.tensors[id(made)]  # reshaped in place: how it was is not known any more
        elif not known:
            self._carry(call, made)

    def _carry(self, call: _Call, made: Tensor) -> None:
        after = tuple(made.shape)
        own = _made_by_layer(call, after)
        if own is not None:
            return self._put(made, own)
        order = sorted(enumerate(call.operands), key=lambda pair: tuple(pair[1].shape) != after)
        lost: Marks | None = None
        for number, x in order:
            marks = self.marks(x)
            if marks is None or not any(marks):
                lost = lost or marks
                continue
            lost = _carried(call, Step(call.name, tuple(x.shape), after, (), number), marks)
            if any(lost):
                break
        if lost is not None:
            self._put(made, lost if len(lost) == len(after) else (0,) * len(after))

    def _put(self, made: Tensor, marks: Marks) -> None:
        if made.grad_fn is None:
            self.tensors[id(made)] = (weakref.ref(made), marks)
        else:
            self._nodes[made.grad_fn] = marks

    def _alone(self, x: Tensor) -> bool:
        return x.grad_fn is None and self.tensors.get(id(x), _NEVER)[0]() is x


_PLAIN = (Tensor, nn.Parameter)
_NEVER: tuple[Any, Marks] = (lambda: None, ())


def _is_several(item: Any) -> bool:
    return isinstance(item, tuple | list) and not isinstance(item, torch.Size)


def _tensors(items: Any) -> Iterator[Tensor]:
    for item in items:
        if type(item) in _PLAIN:
            if item.layout is torch.strided and not item.is_nested:
                yield item
        elif _is_several(item):
            yield from _tensors(item)


def _made_by_layer(call: _Call, after: tuple[int, ...]) -> Marks | None:
    args = call.args
    if call.name == "einsum":
        return _new_letters(args[0], [_is_weight(x) for x in call.operands])
    if call.name in ("mm", "bmm", "matmul") and len(args) == 2 and len(after) > 1:
        left, right = (_is_weight(arg) for arg in args)
        if right:
            return (*(POSITIONS for _ in after[1:]), NEURONS)
        return (NEURONS, POSITIONS) if left and len(after) == 2 else None
    shape = args[1] if len(args) > 1 else call.kwargs.get("normalized_shape")
    return source(call.name, len(after), len(shape) if isinstance(shape, tuple | list) else 0)


def _is_weight(item: Any) -> bool:
    base = item if not isinstance(item, Tensor) or item._base is None else item._base
    return isinstance(base, nn.Parameter)


def _carried(call: _Call, step: Step, marks: Marks) -> Marks:
    if call.name == "getitem" and step.operand == 0:
        picked = _picked(call.args[1], marks)
        if picked is not None:
            return picked
    if call.name == "einsum":
        return _same_letters(call.args[0], step.operand, marks)
    return carry(replace(step, dims=_dims(call)), marks)


def _dims(call: _Call) -> tuple[int, ...]:
    name, kwargs = call.name, call.kwargs
    found: list[Any] = list(call.args[_DIMS_AT[name] :]) if name in _DIMS_AT else []
    if name in ("movedim", "moveaxis", "transpose", "swapaxes", "swapdims"):
        found += kwargs.values()
    elif name != "permute":
        found = found[:1]
    for key in ("dim", "dims", "axis"):
        found += [kwargs[key]] if key in kwargs and kwargs[key] not in found else []
    if not found and name in ("stack", "unbind"):
        return (0,)
    flat: list[Any] = []
    for item in found:
        flat += item if isinstance(item, tuple | list) else [item]
    return tuple(d for d in flat if isinstance(d, int) and not isinstance(d, bool))


def _picked(index: Any, marks: Marks) -> Marks | None:
    """Plain indexing by numbers, slices, None and ``...``; None for indexing by tensors."""
    items = index if isinstance(index, tuple) else (index,)
    taken = sum(isinstance(item, int | slice) for item in items)
    made: list[int] = []
    rest = list(marks)
    for item in items:
        if item is None:
            made.append(0)
        elif item is Ellipsis:
            skipped = len(marks) - taken
            made += rest[:skipped]
            del rest[:skipped]
        elif isinstance(item, bool) or not isinstance(item, int | slice) or not rest:
            return None
        else:
            mark = rest.pop(0)
            made += [mark] if isinstance(item, slice) else []
    return (*made, *rest)


def _letters(equation: Any) -> tuple[list[str], str]:
    """The indices of the operands of an einsum, and of its result; none where they are implied."""
    if not isinstance(equation, str) or "->" not in equation or "." in equation:
        return [], ""
    operands, result = equation.replace(" ", "").split("->")
    return operands.split(","), result


def _new_letters(equation: Any, weights: list[bool]) -> Marks | None:
    """Neurons of an einsum with one weight: the indices that only the weight has."""
    operands, result = _letters(equation)
    if sum(weights) != 1 or len(operands) != len(weights):
        return None
    others = "".join(o for o, weight in zip(operands, weights, strict=True) if not weight)
    made = tuple(POSITIONS if letter in others else NEURONS for letter in result)
    return made if any(made) else None


def _same_letters(equation: Any, operand: int, marks: Marks) -> Marks:
    operands, result = _letters(equation)
    if operand >= len(operands) or len(operands[operand]) != len(marks):
        return ()
    known = dict(zip(operands[operand], marks, strict=True))
    return tuple(known.get(letter, POSITIONS) for letter in result)
