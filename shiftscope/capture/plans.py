"""What is known of an op from its first call, so that every further call costs little.

The first call of an op is parsed: its layout, its site, where its gradients pass in the graph. A
plan keeps that for the n-th op of a module, checks in a few comparisons that the call is the same
one again (same function, same weight, same layout), and reads its tensors without parsing anything.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from shiftscope.capture.activation_ops import ActivationOp
from shiftscope.capture.backward import hook_activation, hook_linear
from shiftscope.capture.calls import known_as
from shiftscope.capture.graph import core_node, edge_of, find_hits
from shiftscope.capture.lean import LeanRecorder
from shiftscope.capture.linear_ops import LinearOp
from shiftscope.capture.readings import OTHER, kind_of
from shiftscope.capture.site_state import SiteState
from shiftscope.capture.trail import Trail

__all__ = ["ActivationPlan", "Call", "LinearPlan"]

_RESHAPING = ("View", "UnsafeView", "ReshapeAlias")


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
class _Plan:
    """The part that both kinds of op share.

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
        self.x_at = _place(call.args, op.x)
        self.a, self.z, self.grad_a, self.grad_z = call.slots("a", "z", "grad_a", "grad_z")
        self.count: tuple[str, int] | None = None
        self.direct: Any = None
        self.index = -1

    def joined(self, known: Any) -> _Plan:
        """This plan, or the one known so far where it is the same but for the op's origin."""
        return self

    def no_rows(self, recorder: LeanRecorder) -> None:
        """Tell of a call whose tensors have no rows."""
        recorder.passed(self.state.info.site, self.state.carriers)

    def _same(self, args: tuple[Any, ...], kwargs: dict[str, Any], fixed: int) -> bool:
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


