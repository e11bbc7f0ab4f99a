"""Layers: torch's linear maps with constrained weights, and the normalisations they are weighed by.

Each ``LCW…`` layer is torch's own layer with the parametrization of :mod:`shiftscope.fix.lcw` on
its weight: the same arguments, outputs and options, and rows of the weight that sum to zero after
every optimiser step.

    >>> import torch, shiftscope as ss
    >>> layer = ss.nn.LCWLinear(30, 30)
    >>> bool(layer.weight.sum(1).abs().max() < 1e-5)
    True
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from shiftscope.errors import UsageError
from shiftscope.fix.lcw import LCW, LCWProjection
from shiftscope.fix.unroll import Unroll

__all__ = [
    "LCWConv1d",
    "LCWConv2d",
    "LCWConv3d",
    "LCWConvTranspose1d",
    "LCWConvTranspose2d",
    "LCWConvTranspose3d",
    "LCWLinear",
    "MeanOnlyBatchNorm",
    "StandardizationLayer",
]

_FORMS = {"householder": LCW, "projection": LCWProjection}


class _Constrained(nn.Module):
    """What the seven layers share: the constraint, its initialisation, copies and pickles."""

    weight: Any
    bias: Any

    def __init__(
        self, *args: Any, form: str = "householder", channelwise: bool = False, **kwargs: Any
    ) -> None:
        if form not in _FORMS:
            raise UsageError(f"form={form!r} is not known", f"Use one of {', '.join(_FORMS)}.")
        super().__init__(*args, **kwargs)
        self._arguments = (args, {**kwargs, "form": form, "channelwise": channelwise})
        constraint = _FORMS[form](Unroll.of(self), channelwise=channelwise)
        parametrize.register_parametrization(self, "weight", constraint)

    def reset_parameters(self) -> None:
        """Draw weight and bias as torch's own layer does, then project the weight."""
        if not parametrize.is_parametrized(self, "weight"):
            super().reset_parameters()  # type: ignore[misc]
            return
        with torch.no_grad():
            weight = torch.empty_like(self.weight)
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
            self.weight = weight
            if self.bias is not None:
                bound = 1 / math.sqrt(weight[0].numel())
                nn.init.uniform_(self.bias, -bound, bound)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle by construction: torch refuses to pickle the class it makes on the fly."""
        if not parametrize.is_parametrized(self):
            return super().__reduce_ex__(protocol)
        cls = parametrize.type_before_parametrizations(self)
        return _rebuild, (cls, *self._arguments), self.__dict__.copy()


def _rebuild(cls: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> nn.Module:
    """An empty layer of the right class, drawing no random numbers; its state comes next."""
    with torch.device("meta"):
        layer: nn.Module = cls(*args, **{k: v for k, v in kwargs.items() if k != "device"})
    return layer


class LCWLinear(_Constrained, nn.Linear):
    """``nn.Linear`` whose weight rows sum to zero, so that a mean along ones shifts no neuron.

    Args:
        *args: As of ``torch.nn.Linear``.
        form: ``"householder"`` (orthonormal coordinates) or ``"projection"`` (centred weights).
        **kwargs: As of ``torch.nn.Linear``.

    Raises:
        UsageError: ``in_features`` is 1, or ``form`` is unknown.

    Source:
        Kutsuna, ECML-PKDD 2019, Section 4.
    """


class LCWConv1d(_Constrained, nn.Conv1d):
    """``nn.Conv1d`` whose kernels sum to zero for every output channel.

    Zero padding leaves a residual shift, since border taps see a smaller mean; reflected or
    circular padding does not.

    Args:
        *args: As of ``torch.nn.Conv1d``.
        form: ``"householder"`` or ``"projection"``.
        channelwise: Sum to zero over the taps of each input channel by itself.
        **kwargs: As of ``torch.nn.Conv1d``.

    Raises:
        UsageError: A constrained row has one entry only, or ``form`` is unknown.
    """


class LCWConv2d(_Constrained, nn.Conv2d):
    """``nn.Conv2d`` whose kernels sum to zero for every output channel.

    Zero padding leaves a residual shift, since border taps see a smaller mean; reflected or
    circular padding does not.

    Args:
        *args: As of ``torch.nn.Conv2d``.
        form: ``"householder"`` or ``"projection"``.
        channelwise: Sum to zero over the taps of each input channel by itself.
        **kwargs: As of ``torch.nn.Conv2d``.

    Raises:
        UsageError: A constrained row has one entry only, or ``form`` is unknown.
    """


class LCWConv3d(_Constrained, nn.Conv3d):
    """``nn.Conv3d`` whose kernels sum to zero for every output channel.

    Zero padding leaves a residual shift, since border taps see a smaller mean; reflected or
    circular padding does not.

    Args:
        *args: As of ``torch.nn.Conv3d``.
        form: ``"householder"`` or ``"projection"``.
        channelwise: Sum to zero over the taps of each input channel by itself.
        **kwargs: As of ``torch.nn.Conv3d``.

    Raises:
        UsageError: A constrained row has one entry only, or ``form`` is unknown.
    """


class LCWConvTranspose1d(_Constrained, nn.ConvTranspose1d):
    """``nn.ConvTranspose1d`` whose kernels sum to zero for every output channel.

    With a stride, single output positions read only some of the taps: the mean over all positions
    is what vanishes, up to the border.

    Args:
        *args: As of ``torch.nn.ConvTranspose1d``.
        form: ``"householder"`` or ``"projection"``.
        channelwise: Sum to zero over the taps of each input channel by itself.
        **kwargs: As of ``torch.nn.ConvTranspose1d``.

    Raises:
        UsageError: A constrained row has one entry only, or ``form`` is unknown.
    """


class LCWConvTranspose2d(_Constrained, nn.ConvTranspose2d):
    """``nn.ConvTranspose2d`` whose kernels sum to zero for every output channel.

    With a stride, single output positions read only some of the taps: the mean over all positions
    is what vanishes, up to the border.

    Args:
        *args: As of ``torch.nn.ConvTranspose2d``.
        form: ``"householder"`` or ``"projection"``.
        channelwise: Sum to zero over the taps of each input channel by itself.
        **kwargs: As of ``torch.nn.ConvTranspose2d``.

    Raises:
        UsageError: A constrained row has one entry only, or ``form`` is unknown.
    """


class LCWConvTranspose3d(_Constrained, nn.ConvTranspose3d):
    """``nn.ConvTranspose3d`` whose kernels sum to zero for every output channel.

    With a stride, single output positions read only some of the taps: the mean over all positions
    is what vanishes, up to the border.

    Args:
        *args: As of ``torch.nn.ConvTranspose3d``.
        form: ``"householder"`` or ``"projection"``.
        channelwise: Sum to zero over the taps of each input channel by itself.
        **kwargs: As of ``torch.nn.ConvTranspose3d``.

    Raises:
        UsageError: A constrained row has one entry only, or ``form`` is unknown.
    """


class StandardizationLayer(nn.BatchNorm1d):
    """Standardises every activation over the batch, without gain or offset.

    Put behind the nonlinearity: the next layer then sees a mean input of zero, hence no shift
    (Kutsuna, ECML-PKDD 2019, Proposition 2). Batch normalisation without affine terms in all but
    its place; ``ε`` is added to the variance.

    Args:
        num_features: Features of ``(N, C)`` or channels of ``(N, C, …)`` inputs.
        eps: Added to the variance.
        momentum: Weight of a new batch in the running statistics; None for a plain average.
        device: As of ``torch.nn.BatchNorm1d``.
        dtype: As of ``torch.nn.BatchNorm1d``.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine=False, device=device, dtype=dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        _check_channels(input, self.num_features)


