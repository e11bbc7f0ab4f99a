"""The weight of a linear map as rows: one vector for each output neuron or channel."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor, nn

from shiftscope.errors import UsageError

__all__ = ["CONVOLUTIONS", "TRANSPOSED", "Unroll", "is_input_first", "is_linear_map"]

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
_LINEAR_MAPS = (nn.Linear, *CONVOLUTIONS)


@dataclass(frozen=True)
class Unroll:
    """How a weight tensor is laid out; turns it into rows ``(neurons, fan_in)`` and back.

    A convolution's row holds ``(C_in / groups, taps)`` in row-major order. A transposed
    convolution stores ``(C_in, C_out / groups, taps)``; its rows are still those of its output
    channels, so that ``z_o = w_o · patch + b_o`` summed over output positions holds for both.

    Args:
        shape: Shape of the weight as the layer stores it.
        groups: Groups of the convolution; 1 for a linear layer.
        transposed: Whether inputs come first in the weight, as in a transposed convolution.
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
        if not is_linear_map(module):
            raise UsageError(
                f"expected nn.Linear or a convolution, got {type(module).__name__}",
                "Choose sites of these kinds.",
            )
        groups = module.groups if isinstance(module, CONVOLUTIONS) else 1
        return cls(_stored_shape(module), groups, is_input_first(module))

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


def is_linear_map(module: nn.Module) -> bool:
    """Whether a module is a linear layer or a convolution whose layout is known."""
    return isinstance(module, _LINEAR_MAPS) or _is_conv1d(module)


def is_input_first(module: nn.Module) -> bool:
    """Whether the weight of a linear map lies as ``(inputs, outputs, ...)``."""
    return isinstance(module, TRANSPOSED) or _is_conv1d(module)


def _is_conv1d(module: nn.Module) -> bool:
    """The linear layer of Hugging Face's GPT-2, told by its name: the library stays unimported."""
    return any(
        kind.__name__ == "Conv1D" and kind.__module__.partition(".")[0] == "transformers"
        for kind in type(module).__mro__
    )


def _stored_shape(module: Any) -> tuple[int, ...]:
    """The weight's shape from the layer's sizes: reading a parametrized weight may have effects."""
    if isinstance(module, nn.Linear):
        return (module.out_features, module.in_features)
    if _is_conv1d(module):
        return (module.nx, module.nf)
    first, second = module.out_channels, module.in_channels // module.groups
    if isinstance(module, TRANSPOSED):
        first, second = module.in_channels, module.out_channels // module.groups
    return (first, second, *module.kernel_size)
