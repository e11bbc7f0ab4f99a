"""Looking into fused attention and recurrent layers by their equivalent unfused parts.

``F.multi_head_attention_forward`` is a Python function that hides behind its own override check;
the same code runs here with that check switched off, so that its projections are seen one by one
and its result stays what it was, bit for bit. Recurrent layers run as loops over time
(:mod:`shiftscope.capture.recurrent`), equal up to rounding.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from shiftscope.capture import recurrent

__all__ = ["FUSED_OPS", "FusedOp"]

Arguments = tuple[tuple[Any, ...], Mapping[str, Any]]


@dataclass(frozen=True)
class FusedOp:
    """How to look into one fused function.

    Attributes:
        run: ``(func, args, kwargs, label)`` to the function's own result, through visible parts.
        obstacle: Why this call cannot be unfused exactly; None when it can.
        labels: Op labels inside: what the parts are called in site names.
        pooled: Whether its parts run once a time step, and are one place each.
        exact: Whether the result is the same bit for bit, so that it may stand in for the op.
    """

    run: Callable[[Any, tuple[Any, ...], Mapping[str, Any], dict[str, str]], Any]
    obstacle: Callable[[tuple[Any, ...], Mapping[str, Any]], str | None]
    labels: Mapping[str, str] = field(default_factory=dict)
    pooled: bool = False
    exact: bool = False


def _never(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    return None


def _attention(
    func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], label: dict[str, str]
) -> Any:
    return _UNGUARDED_ATTENTION(*args, **kwargs)


def _without_override_check(function: Any) -> Any:
    """The same Python code, with ``has_torch_function`` answering no."""
    names = {**function.__globals__, "has_torch_function": lambda *_: False}
    copy = types.FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


_UNGUARDED_ATTENTION = _without_override_check(F.multi_head_attention_forward)


def _recurrent(run: Callable[..., Any]) -> FusedOp:
    def unfused(
        func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], label: dict[str, str]
    ) -> Any:
        return run(args, kwargs, label)

    return FusedOp(unfused, recurrent.obstacle, pooled=True)


def _cell(run: Callable[..., Any]) -> FusedOp:
    def unfused(
        func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], label: dict[str, str]
    ) -> Any:
        return run(*args, label=label, **kwargs)

    return FusedOp(unfused, _never, pooled=True)


FUSED_OPS: dict[Any, FusedOp] = {
    F.multi_head_attention_forward: FusedOp(_attention, _never, {"linear": "in_proj"}, exact=True),
    torch.lstm: _recurrent(recurrent.lstm),
    torch.gru: _recurrent(recurrent.gru),
    torch.rnn_tanh: _recurrent(recurrent.rnn_tanh),
    torch.rnn_relu: _recurrent(recurrent.rnn_relu),
    torch.lstm_cell: _cell(recurrent.lstm_cell),
    torch.gru_cell: _cell(recurrent.gru_cell),
    torch.rnn_tanh_cell: _cell(recurrent.rnn_tanh_cell),
    torch.rnn_relu_cell: _cell(recurrent.rnn_relu_cell),
}
"""Fused functions and how to look into them."""
