"""Distributed checkpoints (folders of torch.distributed.checkpoint), read without pickle.

The folder's ``.metadata`` is a pickle that torch itself reads with plain ``pickle.load``, which
runs whatever is in it. Here it is read inertly: the records of tensors, chunks and files are taken
from the instructions, and each chunk is then loaded with ``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeAlias

import torch

from shiftscope.errors import LoadError
from shiftscope.io.bounds import Budget
from shiftscope.io.formats import readable_file
from shiftscope.io.inert import Call, Name, PickleError, Reading, read_pickle
from shiftscope.io.torch_files import load_bytes

__all__ = ["load_dcp"]

_RECORDS = "torch.distributed.checkpoint."
_DAMAGED = "copy the whole folder again, with .metadata and every .distcp file"
_CONVERT = "convert it: python -m torch.distributed.checkpoint.format_utils dcp_to_torch DIR FILE"
_METADATA_LIMIT = 256 * 2**20


@dataclass(frozen=True)
class _Chunk:
    """One piece of a tensor and where its bytes lie."""

    offsets: tuple[int, ...]
    file: Path
    start: int
    length: int


def load_dcp(folder: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Read the tensors of a distributed checkpoint.

    Args:
        folder: The folder that holds ``.metadata``.

    Returns:
        Full name (``model.layer.weight``) -> whole tensor on the CPU, and the names of entries that
        are no tensors (left out).

    Raises:
        LoadError: The records are damaged, point outside of the folder, or name unknown code.
    """
    path = folder / ".metadata"
    size = readable_file(path)
    if size > _METADATA_LIMIT:
        raise LoadError(f"{path} has {size} bytes: too large for a list of tensors", _DAMAGED)
    try:
        reading = read_pickle(io.BytesIO(path.read_bytes()))
        tensors, others, places = _records(reading, folder)
    except (PickleError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise LoadError(
            f"{path} is not metadata of a distributed checkpoint: {error!s:.150}", _DAMAGED
        ) from None
    _check_claims(folder, tensors)
    state = {name: _assemble(name, *tensors[name], places.get(name, [])) for name in tensors}
    return state, others


_Tensors: TypeAlias = dict[str, tuple[torch.dtype, tuple[int, ...]]]


def _records(reading: Reading, folder: Path) -> tuple[_Tensors, list[str], dict[str, list[_Chunk]]]:
    """Tensors, other entries, and the chunks of each name."""
    root = _state(reading.value, "metadata.Metadata", folder)
    tensors: _Tensors = {}
    others: list[str] = []
    for name, entry in root["state_dict_metadata"].items():
        if entry.path == f"{_RECORDS}metadata.TensorStorageMetadata":
            tensors[str(name)] = _dtype(entry.state["properties"]), _size(entry.state["size"])
        else:
            others.append(str(name))
    places: dict[str, list[_Chunk]] = {}
    for index, info in root["storage_data"].items():
        key = _state(index, "metadata.MetadataIndex", folder)
        place = _state(info, "filesystem._StorageInfo", folder)
        if key["fqn"] in tensors:
            offsets = _size(key["offset"]) if key.get("offset") is not None else ()
            places.setdefault(key["fqn"], []).append(_chunk(folder, offsets, place))
    return tensors, others, places


def _state(record: Any, name: str, folder: Path) -> dict[str, Any]:
    """The fields of a record, which must be the named class of torch and nothing else."""
    path = record.path if isinstance(record, Call) else type(record).__name__
    if path != _RECORDS + name or not isinstance(record.state, dict):
        raise LoadError(
            f"{folder / '.metadata'} is a pickle that would call {path or 'code'}: refused",
            f"if you trust it, {_CONVERT}, and re-save the weights alone",
        )
    return record.state


def _dtype(properties: Call) -> torch.dtype:
    named = properties.state[0]
    dtype = getattr(torch, named.name, None) if isinstance(named, Name) else None
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{named!r} is no dtype")
    return dtype


def _size(record: Any) -> tuple[int, ...]:
    """A torch.Size, which pickles as a call with one tuple (or list)."""
    values = record.args[0] if isinstance(record, Call) and record.args else record
    values = () if isinstance(values, Call) else values
    if not all(type(value) is int and value >= 0 for value in values):
        raise ValueError(f"{values!r} is no size")
    return tuple(values)


def _chunk(folder: Path, offsets: tuple[int, ...], place: dict[str, Any]) -> _Chunk:
    file = str(place["relative_path"])
    if PurePosixPath(file).name != file or PureWindowsPath(file).name != file or "\x00" in file:
        raise LoadError(
            f"{folder / '.metadata'} names a file outside of its folder: {file!r}",
            "the checkpoint is made to mislead; do not load it",
        )
    if place.get("transform_descriptors"):
        raise LoadError(f"{folder} is stored compressed or transformed", _CONVERT)
    return _Chunk(offsets, folder / file, int(place["offset"]), int(place["length"]))


def _check_claims(folder: Path, tensors: _Tensors) -> None:
    files = [file for file in folder.iterdir() if file.is_file()]
    budget = Budget(folder, sum(file.stat().st_size for file in files))
    declared = sum(math.prod(size) * dtype.itemsize for dtype, size in tensors.values())
    budget.check(declared, "its .metadata")


def _assemble(
    name: str, dtype: torch.dtype, size: tuple[int, ...], chunks: list[_Chunk]
) -> torch.Tensor:
    whole = torch.zeros(size, dtype=dtype)
    filled = 0
    for chunk in chunks:
        piece = _read_chunk(chunk)
        offsets = chunk.offsets or (0,) * piece.ndim
        ends = [start + length for start, length in zip(offsets, piece.shape, strict=False)]
        if len(offsets) != whole.ndim or piece.ndim != whole.ndim or ends > [*size]:
            raise LoadError(f"{chunk.file}: a piece of {name!r} does not fit its tensor", _DAMAGED)
        region = tuple(slice(start, end) for start, end in zip(offsets, ends, strict=True))
        whole[region] = piece.to(dtype)
        filled += piece.numel()
    if filled != whole.numel():
        raise LoadError(
            f"{name!r} has {filled} of its {whole.numel()} values in the folder", _DAMAGED
        )
    return whole


def _read_chunk(chunk: _Chunk) -> torch.Tensor:
    """The tensor in a slice of a ``.distcp`` file, bounded and surveyed like any torch file."""
    size = readable_file(chunk.file)
    if chunk.start < 0 or chunk.length <= 0 or chunk.start + chunk.length > size:
        raise LoadError(
            f"{chunk.file} ends at byte {size}, a piece lies at {chunk.start}+{chunk.length}",
            _DAMAGED,
        )
    with chunk.file.open("rb") as stream:
        stream.seek(chunk.start)
        tensor = load_bytes(stream.read(chunk.length), chunk.file)
    if not isinstance(tensor, torch.Tensor):
        raise LoadError(f"{chunk.file} holds something else than a tensor", _DAMAGED)
    return tensor.detach()