class MeanOnlyBatchNorm(nn.Module):
    """Subtracts the batch mean of every feature, and adds a bias if asked for.

    The variance is left alone, so signal and gradient are scaled alike; at every step the layer
    behind sees no shift. In evaluation the running mean is subtracted.

    Args:
        num_features: Features of ``(N, C)`` or channels of ``(N, C, …)`` inputs.
        momentum: Weight of a new batch in the running mean.
        bias: Whether to learn an offset, starting at zero.
        device: Where the buffers are made.
        dtype: Their type.

    Source:
        Salimans and Kingma, NeurIPS 2016, Section 2.3; without offset it is the input mean
        normalisation of Chen and Ge, NeurIPS 2024.
    """

    running_mean: Tensor

    def __init__(
        self,
        num_features: int,
        momentum: float = 0.1,
        bias: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.momentum = momentum
        where = {"device": device, "dtype": dtype}
        self.register_buffer("running_mean", torch.zeros(num_features, **where))
        self.bias = nn.Parameter(torch.zeros(num_features, **where)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` less the mean of each feature.

        Raises:
            UsageError: The input has no such channels.
        """
        _check_channels(x, self.num_features)
        shape = (1, -1, *[1] * (x.ndim - 2))
        mean = self.running_mean.to(x.dtype)
        if self.training:
            mean = x.mean([d for d in range(x.ndim) if d != 1])
            self.running_mean.lerp_(mean.detach().to(self.running_mean.dtype), self.momentum)
        offset = -mean if self.bias is None else self.bias - mean
        return x + offset.view(shape)

    def extra_repr(self) -> str:
        """Name what a print of the model should show."""
        return f"{self.num_features}, momentum={self.momentum}, bias={self.bias is not None}"


def _check_channels(x: Tensor, channels: int) -> None:
    if x.ndim < 2 or x.shape[1] != channels:
        raise UsageError(
            f"expected an input (N, {channels}, …), got {tuple(x.shape)}",
            "Features or channels are dimension 1.",
        )
