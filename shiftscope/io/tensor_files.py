"""safetensors files, alone or in shards, and the indices that list shards."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import safetensors
import torch

from shiftscope.errors import LoadError
from shiftscope.io.bounds import Budget
from shiftscope.io.formats import readable_file

__all__ = ["in_natural_order", "load_safetensors", "load_sharded"]

_DAMAGED = "download the file again, and compare its size or checksum with the source"
_HEADER_LIMIT = 100 * 2**20
"""Bytes a header may have; the limit of the format."""


def load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file.

    Args:
        path: The file.

    Returns:
        Name -> tensor on the CPU. The format keeps no order of its own: names are sorted, numbers
        in them by their size.

    Raises:
        LoadError: The header lies, or data are missing.
    """
    size = readable_file(path)
    with path.open("rb") as stream:
        header = int.from_bytes(stream.read(8), "little")
    if header > min(size - 8, _HEADER_LIMIT):
        raise LoadError(
            f"{path} is truncated or damaged: a header of {header} bytes in a file of {size}",
            _DAMAGED,
        )
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as opened:
            return {name: opened.get_tensor(name) for name in in_natural_order(opened.keys())}
    except (safetensors.SafetensorError, RuntimeError, ValueError, TypeError, OSError) as error:
        raise LoadError(
            f"{path} is truncated or damaged: {str(error).splitlines()[0][:200]}", _DAMAGED
        ) from None


def load_sharded(
    path: Path, load_pickled: Callable[[Path], Any]
) -> tuple[dict[str, torch.Tensor], int]:
    """Read all shards that an index names.

    Args:
        path: The ``*.index.json``.
        load_pickled: Reads a shard that is a torch file (``pytorch_model-*.bin``).

    Returns:
        Name -> tensor, sorted as of one file, and the number of shards.

    Raises:
        LoadError: A shard is outside of the folder or absent, or lacks a tensor.
    """
    index = _read_index(path)
    shards = {file: _shard_path(path, file) for file in dict.fromkeys(index.values())}
    budget = Budget(path, sum(readable_file(shard) for shard in shards.values()))
    content: dict[str, dict[str, torch.Tensor]] = {}
    for file, shard in shards.items():
        pickled = not file.endswith(".safetensors")
        content[file] = load_pickled(shard) if pickled else load_safetensors(shard)
        if not isinstance(content[file], dict):
            raise LoadError(f"{shard} holds no dictionary of tensors", _DAMAGED)
    state = {
        name: _entry(path, content[index[name]], name, index[name])
        for name in in_natural_order(index)
    }
    budget.check(sum(t.numel() * t.element_size() for t in state.values()), "its index")
    return state, len(shards)


def in_natural_order(names: Iterable[str]) -> list[str]:
    """Names sorted so that layer 2 comes before layer 10, and weights before biases."""

    def place(name: str) -> tuple[list[tuple[int, str]], bool, str]:
        path, _, own = name.rpartition(".")
        parts = re.split(r"([0-9]{1,18})", path)
        numbers = [(int(p), "") if p[:1].isdecimal() else (-1, p) for p in parts]
        return numbers, "weight" not in own, own

    return sorted(names, key=place)


def _read_index(path: Path) -> dict[str, str]:
    try:
        index = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        valid = isinstance(index, dict) and all(isinstance(file, str) for file in index.values())
    except (ValueError, KeyError, TypeError, RecursionError):
        valid = False
    if not valid or not index:
        raise LoadError(f"{path} is no index of shards: it has no weight_map", _DAMAGED)
    return dict(index)


def _shard_path(path: Path, file: str) -> Path:
    """A shard lies beside its index: anything else could read any file of the machine."""
    plain = PurePosixPath(file).name == file and PureWindowsPath(file).name == file
    if not plain or "\x00" in file or file in {"", ".", ".."}:
        raise LoadError(
            f"{path} names a shard outside of its folder: {file!r}",
            "the index is made to mislead or was moved; shards must lie beside it",
        )
    shard = path.parent / file
    if not shard.is_file():
        raise LoadError(
            f"{path} names the shard {file!r}, which is not beside it",
            "download all shards into the folder of the index",
        )
    return shard


def _entry(path: Path, content: dict[str, torch.Tensor], name: str, file: str) -> torch.Tensor:
    tensor = content.get(name)
    if not isinstance(tensor, torch.Tensor):
        raise LoadError(
            f"{path} places {name!r} in {file!r}, which does not hold it",
            "index and shards do not belong together; download them again",
        )
    return tensor
