"""The attachment: the only place that installs hooks or a torch function mode.

For one sampled window every module gets a forward pre-hook and a forward hook that keep a stack of
running modules; while the stack is not empty a ``TorchFunctionMode`` sees every torch function,
called by a module or not. Gradients come from post hooks on the autograd nodes of the ops. All of
it is removed again, whatever happened, and copies of a watched model carry inert hooks only.
"""

from __future__ import annotations

import contextlib
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
from shiftscope.capture.graph import edge_of, feature_dim_of
from shiftscope.capture.linear_ops import LINEAR_OPS
from shiftscope.capture.recorder import Recorder
from shiftscope.capture.sites import Frame, Names

__all__ = ["Attachment"]

Handler = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]


class Attachment:
    """Hooks on a model for one window; a context manager.

    Args:
        model: The (unwrapped) model.
        recorder: Where the numbers go.
        unfuse: Run fused attention and recurrent layers as their equivalent unfused parts, so that
            their inside is measured. Only for passes whose output nobody else uses.
    """

    def __init__(self, model: nn.Module, recorder: Recorder, *, unfuse: bool = False) -> None:
        self.recorder = recorder
        self.names = Names(model)
        self.unfuse = unfuse
        self.forwards = 0
        self.called: set[str] = set()
        self.measured: set[str] = set()
        self.parameters: set[int] = set()
        self.gaps: dict[tuple[str, str], None] = {}
        self.hidden = threading.local()
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
                self._handles += [
                    module.register_forward_pre_hook(_Enter(self, path), with_kwargs=True),
                    module.register_forward_hook(_Leave(self), always_call=True),
                ]
        except BaseException:
            self.detach()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        """Remove everything again."""
        self.detach()

    def detach(self) -> None:
        """Remove all hooks and a mode that an interrupt may have left behind; idempotent."""
        while self._handles:
            self._handles.pop().remove()
        self._unwind()

    def gap(self, path: str, reason: str) -> None:
        """Note something that is not measured, once."""
        with self._lock:
            self.gaps.setdefault((path, reason))

    # -- the stack of running modules ---------------------------------------------------------

    @property
    def stack(self) -> list[Frame]:
        """The running modules of this thread, outermost first."""
        if not hasattr(self.hidden, "stack"):
            self.hidden.stack = []
        return self.hidden.stack  # type: ignore[no-any-return]

    @property
    def recomputing(self) -> bool:
        """Whether this thread's forward is a recomputation inside a backward pass."""
        return bool(getattr(self.hidden, "recomputing", False))

    @property
    def where(self) -> tuple[int, int]:
        """``(number of the forward pass, samples in it)``."""
        return getattr(self.hidden, "where", (0, 1))

    def enter(self, module: nn.Module, path: str, args: Any, kwargs: Any) -> None:
        """A module begins its forward."""
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return
        if not self.stack:
            self._begin(args, kwargs)
        self.stack.append(Frame(path, module))
        if not self.recomputing:
            self.called.add(path)

    def leave(self, module: nn.Module) -> None:
        """A module ended its forward, by return or by exception."""
        stack = self.stack
        for index in range(len(stack) - 1, -1, -1):
            if stack[index].module is module:
                del stack[index:]
                break
        if not stack:
            self._unwind()

    def _begin(self, args: Any, kwargs: Any) -> None:
        # Inside a backward pass a forward is a checkpoint's recomputation: its values were
        # recorded before; only its gradients are new (and only in the reentrant kind).
        self.hidden.recomputing = torch._C._current_graph_task_id() != -1
        if not self.recomputing:
            with self._lock:
                self.forwards += 1
                self.hidden.where = (self.forwards, _samples(args, kwargs))
        self.hidden.mode = _Mode(self)
        self.hidden.mode.__enter__()

    def _unwind(self) -> None:
        """Take our mode off this thread's stack; others that lie above are put back."""
        mode = getattr(self.hidden, "mode", None)
        self.hidden.mode = None
        self.stack.clear()
        if mode is None:
            return
        above = []
        while torch._C._len_torch_function_stack():
            top = torch._C._pop_torch_function_stack()
            if top is mode:
                break
            above.append(top)
        for other in reversed(above):
            torch._C._push_on_torch_function_stack(other)

    # -- ops ----------------------------------------------------------------------------------

    def intercept(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one torch function, recording it when it is a linear map or an activation."""
        handler = self._handlers.get(func)
        if handler is None or not self.stack:
            return func(*args, **kwargs)
        return handler(func, args, kwargs)

    def _linear(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        frame = self.stack[-1]
        op = LINEAR_OPS[func](args, kwargs, lambda tensor: self.names.is_weight(tensor, frame))
        if op is None or not _plain(op.x):
            return func(*args, **kwargs)
        edge = edge_of(op.x)
        out = func(*args, **kwargs)
        if not isinstance(out, Tensor) or not _plain(out):
            return out
        site = self.names.linear(frame, op.op, op.weight)
        if self.recomputing:
            state = self.recorder.states.get(site)
        else:
            state = self.recorder.linear(site, frame.path, op, out, self.where)
            self._mark(frame, op.weight)
        if state is not None:
            hook_linear(self.recorder, state, op, out, edge, count=not self.recomputing)
        return out

    def _activation(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        frame = self.stack[-1]
        op = parse_activation(func, args, kwargs)
        if op is None or not _plain(op.x) or op.x.dim() == 0:
            return func(*args, **kwargs)
        site = self.names.activation(frame, op.op)
        dim = feature_dim_of(op.x) if op.elementwise else -1
        edge = edge_of(op.x)
        if self.recomputing:
            state, z = self.recorder.states.get(site), None
        else:
            state, z = self.recorder.activation(site, frame.path, op, dim)
        out = func(*args, **kwargs)
        if state is None or not isinstance(out, Tensor):
            return out
        if z is not None:
            self.recorder.activated(state, z, out, dim, self.where)
        hook_activation(self.recorder, state, op, out, dim, edge, count=not self.recomputing)
        return out

    def _fused(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        frame = self.stack[-1]
        fused = FUSED_OPS[func]
        reason = (
            fused.obstacle(args, kwargs) if self.unfuse else "fused op: its inside is not measured"
        )
        if reason is not None:
            self.gap(frame.path, reason)
            return func(*args, **kwargs)
        inner = Frame(frame.path, frame.module, frame.counts, dict(fused.labels), fused.pooled)
        self.stack.append(inner)
        try:
            with _Mode(self):
                return fused.run(func, args, kwargs, inner.label)
        finally:
            self.stack.remove(inner)

    def _mark(self, frame: Frame, weight: Tensor) -> None:
        owner = self.names.owner_of(weight)
        with self._lock:
            self.measured.add(frame.path)
            if owner is not None:
                self.measured.add(owner[0])
            self.parameters.add(id(weight if weight._base is None else weight._base))


class _Mode(TorchFunctionMode):
    """Hands every torch function to the attachment."""

    def __init__(self, attachment: Attachment) -> None:
        super().__init__()
        self._intercept = attachment.intercept

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return self._intercept(func, args, kwargs or {})


class _Hook:
    """A forward hook that copies and pickles of the model carry as an inert object."""

    __slots__ = ("__weakref__", "_attachment")

    def __init__(self, attachment: Attachment) -> None:
        self._attachment: Callable[[], Attachment | None] = weakref.ref(attachment)

    def __deepcopy__(self, memo: Any) -> Any:
        return _inert()

    def __reduce__(self) -> Any:
        # Unpickles without shiftscope: nullcontext().__exit__ takes any arguments, returns None.
        return (getattr, (contextlib.nullcontext(), "__exit__"))


class _Enter(_Hook):
    __slots__ = ("_path",)

    def __init__(self, attachment: Attachment, path: str) -> None:
        super().__init__(attachment)
        self._path = path

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        attachment = self._attachment()
        if attachment is not None:
            attachment.enter(module, self._path, args, kwargs)


class _Leave(_Hook):
    __slots__ = ()

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        attachment = self._attachment()
        if attachment is not None:
            attachment.leave(module)


def _inert() -> Any:
    return contextlib.nullcontext().__exit__


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
