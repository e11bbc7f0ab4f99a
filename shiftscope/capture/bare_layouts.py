"""Which dimension of a bare weight holds the neurons: what stands beside it says.

``Linear`` and ``Conv2d`` keep ``[out, in, ...]``, ``ConvTranspose2d`` ``[in, out/groups, ...]``,
and the ``Conv1D`` of Hugging Face's GPT-2 ``[in, out]``. No name tells them apart, but a bias has
an entry for each output, and so has a batch normalisation right behind.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from itertools import islice, zip_longest
from typing import NamedTuple

from torch import Tensor

from shiftscope.capture.linear_ops import LinearOp

__all__ = ["Layouts", "bias_of"]


def bias_of(key: str, state: Mapping[str, Tensor]) -> Tensor | None:
    """The bias beside a weight, by its name.

    Args:
        key: Name of the weight: ``fc.weight``, ``rnn.weight_ih_l0``, ``att.in_proj_weight``.
        state: The state dict.
    """
    path, dot, name = key.rpartition(".")
    bias = state.get(path + dot + name.replace("weight", "bias"))
    return bias if bias is not None and bias.dim() == 1 else None


class Layouts:
    """How the weights of one state dict lie.

    Args:
        state: The state dict, in the order of its modules.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._told = _outputs_told(state)
        votes: dict[int, set[bool]] = defaultdict(set)
        self._names: set[str] = set()
        for key, told in self._told.items():
            shape = tuple(state[key].shape)
            if not told.square(shape):
                turned = _groups(shape, told.outputs) > 0
                votes[len(shape)].add(turned)
                self._names |= {_layer(key)} if turned and len(shape) == 2 else set()
        self._all_transposed = {dims for dims, found in votes.items() if found == {True}}

    def op(self, key: str, weight: Tensor, bias: Tensor | None) -> LinearOp:
        """The linear map of a weight, with its rows where they seem to lie.

        Args:
            key: Its name.
            weight: The weight.
            bias: Its bias, if there is one; left out where it fits neither way.
        """
        groups = self._transposed_groups(key, weight)
        dims = min(weight.dim() - 2, 3)
        if groups:
            name = f"conv_transpose{dims}d" if dims else "addmm"
            return LinearOp(
                name, weight[:0], weight, bias, -1, -1, lambda w: _rows(w, groups), groups=groups
            )
        fits = bias is not None and bias.shape == weight.shape[:1]
        name = f"conv{dims}d" if dims else "linear"
        return LinearOp(
            name, weight[:0], weight, bias if fits else None, -1, -1, lambda w: w.flatten(1)
        )

    def _transposed_groups(self, key: str, weight: Tensor) -> int:
        """Groups of a weight whose inputs come first; 0 where its outputs do."""
        shape = tuple(weight.shape)
        told = self._told.get(key)
        if told is not None and told.by_bias and not told.square(shape):
            return _groups(shape, told.outputs)
        if len(shape) > 2:
            return 1 if len(shape) in self._all_transposed else 0
        # A square matrix lies as other layers of its name do.
        return 1 if shape[0] == shape[1] and _layer(key) in self._names else 0


class _Told(NamedTuple):
    """The outputs of a weight: a fact where a bias tells them, a hint where a normalisation does.

    Attributes:
        outputs: Their number.
        by_bias: Whether a bias tells it.
    """

    outputs: int
    by_bias: bool

    def square(self, shape: tuple[int, ...]) -> bool:
        """Whether both ways round would have as many."""
        return shape[0] == shape[1] == self.outputs


def _outputs_told(state: Mapping[str, Tensor]) -> dict[str, _Told]:
    found = {}
    for key, following in zip_longest(state, islice(state, 1, None), fillvalue=""):
        if state[key].dim() < 2 or "weight" not in key.rpartition(".")[2]:
            continue
        bias = bias_of(key, state)
        behind = following.rpartition(".")[0]
        mean = state.get(f"{behind}.running_mean")
        beside = _parent(behind) == _parent(key.rpartition(".")[0])
        if bias is not None:
            found[key] = _Told(len(bias), True)
        elif mean is not None and mean.dim() == 1 and beside:
            found[key] = _Told(len(mean), False)
    return found


def _layer(key: str) -> str:
    return key.rpartition(".")[0].rpartition(".")[2]


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _groups(shape: tuple[int, ...], outputs: int) -> int:
    """Groups of a transposed map with so many outputs; 0 where it is none."""
    groups, rest = divmod(outputs, shape[1]) if shape[1] else (0, 0)
    grouped = groups == 1 or (len(shape) > 2 and groups > 1 and shape[0] % groups == 0)
    return groups if outputs != shape[0] and not rest and grouped else 0


def _rows(weight: Tensor, groups: int) -> Tensor:
    """``[in, out/groups, ...]`` as one row for each output."""
    apart = weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2)
    return apart.flatten(0, 1).flatten(1)
