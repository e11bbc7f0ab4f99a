"""Modules of torch whose way of running the attachment has to know."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["SINGLE", "SITELESS", "has_fast_path", "has_sites", "is_single", "takes_fast_path"]

SINGLE = frozenset(
    {
        *(nn.Linear, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh),
        *(nn.ReLU6, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Softplus, nn.SELU, nn.LogSigmoid),
        *(nn.CELU, nn.Softsign, nn.Tanhshrink, nn.Hardshrink, nn.Softshrink, nn.Threshold, nn.GLU),
        *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
        *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    }
)
"""Modules whose forward is a single function that has a handler, and nothing after it: while
another module runs around them their end needs no hook of its own."""


SITELESS = frozenset(
    {
        *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm),
        *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.LocalResponseNorm),
        *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.Identity),
        *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
        *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool2d),
        *(nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.Upsample, nn.ZeroPad2d),
    }
)
"""Modules without large weights whose forward calls no function that has a handler: where they run
makes no difference to anything that is recorded."""


def has_sites(module: nn.Module) -> bool:
    """Whether a site may lie in a module, so that it has to be known when it runs."""
    if type(module) not in SITELESS or "forward" in module.__dict__:
        return True
    return bool(module._modules or module._forward_hooks or module._forward_pre_hooks)


def is_single(module: nn.Module) -> bool:
    """Whether a call of the module is one op, and nobody has changed that."""
    patched = module._forward_hooks or "forward" in module.__dict__
    # Padding of its own comes before a convolution, and may fail before there is any op.
    pads = getattr(module, "padding_mode", "zeros") != "zeros"
    return type(module) in SINGLE and not (patched or pads)


def has_fast_path(module: nn.Module) -> bool:
    """Whether it may take a fused kernel at inference, which any mode would keep it from."""
    kinds = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)
    return isinstance(module, kinds)


def takes_fast_path(module: nn.Module) -> bool:
    """Whether it would do so now."""
    return not module.training and not torch.is_grad_enabled()
