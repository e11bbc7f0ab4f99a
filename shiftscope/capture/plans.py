"""What is known of an op from its first call, so that every further call costs little.

The first call of an op is parsed: its layout, its site, where its gradients pass in the graph. A
plan keeps that for the n-th op of a module, checks in a few comparisons that the call is the same
one again (same function, same weight, same layout), and reads its tensors without parsing anything.
"""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from shiftscope.capture.activation_ops import ActivationOp
from shiftscope.capture.backward import hook_activation, hook_linear
from shiftscope.capture.graph import core_node, find_hits
from shiftscope.capture.lean import LeanRecorder
from shiftscope.capture.linear_ops import LinearOp
from shiftscope.capture.readings import OTHER, kind_of
from shiftscope.capture.recorder import SiteState

__all__ = ["ActivationPlan", "LinearPlan"]

_RESHAPING = ("View", "UnsafeView", "ReshapeAlias")
Where = tuple[int, int]


class _Plan:
    """The part that both kinds of op share.

    Attributes:
        count: ``(label, number)`` of a site that is named after its function, else None.
    """

    __slots__ = ("count", "dims", "dtype", "func", "kwargs", "rest", "state")

    def __init__(self, func: Any, kwargs: Any, x: Tensor, rest: Any, state: SiteState) -> None:
        self.func, self.kwargs, self.rest = func, dict(kwargs), rest
        self.dtype, self.dims, self.state = x.dtype, x.dim(), state
        self.count: tuple[str, int] | None = None

    def _same_input(self, x: Any) -> bool:
        return (
            type(x) is Tensor
            and x.dtype is self.dtype
            and x.dim() == self.dims
            and x.layout is torch.strided
            and not x.is_nested
        )


