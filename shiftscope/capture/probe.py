"""The attachment: the only place that installs hooks on modules, or begins a torch function mode.

For one sampled window every module in which a site may lie gets a forward pre-hook, and a forward
hook unless it ends with its op; they keep a stack of running modules. While it is not empty a
``TorchFunctionMode`` sees every torch function, called by a module or not. Gradients come from post
hooks on the autograd nodes of the ops. All of it is removed again, whatever happened, and copies of
a watched model carry inert hooks only.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from shiftscope.absences import TRANSFORMED, UNRECORDED
from shiftscope.capture.calls import transforms
from shiftscope.capture.hooks import (
    Computed,
    Enter,
    Leave,
    is_running,
    passes_gradients,
    put_on,
    remove_modes,
    take_off,
    unused_key,
)
from shiftscope.capture.mode import Mode, Run, remove_stale
from shiftscope.capture.module_kinds import has_fast_path, has_sites, is_single, takes_fast_path
from shiftscope.capture.ops import Ops
from shiftscope.capture.recorder import Recorder
from shiftscope.capture.sites import Frame, Names
from shiftscope.capture.tracing import first_tensor, is_traced

__all__ = ["Attachment"]


class Attachment(Ops):
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
        super().__init__(Names(model), unfuse=unfuse, exactly=choose is not None)
        self.recorder, self.choose = recorder, choose
        self._model = weakref.ref(model)
        self._local = threading.local()
        self._runs: weakref.WeakSet[Run] = weakref.WeakSet()
        self._key = unused_key()
        self._hooked: list[nn.Module] = []
        self._trained: Any = recorder
        self._settled = False

    def __enter__(self) -> Attachment:
        """Install the hooks."""
        try:
            for module, path in self.names.paths.items():
                self._install(module, path)
        except BaseException:
            self.detach()
            raise
        return self

    def _install(self, module: nn.Module, path: str) -> None:
        if isinstance(module, torch.jit.ScriptModule):
            self.gap(path, "a TorchScript module: no hook and no mode sees its inside")
            return
        if not has_sites(module) and module is not self._model():
            return
        single = is_single(module)
        self._hooked.append(module)  # first: an interrupt must not lose it
        put_on(module, self._key, Enter(self, path, has_fast_path(module), single))
        if not single:
            kind = Computed if isinstance(module, ParametrizationList) else Leave
            put_on(module, self._key, kind(self))

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
        return bool(self._hooked)

    def detach(self) -> None:
        """Remove all hooks and a mode that an interrupt may have left behind; idempotent."""
        try:
            self._clear_up(getattr(self._local, "run", None))
            remove_stale()
        finally:
            self._remove()

    def _remove(self) -> None:
        while self._hooked:
            take_off(self._hooked[-1], self._key)
            self._hooked.pop()

    def _follow(self) -> None:
        """Name and hook the modules anew, if any was added, swapped or removed."""
        self._settled = False
        if self.names.outdated:
            self._remove()
            self.refresh()
            for module, path in self.names.paths.items():
                self._install(module, path)

    def settle(self) -> None:
        """A step ends: clear up behind a forward pass that an interrupt ended."""
        self._settled = True
        run = getattr(self._local, "run", None)
        if run is not None and run.stopped:
            self._abandon(run)

    def _clear_up(self, run: Run | None) -> None:
        """Leave a forward pass, whether it goes on or an interrupt ended it."""
        if run is not None and run.stopped:
            self._abandon(run)
        self._unwind(run)

    def wait_for_end(self, hook: Enter, module: nn.Module) -> None:
        """Have a hook tell of the end of a call that may not end with its first op."""
        hook.single = False
        put_on(module, self._key, Leave(self))

    # -- the stack of running modules ---------------------------------------------------------

    def enter(self, hook: Enter, module: nn.Module, args: Any, kwargs: Any) -> None:
        """A module begins its forward."""
        if transforms() is not None:
            self.pass_by(hook.path, TRANSFORMED)
            return
        try:
            run = self._local.run
        except AttributeError:
            run = self._local.run = Run(self.refused)
            with self._lock:
                self._runs.add(run)
        stack = run.stack
        if stack and module is self._model() and not is_running(module):
            self._abandon(run)  # an interrupt, which runs no forward hook, left these behind
        if not stack:
            if run.mode is not None:
                self._abandon(run)  # an interrupt came before the first module was noted
            if self._settled:
                self._follow()
                hook = cast(Enter, module._forward_pre_hooks.get(self._key, hook))
            if hook.single:  # nobody around it would clear up behind it
                self.wait_for_end(hook, module)
            self._begin(run, args, kwargs)
        recorder, path = run.recorder, hook.path
        if recorder is None:
            self.pass_by(path, UNRECORDED)
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

    def leave(self, module: nn.Module, *, failed: bool = False) -> None:
        """A module ended its forward, by return or by exception (``failed``)."""
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
            (self._abandon if failed else self._unwind)(run)

    def _begin(self, run: Run, args: Any, kwargs: Any) -> None:
        remove_stale()
        # Inside a backward pass a forward is a checkpoint's recomputation: its values were
        # recorded before; only its gradients are new (and only in the reentrant kind).
        run.recomputing = torch._C._current_graph_task_id() != -1
        first = first_tensor(args, kwargs)
        if is_traced(first):
            run.recorder = None
        elif run.recomputing:
            run.recorder = self._trained
        else:
            run.recorder = self.recorder if self.choose is None else self.choose()
            if passes_gradients():
                self._trained = run.recorder
            with self._lock:
                self.forwards += 1
                run.where = (self.forwards, 1 if first is None else int(first.shape[0]))
                run.alone = not any(other.stack for other in self._runs if other is not run)
            run.mark = None if run.recorder is None else run.recorder.mark()
        if run.recorder is not None:
            run.mode = Mode(self.handlers, run)
            run.mode.__enter__()

    def _pause(self, run: Run, module: nn.Module, path: str) -> None:
        """Under any mode these modules leave their fused kernel, whose output differs."""
        self.gap(path, "fused inference path: its inside is not measured")
        run.paused = module
        remove_modes(run.owns)

    def _unwind(self, run: Run | None) -> None:
        """Take our mode off this thread's stack."""
        if run is None:
            return
        run.stack.clear()
        run.trail.clear()
        remove_modes(run.owns)
        run.mode = run.paused = run.mark = None

    def _abandon(self, run: Run) -> None:
        """A forward pass came to no end: what it recorded since it began is taken back."""
        mark, run.mark = run.mark, None
        self._unwind(run)
        if mark is not None:
            with self._lock:
                alone = run.alone and run.where[0] == self.forwards and len(self._runs) == 1
            run.recorder.fail(mark, alone)
