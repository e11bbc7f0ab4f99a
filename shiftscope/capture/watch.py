"""``ss.watch``: the numbers of a training run, measured in the user's own loop."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from shiftscope.capture import distributed
from shiftscope.capture.arguments import patterns
from shiftscope.capture.belonging import kept, note_bypassed, nothing_since, resumed
from shiftscope.capture.boundary_moves import BoundaryTracker
from shiftscope.capture.choice import patterns_of
from shiftscope.capture.conditions import check, is_capturing, noted_on, sample_budget
from shiftscope.capture.coverage import obstacles
from shiftscope.capture.hooks import passes_gradients
from shiftscope.capture.lean import LeanRecorder
from shiftscope.capture.phases import Phases
from shiftscope.capture.probe import Attachment
from shiftscope.capture.recorder import Settings
from shiftscope.capture.scaling import LossScale
from shiftscope.capture.schedule import Schedule
from shiftscope.capture.sites import unwrapped
from shiftscope.capture.stance import Eager, call_untraced, listen
from shiftscope.capture.windows import OpenWindow, main_phase, since
from shiftscope.errors import UsageError
from shiftscope.given import expect
from shiftscope.snapshot import Snapshot
from shiftscope.trace import Trace

__all__ = ["Probe", "watch"]

_SPAN, _FEWEST = 100, 10
"""Training steps that one window spans where every step, or every few, is recorded; and recorded
steps in it, as the end of a window costs about as much as ten of them where steps are short."""


def watch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    every: int | None = None,
    budget: float = 0.01,
    sites: str | Iterable[str] = "*",
    rows: int = 1024,
    scaler: Any = None,
    *,
    window: int | None = None,
    seed: int = 0,
    resume: Trace | str | os.PathLike[str] | None = None,
    start: int | None = None,
    boundaries: str | Iterable[str] | None = None,
) -> Probe:
    """Watch a training run: means, variances and gains at every site, over time.

    Nothing is installed on the model but during recorded steps, and training goes on bit for bit
    as without (compiled models run such steps eagerly, under inductor up to the last bits).

    Args:
        model: The model that is trained; data-parallel and compile wrappers are looked through.
        optimizer: Its optimizer: steps are counted for you. None: call ``probe.step()`` in each,
            when its gradients are there and before the weights change.
        every: Record every N-th step; None to keep within the budget.
        budget: Share of the training time that recording may take, measured on this run.
        sites: Pattern or patterns (``fnmatch``) of the sites to keep.
        rows: Largest row sample for quantiles.
        scaler: The ``GradScaler``, for true gradients; overflow steps are left out. If it is not
            given, the one that makes the first recorded step is found.
        window: Recorded steps in one window of the trace; None chooses: one under a budget, else
            those of 100 training steps, and ten at least.
        seed: Seed of the row sample.
        resume: The trace of an earlier part of this run, or its file; steps go on where it ended.
        start: Number of the first step, where it is neither 0 nor where the trace ended.
        boundaries: Pattern or patterns of the layers whose activation boundaries are followed
            over each recorded step (``probe.boundaries``); None for none.

    Returns:
        The probe: a context manager, or a plain object to be detached.

    Raises:
        UsageError: An argument has no meaning, or belongs to another model.
        LoadError: ``resume`` names a file that holds no trace.

    Example:
        >>> import torch, shiftscope as ss
        >>> model = torch.nn.Linear(8, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with ss.watch(model, optimizer, every=1) as probe:
        ...     model(torch.randn(32, 8)).square().mean().backward()
        ...     optimizer.step()
        >>> len(probe.trace)
        1
    """
    return Probe(
        model, optimizer, every, budget, sites, rows, scaler,
        window=window, seed=seed, resume=resume, start=start, boundaries=boundaries,
    )  # fmt: skip


class Probe:
    """The live attachment to a training run, as :func:`watch` makes it.

    Args:
        model: The model that is trained.
        optimizer: Its optimizer, which counts the steps; None to call :meth:`step`.
        every: Record every N-th step; None to keep within the budget.
        budget: Time that recording may take, as a share of the time training takes.
        sites: Pattern or patterns of the sites to keep.
        rows: Largest row sample for quantiles.
        scaler: The ``GradScaler`` in use.
        window: Recorded steps in one window of the trace.
        seed: Seed of the row sample.
        resume: The trace of an earlier part of this run.
        start: Number of the first step.
        boundaries: Pattern or patterns of the layers whose boundaries are followed.

    Attributes:
        trace: The finished windows.
        boundaries: The moves of activation boundaries over recorded steps, if asked for.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        every: int | None = None,
        budget: float = 0.01,
        sites: str | Iterable[str] = "*",
        rows: int = 1024,
        scaler: Any = None,
        *,
        window: int | None = None,
        seed: int = 0,
        resume: Trace | str | os.PathLike[str] | None = None,
        start: int | None = None,
        boundaries: str | Iterable[str] | None = None,
    ) -> None:
        check(model, optimizer, rows, scaler, window, start)
        inner = unwrapped(model)
        self.trace = resumed(resume, inner)
        self.boundaries = None
        if boundaries is not None:
            self.boundaries = BoundaryTracker(inner, patterns("boundaries", boundaries))
        self._schedule = Schedule(every, budget, self.trace.next_step if start is None else start)
        self._settings = Settings(rows, seed, distributed.rank(), sample_budget(inner))
        self._patterns = patterns_of(sites, inner, stacklevel=4)
        self._model = weakref.ref(inner)
        span = window or (max(_FEWEST, _SPAN // every) if every else 1)
        self._phases = Phases(self._settings, span, LossScale(scaler))
        self._lock = threading.RLock()
        self._reported: dict[str, int] = {}
        self._obstacles: list[tuple[str, str]] = []
        self._forced: str | None = None
        self._evaluated = -1
        self._recording = False
        self._done = False
        self._eager = Eager()
        # Not a strong reference: a probe that is dropped goes at once, and takes its hooks along.
        choose = weakref.WeakMethod(self._choose)
        self._attachment: Attachment | None = Attachment(
            inner,
            LeanRecorder(self._settings),
            choose=lambda: None if (method := choose()) is None else method(),
        )
        self._handles: list[Any] = listen(optimizer, self._before_step, self._after_step)
        if self._schedule.first():
            self._attach()

    # -- the training loop ----------------------------------------------------------------------

    def step(self) -> None:
        """End a training step; only where no optimizer was given.

        To be called before the weights change: facts of weights are of those that are there now.

        Raises:
            UsageError: The optimizer counts the steps already.
        """
        if self._handles:
            raise UsageError(
                "the optimizer given to ss.watch counts the steps already",
                "leave probe.step() out, or give no optimizer",
            )
        if not self._done:
            call_untraced(Probe._before_step, self)
            call_untraced(Probe._after_step, self)

    @contextmanager
    def record(self, phase: str = "eval") -> Iterator[Probe]:
        """Record what runs inside, whatever the schedule says: a validation pass, for instance.

        Args:
            phase: The phase it is counted for.

        Raises:
            UsageError: The phase is no name.
        """
        expect("phase", phase, str, remedy='give "eval", "train" or a name of your own')
        before, attached = self._forced, self.attached
        with ExitStack() as last:
            if not attached:
                last.callback(self._leave)
            last.callback(self._schedule.pause)
            last.callback(self._phases.end_step, self._schedule.steps, phase)
            last.callback(setattr, self, "_forced", before)
            self._forced, self._evaluated = phase, self._schedule.steps
            self._attach()
            yield self

    def _before_step(self) -> None:
        # Before the update: gradients are complete, and the weights are still those they belong to.
        began = self._schedule.clock()
        self._phases.scale.stepped()
        if not self._recording or self._attachment is None:
            return
        self._attachment.settle()
        with self._lock:
            self._phases.find_scaler()
            note_bypassed(self.trace, self._phases.forwards, self._attachment)
            self._phases.end_step(self._schedule.steps)
            if self._phases.full:
                self._close_windows()
        self._schedule.took(self._schedule.clock() - began)

    def _after_step(self) -> None:
        if self._done:
            return
        self._schedule.enter()
        recorded, stays = self._recording, self._schedule.every == 1
        self.trace.steps_done = self._schedule.steps + 1
        if recorded and self.boundaries is not None:
            self.boundaries.step(self._schedule.steps)
        if recorded and not stays:
            self._leave()
        if self._schedule.leave(recorded):
            self._attach()
            if self.boundaries is not None and not recorded:
                self.boundaries.mark()  # weights change at the end of a step only
        elif recorded and stays:
            self._leave()

    def _attach(self) -> bool:
        """Install the hooks for the step to come; whether they were not there before."""
        attachment = self._attachment
        if attachment is None:
            return False
        self._eager.hold()
        self._recording = True
        if attachment.attached:
            return False
        attachment.refresh()
        attachment.__enter__()
        return True

    def _leave(self) -> None:
        self._recording = False
        try:
            if self._attachment is not None:
                self._attachment.detach()
        finally:
            self._eager.release()

    # -- a forward pass -------------------------------------------------------------------------

    def _choose(self) -> LeanRecorder | None:
        """The recorder of the forward pass that begins; None where it cannot be recorded."""
        if is_capturing():
            if self._attachment is not None:
                self._attachment.gap("", "a CUDA graph: what it replays calls no Python")
            return None
        with self._lock:
            self._phases.set_overflow_apart()
            phase = self._forced or self._phase()
            if phase == "eval" and self._forced is None and not self._admit():
                return None
            return self._phases.begin(phase, self._schedule.steps)

    def _admit(self) -> bool:
        """One more evaluation pass: whether it is recorded; under a budget the first of a step.

        A validation takes many of them before the step ends, and is no time of training.
        """
        self._schedule.pause()
        before, self._evaluated = self._evaluated, self._schedule.steps
        return self._schedule.every is not None or before != self._evaluated

    def _phase(self) -> str:
        model = self._model()
        training = model is not None and model.training and passes_gradients()
        return "train" if training else "eval"

    # -- results --------------------------------------------------------------------------------

    def snapshot(self, phase: str | None = None) -> Snapshot:
        """Everything since the last snapshot, merged over ranks; a new window begins.

        Under an initialised ``torch.distributed`` group every rank must call it.

        Args:
            phase: ``"train"`` or ``"eval"``; None for training, or evaluation if that is all.

        Returns:
            The snapshot; means, variances and counts of all windows since, row samples of the last.

        Raises:
            MeasureError: Nothing was recorded since.
        """
        with self._lock:
            self._close_all()
            chosen = phase or main_phase(self.trace, self._reported)
            mine = since(self.trace, chosen, self._reported)
        merged = distributed.merge_over_ranks(mine)
        if not merged.records:
            raise nothing_since(self.trace, chosen, self._obstacles)
        return merged

    def detach(self) -> None:
        """Remove everything; idempotent. What was measured stays readable."""
        if self._done:
            return
        # Last line first, each whatever becomes of the others; hooks twice, against interrupts.
        with ExitStack() as last:
            last.callback(self._forget)
            last.callback(self._close_all)
            for act in (*(handle.remove for handle in self._handles), self._leave, self._leave):
                last.callback(act)

    def _forget(self) -> None:
        self._done, self._attachment = True, None
        self._handles.clear()
        self._phases.forget()

    @property
    def overflows(self) -> int:
        """Recorded steps whose scaled gradients overflowed; they are left out."""
        return self._phases.overflows

    @property
    def attached(self) -> bool:
        """Whether hooks are installed on the model right now."""
        return self._attachment is not None and self._attachment.attached

    @property
    def overhead(self) -> dict[str, Any]:
        """The accounts of the schedule: steps seen and recorded, measured share of the time."""
        return self._schedule.summary()

    def __enter__(self) -> Probe:
        """Watching began with the probe."""
        return self

    def __exit__(self, kind: Any, error: BaseException | None, where: Any) -> None:
        """Detach; what ended the block is never replaced by a failure of ours."""
        with noted_on(error, "shiftscope could not close the last window"):
            self.detach()

    def __del__(self) -> None:
        """A probe that nobody holds any more leaves nothing behind."""
        if getattr(self, "_attachment", None) is not None:
            self._leave()

    def _close_all(self) -> None:
        with self._lock:
            self._phases.set_overflow_apart()
            self._phases.end_step(self._schedule.steps)
            self._close_windows()
            if self._attachment is not None:
                self._obstacles = obstacles(self._attachment)

    def _close_windows(self) -> None:
        """Freeze all windows; they join the trace."""
        for phase in list(self._phases.windows):
            window = self._phases.windows.pop(phase)
            recorder, attachment = self._phases.recorders.get(phase), self._attachment
            if window.steps and recorder is not None and attachment is not None:
                self._close(phase, window, recorder, attachment)
                recorder.restart()

    def _close(
        self, phase: str, window: OpenWindow, recorder: LeanRecorder, attachment: Attachment
    ) -> None:
        about = {"overflow_steps": self.overflows, "schedule": self._schedule.summary()}
        made = window.closed(
            (self._model(), phase, self._settings),
            *(recorder, attachment, about),
            lambda records: kept(
                *(records, self._patterns, phase, self.trace, self._schedule.start),
                () if records else obstacles(attachment),
            ),
        )
        if made is not None:
            self.trace.append(made)
