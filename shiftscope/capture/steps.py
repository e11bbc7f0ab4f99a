"""The steps of an optimizer: when the gradients of one are there, when it ended or failed.

Torch calls a hook before a step and one after it; of a step that raises it tells nobody. Where a
closure computes the loss (``optimizer.step(closure)``), gradients are there once it has run, which
is within the step: so the closure of a recorded step is followed, and no other.
"""

from __future__ import annotations

import inspect
import sys
import threading
import weakref
from collections.abc import Callable
from functools import wraps
from typing import Any, Protocol

from torch.optim import Optimizer

from shiftscope.capture.choice import optimizer_of
from shiftscope.capture.stance import untraced

__all__ = ["Steps", "weakly"]


class _Listener(Protocol):
    """Who is told of the steps."""

    def begun(self) -> bool:
        """A step begins; whether it is recorded."""

    def complete(self) -> None:
        """The gradients of a recorded step are there, and the weights still those of its passes."""

    def ended(self) -> None:
        """A step has ended."""

    def failed(self) -> None:
        """A recorded step raised: what was recorded for it is of no step."""

    def made_again(self) -> None:
        """A recorded step raised and is made again, with the passes recorded before it."""

    def waits(self) -> bool:
        """Whether forward passes were recorded for the step to come."""

    def left_out(self) -> None:
        """A forward pass runs again within a step, and is not recorded."""


def weakly(method: Callable[..., Any]) -> Callable[..., Any]:
    """A bound method that does not keep its object; gives None once that is gone."""
    reference = weakref.WeakMethod(method)

    def call(*args: Any) -> Any:
        found = reference()
        return None if found is None else found(*args)

    return call


class Steps:
    """The steps of one optimizer, which keeps neither this nor the listener alive.

    Args:
        given: The optimizer, a wrapper around one, or None: then nobody tells of steps.
        listener: Who is told; not kept alive either.
    """

    def __init__(self, given: Any, listener: _Listener) -> None:
        self._handles: list[Any] = []
        self._inner = self._number = 0
        self._listener = weakref.ref(listener)
        self._optimizer: Callable[[], Optimizer | None] = lambda: None
        self._place: int | None = None
        # of the step under way: its thread, whether it has begun, its gradients are to come, its
        # closure runs for the first time, or again, and whether no pass was recorded before it
        self._thread: int | None = None
        self._open = self._due = self._first = self._again = self._fresh = False
        if given is not None:
            self._listen(optimizer_of(given))

    def _listen(self, optimizer: Optimizer) -> None:
        self._optimizer, self._place = weakref.ref(optimizer), _place_of_closure(optimizer)
        before, after = untraced(weakly(self._begin)), untraced(weakly(self._end))
        self._handles.append(optimizer.register_step_pre_hook(before))
        self._handles.append(optimizer.register_step_post_hook(after))

    @property
    def counted(self) -> bool:
        """Whether an optimizer tells of the steps."""
        return bool(self._handles)

    def remove(self) -> None:
        """Take the hooks off the optimizer; idempotent."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._number += 1  # a closure that is still about is the user's and nothing else

    def __del__(self) -> None:
        """Of steps that nobody listens to no hook stays."""
        self.remove()

    def admits(self) -> bool:
        """Whether a forward pass that begins is recorded: the first evaluation of a step is.

        A pass behind a step that raised is one of its next try.
        """
        own = self._thread == threading.get_ident()
        if self._first or not (own or self._again):
            return True
        listener = self._listener()
        if listener is None:
            return False
        if self._again or self._under_way():
            listener.left_out()
            return False
        self._thread = None
        listener.failed()
        return True

    def _under_way(self) -> int:
        """Steps that are under way in this thread; two where one calls that of a base class."""
        optimizer, found = self._optimizer(), 0
        frame: Any = sys._getframe(1)
        while frame is not None and optimizer is not None:
            # torch's function that calls the hooks around every step
            if frame.f_code.co_name == "wrapper" and frame.f_locals.get("self") is optimizer:
                found += 1
            frame = frame.f_back
        return found

    # -- the hooks ------------------------------------------------------------------------------

    def _begin(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._open and self._under_way() > 1:
            self._inner += 1
            return None
        self._open, self._inner, self._due = True, 0, False
        listener = self._listener()
        if listener is None or not listener.begun():
            return None
        place, closure = self._closure_in(args, kwargs)
        if closure is None:
            self._fresh = True
            self._complete(listener)
            return None
        self._await(listener)
        followed = self._followed(closure, self._number)
        if place is None:
            return args, {**kwargs, "closure": followed}
        return (*args[:place], followed, *args[place + 1 :]), kwargs

    def _await(self, listener: _Listener) -> None:
        """The gradients of the step come with its closure."""
        if self._thread is not None:  # the step before raised, and its closure runs anew
            (listener.failed if self._fresh else listener.made_again)()
        self._thread, self._due, self._fresh = threading.get_ident(), True, not listener.waits()
        self._number += 1

    def _end(self, *_: Any) -> None:
        if self._inner:
            self._inner -= 1
            return
        self._open, listener = False, self._listener()
        if listener is None:
            return
        if self._due:  # its closure was never called
            self._complete(listener)
        self._thread, self._number = None, self._number + 1
        listener.ended()

    def _complete(self, listener: _Listener) -> None:
        self._due, self._thread = False, threading.get_ident()
        listener.complete()

    # -- a closure ------------------------------------------------------------------------------

    def _closure_in(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[int | None, Callable[..., Any] | None]:
        """Where the closure lies among the positional arguments, if it does, and the closure."""
        place = self._place
        if place is None or place >= len(args):
            place = None
        closure = kwargs.get("closure") if place is None else args[place]
        return place, closure if callable(closure) else None

    def _followed(self, closure: Callable[..., Any], number: int) -> Callable[..., Any]:
        """The closure of a step, which tells when it has run for the first time.

        Args:
            closure: The user's.
            number: Of the step: an optimizer may keep the closure beyond it.
        """
        versions = self._versions()

        @wraps(closure)
        def evaluate(*args: Any, **kwargs: Any) -> Any:
            listener = self._listener()
            if listener is None or number != self._number:
                return closure(*args, **kwargs)
            if self._due and listener.waits() and self._versions() != versions:
                self._complete(listener)  # the passes before the step are what it updates by (SAM)
            if not self._due:
                return self._evaluate_again(closure, args, kwargs)
            self._first = True
            try:
                value = closure(*args, **kwargs)
            finally:
                self._first = False
            self._complete(listener)
            return value

        return evaluate

    def _evaluate_again(self, closure: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        before, self._again = self._again, True
        try:
            return closure(*args, **kwargs)
        finally:
            self._again = before

    def _versions(self) -> int:
        """Changes whenever the optimizer writes to its weights."""
        groups = getattr(self._optimizer(), "param_groups", ())
        held = [weight for group in groups for weight in group["params"]]
        return sum(0 if weight.is_inference() else weight._version for weight in held)


def _place_of_closure(optimizer: Optimizer) -> int | None:
    """The place of the closure among the positional arguments of a step, the optimizer included."""
    try:
        names = [*inspect.signature(type(optimizer).step).parameters]
    except (TypeError, ValueError):  # a compiled one may tell of none
        return None
    return names.index("closure") if "closure" in names else None
