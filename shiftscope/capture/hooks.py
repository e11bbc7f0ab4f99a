"""What is put on a model while it is watched; copies and pickles of the model carry it inert."""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

__all__ = ["Enter", "Leave", "is_running", "remove_mode"]


def remove_mode(mode: Any) -> None:
    """Take a mode off this thread's stack; others that lie above are put back."""
    above = []
    while torch._C._len_torch_function_stack():
        top = torch._C._pop_torch_function_stack()
        if top is mode:
            break
        above.append(top)
    for other in reversed(above):
        torch._C._push_on_torch_function_stack(other)


def is_running(module: nn.Module) -> bool:
    """Whether a forward of this very module is under way in this thread (it calls itself)."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "forward" and frame.f_locals.get("self") is module:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


class _Hook:
    """A forward hook that copies and pickles of the model carry as an inert object."""

    __slots__ = ("__weakref__", "_attachment")

    def __init__(self, attachment: Any) -> None:
        self._attachment: Callable[[], Any] = weakref.ref(attachment)

    def __deepcopy__(self, memo: Any) -> Any:
        return _inert()

    def __reduce__(self) -> Any:
        # Unpickles without shiftscope: nullcontext().__exit__ takes any arguments, returns None.
        return (getattr, (contextlib.nullcontext(), "__exit__"))


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

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Tell the attachment, if it still exists."""
        attachment = self._attachment()
        if attachment is not None:
            attachment.enter(self, module, args, kwargs)


class Leave(_Hook):
    """Forward hook: a module ended."""

    __slots__ = ()

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """Tell the attachment, if it still exists."""
        attachment = self._attachment()
        if attachment is not None:
            attachment.leave(module)


def _inert() -> Any:
    return contextlib.nullcontext().__exit__
