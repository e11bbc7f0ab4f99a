"""Modules of torch whose way of running the attachment has to know."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["SINGLE", "has_fast_path", "is_single", "takes_fast_path"]

SINGLE = frozenset(
    {
        *(nn.Linear, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh),
        *(nn.ReLU6, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Softplus, nn.SELU, nn.LogSigmoid),
    }
)
"""Modules whose forward is a single function that has a handler, and nothing after it: while
another module runs around them their end needs no hook of its own."""


def is_single(module: nn.Module) -> bool:
    """Whether a call of the module is one op, and nobody has changed that."""
    patched = module._forward_hooks or "forward" in module.__dict__
    return type(module) in SINGLE and not patched


def has_fast_path(module: nn.Module) -> bool:
    """Whether it may take a fused kernel at inference, which any mode would keep it from."""
    kinds = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)
    return isinstance(module, kinds)


def takes_fast_path(module: nn.Module) -> bool:
    """Whether it would do so now."""
    return not module.training and not torch.is_grad_enabled()
