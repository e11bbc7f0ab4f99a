"""Writing weights: a plain state dict that torch's own loaders take back."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from shiftscope.errors import UsageError
from shiftscope.files import atomic_file

__all__ = ["SUFFIXES", "check_suffix", "save_state"]

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
"""Names a file of weights may end in; ``.safetensors`` is written as such, others by torch."""


def save_state(state: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Write a state dict, whole or not at all.

    Tensors are written contiguous and on the CPU, under their names and in their order; tensors
    that share memory are written once each.

    Args:
        state: Name -> tensor, as ``model.state_dict()`` gives it.
        path: The file; its suffix decides the format.

    Raises:
        UsageError: The suffix is not known, or the file cannot be written.
    """
    check_suffix(path)
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    with atomic_file(path) as file:
        if Path(path).suffix == ".safetensors":
            from safetensors.torch import save

            file.write(save(plain, metadata={"format": "pt"}))
        else:
            buffer = io.BytesIO()
            torch.save(plain, buffer)
            file.write(buffer.getbuffer())


def check_suffix(path: str | os.PathLike[str]) -> None:
    """Refuse a file name whose suffix names no format of weights.

    Args:
        path: The file to be written.

    Raises:
        UsageError: The suffix is not one of :data:`SUFFIXES`.
    """
    if Path(path).suffix not in SUFFIXES:
        raise UsageError(
            f"{str(path)!r} names no format of weights", f"end it in {', '.join(SUFFIXES)}"
        )
