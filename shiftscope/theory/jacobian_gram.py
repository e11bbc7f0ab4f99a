"""The G-matrix of any layer, convolutions included, from per-sample gradients."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from shiftscope.errors import DataError, UsageError
from shiftscope.theory.arrays import Array
from shiftscope.theory.gram import GMatrix

__all__ = ["jacobian_g_matrix"]


def jacobian_g_matrix(
    model: nn.Module,
    x: Tensor,
    parameters: str | Sequence[str] | None = None,
    *,
    head: Callable[[Tensor], Tensor] | None = None,
    memory: int = 1 << 30,
) -> GMatrix:
    """Computes the Gram matrix ``JJᵀ`` of the gradients of a scalar output, sample by sample.

    In float64 and in evaluation order, on copies of the parameters: the model is left alone. Blocks
    of J are computed anew where all of it does not fit into ``memory``. Unlike
    :func:`~shiftscope.theory.gram.layer_g_matrix` this divides by no width.

    Args:
        model: The network, in a mode in which samples do not see each other.
        x: Inputs ``[n, ...]``.
        parameters: Names of the trained parameters, for instance "conv1.weight"; None for all that
            require gradients.
        head: Maps the output for one sample, ``[1, ...]``, to a scalar; None where the model has
            one output.
        memory: Bytes that blocks of J may take, besides the matrix itself.

    Returns:
        The matrix ``[n, n]``.

    Raises:
        UsageError: A name the model does not have, or several outputs and no head.
        DataError: Gradients that are not finite.
    """
    _refuse_coupling(model)
    chosen = _chosen(model, parameters)
    rows = _row_function(model, chosen, head)
    size = sum(p.numel() for p in chosen.values())
    step = max(1, min(len(x), memory // (32 * max(1, size))))
    starts = range(0, len(x), step)
    values: Array = np.empty((len(x), len(x)))
    for a in starts:
        first = rows(x[a : a + step])
        for b in starts[: a // step + 1]:
            second = first if a == b else rows(x[b : b + step])
            block = first @ second.T
            values[a : a + step, b : b + step] = block
            values[b : b + step, a : a + step] = block.T
    if not np.isfinite(np.diagonal(values)).all():
        raise DataError(
            "gradients of some samples are not finite", "Look for inputs or weights that overflow."
        )
    return GMatrix(values, 0.0, size)


def _chosen(model: nn.Module, names: str | Sequence[str] | None) -> dict[str, Tensor]:
    known = dict(model.named_parameters())
    if names is None:
        chosen = {k: p for k, p in known.items() if p.requires_grad}
    else:
        wanted = [names] if isinstance(names, str) else list(names)
        missing = [name for name in wanted if name not in known]
        if missing:
            raise UsageError(
                f"the model has no parameter {missing[0]!r}",
                f"Its parameters are: {', '.join(known) or 'none'}.",
            )
        chosen = {name: known[name] for name in wanted}
    if not chosen:
        raise UsageError("no parameter is trained", "Name at least one parameter.")
    return {k: p.detach().double() for k, p in chosen.items()}


def _row_function(
    model: nn.Module, chosen: dict[str, Tensor], head: Callable[[Tensor], Tensor] | None
) -> Callable[[Tensor], Array]:
    """A function from samples to their gradients as rows ``[samples, parameters]``."""
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    fixed = {
        k: t.detach().double() if t.is_floating_point() else t.detach()
        for k, t in state.items()
        if k not in chosen
    }

    def value(free: dict[str, Tensor], sample: Tensor) -> Tensor:
        output = torch.func.functional_call(model, {**fixed, **free}, (sample[None],))
        result: Tensor = output if head is None else head(output)
        if result.numel() != 1:
            raise UsageError(
                f"one number per sample is needed, the output has shape {tuple(result.shape)}",
                "Pass `head`, for instance lambda y: y[0, 3].",
            )
        return result.reshape(())

    gradients = torch.func.vmap(torch.func.grad(value), in_dims=(None, 0), chunk_size=64)

    def rows(samples: Tensor) -> Array:
        wide = samples.double() if samples.is_floating_point() else samples
        table = gradients(chosen, wide)
        flat: Array = torch.cat([g.flatten(1) for g in table.values()], 1).cpu().numpy()
        return flat

    return rows


def _refuse_coupling(model: nn.Module) -> None:
    """Refuses modes in which a sample's gradient depends on its neighbours, or on chance."""
    for name, module in model.named_modules():
        if module.training and re.search("BatchNorm|Dropout", type(module).__name__):
            raise UsageError(
                f"{name or 'the model'} ({type(module).__name__}) is in training mode",
                "Call model.eval() first: per-sample gradients need samples apart.",
            )
