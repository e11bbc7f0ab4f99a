"""A multilayer perceptron rebuilt from its weights alone.

The widths, the depth and the names are in the state dict; what is missing is the activation
function, which the user names. Modules keep the checkpoint's own names, so that a report speaks of
``layers.2`` where the weights do.
"""

from __future__ import annotations

import re
from itertools import pairwise

import torch
from torch import Tensor, nn

from shiftscope.errors import LoadError, UsageError

__all__ = ["ACTIVATIONS", "MLP", "build_mlp"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "celu": nn.CELU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "hardsigmoid": nn.Hardsigmoid,
    "hardswish": nn.Hardswish,
    "hardtanh": nn.Hardtanh,
    "identity": nn.Identity,
    "leaky_relu": nn.LeakyReLU,
    "logsigmoid": nn.LogSigmoid,
    "mish": nn.Mish,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "selu": nn.SELU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "tanh": nn.Tanh,
}
"""Activation names, as in torch.nn.functional, and their modules with default settings."""


class MLP(nn.Module):
    """Linear layers with an activation after each but the last; inputs are flattened.

    Args:
        layers: Dotted name and linear layer, in order.
        activation: One of `ACTIVATIONS`.
    """

    def __init__(self, layers: list[tuple[str, nn.Linear]], activation: str) -> None:
        """Place the layers and the activations between them."""
        super().__init__()
        names = [name for name, _ in layers]
        self._order: list[str] = []
        for name, layer in layers:
            _place(self, name, layer)
            self._order.append(name)
            if name != names[-1]:
                between = _activation_name(name, names)
                _place(self, between, ACTIVATIONS[activation]())
                self._order.append(between)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers.

        Args:
            x: Inputs, ``[rows, ...]``; all but the first dimension are flattened.

        Returns:
            Outputs, ``[rows, features]``.
        """
        out = x.flatten(1)
        for name in self._order:
            out = self.get_submodule(name)(out)
        return out


def _activation_name(name: str, taken: list[str]) -> str:
    """The free place behind a layer of a Sequential (``layers.1``), or ``fc1_activation``."""
    stem, _, last = name.rpartition(".")
    if last.isdecimal():
        following = f"{stem}.{int(last) + 1}" if stem else str(int(last) + 1)
        if following not in taken:
            return following
    return f"{name}_activation"


def _place(root: nn.Module, name: str, module: nn.Module) -> None:
    """Register a module under a dotted name, with plain containers on the way."""
    *parents, last = name.split(".")
    for parent in parents:
        if parent not in root._modules:
            root.add_module(parent, nn.Module())
        root = root.get_submodule(parent)
    root.add_module(last, module)


def build_mlp(state: dict[str, Tensor], activation: str, part: str = "") -> MLP:
    """Build the MLP that the weights of a state dict describe.

    Args:
        state: Name -> tensor: matrices ``NAME.weight [out, in]`` in order, with or without biases.
        activation: One of `ACTIVATIONS`.
        part: Only the names below this prefix (``"actor"``), for files that hold several networks.

    Returns:
        The module, with fresh weights of the right shapes.

    Raises:
        UsageError: The activation is unknown.
        LoadError: The state dict is not that of an MLP.
    """
    if activation not in ACTIVATIONS:
        raise UsageError(
            f"mlp:{activation}: no activation of that name", f"use one of {', '.join(ACTIVATIONS)}"
        )
    layers = _layers(select(state, part))
    with torch.device("meta"):
        built = [
            (name, nn.Linear(w.shape[1], w.shape[0], bias=b is not None)) for name, w, b in layers
        ]
    for (_, layer), (_, weight, _) in zip(built, layers, strict=True):
        # half precision is how weights are stored, not how they should be measured on a CPU
        layer.to_empty(device="cpu").to(torch.promote_types(weight.dtype, torch.float32))
    return MLP(built, activation)


def select(state: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """The entries below a prefix.

    Args:
        state: Name -> tensor.
        part: Dotted prefix without the last dot; "" for all.

    Returns:
        The entries, with full names.

    Raises:
        UsageError: There are none.
    """
    chosen = {k: v for k, v in state.items() if not part or k.startswith(f"{part}.")}
    if not chosen:
        tops = ", ".join(dict.fromkeys(name.partition(".")[0] for name in state))
        raise UsageError(f"no weights below {part!r}", f"the names begin with: {tops:.300}")
    return chosen


def _layers(state: dict[str, Tensor]) -> list[tuple[str, Tensor, Tensor | None]]:
    """Name, weight and bias of each layer, checked to be a chain."""
    names = [name.removesuffix(".weight") for name in state if name.endswith(".weight")]
    names.sort(key=_natural)
    expected = {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}
    strange = [key for key in state if key not in expected]
    strange += [f"{name}.weight" for name in names if state[f"{name}.weight"].ndim != 2]
    if strange or not names:
        raise LoadError(
            f"not the weights of an MLP: {_listed(strange, state)}",
            "give the model itself: --model FILE.py:FACTORY",
        )
    layers = [(n, state[f"{n}.weight"], state.get(f"{n}.bias")) for n in names]
    _check_chain(layers)
    return layers


def _check_chain(layers: list[tuple[str, Tensor, Tensor | None]]) -> None:
    for (name, weight, bias), (following, nxt, _) in pairwise(layers):
        if weight.shape[0] != nxt.shape[1]:
            tops = dict.fromkeys(layer.partition(".")[0] for layer, _, _ in layers)
            raise LoadError(
                f"not one MLP: {name} gives {weight.shape[0]} features, "
                f"{following} takes {nxt.shape[1]}",
                f"choose a part, mlp:ACTIVATION@PART with PART one of {', '.join(tops)}",
            )
        if bias is not None and bias.shape != (weight.shape[0],):
            raise LoadError(
                f"{name}.bias has shape {tuple(bias.shape)}, expected ({weight.shape[0]},)",
                "the checkpoint is damaged; save it again",
            )


def _natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """Sort key that puts layers.10 behind layers.9."""
    parts = re.split(r"(\d+)", name)
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in parts)


def _listed(strange: list[str], state: dict[str, Tensor]) -> str:
    shown = ", ".join(f"{key} {list(state[key].shape)}" for key in strange[:5])
    rest = f" and {len(strange) - 5} more" if len(strange) > 5 else ""
    return f"{shown}{rest} fit no chain of linear layers" if strange else "no matrices in it"