class LinearPlan(_Plan):
    """A linear op whose weight is a lasting tensor and whose neurons lie in the usual dimensions.

    Args:
        recorder: Where the numbers go.
        state: The site.
        func: The function.
        args: Its arguments at the first call.
        kwargs: Its keyword arguments.
        op: The parsed call.
        out: Its output.
    """

    __slots__ = (
        *("a", "core", "depth", "grad_a", "grad_alone", "grad_z", "index", "op", "place", "via"),
        *("weight", "x_kind", "z", "z_kind", "x_at", "w_at"),
    )

    def __init__(
        self,
        recorder: LeanRecorder,
        state: SiteState,
        func: Any,
        args: tuple[Any, ...],
        kwargs: Any,
        op: LinearOp,
        out: Tensor,
    ) -> None:
        super().__init__(func, kwargs, op.x, args[3:], state)
        self.x_at = next(i for i, arg in enumerate(args) if arg is op.x)
        self.w_at = next(i for i, arg in enumerate(args) if arg is op.weight)
        self.weight, self.op = weakref.ref(op.weight), replace(op, x=torch.empty(0))
        self.op = replace(self.op, weight=op.weight.detach())
        self.x_kind, self.z_kind = kind_of(op.x, op.x_dim), kind_of(out, op.z_dim)
        self.a, self.z = recorder.slot(state, "a"), recorder.slot(state, "z")
        self.grad_a, self.grad_z = recorder.slot(state, "grad_a"), recorder.slot(state, "grad_z")
        self.grad_alone = recorder.slot(state, "grad_z_alone")
        self.core, self.depth, self.index, self.via = "", 0, -1, False

    @classmethod
    def of(
        cls,
        recorder: LeanRecorder,
        state: SiteState,
        func: Any,
        args: tuple[Any, ...],
        kwargs: Any,
        op: LinearOp,
        out: Tensor,
    ) -> LinearPlan | None:
        """A plan, or None for an op that has to be parsed every time."""
        odd = op.arrange_x or op.arrange_z or op.x2 is not None or not op.core
        if odd or any(isinstance(a, Tensor) for a in (*args[3:], *kwargs.values())):
            return None
        lasting = op.weight.is_leaf and any(arg is op.weight for arg in args[:3])
        if not lasting or not any(arg is op.x for arg in args[:3]) or type(op.x) is not Tensor:
            return None
        if OTHER in (kind_of(op.x, op.x_dim), kind_of(out, op.z_dim)):
            return None
        return cls(recorder, state, func, args, kwargs, op, out)

    def fits(self, func: Any, args: tuple[Any, ...], kwargs: Any) -> bool:
        """Whether this call is the one that is known."""
        return (
            func is self.func
            and len(args) > self.w_at
            and args[self.w_at] is self.weight()
            and self._same_input(args[self.x_at])
            and args[3:] == self.rest
            and kwargs == self.kwargs
        )

    def run(
        self, recorder: LeanRecorder, where: Where, args: tuple[Any, ...], kwargs: Any
    ) -> Tensor:
        """Run the op and record it."""
        x = args[self.x_at]
        edge = None
        if x.requires_grad:
            edge = x.grad_fn
            if edge is None:
                edge = get_gradient_edge(x).node
            number = x.output_nr
        out: Tensor = self.func(*args, **kwargs)
        a = recorder.look(self.a, x, self.x_kind, -1)
        if a is None:
            return out
        z = recorder.look(self.z, out, self.z_kind, -1)
        recorder.write(self.a, a)
        recorder.write(self.z, z)
        op = self.op
        if op.patches is not None:
            recorder.image(self.state, op, x, a)
        if recorder.detail:
            recorder.linear_samples(self.state, op, (x, out), (self.x_kind, self.z_kind), (a, z))
        recorder.called(self.state, where)
        node = out.grad_fn
        if node is not None:
            self._hook(recorder, node, x, out, None if edge is None else (edge, number))
        return out

    def _hook(self, recorder: LeanRecorder, node: Any, x: Tensor, out: Tensor, edge: Any) -> None:
        core = node
        for _ in range(self.depth):
            core = core.next_functions[0][0]
        if core.name() == self.core:
            if edge is None:
                hook = _CoreHook(recorder, self, self.grad_alone, -1)
                core.register_hook(hook)
                recorder.tell(self.state, "hooked")
                return
            if self.index >= 0:
                below = core.next_functions[self.index]
                if self.via and below[0] is not None:
                    below = below[0].next_functions[0]
                if below == edge:
                    core.register_hook(_CoreHook(recorder, self, self.grad_z, self.index))
                    recorder.tell(self.state, "hooked")
                    return
        weight = self.weight()
        op = replace(self.op, x=x, weight=self.op.weight if weight is None else weight)
        hook_linear(recorder, self.state, op, out, edge, count=True)
        self.learn(out, edge)

    def learn(self, out: Tensor, edge: Any) -> None:
        """Find where the gradients of this op pass."""
        core = core_node(out)
        if core is None:
            return
        depth, node = 0, out.grad_fn
        while node is not core and node is not None and depth < 5:
            node, depth = node.next_functions[0][0], depth + 1
        self.core, self.depth, self.index = core.name(), depth, -1
        if edge is None:
            return
        places = find_hits(out, edge).places
        if len(places) != 1:
            return
        hit, index = places[0]
        if hit is core:
            self.index, self.via = index, False
            return
        above = [k for k, (child, _) in enumerate(core.next_functions) if child is hit]
        if len(above) == 1 and index == 0 and hit.name().startswith(_RESHAPING):
            self.index, self.via = above[0], True


class _CoreHook:
    """Post hook on the node of a product: the gradient of z, and the own share at the input."""

    __slots__ = ("epoch", "fired", "index", "plan", "recorder", "slot")

    def __init__(self, recorder: LeanRecorder, plan: LinearPlan, slot: int, index: int) -> None:
        self.recorder, self.epoch = recorder.itself, recorder.epoch
        self.plan, self.slot, self.index = plan, slot, index
        self.fired = False

    def __call__(self, grad_inputs: Any, grad_outputs: Any) -> None:
        recorder, grad = self.recorder(), grad_outputs[0]
        if recorder is None or grad is None or recorder.epoch != self.epoch:
            return
        plan, index = self.plan, self.index
        share = grad_inputs[index] if index >= 0 else None
        recorder.arrived(plan.state, index >= 0, share is not None, self.fired)
        self.fired = True
        recorder.take(self.slot, grad, plan.z_kind)
        if share is not None:
            recorder.take(plan.grad_a, share, plan.x_kind)


