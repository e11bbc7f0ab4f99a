"""``ss.watch``: the numbers of a training run, measured in the user's own loop."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from shiftscope.capture import distributed
from shiftscope.capture.boundary_moves import BoundaryTracker
from shiftscope.capture.conditions import check, described, is_capturing, noted_on, sample_budget
from shiftscope.capture.coverage import coverage, missing, nothing_measured, obstacles
from shiftscope.capture.hooks import passes_gradients
from shiftscope.capture.lean import LeanRecorder
from shiftscope.capture.pictures import pictures
from shiftscope.capture.probe import Attachment
from shiftscope.capture.recorder import Settings
from shiftscope.capture.schedule import Schedule
from shiftscope.capture.sites import unwrapped
from shiftscope.capture.stance import Eager, call_untraced, listen
from shiftscope.capture.windows import OpenWindow, main_phase, matching, since
from shiftscope.errors import UsageError
from shiftscope.snapshot import Snapshot
from shiftscope.trace import Trace, Window

__all__ = ["Probe", "watch"]

_SPAN = 100
"""Training steps that one window spans where every step, or every few, is recorded."""


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
    resume: Trace | None = None,
    boundaries: str | Iterable[str] | None = None,
) -> Probe:
    """Watch a training run: means, variances and gains at every site, over time.

    Nothing is installed on the model but during recorded steps, and training goes on bit for bit
    as without (compiled models run such steps eagerly, under inductor up to the last bits).

    Args:
        model: The model that is trained; data-parallel and compile wrappers are looked through.
        optimizer: Its optimizer: steps are counted for you. None: call ``probe.step()`` after each.
        every: Record every N-th step; None to keep within the budget.
        budget: Share of the training time that recording may take, measured on this run.
        sites: Pattern or patterns (``fnmatch``) of the sites to keep.
        rows: Largest row sample for quantiles.
        scaler: The ``GradScaler``, for true gradients; overflow steps are left out.
        window: Recorded steps in one window of the trace; None chooses.
        seed: Seed of the row sample.
        resume: The trace of an earlier part of this run; steps go on where it ended.
        boundaries: Pattern or patterns of the layers whose activation boundaries are followed
            over each recorded step (``probe.boundaries``); None for none.

    Returns:
        The probe: a context manager, or a plain object to be detached.

    Raises:
        UsageError: An argument has no meaning.

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
        window=window, seed=seed, resume=resume, boundaries=boundaries,
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

    Attributes:
        trace: The finished windows.
        overflows: Steps whose scaled gradients overflowed; they are left out.
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
        resume: Trace | None = None,
        boundaries: str | Iterable[str] | None = None,
    ) -> None:
        check(model, optimizer, rows, scaler, window)
        inner = unwrapped(model)
        self.trace = Trace() if resume is None else resume
        self.overflows = 0
        self.boundaries = None if boundaries is None else BoundaryTracker(inner, boundaries)
        self._schedule = Schedule(every, budget, self.trace.next_step)
        self._span = window or (max(1, _SPAN // every) if every else 1)
        self._settings = Settings(rows, seed, distributed.rank(), sample_budget(inner))
        self._patterns = (sites,) if isinstance(sites, str) else tuple(sites)
        self._model = weakref.ref(inner)
        self._scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self._scaling: Any = None
        self._stepped = True
        self._lock = threading.RLock()
        self._recorders: dict[str, LeanRecorder] = {}
        self._open: dict[str, OpenWindow] = {}
        self._reported: dict[str, int] = {}
        self._obstacles: list[tuple[str, str]] = []
        self._forced: str | None = None
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
        """
        before, attached = self._forced, self.attached
        with ExitStack() as last:
            if not attached:
                last.callback(self._leave)
            last.callback(self._schedule.pause)
            last.callback(self._flush, phase)
            last.callback(setattr, self, "_forced", before)
            self._forced = phase
            self._attach()
            yield self

    def _before_step(self) -> None:
        # Before the update: gradients are complete, and the weights are still those they belong to.
        self._stepped = True
        if not self._recording or self._attachment is None:
            return
        self._attachment.settle()
        with self._lock:
            for phase in list(self._recorders):
                self._flush(phase)
            window = self._open.get("train")
            if window is not None and window.steps >= self._span:
                for phase in list(self._open):
                    self._close(phase)

    def _after_step(self) -> None:
        if self._done:
            return
        self._schedule.enter()
        recorded, stays = self._recording, self._schedule.every == 1
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
            self._set_overflow_apart()
            phase = self._forced or self._phase()
            recorder = self._recorders.get(phase)
            if recorder is None:
                recorder = LeanRecorder(self._settings, self._scaler)
                self._recorders[phase] = recorder
            window = self._open.get(phase)
            if window is None:
                window = self._open[phase] = OpenWindow(self._schedule.steps)
            if recorder.crowded and self._scaler is None:
                recorder.flush(ended=False)
            recorder.detail = window.steps == 0
            window.forwards += 1
            return recorder

    def _phase(self) -> str:
        model = self._model()
        training = model is not None and model.training and passes_gradients()
        return "train" if training else "eval"

    def _set_overflow_apart(self) -> None:
        """A scaler that was updated without a step of its optimizer had found an overflow."""
        if self._scaler is None:
            return
        states = self._scaler._per_optimizer_states
        if self._scaling is None:
            self._scaling = states
        if states is self._scaling:
            return
        self._scaling = states
        if not self._stepped:
            self.overflows += 1
            recorder = self._recorders.get("train")
            if recorder is not None:
                recorder.discard()
            window = self._open.get("train")
            if window is not None:
                window.forwards = 0
        self._stepped = False

    def _flush(self, phase: str) -> None:
        recorder, window = self._recorders.get(phase), self._open.get(phase)
        if recorder is None or window is None or not window.forwards:
            return
        recorder.flush()
        window.ended(self._schedule.steps)

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
            raise nothing_measured(chosen, self._obstacles)
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
        self._recorders.clear()
        self._scaler = self._scaling = None

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
            for phase in list(self._recorders):
                self._flush(phase)
            for phase in list(self._open):
                self._close(phase)
            if self._attachment is not None:
                self._obstacles = obstacles(self._attachment)

    def _close(self, phase: str) -> None:
        """Freeze a window; it joins the trace."""
        window, recorder = self._open.pop(phase), self._recorders.get(phase)
        attachment = self._attachment
        if not window.steps or recorder is None or attachment is None:
            return
        records = recorder.records(backward=phase == "train")
        shown = matching(records, self._patterns)
        if shown:
            snapshot = Snapshot(
                records=shown,
                gaps=tuple(missing(attachment, recorder.measured)),
                manifest={
                    **described(self._model(), phase, self._settings),
                    **window.told(),
                    "overflow_steps": self.overflows,
                    "schedule": self._schedule.summary(),
                },
                coverage=coverage(attachment, recorder, 0.0),
                pictures=pictures({name: recorder.states[name] for name in shown}),
            )
            self.trace.append(Window(window.first, window.last, phase, snapshot))
        recorder.restart()
