"""What happens at each call of a recorded step, by compiled code where it could be built.

A small network runs a call in some microseconds, and its step waits for Python: on a GPU as well,
where the host is what small networks wait for. The compiled part does what the classes of
``mode.py``, ``hooks.py`` and ``plans.py`` do for a call whose plan is known, in the same order, and
hands every other call to them. Where it could not be built they do all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

try:
    from shiftscope.capture import _calls
except ImportError:  # no compiler where shiftscope was installed
    _calls = None  # type: ignore[assignment]

__all__ = ["CompiledMode", "books_of", "entered", "known_as", "left", "transforms", "when_stale"]

Kind = TypeVar("Kind", bound=type)
Act = TypeVar("Act", bound=Callable[[], None])

transforms = torch._C._functorch.peek_interpreter_stack
"""The innermost transform of ``torch.func`` (vmap, grad) in force; None without."""

CompiledMode: Any = getattr(_calls, "Mode", None)
"""What sees every torch function; None where it is not built."""


def books_of(*lists: list[Any]) -> Any:
    """What compiled code writes to for a recorder; None where it is not built.

    Args:
        lists: Readings and events of the step that runs, the functions that read, and for each slot
            whether a mean image is wanted.
    """
    return None if _calls is None else _calls.Books(*lists)


def known_as(role: str) -> Callable[[Kind], Kind]:
    """A class whose slots the compiled code reads.

    Args:
        role: What it is to that code.
    """

    def learn(kind: Kind) -> Kind:
        if _calls is not None:
            _calls.learn(role, kind)
        return kind

    return learn


def when_stale(function: Act) -> Act:
    """What compiled code calls, soon, where a mode is called whose forward pass has ended."""
    if _calls is not None:
        _calls.when_stale(function)
    return function


def _never(*_: Any) -> bool:
    return False


entered: Callable[[Any, Any, Any], bool] = _never
"""``entered(hook, attachment, module)``: note that a module begins inside others; False where more
is to be done, and nothing was."""
left: Callable[[Any, Any], bool] = _never
"""``left(attachment, module)``: note that the innermost module ended; False likewise."""

if _calls is not None:
    _calls.know(Tensor, torch.strided, transforms, torch.OutOfMemoryError)
    entered, left = _calls.entered, _calls.left