@known_as("linear")
class LinearPlan(_Plan):
    """A linear op whose weight is a lasting tensor and whose neurons lie in the usual dimensions.

    Args:
        call: The first call.
        op: It, parsed.
        out: Its output.
    """

    __slots__ = (
        *("b_at", "core", "depth", "grad_alone", "lasts", "patched", "via", "w_at", "weight"),
        *("x_kind", "z_kind"),
    )

    def __init__(self, call: Call, op: LinearOp, out: Tensor) -> None:
        super().__init__(call, op, 3)
        self.w_at = _place(call.args, op.weight)
        self.b_at = -1 if op.bias is None else _place(call.args, op.bias)
        self.weight = weakref.ref(op.weight)
        self.op: LinearOp = replace(self.op, weight=op.weight.detach())
        self.x_kind, self.z_kind = kind_of(op.x, op.x_dim), kind_of(out, op.z_dim)
        (self.grad_alone,) = call.slots("grad_z_alone")
        self.core, self.depth, self.via, self.lasts = "", 0, False, True
        self.patched = op.patches is not None

    @classmethod
    def of(cls, call: Call, op: LinearOp, out: Tensor) -> LinearPlan | None:
        """A plan, or None for an op that has to be parsed every time."""
        args = call.args
        odd = op.arrange_x or op.arrange_z or op.x2 is not None or not op.core
        if odd or any(isinstance(a, Tensor) for a in (*args[3:], *call.kwargs.values())):
            return None
        lasting = op.weight.is_leaf and any(arg is op.weight for arg in args[:3])
        if not lasting or not any(arg is op.x for arg in args[:3]) or type(op.x) is not Tensor:
            return None
        if OTHER in (kind_of(op.x, op.x_dim), kind_of(out, op.z_dim)):
            return None
        return cls(call, op, out)

    def fits(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], trail: Trail) -> bool:
        """Whether this call is the one that is known."""
        return (
            func is self.func
            and len(args) > self.w_at
            and args[self.w_at] is self.weight()
            and self._same(args, kwargs, 3)
        )

    def run(
        self,
        recorder: LeanRecorder,
        where: tuple[int, int],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Tensor:
        """Run the op and record it."""
        x = args[self.x_at]
        out: Tensor = self.func(*args, **kwargs)
        a = recorder.look(self.a, x, self.x_kind, -1)
        if a is None:
            self.no_rows(recorder)
            return out
        z = recorder.look(self.z, out, self.z_kind, -1)
        recorder.write(self.a, a)
        recorder.write(self.z, z)
        op = self.op
        if self.patched:
            recorder.image(self.state, op, x, a)
        if not self.state.settled:
            bias = op.bias if self.b_at < 0 else args[self.b_at]
            recorder.keep(self.state, replace(op, weight=args[self.w_at], bias=bias))
        if recorder.detail:
            recorder.linear_samples(self.state, op, (x, out), (self.x_kind, self.z_kind), (a, z))
            if not self.lasts:
                recorder.read_weight_now(
                    self.state, replace(op, x=x, weight=args[self.w_at].detach())
                )
        node = out.grad_fn
        hooked = node is not None and self.hook(recorder, node, x, out)
        recorder.called(self.state, where, hooked)
        return out

    def hook(self, recorder: LeanRecorder, node: Any, x: Tensor, out: Tensor) -> bool:
        """Put a hook where the gradients of this call pass; whether it is to be counted."""
        shared = x.requires_grad
        if type(node) is self.direct and (self.index >= 0 or not shared):
            node.register_hook(_CoreHook(recorder, self, self.index if shared else -1))
            return True
        edge, core = edge_of(x), node
        for _ in range(self.depth):
            below = core.next_functions if core is not None else ()
            core = below[0][0] if below else None
        known = core is not None and core.name() == self.core
        if known and (edge is None or self._leads_to(core, edge)):
            core.register_hook(_CoreHook(recorder, self, self.index if shared else -1))
            return True
        weight = self.weight()
        op = replace(self.op, x=x, weight=self.op.weight if weight is None else weight)
        hook_linear(recorder, self.state, op, out, edge, count=True)
        self.learn(out, edge)
        return False  # counted there

    def _leads_to(self, core: Any, edge: Any) -> bool:
        if self.index < 0:
            return False
        below = core.next_functions[self.index]
        if self.via and below[0] is not None:
            below = below[0].next_functions[0]
        return bool(below == edge)

    def learn(self, out: Tensor, edge: Any) -> None:
        """Find where the gradients of this op pass."""
        core = core_node(out)
        if core is None:
            return
        depth, node = 0, out.grad_fn
        while node is not core and node is not None and depth < 5:
            node, depth = node.next_functions[0][0], depth + 1
        self.core, self.depth, self.index, self.via = core.name(), depth, -1, False
        if edge is not None:
            self._find_share(core, find_hits(out, edge).places)
        # Which grad_input is the input's is a matter of the kind of node alone.
        self.direct = type(core) if depth == 0 and not self.via else None

    def _find_share(self, core: Any, places: tuple[tuple[Any, int], ...]) -> None:
        if len(places) != 1:
            return
        hit, index = places[0]
        if hit is core:
            self.index = index
            return
        above = [k for k, (child, _) in enumerate(core.next_functions) if child is hit]
        if len(above) == 1 and index == 0 and hit.name().startswith(_RESHAPING):
            self.index, self.via = above[0], True


class _CoreHook:
    """Post hook on the node of a product: the gradient of z, and the own share at the input."""

    __slots__ = ("epoch", "fired", "index", "plan", "recorder")

    def __init__(self, recorder: LeanRecorder, plan: LinearPlan, index: int) -> None:
        self.recorder, self.epoch = recorder.itself, recorder.epoch
        # The index of this very call: the plan may learn another one before the backward pass.
        self.plan, self.index, self.fired = plan, index, False

    def __call__(self, grad_inputs: Any, grad_outputs: Any) -> None:
        recorder, grad = self.recorder(), grad_outputs[0]
        if recorder is None or grad is None or recorder.epoch != self.epoch:
            return
        plan, shared = self.plan, self.index >= 0
        share = grad_inputs[self.index] if shared else None
        recorder.arrived(plan.state, shared, share is not None, self.fired)
        self.fired = True
        recorder.take(plan.grad_z if shared else plan.grad_alone, grad, plan.z_kind)
        if share is not None:
            recorder.take(plan.grad_a, share, plan.x_kind)


@known_as("activation")
class ActivationPlan(_Plan):
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
            and self._same(args, kwargs, 1)
            and args[0].shape[self.dim] == self.width
            # Made by another function, its neurons may lie elsewhere.
            and trail.origin(args[0]) in self.origins
        )

    def joined(self, known: Any) -> _Plan:
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


def _place(args: tuple[Any, ...], wanted: Any) -> int:
    return next((i for i, arg in enumerate(args) if arg is wanted), -1)
