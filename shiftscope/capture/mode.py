"""The torch function mode of a forward pass that is recorded, and what it knows of the pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from shiftscope.absences import TRANSFORMED
from shiftscope.capture.calls import CompiledMode, known_as, transforms, when_stale
from shiftscope.capture.hooks import is_running, remove_modes
from shiftscope.capture.sites import Frame
from shiftscope.capture.trail import Trail

__all__ = ["Handler", "Mode", "PlainMode", "Run", "remember", "remove_stale"]

Handler = Callable[[Any, Frame, Any, tuple[Any, ...], dict[str, Any]], Any]


@known_as("run")
class Run:
    """One thread's forward pass through the model.

    Attributes:
        trail: Where the neurons lie in its tensors, as far as only the calls can tell.
        stack: The modules that run, the innermost last.
        mode: The mode pushed for it; None where it is not recorded.
        paused: The module that took the mode off for the time it runs.
        recomputing: Whether it is a checkpoint's recomputation.
        recorder: Where the numbers go.
        where: ``(number of the pass, samples in it)``.
        refused: Path of a module to why something that it runs cannot be measured.
        mark: What its recorder had when it began; None where nothing is to be taken back.
        alone: Whether no other thread was amid a pass then.
    """

    __slots__ = (
        *("mode", "paused", "recomputing", "recorder", "refused", "stack", "trail", "where"),
        *("__weakref__", "alone", "mark"),
    )

    def __init__(self, refused: dict[str, str] | None = None) -> None:
        self.refused = {} if refused is None else refused
        self.trail = Trail()
        self.stack: list[Frame] = []
        self.mode: Any = None
        self.paused: nn.Module | None = None
        self.recomputing = False
        self.recorder: Any = None
        self.where = (0, 1)
        self.mark: Any = None
        self.alone = True

    @property
    def stopped(self) -> bool:
        """Whether it was recorded and no module of it is under way any more, hooks included."""
        going = any(is_running(frame.module, "_call_impl") for frame in self.stack)
        return self.mode is not None and not going

    def owns(self, mode: Any) -> bool:
        """Whether a mode was pushed for this forward pass."""
        return isinstance(mode, PlainMode) and mode.run is self


class PlainMode(TorchFunctionMode):
    """Hands the torch functions that matter to their plans, or to their handlers.

    Args:
        handlers: Function to what records a call of it.
        run: The forward pass it is in force for.
    """

    def __init__(self, handlers: dict[Any, Handler], run: Run) -> None:
        super().__init__()
        self.handlers, self.run = handlers, run

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """One call of a torch function."""
        handler, trail, kwargs = self.handlers.get(func), self.run.trail, kwargs or {}
        out = func(*args, **kwargs) if handler is None else self.handle(handler, func, args, kwargs)
        if trail.tensors or type(out) is not Tensor or out.grad_fn is None:
            trail.follow(func, args, kwargs, out)
        return out

    def handle(self, handler: Handler, func: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        """A call that has a handler."""
        run, stack = self.run, self.run.stack
        if not stack or transforms() is not None:
            if stack:
                run.refused.setdefault(stack[-1].path, TRANSFORMED)
            return func(*args, **kwargs)
        frame = stack[-1]
        try:
            return _run_op(run, frame, handler, func, args, kwargs)
        finally:
            if frame.single and stack and stack[-1] is frame:
                del stack[-1]


def _compiled() -> type[PlainMode]:
    """The same, whose plain calls never reach Python."""
    made: Any = type("CompiledMode", (CompiledMode, PlainMode), {"__module__": __name__})
    return made  # type: ignore[no-any-return]


Mode: type[PlainMode] = PlainMode if CompiledMode is None else _compiled()
"""The mode of a forward pass that is recorded: ``Mode(handlers, run)``."""


@when_stale
def remove_stale() -> None:
    """Take modes off this thread's stack whose forward pass has ended.

    Torch takes a mode off the stack while it runs, and puts it back when it is done: after an
    interrupt in between only when the traceback is dropped, long after everything was removed.
    """
    if torch._C._len_torch_function_stack():
        remove_modes(lambda mode: isinstance(mode, PlainMode) and not mode.run.stack)


def _run_op(
    run: Run, frame: Frame, handler: Handler, func: Any, args: tuple[Any, ...], kwargs: Any
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


def remember(frame: Frame, plan: Any, counted: dict[str, int]) -> None:
    """Keep the plan of the op that has just run, with what it added to the names of the frame."""
    plans = frame.plans
    if plans is None:
        return
    if plan is not None:
        new = [item for item in frame.counts.items() if item not in counted.items()]
        plan.count = new[0] if new else None
    plans.extend([None] * (frame.index - len(plans)))
    plans[frame.index - 1] = plan and plan.joined(plans[frame.index - 1])
