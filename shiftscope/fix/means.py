"""The mean input of a linear map: of its rows, or of the patches a convolution reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shiftscope.errors import DataError
from shiftscope.fix.unroll import CONVOLUTIONS, TRANSPOSED
from shiftscope.geometry import PatchMap

__all__ = ["InputMean", "input_mean", "neuron_rows"]


@dataclass(frozen=True)
class InputMean:
    """Mean input ``μ̂`` of a layer and how well it is known.

    Args:
        mean: Shape ``(groups, fan_in)``, float64.
        variance: ``tr Σ`` of each group's input, shape ``(groups,)``.
        rows: Samples behind the mean: batch × positions.
    """

    mean: Tensor
    variance: Tensor
    rows: int

    def is_noise(self) -> bool:
        """Whether a group's mean is within two standard errors of zero, unknown or not finite."""
        squared = self.mean.square().sum(1)
        return self.rows < 2 or not bool((squared > 4 * self.variance / self.rows).all())


def input_mean(module: nn.Module, x: Tensor) -> InputMean:
    """Measure the mean input of a linear layer or convolution, in float64.

    With it ``mean z = W μ̂ + b`` holds exactly over batch and positions, zero padding included.

    Args:
        module: The layer.
        x: Its input.

    Returns:
        The mean, unrolled as the rows of the weight are.

    Raises:
        DataError: The input is empty.
    """
    if x.numel() == 0:
        raise DataError("a layer saw an empty input", "Give a batch with at least one sample.")
    wide = x.detach().double()
    if isinstance(module, CONVOLUTIONS):
        return _patch_mean(module, wide)
    rows = wide.reshape(-1, wide.shape[-1])
    variance = rows.var(0, correction=0).sum().reshape(1)
    return InputMean(rows.mean(0, keepdim=True), variance, len(rows))


def neuron_rows(module: nn.Module, z: Tensor) -> Tensor:
    """Return a layer's output as ``(rows, neurons)`` in float64."""
    wide = z.detach().double()
    if isinstance(module, CONVOLUTIONS):
        wide = wide.movedim(-len(module.kernel_size) - 1, -1)
    return wide.reshape(-1, wide.shape[-1])


def _patch_mean(module: Any, x: Tensor) -> InputMean:
    batch = x if x.ndim == len(module.kernel_size) + 2 else x.unsqueeze(0)
    patches = PatchMap.of_conv(
        batch.shape[2:],
        module.kernel_size,
        module.stride,
        module.padding,
        module.dilation,
        module.output_padding,
        module.groups,
        isinstance(module, TRANSPOSED),
        module.padding_mode,
    )
    mean = patches.patch_mean(batch.mean(0))
    power = patches.patch_mean(batch.square().mean(0))
    positions = int(torch.tensor(patches.output_size).prod())
    return InputMean(mean, (power - mean.square()).sum(1).clamp_min(0), len(batch) * positions)


class MeanFollower:
    """Forward hook that moves a data-aware constraint's mean towards each training batch.

    The mean moves after the layer has run, so that every process of a distributed job computes
    with the buffer it was sent: that of the first one, as the running statistics of batch
    normalisation. A batch whose mean is not finite moves nothing. Copies and pickles like any
    module-level object.

    Args:
        momentum: Weight of a new batch.
    """

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum

    @torch.no_grad()
    def __call__(self, module: Any, args: tuple[Any, ...], output: Any) -> None:
        """Update the mean of a module in training; its input is the first argument."""
        if not module.training or not args or args[0].numel() == 0:
            return
        buffer = module.parametrizations["weight"][0].mean
        batch = input_mean(module, args[0]).mean.to(buffer)
        sound = torch.isfinite(batch).all()  # a tensor: a device is not waited for
        buffer.lerp_(torch.where(sound, batch, buffer), self.momentum)
