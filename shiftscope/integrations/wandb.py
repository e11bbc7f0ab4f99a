"""Windows as Weights & Biases metrics; works offline."""

from __future__ import annotations

from typing import Any

import wandb

from shiftscope.errors import UsageError
from shiftscope.integrations.sink import scalars
from shiftscope.snapshot import Snapshot

__all__ = ["WeightsAndBiases"]

_STEP = "shiftscope/step"


class WeightsAndBiases:
    """Log scalars ``shiftscope/<phase>/<column>/<site>`` against a step axis of their own.

    An axis of their own, because a run refuses metrics of a step that lies behind its last one, and
    windows end later than the steps they describe.

    Args:
        run: The run to log to, in any mode; None takes the one that ``wandb.init`` started.

    Raises:
        UsageError: No run was started, or what was given is none.
    """

    def __init__(self, run: Any = None) -> None:
        self.run: Any = wandb.run if run is None else run
        if self.run is None:
            raise UsageError(
                "no Weights & Biases run was started",
                'call wandb.init(project=..., mode="offline") first, or pass the run',
            )
        if not hasattr(self.run, "define_metric"):
            raise UsageError(
                f"{type(run).__name__} is no run of Weights & Biases",
                "give what wandb.init returned",
            )
        self.run.define_metric(_STEP, hidden=True)
        self.run.define_metric("shiftscope/*", step_metric=_STEP)

    def write(self, step: int, phase: str, snapshot: Snapshot) -> None:
        """Log one window."""
        flat = {f"shiftscope/{tag}": value for tag, value in scalars(phase, snapshot).items()}
        self.run.log({_STEP: step, **flat})

    def close(self) -> None:
        """Do nothing: the run belongs to the user, who finishes it."""
