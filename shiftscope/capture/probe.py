"""The attachment: the only place that installs hooks or a torch function mode.

For one sampled window every module gets a forward pre-hook and a forward hook that keep a stack of
running modules; while the stack is not empty a ``TorchFunctionMode`` sees every torch function,
called by a module or not. Gradients come from post hooks on the autograd nodes of the ops. All of
it is removed again, whatever happened, and copies of a watched model carry inert hooks only.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from shiftscope.capture.activation_ops import ACTIVATION_OPS, parse_activation
from shiftscope.capture.backward import hook_activation, hook_linear
from shiftscope.capture.fused import FUSED_OPS
from shiftscope.capture.graph import edge_of
from shiftscope.capture.hooks import Enter, Leave, is_running, remove_mode
from shiftscope.capture.linear_ops import LINEAR_OPS, LinearOp
from shiftscope.capture.module_kinds import has_fast_path, is_single, takes_fast_path
from shiftscope.capture.neuron_dims import neurons_lie
from shiftscope.capture.plans import ActivationPlan, Call, LinearPlan
from shiftscope.capture.recorder import Recorder
from shiftscope.capture.sites import Frame, Names
from shiftscope.capture.trail import Trail

__all__ = ["Attachment"]

Handler = Callable[[Any, Frame, Any, tuple[Any, ...], dict[str, Any]], Any]


class Attachment:
    """Hooks on a model for one window; a context manager.

    Args:
        model: The (unwrapped) model.
        recorder: Where the numbers go.
        unfuse: Run fused attention and recurrent layers as their equivalent unfused parts, so that
            their inside is measured. Only for passes whose output nobody else uses.
        choose: For live use: called when a forward pass begins, gives the recorder it is to be
            recorded by, or None where it is not. Fused ops are then looked into only where the
            result stays the same bit for bit.
    """

    def __init__(
        self,
        model: nn.Module,
        recorder: Recorder,
        *,
        unfuse: bool = False,
        choose: Callable[[], Recorder | None] | None = None,
    ) -> None:
        self.recorder = recorder
        self.names = Names(model)
        self.unfuse, self.choose = unfuse, choose
        self.forwards = 0
        self.called: set[str] = set()
        self.measured: set[str] = set()
        self.parameters: set[int] = set()
        self.gaps: dict[tuple[str, str], None] = {}
        self._model = weakref.ref(model)
        self._local = threading.local()
        self._handles: list[Any] = []
        self._handlers: dict[Any, Handler] = {
            **dict.fromkeys(LINEAR_OPS, self._linear),
            **dict.fromkeys(ACTIVATION_OPS, self._activation),
            **dict.fromkeys(FUSED_OPS, self._fused),
        }
        self._lock = threading.Lock()

    def __enter__(self) -> Attachment:
        """Install the hooks."""
        try:
            for module, path in self.names.paths.items():
                if isinstance(module, torch.jit.ScriptModule):
                    self.gap(path, "a TorchScript module: no hook and no mode sees its inside")
                    continue
                single = is_single(module)
                enter = Enter(self, path, has_fast_path(module), single)
                self._handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
                if not single:
                    self._wait_for_end(module)
        except BaseException:
            self.detach()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        """Remove everything again."""
        self.detach()

    def refresh(self) -> None:
        """Read the names of the model anew: modules may have been added or swapped."""
        model = self._model()
        if model is not None:
            self.names = Names(model)

    @property
    def attached(self) -> bool:
        """Whether hooks are installed."""
        return bool(self._handles)

    def detach(self) -> None:
        """Remove all hooks and a mode that an interrupt may have left behind; idempotent."""
        while self._handles:
            self._handles.pop().remove()
        run = getattr(self._local, "run", None)
        if run is not None:
            self._unwind(run)

    def gap(self, path: str, reason: str) -> None:
        """Note something that is not measured, once."""
        with self._lock:
            self.gaps.setdefault((path, reason))

    def _wait_for_end(self, module: nn.Module) -> None:
        self._handles.append(module.register_forward_hook(Leave(self), always_call=True))

    # -- the stack of running modules ---------------------------------------------------------

    def enter(self, hook: Enter, module: nn.Module, args: Any, kwargs: Any) -> None:
        """A module begins its forward."""
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return
        try:
            run = self._local.run
        except AttributeError:
            run = self._local.run = _Run()
        stack = run.stack
        if stack and module is self._model() and not is_running(module):
            self._unwind(run)  # an interrupt, which runs no forward hook, left these behind
        if not stack:
            if hook.single:  # nobody around it would clear up behind it
                hook.single = False
                self._wait_for_end(module)
            self._begin(run, args, kwargs)
        recorder, path = run.recorder, hook.path
        if recorder is None:
            stack.append(Frame(path, module))
            return
        known, plans = None, recorder.plans
        if plans is not None:
            known = plans.get(path)
            if known is None:
                known = plans.setdefault(path, [])
        frame = Frame(path, module, plans=known)
        frame.single = hook.single
        stack.append(frame)
        if not run.recomputing:
            self.called.add(path)
        fast = hook.fast and self.choose is not None and run.paused is None
        if fast and takes_fast_path(module):
            self._pause(run, module, path)

    def leave(self, module: nn.Module) -> None:
        """A module ended its forward, by return or by exception."""
        run = getattr(self._local, "run", None)
        if run is None:
            return
        stack = run.stack
        if run.paused is module:
            run.paused = None
            run.mode.__enter__()
        for index in range(len(stack) - 1, -1, -1):
            if stack[index].module is module:
                del stack[index:]
                break
        if not stack:
            self._unwind(run)

    def _begin(self, run: _Run, args: Any, kwargs: Any) -> None:
        # Inside a backward pass a forward is a checkpoint's recomputation: its values were
        # recorded before; only its gradients are new (and only in the reentrant kind).
        run.recomputing = torch._C._current_graph_task_id() != -1
        if not run.recomputing:
            run.recorder = self.recorder if self.choose is None else self.choose()
            with self._lock:
                self.forwards += 1
                run.where = (self.forwards, _samples(args, kwargs))
        if run.recorder is not None:
            run.mode = _Mode(self._handlers, run)
            run.mode.__enter__()

    def _pause(self, run: _Run, module: nn.Module, path: str) -> None:
        """Under any mode these modules leave their fused kernel, whose output differs."""
        self.gap(path, "fused inference path: its inside is not measured")
        run.paused = module
        remove_mode(run.mode)

    def _unwind(self, run: _Run) -> None:
        """Take our mode off this thread's stack."""
        mode, run.mode, run.paused = run.mode, None, None
        run.stack.clear()
        run.trail.clear()
        if mode is not None:
            remove_mode(mode)

    # -- ops ----------------------------------------------------------------------------------

    def _linear(
        self, run: _Run, frame: Frame, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        op = LINEAR_OPS[func](args, kwargs, lambda tensor: self.names.is_weight(tensor, frame))
        if op is None or not _plain(op.x):
            return func(*args, **kwargs)
        edge = edge_of(op.x)
        out = func(*args, **kwargs)
        if not isinstance(out, Tensor) or not _plain(out):
            return out
        recorder, counted = run.recorder, dict(frame.counts)
        site = self.names.linear(frame, op.op, op.weight)
        if run.recomputing:
            state = recorder.states.get(site)
        else:
            state = recorder.linear(site, frame.path, op, out, run.where)
            self._mark(frame, op.weight)
        if state is None:
            return out
        hook_linear(recorder, state, op, out, edge, count=not run.recomputing)
        if frame.plans is not None and not run.recomputing:
            passing = self._is_passing(op)
            if passing and recorder.detail:
                recorder.read_weight_now(state, op)
            plan = LinearPlan.of(Call(func, args, kwargs, recorder, state), op, out)
            if plan is not None:
                plan.passing = passing
                plan.learn(out, edge)
            _remember(frame, plan, counted)
        return out

    def _activation(
        self, run: _Run, frame: Frame, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        op = parse_activation(func, args, kwargs)
        if op is None or not _plain(op.x) or op.x.dim() == 0:
            return func(*args, **kwargs)
        recorder, counted = run.recorder, dict(frame.counts)
        site = self.names.activation(frame, op.op)
        state, z = recorder.states.get(site) if run.recomputing else None, None
        lies = neurons_lie(op, run.trail.marks, self.names.paths, state and state.lies)
        dim, edge = lies.dim, edge_of(op.x)
        if not run.recomputing:
            state, z = recorder.activation(site, frame.path, op, dim)
            state.place(lies)
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
            _remember(frame, plan, counted)
        return out

    def _fused(
        self, run: _Run, frame: Frame, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        fused = FUSED_OPS[func]
        if self.unfuse or (self.choose is not None and fused.exact):
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
            with _Mode(self._handlers, run):
                return fused.run(func, args, kwargs, labels)
        finally:
            run.stack.remove(inner)

    def _is_passing(self, op: LinearOp) -> bool:
        """Whether no module holds the weight when nothing runs: it may not exist later."""
        weight = op.weight if op.weight._base is None else op.weight._base
        return id(weight) not in self.names.owners

    def _mark(self, frame: Frame, weight: Tensor) -> None:
        owner = self.names.owner_of(weight)
        with self._lock:
            self.measured.add(frame.path)
            if owner is not None:
                self.measured.add(owner[0])
            self.parameters.add(id(weight if weight._base is None else weight._base))


class _Run:
    """One thread's forward pass through the model."""

    __slots__ = ("mode", "paused", "recomputing", "recorder", "stack", "trail", "where")

    def __init__(self) -> None:
        self.trail = Trail()
        self.stack: list[Frame] = []
        self.mode: Any = None
        self.paused: nn.Module | None = None
        self.recomputing = False
        self.recorder: Any = None
        self.where = (0, 1)


class _Mode(TorchFunctionMode):
    """Hands the torch functions that matter to their handlers."""

    def __init__(self, handlers: dict[Any, Handler], run: _Run) -> None:
        super().__init__()
        self._handlers, self._run = handlers, run

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        handler, kwargs = self._handlers.get(func), kwargs or {}
        if handler is None:
            out = func(*args, **kwargs)
        else:
            out = self._handle(handler, func, args, kwargs)
        self._run.trail.follow(func, args, kwargs, out)
        return out

    def _handle(self, handler: Handler, func: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        run, stack = self._run, self._run.stack
        if not stack or torch._C._functorch.peek_interpreter_stack() is not None:
            return func(*args, **kwargs)
        frame = stack[-1]
        try:
            return _run_op(run, frame, handler, func, args, kwargs)
        finally:
            if frame.single and stack and stack[-1] is frame:
                del stack[-1]


def _run_op(
    run: _Run, frame: Frame, handler: Handler, func: Any, args: tuple[Any, ...], kwargs: Any
) -> Any:
    """By the plan of the op, if it is the one that is known at this place; else by its handler."""
    plans, index = frame.plans, frame.index
    if plans is not None:
        frame.index = index + 1
        plan = plans[index] if index < len(plans) else None
        if plan is not None and not run.recomputing and plan.fits(func, args, kwargs, run.trail):
            if plan.count is not None:
                frame.counts[plan.count[0]] = plan.count[1]
            return plan.run(run.recorder, run.where, args, kwargs)
    return handler(run, frame, func, args, kwargs)


def _remember(frame: Frame, plan: Any, counted: dict[str, int]) -> None:
    """Keep the plan of the op that has just run, with what it added to the names of the frame."""
    plans = frame.plans
    if plans is None:
        return
    if plan is not None:
        new = [item for item in frame.counts.items() if item not in counted.items()]
        plan.count = new[0] if new else None
    plans.extend([None] * (frame.index - len(plans)))
    plans[frame.index - 1] = plan and plan.joined(plans[frame.index - 1])


def _plain(tensor: Any) -> bool:
    """A dense real float tensor that holds values."""
    return (
        isinstance(tensor, Tensor)
        and tensor.layout is torch.strided
        and tensor.is_floating_point()
        and not tensor.is_meta
        and not tensor.is_nested
        and not tensor.is_quantized
        and tensor.numel() > 0
    )


def _samples(args: Any, kwargs: Any) -> int:
    """Batch size: the first dimension of the first tensor that has one."""
    pending = [*args, *kwargs.values()]
    while pending:
        item = pending.pop(0)
        if isinstance(item, Tensor) and item.dim() > 0:
            return int(item.shape[0])
        if isinstance(item, dict):
            pending = [*item.values(), *pending]
        elif isinstance(item, list | tuple):
            pending = [*item, *pending]
    return 1
