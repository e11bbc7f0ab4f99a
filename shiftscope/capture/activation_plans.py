"""Plans of activations: what is known of one from its first call.

See :mod:`shiftscope.capture.plans`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from shiftscope.capture.activation_ops import ActivationOp
from shiftscope.capture.backward import hook_activation
from shiftscope.capture.calls import known_as
from shiftscope.capture.graph import edge_of, find_hits
from shiftscope.capture.lean import LeanRecorder
from shiftscope.capture.plans import Call, Plan
from shiftscope.capture.readings import OTHER, kind_of
from shiftscope.capture.trail import Trail

__all__ = ["ActivationPlan"]


@known_as("activation")
class ActivationPlan(Plan):
    """An activation op on a tensor whose neurons lie in the usual dimensions.

    Args:
        call: The first call.
        op: It, parsed.
        dim: The dimension of the neurons.
    """

    __slots__ = ("dim", "in_place", "kind", "origins", "width")

    def __init__(self, call: Call, op: ActivationOp, dim: int) -> None:
        super().__init__(call, op, 1)
        self.op: ActivationOp
        self.in_place = False
        self.dim, self.kind, self.width = dim, kind_of(op.x, dim), op.x.shape[dim]
        self.origins: frozenset[Any] = frozenset()

    @classmethod
    def of(cls, call: Call, op: ActivationOp, dim: int, trail: Trail) -> ActivationPlan | None:
        """A plan, or None for an op that has to be parsed every time."""
        args = call.args
        others = (*args[1:], *call.kwargs.values())
        if not args or args[0] is not op.x or any(isinstance(a, Tensor) for a in others):
            return None
        if type(op.x) is not Tensor or not op.elementwise or kind_of(op.x, dim) == OTHER:
            return None
        made = cls(call, op, dim)
        made.origins = frozenset([trail.origin(op.x)])
        return made

    def fits(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], trail: Trail) -> bool:
        """Whether this call is the one that is known."""
        return (
            func is self.func
            and self.same(args, kwargs, 1)
            and args[0].shape[self.dim] == self.width
            # Made by another function, its neurons may lie elsewhere.
            and trail.origin(args[0]) in self.origins
        )

    def joined(self, known: Any) -> Plan:
        """This plan, or the one known so far where it is the same but for the op's origin."""
        if type(known) is not ActivationPlan or self._traits() != known._traits():
            return self
        known.origins |= self.origins
        return known

    def _traits(self) -> tuple[Any, ...]:
        own = (self.func, self.kwargs, self.length, self.rest, self.dtype, self.dims, self.count)
        return (*own, self.state.info.site, self.dim, self.width, self.direct, self.in_place)

    def run(
        self,
        recorder: LeanRecorder,
        where: tuple[int, int],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Tensor:
        """Run the op and record it."""
        x = args[0]
        # Taken before the call, as z is read before it: the op may overwrite its input.
        edge = edge_of(x) if self.in_place or self.direct is None else None
        z = recorder.before(self.z, x, self.kind, self.dim)
        out: Tensor = self.func(*args, **kwargs)
        if z[0] is None:
            self.no_rows(recorder)
            return out
        recorder.after((self.z, self.a), z, out, self.kind, self.dim)
        node = out.grad_fn
        hooked = node is not None and self.hook(recorder, node, x, out, edge)
        recorder.called(self.state, where, hooked)
        return out

    def hook(self, recorder: LeanRecorder, node: Any, x: Tensor, out: Tensor, edge: Any) -> bool:
        """Put a hook where the gradients of this call pass; whether it is to be counted."""
        if type(node) is self.direct and x.requires_grad:
            node.register_hook(_ActivationHook(recorder, self))
            return True
        if edge is None or not torch.is_grad_enabled():
            edge = edge_of(x)
        if edge is not None:
            op = replace(self.op, x=x)
            hook_activation(recorder, self.state, op, out, self.dim, edge, count=True)
            self.learn(x, out, edge)
        return False  # counted there

    def learn(self, x: Tensor, out: Tensor, edge: Any) -> None:
        """Find where the gradients of this op pass."""
        node = out.grad_fn
        # softsign and tanhshrink reach their input by several paths: the node has one share only.
        places = find_hits(out, edge).places if node is not None else ()
        own = len(places) == 1 and places[0][0] is node and places[0][1] == 0
        self.direct = type(node) if own else None
        self.in_place = out is x


class _ActivationHook:
    """Post hook on the node of an activation: gradients of a and of z."""

    __slots__ = ("epoch", "fired", "plan", "recorder")

    def __init__(self, recorder: LeanRecorder, plan: ActivationPlan) -> None:
        self.recorder, self.epoch = recorder.itself, recorder.epoch
        self.plan, self.fired = plan, False

    def __call__(self, grad_inputs: Any, grad_outputs: Any) -> None:
        recorder, grad = self.recorder(), grad_outputs[0]
        if recorder is None or grad is None or recorder.epoch != self.epoch:
            return
        plan, share = self.plan, grad_inputs[0]
        recorder.arrived(plan.state, True, share is not None, self.fired)
        self.fired = True
        recorder.take(plan.grad_a, grad, plan.kind)
        if share is not None:
            recorder.take(plan.grad_z, share, plan.kind)
