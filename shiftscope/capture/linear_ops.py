"""The linear maps of torch, each brought into one form: rows of weights over inputs.

Every torch function that multiplies an input by weights has a parser here. It gives a
:class:`LinearOp`: how input and output are laid out, and how the weight tensor (the *effective*
one, as the function received it) unrolls into rows ``w_i``. Nothing is read or changed yet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shiftscope.capture.einsum import parse_einsum
from shiftscope.geometry import PatchMap

__all__ = ["LINEAR_OPS", "LinearOp", "Parser", "WeightTest"]

WeightTest = Callable[[Any], bool]
Parser = Callable[[tuple[Any, ...], Mapping[str, Any], WeightTest], "LinearOp | None"]


@dataclass(frozen=True)
class LinearOp:
    """One call of a linear map.

    Attributes:
        op: Canonical name: ``linear``, ``conv2d``, ``conv_transpose1d``, ``bilinear``, ...
        x: The input the function received (for ``bilinear`` the first one).
        weight: The effective weight tensor, as the function received it.
        bias: The bias tensor, if the function adds one.
        x_dim: Dimension of x that holds the input neurons (channels).
        z_dim: Dimension of the output that holds the neurons.
        batched: Whether dimension 0 of x counts samples.
        rows: Unrolls the weight into ``[out, fan_in]``.
        patches: For convolutions: spatial size of x to :class:`~shiftscope.geometry.PatchMap`.
        groups: Number of groups that see different inputs.
        arrange_x: Brings x (and its gradient) into ``[..., inputs]`` order where it is not.
        arrange_z: Likewise for the output.
        x2: Second input of a bilinear map.
        core: Whether the autograd node of the multiplication may be used for the gradient of z.
    """

    op: str
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    x_dim: int
    z_dim: int
    rows: Callable[[Tensor], Tensor]
    batched: bool = True
    patches: Callable[[tuple[int, ...]], PatchMap] | None = None
    groups: int = 1
    arrange_x: Callable[[Tensor], Tensor] | None = None
    arrange_z: Callable[[Tensor], Tensor] | None = None
    x2: Tensor | None = None
    core: bool = True

    def fan_in(self, outputs: int) -> int:
        """Inputs of one neuron, given the number of neurons."""
        return int(self.weight.numel() // max(1, outputs))


def _get(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], place: int, name: str, default: Any = None
) -> Any:
    return args[place] if len(args) > place else kwargs.get(name, default)


def _as_is(weight: Tensor) -> Tensor:
    return weight


def _transposed(weight: Tensor) -> Tensor:
    return weight.transpose(-1, -2)


def _linear(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], is_weight: WeightTest
) -> LinearOp | None:
    x, weight = _get(args, kwargs, 0, "input"), _get(args, kwargs, 1, "weight")
    if not isinstance(weight, Tensor) or weight.dim() not in (1, 2):
        return None
    rows = _as_is if weight.dim() == 2 else (lambda w: w.reshape(1, -1))
    bias = _get(args, kwargs, 2, "bias")
    return LinearOp(
        "linear", x, weight, bias, -1, -1, rows, batched=x.dim() > 1, core=weight.dim() == 2
    )


def _bilinear(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], is_weight: WeightTest
) -> LinearOp | None:
    x1, x2 = _get(args, kwargs, 0, "input1"), _get(args, kwargs, 1, "input2")
    weight, bias = _get(args, kwargs, 2, "weight"), _get(args, kwargs, 3, "bias")
    return LinearOp(
        "bilinear",
        x1,
        weight,
        bias,
        -1,
        -1,
        lambda w: w.flatten(1),
        x2=x2,
        core=False,
        batched=x1.dim() > 1,
    )


def _conv(dims: int) -> Parser:
    def parse(
        args: tuple[Any, ...], kwargs: Mapping[str, Any], is_weight: WeightTest
    ) -> LinearOp | None:
        x, weight = _get(args, kwargs, 0, "input"), _get(args, kwargs, 1, "weight")
        stride, padding = _get(args, kwargs, 3, "stride", 1), _get(args, kwargs, 4, "padding", 0)
        dilation, groups = _get(args, kwargs, 5, "dilation", 1), _get(args, kwargs, 6, "groups", 1)

        def patches(size: tuple[int, ...]) -> PatchMap:
            return PatchMap.of_conv(
                size, tuple(weight.shape[2:]), _size(stride, dims), _padding(padding, dims),
                _size(dilation, dims), groups=groups,
            )  # fmt: skip

        return _conv_op(
            f"conv{dims}d", x, weight, _get(args, kwargs, 2, "bias"), dims, groups, patches
        )

    return parse


def _conv_transpose(dims: int) -> Parser:
    def parse(
        args: tuple[Any, ...], kwargs: Mapping[str, Any], is_weight: WeightTest
    ) -> LinearOp | None:
        x, weight = _get(args, kwargs, 0, "input"), _get(args, kwargs, 1, "weight")
        stride, padding = _get(args, kwargs, 3, "stride", 1), _get(args, kwargs, 4, "padding", 0)
        extra, groups = (
            _get(args, kwargs, 5, "output_padding", 0),
            _get(args, kwargs, 6, "groups", 1),
        )
        dilation = _get(args, kwargs, 7, "dilation", 1)

        def patches(size: tuple[int, ...]) -> PatchMap:
            return PatchMap.of_conv(
                size, tuple(weight.shape[2:]), _size(stride, dims), _padding(padding, dims),
                _size(dilation, dims), _size(extra, dims), groups=groups, transposed=True,
            )  # fmt: skip

        bias = _get(args, kwargs, 2, "bias")
        return _conv_op(f"conv_transpose{dims}d", x, weight, bias, dims, groups, patches)

    return parse


def _conv_op(
    op: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dims: int,
    groups: int,
    patches: Callable[[tuple[int, ...]], PatchMap],
) -> LinearOp:
    batched = x.dim() == dims + 2
    channel = 1 if batched else 0
    size = tuple(int(n) for n in x.shape[channel + 1 :])
    unroll = patches(size).unroll
    return LinearOp(
        op,
        x,
        weight,
        bias,
        channel,
        channel,
        unroll,
        batched=batched,
        patches=patches,
        groups=groups,
    )


def _aten_convolution(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], is_weight: WeightTest
) -> LinearOp | None:
    x, weight, bias, stride, padding, dilation, transposed, extra, groups = args[:9]
    dims = weight.dim() - 2
    if transposed:
        return _conv_transpose(dims)(
            (x, weight, bias, stride, padding, extra, groups, dilation), {}, is_weight
        )
    return _conv(dims)((x, weight, bias, stride, padding, dilation, groups), {}, is_weight)


def _size(value: Any, dims: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * dims
    values = tuple(int(v) for v in value)
    return values * dims if len(values) == 1 else values


def _padding(value: Any, dims: int) -> Any:
    return value if isinstance(value, str) else _size(value, dims)


def _addmm(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], is_weight: WeightTest
) -> LinearOp | None:
    bias, x, weight = args[0], _get(args, kwargs, 1, "mat1"), _get(args, kwargs, 2, "mat2")
    if any(kwargs.get(name, 1) != 1 for name in ("alpha", "beta")) or not is_weight(weight):
        return None
    whole_row = isinstance(bias, Tensor) and bias.dim() == 1
    return LinearOp("addmm", x, weight, bias if whole_row else None, -1, -1, _transposed)


def _matmul(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], is_weight: WeightTest
) -> LinearOp | None:
    left = _get(args, kwargs, 0, "input")
    right = _get(args, kwargs, 1, "other", kwargs.get("mat2"))
    if not isinstance(left, Tensor) or not isinstance(right, Tensor):
        return None
    weights = _weights((left, right), is_weight)
    if weights == [False, True] and right.dim() == 2:
        return LinearOp("matmul", left, right, None, -1, -1, _transposed, batched=left.dim() > 1)
    if weights == [True, False] and left.dim() == 2 and right.dim():
        # W @ X with samples in columns, or a stack of such; or W @ x
        place = max(0, right.dim() - 2)
        return LinearOp(
            "matmul", right, left, None, place, place, _as_is, batched=right.dim() > 2, core=False
        )
    return None


def _weights(operands: Sequence[Any], is_weight: WeightTest) -> list[bool]:
    """Which operands are weights: of several that may be, the parameters are more certain."""
    found = [is_weight(operand) for operand in operands]
    if sum(found) < 2:
        return found
    # Data that were scaled by a parameter look as a scaled weight does.
    sure = [isinstance(x if x._base is None else x._base, nn.Parameter) for x in operands]
    return sure if any(sure) else found


def _rmatmul(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], is_weight: WeightTest
) -> LinearOp | None:
    return _matmul((args[1], args[0]), {}, is_weight)


def _einsum(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], is_weight: WeightTest
) -> LinearOp | None:
    operands = args[1] if len(args) == 2 and isinstance(args[1], list | tuple) else args[1:]
    if not isinstance(args[0], str) or len(operands) != 2:
        return None
    weights = _weights(operands, is_weight)
    if sum(weights) != 1:
        return None
    place = weights.index(True)
    weight, x = operands[place], operands[1 - place]
    plan = parse_einsum(args[0], place, tuple(weight.shape), tuple(x.shape))
    if plan is None:
        return None
    return LinearOp(
        "einsum", x, weight, None, -1, -1, plan.rows, batched=plan.batched, groups=plan.groups,
        arrange_x=plan.arrange_x, arrange_z=plan.arrange_z, core=False,
    )  # fmt: skip


def _table() -> dict[Any, Parser]:
    aten = torch.ops.aten
    table: dict[Any, Parser] = {
        F.linear: _linear,
        F.bilinear: _bilinear,
        torch.bilinear: _bilinear,
        torch.addmm: _addmm,
        Tensor.addmm: _addmm,
        torch.einsum: _einsum,
        Tensor.__rmatmul__: _rmatmul,
        aten.linear.default: _linear,
        aten.addmm.default: _addmm,
        aten.mm.default: _matmul,
        aten.matmul.default: _matmul,
        aten.convolution.default: _aten_convolution,
        torch.convolution: _aten_convolution,
    }
    for function in (torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__):
        table[function] = _matmul
    convolutions: dict[int, tuple[Any, ...]] = {
        1: (F.conv1d, torch.conv1d, aten.conv1d.default, aten.conv1d.padding),
        2: (F.conv2d, torch.conv2d, aten.conv2d.default, aten.conv2d.padding),
        3: (F.conv3d, torch.conv3d, aten.conv3d.default, aten.conv3d.padding),
    }
    transposed: dict[int, tuple[Any, ...]] = {
        1: (F.conv_transpose1d, torch.conv_transpose1d, aten.conv_transpose1d.default),
        2: (F.conv_transpose2d, torch.conv_transpose2d, aten.conv_transpose2d.input),
        3: (F.conv_transpose3d, torch.conv_transpose3d, aten.conv_transpose3d.input),
    }
    for dims in (1, 2, 3):
        table |= dict.fromkeys(convolutions[dims], _conv(dims))
        table |= dict.fromkeys(transposed[dims], _conv_transpose(dims))
    return table


LINEAR_OPS: dict[Any, Parser] = _table()
"""Torch function (as a TorchFunctionMode sees it) to its parser."""