class ActivationPlan(_Plan):
    """An activation op on a tensor whose neurons lie in the usual dimensions.

    Args:
        recorder: Where the numbers go.
        state: The site.
        func: The function.
        args: Its arguments at the first call.
        kwargs: Its keyword arguments.
        op: The parsed call.
        dim: The dimension of the neurons.
    """

    __slots__ = ("a", "dim", "grad_a", "grad_z", "kind", "node", "op", "width", "z")

    def __init__(
        self,
        recorder: LeanRecorder,
        state: SiteState,
        func: Any,
        args: tuple[Any, ...],
        kwargs: Any,
        op: ActivationOp,
        dim: int,
    ) -> None:
        super().__init__(func, kwargs, op.x, args[1:], state)
        self.op, self.dim, self.kind = replace(op, x=torch.empty(0)), dim, kind_of(op.x, dim)
        self.width = op.x.shape[dim]
        self.a, self.z = recorder.slot(state, "a"), recorder.slot(state, "z")
        self.grad_a, self.grad_z = recorder.slot(state, "grad_a"), recorder.slot(state, "grad_z")
        self.node = ""

    @classmethod
    def of(
        cls,
        recorder: LeanRecorder,
        state: SiteState,
        func: Any,
        args: tuple[Any, ...],
        kwargs: Any,
        op: ActivationOp,
        dim: int,
    ) -> ActivationPlan | None:
        """A plan, or None for an op that has to be parsed every time."""
        others = (*args[1:], *kwargs.values())
        if not args or args[0] is not op.x or any(isinstance(a, Tensor) for a in others):
            return None
        if type(op.x) is not Tensor or not op.elementwise or kind_of(op.x, dim) == OTHER:
            return None
        return cls(recorder, state, func, args, kwargs, op, dim)

    def fits(self, func: Any, args: tuple[Any, ...], kwargs: Any) -> bool:
        """Whether this call is the one that is known."""
        return (
            func is self.func
            and len(args) > 0
            and self._same_input(args[0])
            and args[0].shape[self.dim] == self.width
            and args[1:] == self.rest
            and kwargs == self.kwargs
        )

    def run(
        self, recorder: LeanRecorder, where: Where, args: tuple[Any, ...], kwargs: Any
    ) -> Tensor:
        """Run the op and record it."""
        x = args[0]
        edge = None
        if x.requires_grad:
            edge = x.grad_fn
            if edge is None:
                edge = get_gradient_edge(x).node
            number = x.output_nr
        # z is read before the call: the op may overwrite it.
        z = recorder.before(self.z, x, self.kind, self.dim)
        out: Tensor = self.func(*args, **kwargs)
        if z[0] is not None:
            recorder.after((self.z, self.a), z, out, self.kind, self.dim)
            recorder.called(self.state, where)
        node = out.grad_fn
        if node is not None and edge is not None:
            if node.name() == self.node and node.next_functions[0] == (edge, number):
                node.register_hook(_ActivationHook(recorder, self))
                recorder.tell(self.state, "hooked")
            else:
                self._hook(recorder, x, out, (edge, number))
        return out

    def _hook(self, recorder: LeanRecorder, x: Tensor, out: Tensor, edge: Any) -> None:
        op = replace(self.op, x=x)
        hook_activation(recorder, self.state, op, out, self.dim, edge, count=True)
        self.learn(out, edge)

    def learn(self, out: Tensor, edge: Any) -> None:
        """Find where the gradients of this op pass."""
        node = out.grad_fn
        if node is not None and node.next_functions and node.next_functions[0] == edge:
            self.node = node.name()


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
