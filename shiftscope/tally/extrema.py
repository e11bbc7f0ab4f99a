"""Smallest and largest value of each neuron."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shiftscope.tally.base import Tally
from shiftscope.tally.layout import Layout, known_finite, over_rows

__all__ = ["Extrema"]


@dataclass(frozen=True, eq=False)
class Extrema(Tally):
    """Smallest and largest finite value of each neuron.

    Args:
        low: [neurons] float64; +inf where there was none.
        high: [neurons] float64; -inf where there was none.
    """

    low: Tensor
    high: Tensor

    @classmethod
    def empty(cls, neurons: int, device: torch.device | str = "cpu") -> Extrema:
        """The tally of no rows.

        Args:
            neurons: Number of neurons.
            device: Where the tensors are to lie.

        Returns:
            The identity of `merge`.
        """
        low = torch.full((neurons,), torch.inf, dtype=torch.float64, device=device)
        return cls(low, -low)

    @classmethod
    def of(cls, x: Tensor, feature_dim: int = -1) -> Extrema:
        """Tally the rows of a tensor.

        Args:
            x: Rows of any real dtype; all dimensions but `feature_dim` are rows.
            feature_dim: The dimension of the neurons.

        Returns:
            The tally, on the device of `x`.

        Raises:
            UsageError: `x` has no neurons along `feature_dim`.
            MeasureError: `x` is complex or sparse.
        """
        layout = Layout.of(x, feature_dim)
        result = cls.empty(layout.neurons, x.device)
        for block in layout.blocks() if layout.rows else ():
            low, high = over_rows(block, torch.amin), over_rows(block, torch.amax)
            if not known_finite(high - low):
                low = over_rows(block.nan_to_num(torch.inf, torch.inf, torch.inf), torch.amin)
                high = over_rows(block.nan_to_num(-torch.inf, -torch.inf, -torch.inf), torch.amax)
            result = result.merge(cls(low.double(), high.double()))
        return result

    def merge(self, other: Extrema) -> Extrema:
        """The tally of both streams of rows.

        Args:
            other: A tally of the same neurons on the same device.

        Returns:
            Their merger.

        Raises:
            UsageError: The numbers of neurons differ.
        """
        self._check_fits(other, self.low, other.low)
        return Extrema(torch.minimum(self.low, other.low), torch.maximum(self.high, other.high))
