"""What becomes of a call of a torch function that matters: it runs, and is recorded.

The first call of an op in a module is parsed here; what is learned of it makes the plan by which
further calls are recorded (:mod:`shiftscope.capture.plans`).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from shiftscope.capture.activation_ops import ACTIVATION_OPS, ActivationOp, parse_activation
from shiftscope.capture.activation_plans import ActivationPlan
from shiftscope.capture.backward import hook_activation, hook_linear
from shiftscope.capture.fused import FUSED_OPS
from shiftscope.capture.graph import edge_of
from shiftscope.capture.linear_ops import LINEAR_OPS, LinearOp
from shiftscope.capture.linear_plans import LinearPlan
from shiftscope.capture.mode import Handler, Mode, Run, remember
from shiftscope.capture.neuron_dims import neurons_lie
from shiftscope.capture.plans import Call
from shiftscope.capture.seen import Seen
from shiftscope.capture.site_state import SiteState
from shiftscope.capture.sites import Frame, Names
from shiftscope.capture.tracing import is_empty, is_plain, may_be_signal, why_not_plain

__all__ = ["Ops"]


class Ops(Seen):
    """Runs and records the ops of a model.

    Args:
        names: Names of its modules, and owners of its parameters.
        unfuse: Run fused ops as their equivalent unfused parts, so that their inside is measured.
        exactly: Do so where the result stays the same bit for bit.

    Attributes:
        handlers: Torch function to what runs and records a call of it.
    """

    def __init__(self, names: Names, *, unfuse: bool, exactly: bool) -> None:
        super().__init__()
        self.names, self.unfuse, self.exactly = names, unfuse, exactly
        self._weights = WeakIdKeyDictionary()  # computed by parametrizations, while they live
        self.handlers: dict[Any, Handler] = {
            **dict.fromkeys(LINEAR_OPS, self._linear),
            **dict.fromkeys(ACTIVATION_OPS, self._activation),
            **dict.fromkeys(FUSED_OPS, self._fused),
        }

    def computed(self, weight: Any) -> None:
        """Note a weight that a parametrization has just computed."""
        if isinstance(weight, Tensor):
            self._weights[weight] = None

    def _is_weight(self, tensor: Any, frame: Frame) -> bool:
        if isinstance(tensor, Tensor):
            base = tensor._base
            if tensor in self._weights or (base is not None and base in self._weights):
                return True
        return self.names.is_weight(tensor, frame)

    def _linear(
        self, run: Run, frame: Frame, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        op = LINEAR_OPS[func](args, kwargs, lambda tensor: self._is_weight(tensor, frame))
        if op is None or not is_plain(op.x):
            if op is not None:
                self._pass_over(run, frame, op)
            return func(*args, **kwargs)
        edge = edge_of(op.x)
        out = func(*args, **kwargs)
        if not isinstance(out, Tensor) or not is_plain(out):
            if isinstance(out, Tensor):
                self.refused.setdefault(frame.path, why_not_plain(out))
            return out
        recorder, counted = run.recorder, dict(frame.counts)
        site = self.names.linear(frame, op.op, op.weight)
        if run.recomputing:
            state = recorder.states.get(site)
        else:
            state = recorder.linear(site, frame.path, op, out, run.where)
            self.mark(state, self.names.carriers(frame, op.weight), op.weight)
        if state is None:
            return out
        hook_linear(recorder, state, op, out, edge, count=not run.recomputing)
        if frame.plans is not None and not run.recomputing:
            self._keep_weight(recorder, state, op)
            plan = LinearPlan.of(Call(func, args, kwargs, recorder, state), op, out)
            if plan is not None:
                plan.learn(out, edge)
                plan.lasts = self.names.lasts(op.weight)
            remember(frame, plan, counted)
        return out

    def _activation(
        self, run: Run, frame: Frame, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        op = parse_activation(func, args, kwargs)
        if op is None or not is_plain(op.x) or op.x.dim() == 0:
            if op is not None and may_be_signal(op.x):
                self._pass_over(run, frame, op)
            return func(*args, **kwargs)
        if op.may_be_code and run.trail.marks(op.x) is None:
            return func(*args, **kwargs)
        recorder, counted = run.recorder, dict(frame.counts)
        site = self.names.activation(frame, op.op)
        state, z = recorder.states.get(site) if run.recomputing else None, None
        lies = neurons_lie(op, run.trail.marks, self.names.paths, state and state.lies)
        dim, edge = lies.dim, edge_of(op.x)
        if not run.recomputing:
            state, z = recorder.activation(site, frame.path, op, dim)
            state.place(lies)
            if site == frame.path:
                self.mark(state, {site})
            if frame.plans is not None:
                call = Call(func, args, kwargs, recorder, state)
                plan = ActivationPlan.of(call, op, dim, run.trail)
        out = func(*args, **kwargs)
        if state is None or not isinstance(out, Tensor):
            return out
        if z is not None:
            recorder.activated(state, z, out, dim, run.where)
        hook_activation(recorder, state, op, out, dim, edge, count=not run.recomputing)
        if frame.plans is not None and not run.recomputing:
            if plan is not None and edge is not None:
                plan.learn(op.x, out, edge)
            remember(frame, plan, counted)
        return out

    def _fused(
        self, run: Run, frame: Frame, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        fused = FUSED_OPS[func]
        if self.unfuse or (self.exactly and fused.exact):
            reason = fused.obstacle(args, kwargs)
        else:
            reason = "fused op: its inside is not measured"
        if reason is not None:
            self.gap(frame.path, reason)
            return func(*args, **kwargs)
        labels = dict(fused.labels)
        inner = Frame(frame.path, frame.module, frame.counts, labels, fused.pooled)
        run.stack.append(inner)
        try:
            with Mode(self.handlers, run):
                return fused.run(func, args, kwargs, labels)
        finally:
            # A detach meanwhile has emptied the stack.
            run.stack[:] = [frame for frame in run.stack if frame is not inner]

    def _keep_weight(self, recorder: Any, state: SiteState, op: LinearOp) -> None:
        """A weight that no module holds when nothing runs is read now: it may not exist later."""
        if recorder.detail and not self.names.lasts(op.weight):
            recorder.read_weight_now(state, op)

    def _pass_over(self, run: Run, frame: Frame, op: LinearOp | ActivationOp) -> None:
        """Note a call whose tensors cannot be measured; one without rows has its name still."""
        carriers, weight, dim = set[str](), None, -1
        if isinstance(op, LinearOp):
            site = self.names.linear(frame, op.op, op.weight)
            carriers, weight, dim = self.names.carriers(frame, op.weight), op.weight, op.x_dim
        else:
            site = self.names.activation(frame, op.op)
        if not is_empty(op.x, dim):
            self._refuse(frame, site, op)
        elif not run.recomputing:
            run.recorder.passed(site, carriers)
            self.mark_empty(site, carriers, weight)

    def _refuse(self, frame: Frame, site: str, op: LinearOp | ActivationOp) -> None:
        if isinstance(op, LinearOp):
            for path in self.names.carriers(frame, op.weight):
                self.refused.setdefault(path, why_not_plain(op.x))
        elif site == frame.path:
            self.refused.setdefault(site, why_not_plain(op.x))
        else:
            self.gap(site, why_not_plain(op.x))
