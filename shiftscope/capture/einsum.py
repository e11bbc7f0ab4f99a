"""Einsum with one weight operand, as rows of weights over inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

__all__ = ["EinsumPlan", "parse_einsum"]

_ELLIPSIS = "."


@dataclass(frozen=True)
class EinsumPlan:
    """How an einsum multiplies rows of weights.

    Attributes:
        rows: The weight operand to ``[out, fan_in]``, group by group.
        arrange_x: The data operand to ``[..., groups * fan_in]``.
        arrange_z: The result to ``[..., out]``.
        groups: Size of the letters that data, weight and result share.
        batched: Whether the data operand's first dimension counts samples.
    """

    rows: Callable[[Tensor], Tensor]
    arrange_x: Callable[[Tensor], Tensor]
    arrange_z: Callable[[Tensor], Tensor]
    groups: int
    batched: bool


def parse_einsum(
    equation: str, place: int, weight_shape: tuple[int, ...], x_shape: tuple[int, ...]
) -> EinsumPlan | None:
    """Read an equation of two operands of which operand ``place`` is the weight.

    Letters in data and weight but not in the result are summed over (the inputs of a neuron);
    letters in weight and result only are the neurons; letters in all three are groups.

    Args:
        equation: As given to ``torch.einsum``; must have an explicit result.
        place: Index of the weight operand, 0 or 1.
        weight_shape: Shape of the weight operand.
        x_shape: Shape of the data operand.

    Returns:
        The plan, or None for an equation that is no such map (diagonals, weight sums).
    """
    terms, arrow, result = equation.replace(" ", "").replace("...", _ELLIPSIS).partition("->")
    operands = terms.split(",")
    if not arrow or len(operands) != 2 or any(len(set(t)) != len(t) for t in (*operands, result)):
        return None
    weight, data = operands[place], operands[1 - place]
    if _ELLIPSIS in weight or len(weight) != len(weight_shape):
        return None
    summed = [c for c in weight if c in data and c not in result]
    shared = [c for c in weight if c in data and c in result]
    out = [c for c in weight if c not in data and c in result]
    batch = [c for c in data if c in result and c not in shared]
    if not summed or len(summed) + len(shared) + len(out) != len(weight):
        return None
    if any(c not in result and c not in summed for c in data):
        return None
    size = dict(zip(weight, weight_shape, strict=True))
    return EinsumPlan(
        rows=_order(weight, shared + out + summed, keep=len(shared) + len(out), size=size),
        arrange_x=_last(data, batch, shared + summed),
        arrange_z=_last(result, batch, shared + out),
        groups=math.prod(size[c] for c in shared),
        batched=bool(data) and data[0] in batch and len(x_shape) > 1,
    )


def _order(
    term: str, order: list[str], keep: int, size: dict[str, int]
) -> Callable[[Tensor], Tensor]:
    places = [term.index(letter) for letter in order]
    height = math.prod(size[letter] for letter in order[:keep])

    def rows(weight: Tensor) -> Tensor:
        return weight.permute(places).reshape(height, -1)

    return rows


def _last(term: str, batch: list[str], features: list[str]) -> Callable[[Tensor], Tensor]:
    def arrange(tensor: Tensor) -> Tensor:
        letters = _spelled_out(term, tensor.dim())
        leading = [i for i, letter in enumerate(letters) if letter in batch or letter == _ELLIPSIS]
        trailing = [letters.index(letter) for letter in features]
        moved = tensor.permute(leading + trailing)
        return moved.flatten(len(leading)) if trailing else moved.unsqueeze(-1)

    return arrange


def _spelled_out(term: str, dims: int) -> list[str]:
    extra = dims - (len(term) - term.count(_ELLIPSIS))
    out: list[str] = []
    for letter in term:
        out += [_ELLIPSIS] * extra if letter == _ELLIPSIS else [letter]
    return out
