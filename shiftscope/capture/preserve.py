"""Leaving a model, and the process, as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["preserved", "preserved_rng"]


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Restore modes, buffers, gradients, requires_grad flags and all random generators on exit.

    Buffers keep their identity: values are copied back into the same tensors, and only where they
    changed. Parameters are not copied, since measuring does not change them. Tensors that forward
    kept as plain attributes (weights under ``torch.nn.utils.spectral_norm``, its own outputs)
    hold no graph of the measurement, which would keep memory and forbid ``copy.deepcopy``.

    Args:
        model: The model that is about to be run.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        _Buffer(module, name, tensor)
        for module in model.modules()
        for name, tensor in list(module._buffers.items())
    ]
    attributes = [(module, _attributes(module)) for module in model.modules()]
    parameters = [(p, p.grad, p.requires_grad) for p in model.parameters()]
    try:
        with preserved_rng():
            yield
    finally:
        for module, training in modes:
            module.training = training
        for buffer in buffers:
            buffer.restore()
        for module, tensors in attributes:
            _restore_attributes(module, tensors)
        for parameter, grad, requires_grad in parameters:
            parameter.grad = grad
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Restore the random generators of torch (CPU and used CUDA devices), numpy and Python."""
    cpu, legacy, python = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    cuda: list[Tensor] = []
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        cuda = torch.cuda.get_rng_state_all()
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        np.random.set_state(legacy)  # noqa: NPY002
        random.setstate(python)


def _attributes(module: nn.Module) -> dict[str, Tensor]:
    """Tensors that are neither parameters nor buffers."""
    return {name: value for name, value in vars(module).items() if isinstance(value, Tensor)}


def _restore_attributes(module: nn.Module, before: dict[str, Tensor]) -> None:
    """Put back, or detach, what carries a graph now; other attributes are the model's own state."""
    for name, value in _attributes(module).items():
        if value.grad_fn is not None and value is not before.get(name):
            vars(module)[name] = before.get(name, value.detach())


class _Buffer:
    """One buffer's tensor and a copy of its values."""

    def __init__(self, module: nn.Module, name: str, tensor: Any) -> None:
        self.module, self.name, self.tensor = module, name, tensor
        self.values = None if self.tensor is None else self.tensor.detach().clone()

    def restore(self) -> None:
        if not isinstance(self.module, torch.jit.ScriptModule):
            self.module._buffers[self.name] = self.tensor
        if self.values is None or self.tensor.is_meta:
            return
        with torch.no_grad():
            if not _same(self.tensor, self.values):
                self.tensor.copy_(self.values)


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        one.resize_(other.shape)
        return False
    return torch.equal(one, other)
