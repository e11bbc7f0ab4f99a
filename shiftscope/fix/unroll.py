"""The weight of a linear map as rows: one vector for each output neuron or channel."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import Tensor, nn

from shiftscope.errors import UsageError

__all__ = ["CONVOLUTIONS", "LINEAR_MAPS", "TRANSPOSED", "Unroll"]

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
LINEAR_MAPS = (nn.Linear, *CONVOLUTIONS)


@dataclass(frozen=True)
class Unroll:
    """How a weight tensor is laid out; turns it into rows ``(neurons, fan_in)`` and back.

    A convolution's row holds ``(C_in / groups, taps)`` in row-major order. A transposed
    convolution stores ``(C_in, C_out / groups, taps)``; its rows are still those of its output
    channels, so that ``z_o = w_o · patch + b_o`` summed over output positions holds for both.

    Args:
        shape: Shape of the weight as the layer stores it.
        groups: Groups of the convolution; 1 for a linear layer.
        transposed: Whether the layer is a transposed convolution.
    """

    shape: tuple[int, ...]
    groups: int = 1
    transposed: bool = False

    @classmethod
    def of(cls, module: nn.Module) -> Unroll:
        """Describe the weight of a linear layer or convolution.

        Raises:
            UsageError: The module is no linear map of a known kind.
        """
        if not isinstance(module, LINEAR_MAPS):
            raise UsageError(
                f"expected nn.Linear or a convolution, got {type(module).__name__}",
                "Choose sites of these kinds.",
            )
        groups = 1 if isinstance(module, nn.Linear) else module.groups
        return cls(_stored_shape(module), groups, isinstance(module, TRANSPOSED))

    @property
    def neurons(self) -> int:
        """Number of rows: output features or output channels."""
        return self.shape[1] * self.groups if self.transposed else self.shape[0]

    @property
    def taps(self) -> int:
        """Kernel positions; 1 for a linear layer."""
        return prod(self.shape[2:])

    @property
    def fan_in(self) -> int:
        """Length of a row."""
        return prod(self.shape) // self.neurons if self.neurons else 0

    def rows(self, weight: Tensor) -> Tensor:
        """Return the weight as ``(neurons, fan_in)``, a view where the layout allows it."""
        if self.transposed:
            weight = weight.unflatten(0, (self.groups, -1)).transpose(1, 2).flatten(0, 1)
        return weight if weight.ndim == 2 else weight.flatten(1)

    def fold(self, rows: Tensor) -> Tensor:
        """Return rows ``(neurons, fan_in)`` as the layer's contiguous weight."""
        if not self.transposed:
            return rows.view(self.shape) if len(self.shape) > 2 else rows
        inputs = self.shape[0] // self.groups
        kernels = rows.view(self.groups, self.shape[1], inputs, *self.shape[2:])
        return kernels.transpose(1, 2).reshape(self.shape).contiguous()


def _stored_shape(module: nn.Linear | nn.modules.conv._ConvNd) -> tuple[int, ...]:
    """The weight's shape from the layer's sizes: reading a parametrized weight may have effects."""
    if isinstance(module, nn.Linear):
        return (module.out_features, module.in_features)
    first, second = module.out_channels, module.in_channels // module.groups
    if isinstance(module, TRANSPOSED):
        first, second = module.in_channels, module.out_channels // module.groups
    return (first, second, *module.kernel_size)
