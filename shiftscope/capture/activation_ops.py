"""The activation functions of torch, in every spelling, by their canonical names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ACTIVATION_OPS", "ActivationOp", "parse_activation"]


@dataclass(frozen=True)
class ActivationOp:
    """One call of an activation function.

    Attributes:
        op: Canonical name, as the gain theory knows it (``gelu_tanh`` apart from ``gelu``).
        x: The input, read before the call since the op may overwrite it.
        params: Parameters that matter for the theory.
        elementwise: False for softmax, GLU and kin.
        dim: The dimension those work along; None for elementwise ones.
    """

    op: str
    x: Tensor
    params: Mapping[str, Any] = field(default_factory=dict)
    elementwise: bool = True
    dim: int | None = None

    @property
    def may_be_code(self) -> bool:
        """Whether it also encodes positions and times: an activation only behind a layer."""
        return self.op == "sin"


@dataclass(frozen=True)
class _Spelling:
    op: str
    names: tuple[str, ...] = ()
    elementwise: bool = True
    check: Callable[[dict[str, Any]], str | None] | None = None


def parse_activation(
    func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ActivationOp | None:
    """Recognise a call of an activation function.

    Args:
        func: The function a TorchFunctionMode received.
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Returns:
        The op, or None when this call is no activation of a float tensor.
    """
    spelling = ACTIVATION_OPS[func]
    x = args[0] if args else kwargs.get("input", kwargs.get("self"))
    if not isinstance(x, Tensor):
        return None
    params = dict(zip(spelling.names, args[1:], strict=False))
    params |= {name: kwargs[name] for name in spelling.names if name in kwargs}
    op: str | None = spelling.op
    if spelling.check is not None:
        op = spelling.check(params)
    if op is None:
        return None
    dim = None if spelling.elementwise else _along(params.pop("dim", None), op, x)
    return ActivationOp(op, x, _plain(op, params), spelling.elementwise, dim)


def _along(dim: Any, op: str, x: Tensor) -> int:
    """The dimension that a softmax or a GLU works along."""
    if isinstance(dim, int):
        return dim
    # What torch takes where a softmax was given none.
    return -1 if op in ("glu", "gumbel_softmax") else (0 if x.dim() in (0, 1, 3) else 1)


def _plain(op: str, params: dict[str, Any]) -> dict[str, Any]:
    """Numbers only: one-element tensors are left for the theory to know, others are not."""
    kept: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, Tensor):
            # A PReLU's slopes: one number each channel; its mean would be a made-up parameter.
            if value.numel() == 1 and value.device.type == "cpu":
                kept[name] = float(value.detach())
        elif isinstance(value, int | float) and not isinstance(value, bool):
            kept[name] = float(value)
    return kept


def _gelu(params: dict[str, Any]) -> str:
    return "gelu_tanh" if params.pop("approximate", "none") == "tanh" else "gelu"


def _clamp(params: dict[str, Any]) -> str | None:
    low, high = params.get("min"), params.get("max")
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        return None
    if low == 0 and high is None:
        params.clear()
        return "relu"
    if low == 0 and high == 6:
        params.clear()
        return "relu6"
    if low is None or high is None:
        return None
    params["min_val"], params["max_val"] = params.pop("min"), params.pop("max")
    return "hardtanh"


def _hardtanh(params: dict[str, Any]) -> str:
    # nn.ReLU6 is a Hardtanh from 0 to 6.
    if (params.get("min_val"), params.get("max_val")) == (0, 6):
        params.clear()
        return "relu6"
    return "hardtanh"


def _rrelu(params: dict[str, Any]) -> str:
    if params.pop("training", False):
        # In training mode the slope is drawn at random: no function of z alone, no theory.
        params.clear()
        return "rrelu_training"
    return "rrelu"


_LEAKY = ("negative_slope",)
_BOUNDS = ("min_val", "max_val")
_GUMBEL = ("tau", "hard", "eps", "dim")

_SPELLINGS: dict[str, _Spelling] = {
    "relu": _Spelling("relu"),
    "relu6": _Spelling("relu6"),
    "leaky_relu": _Spelling("leaky_relu", _LEAKY),
    "prelu": _Spelling("prelu", ("weight",)),
    "rrelu": _Spelling("rrelu", ("lower", "upper", "training"), check=_rrelu),
    "elu": _Spelling("elu", ("alpha",)),
    "selu": _Spelling("selu"),
    "celu": _Spelling("celu", ("alpha",)),
    "gelu": _Spelling("gelu", ("approximate",), check=_gelu),
    "silu": _Spelling("silu"),
    "mish": _Spelling("mish"),
    "softplus": _Spelling("softplus", ("beta", "threshold")),
    "softsign": _Spelling("softsign"),
    "sigmoid": _Spelling("sigmoid"),
    "expit": _Spelling("sigmoid"),
    "logsigmoid": _Spelling("logsigmoid"),
    "log_sigmoid": _Spelling("logsigmoid"),
    "tanh": _Spelling("tanh"),
    "tanhshrink": _Spelling("tanhshrink"),
    "hardtanh": _Spelling("hardtanh", _BOUNDS, check=_hardtanh),
    "hardsigmoid": _Spelling("hardsigmoid"),
    "hardswish": _Spelling("hardswish"),
    "softshrink": _Spelling("softshrink", ("lambd",)),
    "hardshrink": _Spelling("hardshrink", ("lambd",)),
    "threshold": _Spelling("threshold", ("threshold", "value")),
    "clamp": _Spelling("hardtanh", ("min", "max"), check=_clamp),
    "clip": _Spelling("hardtanh", ("min", "max"), check=_clamp),
    "clamp_min": _Spelling("relu", ("min",), check=_clamp),
    "erf": _Spelling("erf"),
    "sin": _Spelling("sin"),
    "softmax": _Spelling("softmax", ("dim",), elementwise=False),
    "log_softmax": _Spelling("log_softmax", ("dim",), elementwise=False),
    "softmin": _Spelling("softmin", ("dim",), elementwise=False),
    "gumbel_softmax": _Spelling("gumbel_softmax", _GUMBEL, elementwise=False),
    "glu": _Spelling("glu", ("dim",), elementwise=False),
}


def _table() -> dict[Any, _Spelling]:
    homes = (F, torch, Tensor, torch.special, torch._C._nn)
    table: dict[Any, _Spelling] = {}
    for name, spelling in _SPELLINGS.items():
        for home in homes:
            for variant in (name, f"{name}_"):
                function = getattr(home, variant, None)
                if function is not None:
                    table[function] = spelling
        packet = getattr(torch.ops.aten, name, None)
        for overloads in (packet, getattr(torch.ops.aten, f"{name}_", None)):
            overload = getattr(overloads, "default", None)
            if overload is not None:
                table[overload] = spelling
    table[torch.ops.aten._softmax.default] = _SPELLINGS["softmax"]
    table[torch.ops.aten.softmax.int] = _SPELLINGS["softmax"]
    return table


ACTIVATION_OPS: dict[Any, _Spelling] = _table()
"""Torch function (as a TorchFunctionMode sees it) to its spelling."""
