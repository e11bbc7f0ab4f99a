"""Windows as TensorBoard scalars and histograms."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from shiftscope.errors import UsageError
from shiftscope.files import unwritable
from shiftscope.integrations.sink import scalars
from shiftscope.snapshot import Snapshot

__all__ = ["TensorBoard"]

_HISTOGRAMS = ("z_mean", "theta_mean")


class TensorBoard:
    """Write scalars ``<phase>/<column>/<site>``, and histograms over the neurons of each site.

    Args:
        target: A folder of logs, or a ``SummaryWriter`` of the run, which is then not closed.
        histograms: Whether means and angles of the neurons are written as histograms.

    Raises:
        UsageError: The folder cannot be made or written.
    """

    def __init__(
        self, target: str | os.PathLike[str] | SummaryWriter, histograms: bool = True
    ) -> None:
        self._own = not hasattr(target, "add_scalar")  # tensorboardX has a writer of its own
        self.writer: Any = _writer(target) if self._own else target
        self.histograms = histograms

    def write(self, step: int, phase: str, snapshot: Snapshot) -> None:
        """Write one window."""
        for tag, value in scalars(phase, snapshot).items():
            self.writer.add_scalar(tag, value, step)
        if self.histograms:
            self._histograms(step, phase, snapshot)

    def close(self) -> None:
        """Flush, and close a writer that this sink made; the next window opens it again."""
        self.writer.flush()
        if self._own:
            self.writer.close()

    def _histograms(self, step: int, phase: str, snapshot: Snapshot) -> None:
        for site, neurons in snapshot.neurons.groupby("site", sort=False):
            for name in _HISTOGRAMS:
                values = neurons[name].to_numpy(dtype=np.float64)
                known = values[np.isfinite(values)]
                if known.size:
                    self.writer.add_histogram(f"{phase}/{name}/{site}", known, step)


def _writer(target: Any) -> SummaryWriter:
    """A writer that makes the folder at once; it may be a URL, so the writer itself has to try."""
    remedy = "give a folder of logs you may write to, or a SummaryWriter"
    try:
        return SummaryWriter(os.fspath(target))
    except TypeError as error:
        raise UsageError(f"{type(target).__name__} is no folder of logs", remedy) from error
    except OSError as error:
        raise unwritable(Path(target), error, remedy) from error
