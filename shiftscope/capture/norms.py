"""Normalisations that run on statistics which nothing ever updated."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from shiftscope.capture.sites import clean_path

__all__ = ["norm_statistics"]


def norm_statistics(model: nn.Module) -> dict[str, Any]:
    """Which normalisations of a model, as it stands, run on the statistics of initialisation.

    In training mode they take those of the batch. In evaluation mode they take running ones, which
    begin as mean 0 and variance 1 in every channel, and remain so in a network that was never run
    in training mode, or whose checkpoint was loaded without its buffers.

    Args:
        model: The model.

    Returns:
        Entries for the manifest: ``norms``, how many layers run on running statistics,
        ``norms_at_initialisation``, how many of them on the initial ones, and the path of the first
        of these. None at all where no layer runs on running statistics.
    """
    running = {
        clean_path(path): module
        for path, module in model.named_modules()
        if isinstance(module, _NormBase) and not module.training and _has_statistics(module)
    }
    if not running:
        return {}
    initial = [path for path, module in running.items() if _is_initial(module)]
    found = {"norms": len(running), "norms_at_initialisation": len(initial)}
    return found | ({"first_norm_at_initialisation": initial[0]} if initial else {})


def _has_statistics(module: _NormBase) -> bool:
    tensors = (module.running_mean, module.running_var)
    return all(isinstance(t, Tensor) and t.numel() and not t.is_meta for t in tensors)


def _is_initial(module: _NormBase) -> bool:
    mean, variance = module.running_mean, module.running_var
    if mean is None or variance is None:
        return False
    return not bool(mean.count_nonzero()) and bool((variance == 1).all())
