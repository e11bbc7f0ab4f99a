"""How many rows of each neuron are active, saturated or not finite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from shiftscope.errors import UsageError
from shiftscope.tally.base import Tally
from shiftscope.tally.layout import Layout, known_finite, over_rows

__all__ = ["Counts"]


@dataclass(frozen=True, eq=False)
class Counts(Tally):
    """Rows of each neuron, by kind; a value that is not finite is neither active nor saturated.

    Args:
        count: [neurons] int64 rows seen, finite or not.
        active: [neurons] int64 finite values above the threshold.
        saturated: [neurons] int64 finite values outside the open interval.
        nonfinite: [neurons] int64 values that are NaN or infinite.
    """

    count: Tensor
    active: Tensor
    saturated: Tensor
    nonfinite: Tensor

    @classmethod
    def empty(cls, neurons: int, device: torch.device | str = "cpu") -> Counts:
        """The tally of no rows.

        Args:
            neurons: Number of neurons.
            device: Where the tensors are to lie.

        Returns:
            The identity of `merge`.
        """
        zeros = torch.zeros(neurons, dtype=torch.int64, device=device)
        return cls(zeros, zeros, zeros, zeros)

    @classmethod
    def of(
        cls,
        x: Tensor,
        feature_dim: int = -1,
        active_above: float = 0.0,
        saturated_outside: tuple[float, float] | None = None,
    ) -> Counts:
        """Tally the rows of a tensor.

        Args:
            x: Rows of any real dtype; all dimensions but `feature_dim` are rows.
            feature_dim: The dimension of the neurons.
            active_above: A value is active above this.
            saturated_outside: A value is saturated at or below the first or at or above the second
                number; none is if left out.

        Returns:
            The tally, on the device of `x`.

        Raises:
            UsageError: `x` has no neurons along `feature_dim`, or the interval is empty.
            MeasureError: `x` is complex or sparse.
        """
        if saturated_outside is not None and not saturated_outside[0] < saturated_outside[1]:
            raise UsageError(
                f"saturated_outside={saturated_outside} is no interval", "Give (low, high)."
            )
        layout = Layout.of(x, feature_dim)
        result = cls.empty(layout.neurons, x.device)
        rows = torch.full_like(result.count, layout.rows)
        finite, active, saturated = result.count, result.active, result.saturated
        for block in layout.blocks() if layout.rows else ():
            # Sums of 0s and 1s are exact: a block has far fewer than 2^24 rows.
            block = block if block.dtype == torch.float64 else block.float()
            small = large = block
            if known_finite(block):
                finite = finite + block.shape[0] * block.shape[2]
            else:  # what is not finite gets a value on the side that is not counted
                finite = finite + over_rows(block.mul(0).eq_(0), torch.sum).long()
                small, large = _filled(block, torch.inf), _filled(block, -torch.inf)
            active = active + _number(torch.gt, large, active_above)
            if saturated_outside is not None:
                low, high = saturated_outside
                saturated = saturated + _number(torch.le, small, low)
                saturated = saturated + _number(torch.ge, large, high)
        return cls(rows, active, saturated, rows - finite)

    def merge(self, other: Counts) -> Counts:
        """The tally of both streams of rows.

        Args:
            other: A tally of the same neurons on the same device.

        Returns:
            Their merger.

        Raises:
            UsageError: The numbers of neurons differ.
        """
        self._check_fits(other, self.count, other.count)
        theirs = other.tensors()
        return Counts(**{name: value + theirs[name] for name, value in self.tensors().items()})

    @property
    def active_fraction(self) -> Tensor:
        """[neurons] active share of the finite values, NaN where there is none."""
        return self._share(self.active, self.count - self.nonfinite)

    @property
    def saturated_fraction(self) -> Tensor:
        """[neurons] saturated share of the finite values, NaN where there is none."""
        return self._share(self.saturated, self.count - self.nonfinite)

    @property
    def nonfinite_fraction(self) -> Tensor:
        """[neurons] share of values that are not finite, NaN where there is no row."""
        return self._share(self.nonfinite, self.count)

    @staticmethod
    def _share(part: Tensor, whole: Tensor) -> Tensor:
        return part.double() / whole.double()


def _filled(block: Tensor, value: float) -> Tensor:
    """A copy in which everything that is not finite has one value, on the uncounted side."""
    return block.nan_to_num(value, value, value)


def _number(compare: Callable[..., Tensor], block: Tensor, limit: float) -> Tensor:
    """Rows of each neuron of which a comparison holds."""
    ones = compare(block, limit, out=torch.empty_like(block))  # to add up booleans takes longer
    return over_rows(ones, torch.sum).long()
