"""What is known of an op from its first call, so that every further call costs little.

The first call of an op is parsed: its layout, its site, where its gradients pass in the graph. A
plan keeps that for the n-th op of a module, checks in a few comparisons that the call is the same
one again (same function, same weight, same layout), and reads its tensors without parsing anything:
:mod:`shiftscope.capture.linear_plans`, :mod:`shiftscope.capture.activation_plans`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from shiftscope.capture.activation_ops import ActivationOp
from shiftscope.capture.calls import known_as
from shiftscope.capture.lean import LeanRecorder
from shiftscope.capture.linear_ops import LinearOp
from shiftscope.capture.site_state import SiteState

__all__ = ["Call", "Plan", "place"]


@dataclass(frozen=True, slots=True)
class Call:
    """The first call of an op.

    Attributes:
        func: The function.
        args: Its arguments.
        kwargs: Its keyword arguments.
        where: Where the numbers go.
        state: The site.
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    where: LeanRecorder
    state: SiteState

    def slots(self, *names: str) -> list[int]:
        """The numbers of some streams of the site."""
        return [self.where.slot(self.state, name) for name in names]


@known_as("plan")
class Plan:
    """The part that both kinds of op share.

    Args:
        call: The first call.
        op: It, parsed.
        fixed: Number of leading arguments that may differ from call to call.

    Attributes:
        count: ``(label, number)`` of a site that is named after its function, else None.
        direct: Type of the output's own node where that node passes the gradients of the op.
    """

    __slots__ = (
        *("a", "count", "dims", "direct", "dtype", "func", "grad_a", "grad_z", "index", "kwargs"),
        *("length", "op", "rest", "state", "x_at", "z"),
    )

    def __init__(self, call: Call, op: LinearOp | ActivationOp, fixed: int) -> None:
        self.func, self.kwargs, self.state = call.func, dict(call.kwargs), call.state
        self.length, self.rest = len(call.args), call.args[fixed:]
        self.dtype, self.dims, self.op = op.x.dtype, op.x.dim(), replace(op, x=torch.empty(0))
        self.x_at = place(call.args, op.x)
        self.a, self.z, self.grad_a, self.grad_z = call.slots("a", "z", "grad_a", "grad_z")
        self.count: tuple[str, int] | None = None
        self.direct: Any = None
        self.index = -1

    def joined(self, known: Any) -> Plan:
        """This plan, or the one known so far where it is the same but for the op's origin."""
        return self

    def no_rows(self, recorder: LeanRecorder) -> None:
        """Tell of a call whose tensors have no rows."""
        recorder.passed(self.state.info.site, self.state.carriers)

    def same(self, args: tuple[Any, ...], kwargs: dict[str, Any], fixed: int) -> bool:
        """Whether the arguments are those of the call that is known, but for the numbers."""
        if len(args) != self.length or kwargs != self.kwargs:
            return False
        x = args[self.x_at]
        return (
            type(x) is Tensor
            and x.dtype is self.dtype
            and x.dim() == self.dims
            and x.layout is torch.strided
            and not x.is_nested
            and (not self.rest or args[fixed:] == self.rest)
        )


def place(args: tuple[Any, ...], wanted: Any) -> int:
    """Where an object stands among arguments; -1 for nowhere."""
    return next((i for i, arg in enumerate(args) if arg is wanted), -1)
