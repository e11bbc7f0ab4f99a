"""LSTM, GRU and RNN layers as loops over time, made of visible linear maps and activations.

The arithmetic is that of torch's own documentation of ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN``; the
results equal the fused kernels up to rounding. Input projections of all steps are one linear call;
each step has one recurrent call, pooled under one name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    *("gru", "gru_cell", "lstm", "lstm_cell", "obstacle"),
    *("rnn_relu", "rnn_relu_cell", "rnn_tanh", "rnn_tanh_cell"),
]

Label = dict[str, str]
State = tuple[Tensor, ...]
Cell = Callable[[Tensor, State, Sequence[Any], Label, str], State]


def obstacle(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """Why a recurrent call has no exact unfused equivalent: random dropout between its layers."""
    arguments = _Arguments(args)
    if arguments.dropout > 0 and arguments.training and arguments.layers > 1:
        return "fused recurrent layer with dropout in training mode: no exact unfused equivalent"
    return None


def lstm(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], label: Label
) -> tuple[Tensor, Tensor, Tensor]:
    """``torch.lstm``, padded or packed, with projections: output, h_n, c_n."""
    arguments = _Arguments(args)
    out, finals = _layers(arguments, _lstm_step, 2, label)
    return out, finals[0], finals[1]


def gru(args: tuple[Any, ...], kwargs: Mapping[str, Any], label: Label) -> tuple[Tensor, Tensor]:
    """``torch.gru``: output, h_n."""
    out, finals = _layers(_Arguments(args), _gru_step, 1, label)
    return out, finals[0]


def rnn_tanh(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], label: Label
) -> tuple[Tensor, Tensor]:
    """``torch.rnn_tanh``: output, h_n."""
    out, finals = _layers(_Arguments(args), _simple_step(torch.tanh, "tanh"), 1, label)
    return out, finals[0]


def rnn_relu(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], label: Label
) -> tuple[Tensor, Tensor]:
    """``torch.rnn_relu``: output, h_n."""
    out, finals = _layers(_Arguments(args), _simple_step(torch.relu, "relu"), 1, label)
    return out, finals[0]


def lstm_cell(x: Tensor, hx: State, *weights: Any, label: Label, **named: Any) -> State:
    """``torch.lstm_cell``: h, c."""
    return _step(x, tuple(hx), _cell_weights(weights, named), label, _lstm_step)


def gru_cell(x: Tensor, hx: Tensor, *weights: Any, label: Label, **named: Any) -> Tensor:
    """``torch.gru_cell``: h."""
    return _step(x, (hx,), _cell_weights(weights, named), label, _gru_step)[0]


def rnn_tanh_cell(x: Tensor, hx: Tensor, *weights: Any, label: Label, **named: Any) -> Tensor:
    """``torch.rnn_tanh_cell``: h."""
    return _step(x, (hx,), _cell_weights(weights, named), label, _simple_step(torch.tanh, "tanh"))[
        0
    ]


def rnn_relu_cell(x: Tensor, hx: Tensor, *weights: Any, label: Label, **named: Any) -> Tensor:
    """``torch.rnn_relu_cell``: h."""
    return _step(x, (hx,), _cell_weights(weights, named), label, _simple_step(torch.relu, "relu"))[
        0
    ]


class _Arguments:
    """The argument lists of padded and packed recurrent functions, brought together.

    Attributes:
        data: ``[sum of batch sizes, features]``, time-major.
        batch_sizes: Rows of each time step, falling.
    """

    def __init__(self, args: tuple[Any, ...]) -> None:
        self.packed = isinstance(args[3], list | tuple)
        if self.packed:
            self.data, sizes, hidden, self.weights = args[:4]
            self.batch_sizes = [int(n) for n in sizes]
            self.shape: tuple[int, ...] = ()
            rest, self.batch_first = args[4:9], False
        else:
            x, hidden, self.weights = args[:3]
            rest, self.batch_first = args[3:8], bool(args[8])
            x = x.transpose(0, 1) if self.batch_first else x
            self.shape = tuple(x.shape[:2])
            self.data, self.batch_sizes = x.flatten(0, 1), [x.shape[1]] * x.shape[0]
        self.hidden: State = tuple(hidden) if isinstance(hidden, list | tuple) else (hidden,)
        self.has_biases, self.layers, self.dropout = bool(rest[0]), int(rest[1]), float(rest[2])
        self.training, self.bidirectional = bool(rest[3]), bool(rest[4])

    def weights_of(self, index: int) -> list[Any]:
        """``[w_ih, w_hh, b_ih, b_hh, w_hr]`` of one layer and direction; None where absent."""
        count = len(self.weights) // (self.layers * (2 if self.bidirectional else 1))
        own = list(self.weights[index * count : (index + 1) * count])
        biases = own[2:4] if self.has_biases else [None, None]
        rest = own[4:] if self.has_biases else own[2:]
        return [*own[:2], *biases, *(rest or [None])]

    def restore(self, data: Tensor) -> Tensor:
        """Back into the layout the caller gave."""
        if self.packed:
            return data
        out: Tensor = data.unflatten(0, self.shape)
        return out.transpose(0, 1) if self.batch_first else out


def _layers(arguments: _Arguments, step: Cell, states: int, label: Label) -> tuple[Tensor, State]:
    directions = 2 if arguments.bidirectional else 1
    data, finals = arguments.data, []
    for layer in range(arguments.layers):
        outputs = []
        for direction in range(directions):
            index = layer * directions + direction
            start = tuple(state[index] for state in arguments.hidden[:states])
            suffix = f"_l{layer}" + ("_reverse" if direction else "")
            out, final = _run(arguments, data, start, index, step, label, suffix, bool(direction))
            outputs.append(out)
            finals.append(final)
        data = torch.cat(outputs, dim=-1) if directions > 1 else outputs[0]
    stacked = tuple(torch.stack([final[k] for final in finals]) for k in range(states))
    return arguments.restore(data), stacked


def _run(
    arguments: _Arguments,
    data: Tensor,
    start: State,
    index: int,
    step: Cell,
    label: Label,
    suffix: str,
    reverse: bool,
) -> tuple[Tensor, State]:
    weights = arguments.weights_of(index)
    label["linear"] = f"ih{suffix}"
    projected = F.linear(data, weights[0], weights[2]).split(arguments.batch_sizes)
    times = range(len(projected))
    state, outputs = start, [start[0]] * len(projected)
    for time in reversed(times) if reverse else times:
        rows = arguments.batch_sizes[time]
        moved = step(projected[time], tuple(part[:rows] for part in state), weights, label, suffix)
        # Sequences that have ended (or not yet begun, backwards) keep their state.
        state = tuple(torch.cat([new, old[rows:]]) for new, old in zip(moved, state, strict=True))
        outputs[time] = moved[0]
    return torch.cat(outputs), state


def _step(x: Tensor, state: State, weights: Sequence[Any], label: Label, step: Cell) -> State:
    label["linear"] = "ih"
    return step(F.linear(x, weights[0], weights[2]), state, weights, label, "")


def _hidden(state: Tensor, weights: Sequence[Any], label: Label, suffix: str) -> Tensor:
    label["linear"] = f"hh{suffix}"
    return F.linear(state, weights[1], weights[3])


def _lstm_step(
    projected: Tensor, state: State, weights: Sequence[Any], label: Label, suffix: str
) -> State:
    gates = projected + _hidden(state[0], weights, label, suffix)
    i, f, g, o = gates.chunk(4, dim=-1)
    label["sigmoid"], label["tanh"] = f"gates{suffix}", f"candidate{suffix}"
    i, f, o = torch.sigmoid(torch.cat([i, f, o], dim=-1)).chunk(3, dim=-1)
    cell = f * state[1] + i * torch.tanh(g)
    label["tanh"] = f"cell{suffix}"
    hidden = o * torch.tanh(cell)
    if weights[4] is not None:
        label["linear"] = f"hr{suffix}"
        hidden = F.linear(hidden, weights[4])
    return hidden, cell


def _gru_step(
    projected: Tensor, state: State, weights: Sequence[Any], label: Label, suffix: str
) -> State:
    recurrent = _hidden(state[0], weights, label, suffix)
    ir, iz, candidate = projected.chunk(3, dim=-1)
    hr, hz, hn = recurrent.chunk(3, dim=-1)
    label["sigmoid"], label["tanh"] = f"gates{suffix}", f"candidate{suffix}"
    r, z = torch.sigmoid(torch.cat([ir + hr, iz + hz], dim=-1)).chunk(2, dim=-1)
    n = torch.tanh(candidate + r * hn)
    return ((1 - z) * n + z * state[0],)


def _simple_step(function: Callable[[Tensor], Tensor], name: str) -> Cell:
    def step(
        projected: Tensor, state: State, weights: Sequence[Any], label: Label, suffix: str
    ) -> State:
        total = projected + _hidden(state[0], weights, label, suffix)
        label[name] = f"{name}{suffix}"
        return (function(total),)

    return step


def _cell_weights(weights: tuple[Any, ...], named: Mapping[str, Any]) -> list[Any]:
    names = ("w_ih", "w_hh", "b_ih", "b_hh")
    filled = [weights[k] if k < len(weights) else named.get(name) for k, name in enumerate(names)]
    return [*filled, None]
