"""Hooks on autograd nodes that record the gradient streams of one call.

They are set right after the op ran, die with the graph, hold no tensor and no node (a node in its
own hook would be a cycle that keeps the graph alive), and never change a gradient.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from shiftscope.capture.activation_ops import ActivationOp
from shiftscope.capture.graph import Edge, core_node, find_hits, rebased_nodes
from shiftscope.capture.linear_ops import LinearOp
from shiftscope.capture.recorder import Recorder
from shiftscope.capture.site_state import SiteState

__all__ = ["hook_activation", "hook_linear"]

Gradients = tuple[Tensor | None, ...]
Arrange = Callable[[Tensor], tuple[Tensor, int]]

_NO_PATH = "the path of {} through the graph was not found"


def hook_linear(
    recorder: Recorder,
    state: SiteState,
    op: LinearOp,
    out: Tensor,
    edge: Edge | None,
    *,
    count: bool,
) -> None:
    """Record the gradients of a linear op's output and its own share at its input.

    Args:
        recorder: Where they go.
        state: The site.
        op: The parsed call.
        out: Its output, fresh from the op.
        edge: Where gradients of its input flow to, taken before the call; None when none do.
        count: Whether a missing gradient of this call is to be noted.
    """
    if out.grad_fn is None:
        return
    call = _Call(recorder, state)
    core = core_node(out) if op.core else None
    node = out.grad_fn if core is None else core
    shared = edge is not None and op.x2 is None
    name = "grad_z" if shared else "grad_z_alone"
    node.register_hook(_Outgoing(call, name, _z_layout(op, core is not None, out)))
    if count:
        recorder.tell(state, "hooked")
    if edge is not None and shared:
        _hook_share(call, out, edge, _x_layout(op))


def hook_activation(
    recorder: Recorder,
    state: SiteState,
    op: ActivationOp,
    out: Tensor,
    dim: int,
    edge: Edge | None,
    *,
    count: bool,
) -> None:
    """Record the gradients of an activation's output and its own share at its input."""
    if out.grad_fn is None or edge is None:
        return
    call = _Call(recorder, state)
    layout = _as_given(dim, tuple(out.shape))
    rebased = rebased_nodes(out)
    top = out.grad_fn if rebased is None else rebased[0]
    top.register_hook(_Outgoing(call, "grad_a", layout))
    if count:
        recorder.tell(state, "hooked")
    if rebased is None:
        # GLU halves the width: its input gradient has the input's shape, not the output's.
        _hook_share(call, out, edge, _as_given(dim, tuple(op.x.shape)), name="grad_z")
    elif (base := out._base) is not None and base.dtype is out.dtype:
        layout = _in_base(out, base, dim)
        rebased[1].register_hook(_Incoming(_Shares(call, "grad_z", 1, layout), 0))
    else:
        state.notes[_NO_PATH.format("grad_z")] = None


class _Call:
    """One call of an op: the site, and how often a gradient has come back to it."""

    __slots__ = ("epoch", "fired", "recorder", "state")

    def __init__(self, recorder: Recorder, state: SiteState) -> None:
        self.recorder = weakref.ref(recorder)
        self.epoch = recorder.epoch
        self.state = state
        self.fired = 0

    def open(self) -> Recorder | None:
        """The recorder, while the step of this call has not ended."""
        recorder = self.recorder()
        return recorder if recorder is not None and recorder.epoch == self.epoch else None

    def record(self, name: str, grad: Tensor, arrange: Arrange) -> None:
        recorder = self.open()
        if recorder is None:
            return
        tensor, dim = arrange(grad.detach())
        recorder.gradient(self.state, name, tensor, dim)


class _Outgoing:
    """Post hook on the node that receives the gradient of the output."""

    __slots__ = ("arrange", "call", "name")

    def __init__(self, call: _Call, name: str, arrange: Arrange) -> None:
        self.call, self.name, self.arrange = call, name, arrange

    def __call__(self, grad_inputs: Gradients, grad_outputs: Gradients) -> None:
        recorder = self.call.open()
        if grad_outputs[0] is None or recorder is None:
            return
        self.call.fired += 1
        if self.call.fired == 1:
            recorder.tell(self.call.state, "arrived")
            if self.name != "grad_z_alone":
                recorder.tell(self.call.state, "shares_due")
        else:
            recorder.tell(self.call.state, "repeated")
        self.call.record(self.name, grad_outputs[0], self.arrange)


class _Shares:
    """Sums the shares that one input receives through several nodes of one op."""

    __slots__ = ("arrange", "call", "expected", "name", "parts", "total")

    def __init__(self, call: _Call, name: str, expected: int, arrange: Arrange) -> None:
        self.call, self.name, self.expected, self.arrange = call, name, expected, arrange
        self.parts, self.total = 0, None

    def add(self, grad: Tensor | None) -> None:
        self.parts += 1
        if grad is not None:
            held: Any = self.total
            self.total = grad.detach() if held is None else held + grad.detach()  # type: ignore[assignment]
        if self.parts == self.expected:
            total, self.parts, self.total = self.total, 0, None
            recorder = self.call.open()
            if total is not None and recorder is not None:
                if self.call.fired <= 1:
                    recorder.tell(self.call.state, "shares")
                self.call.record(self.name, total, self.arrange)


class _Incoming:
    """Post hook on a node one of whose grad_inputs is (a share of) the input's gradient."""

    __slots__ = ("index", "shares")

    def __init__(self, shares: _Shares, index: int) -> None:
        self.shares, self.index = shares, index

    def __call__(self, grad_inputs: Gradients, grad_outputs: Gradients) -> None:
        self.shares.add(grad_inputs[self.index])


def _hook_share(
    call: _Call, out: Tensor, edge: Edge, arrange: Arrange, name: str = "grad_a"
) -> None:
    hits = find_hits(out, edge).places
    if not hits:
        call.state.notes[_NO_PATH.format(name)] = None
        return
    shares = _Shares(call, name, len(hits), arrange)
    for node, index in hits:
        node.register_hook(_Incoming(shares, index))


def _z_layout(op: LinearOp, core: bool, out: Tensor) -> Arrange:
    shape, dim = tuple(out.shape), op.z_dim
    if op.arrange_z is not None:
        inner = op.arrange_z
        return lambda grad: (inner(grad.reshape(shape)), -1)
    if core and op.patches is None:
        return lambda grad: (grad, -1)  # [rows, out] at the product's own node
    # A convolution's node sees an unbatched input with a batch dimension of one.
    return lambda grad: (grad, dim + (grad.dim() - len(shape) if dim >= 0 else 0))


def _x_layout(op: LinearOp) -> Arrange:
    if op.arrange_x is not None:
        inner = op.arrange_x
        return lambda grad: (inner(grad), -1)
    return _as_given(op.x_dim, tuple(op.x.shape))


def _in_base(view: Tensor, base: Tensor, dim: int) -> Arrange:
    """The gradient of a whole tensor, seen where the view lies that was overwritten."""
    whole, size, stride = (tuple(base.shape), base.stride()), tuple(view.shape), view.stride()
    start = view.storage_offset() - base.storage_offset()

    def arrange(grad: Tensor) -> tuple[Tensor, int]:
        held = torch.empty_strided(*whole, dtype=grad.dtype, device=grad.device).copy_(grad)
        return held.as_strided(size, stride, start), dim

    return arrange


def _as_given(dim: int, shape: tuple[int, ...]) -> Arrange:
    return lambda grad: (grad if grad.shape == shape else grad.reshape(shape), dim)
