"""``ss.watch``: the numbers of a training run, measured in the user's own loop."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from shiftscope.capture import distributed
from shiftscope.capture.arguments import patterns
from shiftscope.capture.belonging import nothing_since, resumed
from shiftscope.capture.boundary_moves import BoundaryTracker
from shiftscope.capture.choice import patterns_of
from shiftscope.capture.conditions import check, noted_on, sample_budget
from shiftscope.capture.phases import Phases
from shiftscope.capture.recorder import Settings
from shiftscope.capture.recording import Recording
from shiftscope.capture.scaling import LossScale
from shiftscope.capture.schedule import Schedule
from shiftscope.capture.sites import unwrapped
from shiftscope.capture.stance import call_untraced
from shiftscope.capture.windows import main_phase, since
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
            when its gradients are there and before the weights change. Of a closure that a step
            evaluates several times (LBFGS) the first evaluation is recorded.
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
        start: Number of the first step, where it is neither 0 nor where the trace ended; windows
            from there on are made anew.
        boundaries: Pattern or patterns of the layers whose activation boundaries are followed
            over each recorded step (``probe.boundaries``); None for none.

    Returns:
        The probe: a context manager, or a plain object to be held and detached; one that nobody
        holds any more takes its hooks along.

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
        if start is not None:
            self.trace.rewind(start)
        self.boundaries = None
        if boundaries is not None:
            self.boundaries = BoundaryTracker(inner, patterns("boundaries", boundaries))
        self._schedule = Schedule(every, budget, self.trace.next_step if start is None else start)
        settings = Settings(rows, seed, distributed.rank(), sample_budget(inner))
        span = window or (max(_FEWEST, _SPAN // every) if every else 1)
        self._phases = Phases(settings, span, LossScale(scaler))
        self._reported: dict[str, int] = {}
        self._recording = Recording(
            *(inner, optimizer, settings, self._schedule, self._phases, self.trace),
            *(patterns_of(sites, inner, stacklevel=4), self.boundaries),
        )

    # -- the training loop ----------------------------------------------------------------------

    def step(self) -> None:
        """End a training step; only where no optimizer was given.

        To be called before the weights change: facts of weights are of those that are there now.
        A loop may go on to call it after :meth:`detach`, where it does nothing.

        Raises:
            UsageError: The optimizer counts the steps already.
        """
        if self._recording.steps.counted:
            raise UsageError(
                "the optimizer given to ss.watch counts the steps already",
                "leave probe.step() out, or give no optimizer",
            )
        if not self._recording.done:
            call_untraced(Recording.made, self._recording)

    @contextmanager
    def record(self, phase: str = "eval") -> Iterator[Probe]:
        """Record what runs inside, whatever the schedule says: a validation pass, for instance.

        Args:
            phase: The phase it is counted for.

        Raises:
            UsageError: The phase is no name, or the probe is detached.
        """
        expect("phase", phase, str, remedy='give "eval", "train" or a name of your own')
        if not phase.strip():
            raise UsageError("the phase has no name", 'give "eval", "train" or a name of your own')
        if self._recording.done:
            raise UsageError(
                "the probe is detached: nothing is recorded any more",
                "record before probe.detach(), inside the with block of ss.watch",
            )
        with self._recording.forced(phase):
            yield self

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
        with self._recording.lock:
            self._recording.close()
            chosen = phase or main_phase(self.trace, self._reported)
            mine = since(self.trace, chosen, self._reported)
        merged = distributed.merge_over_ranks(mine)
        if not merged.records:
            raise nothing_since(self.trace, chosen, self._recording.obstacles)
        return merged

    def detach(self) -> None:
        """Remove everything; idempotent. What was measured stays readable."""
        self._recording.end()

    @property
    def overflows(self) -> int:
        """Recorded steps whose scaled gradients overflowed; they are left out."""
        return self._phases.overflows

    @property
    def attached(self) -> bool:
        """Whether hooks are installed on the model right now."""
        attachment = self._recording.attachment
        return attachment is not None and attachment.attached

    @property
    def overhead(self) -> dict[str, Any]:
        """The accounts of the schedule: steps seen and recorded, measured share of the time."""
        return self._schedule.summary()

    def __deepcopy__(self, memo: dict[int, Any]) -> Probe:
        """Itself: a copy of a model that holds its probe goes on unwatched."""
        return self

    def __reduce__(self) -> Any:
        """Refuse to be pickled.

        Raises:
            UsageError: Always.
        """
        raise UsageError(
            "a probe watches a model of this process and cannot be pickled",
            "save what it measured, by probe.trace.save(...), and keep the probe out of the model",
        )

    def __enter__(self) -> Probe:
        """Watching began with the probe."""
        return self

    def __exit__(self, kind: Any, error: BaseException | None, where: Any) -> None:
        """Detach; what ended the block is never replaced by a failure of ours."""
        with noted_on(error, "shiftscope could not close the last window"):
            self.detach()
