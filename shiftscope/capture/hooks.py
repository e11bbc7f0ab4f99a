"""What is put on a model while it is watched; copies and pickles of the model go without it."""

from __future__ import annotations

import contextlib
import itertools
import sys
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from shiftscope.capture.calls import entered, known_as, left

__all__ = [
    "Computed",
    "Enter",
    "Leave",
    "is_running",
    "passes_gradients",
    "put_on",
    "remove_modes",
    "take_off",
    "unused_key",
]

_is_dynamo_compiling = torch.compiler.is_dynamo_compiling
_KEYS = itertools.count(-1, -1)


def unused_key() -> int:
    """A key for the hooks of one attachment.

    Negative, as torch counts its own up from zero: the mark that an unpickled module may keep
    under it never makes a hook that is registered later another kind of hook.
    """
    return next(_KEYS)


def put_on(module: nn.Module, key: int, hook: Enter | Leave) -> None:
    """Register a hook so that :func:`take_off` finds it, however far an interrupt let this get."""
    hooks, marks = _places(module, type(hook))
    hooks[key] = hook
    marks[key] = _Mark(hooks, key)


def take_off(module: nn.Module, key: int) -> None:
    """Remove the hooks of an attachment; a call that has begun finds them dead."""
    for kind in (Enter, Leave):
        hooks, marks = _places(module, kind)
        hook = hooks.get(key)
        if isinstance(hook, _Hook):
            hook.forget()
        marks.pop(key, None)
        hooks.pop(key, None)


def _places(module: nn.Module, kind: type) -> tuple[OrderedDict[int, Any], OrderedDict[int, Any]]:
    """Where hooks of a kind lie, and where their keys are marked (by mere presence)."""
    hooks: Any = (module._forward_hooks, module._forward_hooks_always_called)
    if kind is Enter:
        hooks = (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs)
    return hooks  # type: ignore[no-any-return]


def remove_modes(ours: Callable[[Any], bool]) -> None:
    """Take our modes off this thread's stack; others that lie above are put back."""
    above = []
    stack = torch._C._get_function_stack_at
    while any(ours(stack(k)) for k in range(torch._C._len_torch_function_stack())):
        top = torch._C._pop_torch_function_stack()
        if not ours(top):
            above.append(top)
    for other in reversed(above):
        torch._C._push_on_torch_function_stack(other)


def is_running(module: nn.Module, method: str = "forward") -> bool:
    """Whether a method of this very module is under way in this thread.

    Args:
        module: The module.
        method: The name of the method; ``_call_impl`` is what calls the forward and its hooks.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == method and frame.f_locals.get("self") is module:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def passes_gradients() -> bool:
    """Whether a forward pass that begins is part of training: its calls get gradients."""
    return torch.is_grad_enabled() or _in_function()


def _in_function() -> bool:
    """Whether the forward of a ``torch.autograd.Function`` is under way in this thread.

    It runs without gradients (a reentrant checkpoint, a reversible block), and trains all the same.
    """
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_name == "forward" and code.co_argcount:
            context = frame.f_locals.get(code.co_varnames[0])
            if isinstance(context, torch.autograd.function.FunctionCtx):
                return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


class _Hook:
    """A forward hook; what a copy or pickle holds of it for a moment does nothing."""

    __slots__ = ("__weakref__", "_attachment")

    def __init__(self, attachment: Any) -> None:
        self._attachment: Callable[[], Any] = weakref.ref(attachment)

    @property
    def __name__(self) -> str:
        # Who asks is torch.jit.script, which compiles the hooks of a module along with it.
        raise AttributeError(
            "a model whose step is being recorded cannot be scripted: "
            "call torch.jit.script before ss.watch, or after probe.detach()"
        )

    def forget(self) -> None:
        """Tell nobody any more."""
        self._attachment = _nobody

    def __deepcopy__(self, memo: Any) -> Any:
        return _inert()

    def __reduce__(self) -> Any:
        # Unpickles without shiftscope: nullcontext().__exit__ takes any arguments, returns None.
        return (getattr, (contextlib.nullcontext(), "__exit__"))


class _Mark:
    """The mark of a hook's key; a module's marks are copied, and unpickled, after its hooks.

    So the copy of a mark can take the copy of its hook away again.
    """

    __slots__ = ("_hooks", "_key")

    def __init__(self, hooks: OrderedDict[int, Any], key: int) -> None:
        self._hooks, self._key = hooks, key

    def __deepcopy__(self, memo: dict[int, Any]) -> bool:
        copied = memo.get(id(self._hooks))
        if copied is not None:
            copied.pop(self._key, None)
        return True

    def __reduce__(self) -> Any:
        return (OrderedDict.pop, (self._hooks, self._key, None))


@known_as("enter")
class Enter(_Hook):
    """Forward pre-hook: a module begins.

    Args:
        attachment: Whom to tell.
        path: Name of the module.
        fast: Whether it may take a fused kernel that a mode would keep it from.
        single: Whether its call ends with its first op, so that no hook tells of its end.
    """

    __slots__ = ("fast", "path", "single")

    def __init__(self, attachment: Any, path: str, fast: bool, single: bool) -> None:
        super().__init__(attachment)
        self.path, self.fast, self.single = path, fast, single

    def __call__(self, module: nn.Module, args: Any, kwargs: Any = None) -> None:
        """Tell the attachment, if it still exists."""
        if _is_dynamo_compiling():  # a strict export traces hooks along with the model
            return
        attachment = self._attachment()
        if attachment is None:
            return
        if self.single and (kwargs or len(args) != 1 or not isinstance(args[0], Tensor)):
            attachment.wait_for_end(self, module)  # it may fail before there is any op
        if not entered(self, attachment, module):
            attachment.enter(self, module, args, kwargs or {})


class Leave(_Hook):
    """Forward hook: a module ended."""

    __slots__ = ()

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """Tell the attachment, if it still exists."""
        if _is_dynamo_compiling():
            return
        attachment = self._attachment()
        if attachment is not None and not left(attachment, module):
            attachment.leave(module, failed=output is None and _has_raised())


class Computed(Leave):
    """Forward hook of a parametrization: it ended, and what it returned is a weight."""

    __slots__ = ()

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """Tell the attachment, if it still exists."""
        attachment = self._attachment()
        if attachment is not None and not _is_dynamo_compiling():
            attachment.computed(output)
        super().__call__(module, args, output)


def _has_raised() -> bool:
    """Whether the module whose hook asks has raised, and is about to say so to its caller.

    An exception that the user handles around the call does not come from the frame of the call.
    """
    error = sys.exc_info()[1]
    trace = None if error is None else error.__traceback__
    return trace is not None and trace.tb_frame is sys._getframe(2)


def _inert() -> Any:
    return contextlib.nullcontext().__exit__


def _nobody() -> None:
    return None
