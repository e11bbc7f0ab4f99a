"""One spatial dimension of a convolution: which tap of which output reads which input."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Axis", "table"]


@dataclass(frozen=True)
class Axis:
    """The numbers that decide what is read along one dimension.

    Args:
        inputs: Input positions.
        outputs: Output positions.
        taps: Kernel size.
        stride: Step of the outputs over the inputs (transposed: of the inputs over the outputs).
        left: Padding before the first input.
        dilation: Distance of neighbouring taps.
        transposed: Whether the convolution is transposed.
        padding_mode: `zeros`, `circular`, `reflect` or `replicate`.
    """

    inputs: int
    outputs: int
    taps: int
    stride: int
    left: int
    dilation: int
    transposed: bool
    padding_mode: str

    def positions(self) -> NDArray[np.int64]:
        """[taps, outputs] input position that each tap of each output reads; -1 for none."""
        tap = np.arange(self.taps)[:, None] * self.dilation
        out = np.arange(self.outputs)[None, :]
        if self.transposed:
            read, skipped = np.divmod(out + self.left - tap, self.stride)
            return np.where((skipped == 0) & (read >= 0) & (read < self.inputs), read, -1)
        return self._wrap(out * self.stride - self.left + tap)

    def _wrap(self, read: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions in the padding -> the input position repeated there, -1 for a zero."""
        last = self.inputs - 1
        if self.padding_mode == "circular":
            return np.mod(read, self.inputs)
        if self.padding_mode == "replicate":
            return np.clip(read, 0, last)
        if self.padding_mode == "reflect":
            return np.asarray(last - np.abs(last - np.abs(read)))
        return np.where((read >= 0) & (read <= last), read, -1)


@lru_cache(maxsize=1024)
def table(axis: Axis, name: str) -> NDArray[np.float64]:
    """How often taps meet positions along one dimension.

    Built by numpy and kept: recording at every step pays once, and no torch mode sees it.

    Args:
        axis: The dimension.
        name: `by_input` [taps, inputs] or `by_output` [taps, outputs] counts the reads of each
            tap; `pairs_by_input`, `pairs_by_output` [taps, taps, .] those of the same element by
            two taps of one output.

    Returns:
        Counts in float64; not to be written to.
    """
    read = axis.positions()
    shape: tuple[int, ...] = (axis.taps,)
    shared: NDArray[Any] = read >= 0
    if name.startswith("pairs"):
        shape = (axis.taps, axis.taps)
        read = np.broadcast_to(read, (axis.taps, *read.shape))
        shared = (read == axis.positions()[:, None, :]) & (read >= 0)
    if name.endswith("by_output"):
        return shared.astype(np.float64)
    counts = np.zeros((*shape, axis.inputs))
    at = np.nonzero(shared)
    np.add.at(counts, (*at[:-1], read[at]), 1.0)
    return counts
