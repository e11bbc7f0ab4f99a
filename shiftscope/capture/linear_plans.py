"""Plans of linear ops: what is known of one from its first call.

See :mod:`shiftscope.capture.plans`.
"""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

from torch import Tensor

from shiftscope.capture.backward import hook_linear
from shiftscope.capture.calls import known_as
from shiftscope.capture.graph import core_node, edge_of, find_hits
from shiftscope.capture.lean import LeanRecorder
from shiftscope.capture.linear_ops import LinearOp
from shiftscope.capture.plans import Call, Plan, place
from shiftscope.capture.readings import OTHER, kind_of
from shiftscope.capture.trail import Trail

__all__ = ["LinearPlan"]

_RESHAPING = ("View", "UnsafeView", "ReshapeAlias")


@known_as("linear")
class LinearPlan(Plan):
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
        self.w_at = place(call.args, op.weight)
        self.b_at = -1 if op.bias is None else place(call.args, op.bias)
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
            and self.same(args, kwargs, 3)
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
