"""How much a checkpoint may claim: declared sizes are compared with the file before loading.

A file of a few kilobytes can declare a storage of a terabyte, or a zip member that unpacks to one.
Nothing honest needs that: weights are stored as they are. Whatever the format, what a file declares
must fit in the file, with room for ordinary compression and for expanded (broadcast) tensors.
"""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass
from typing import Any

import torch

from shiftscope.errors import LoadError
from shiftscope.io.inert import Call, Name, Reading, Reference

__all__ = ["Budget", "check_archive", "check_reading", "storage_bytes"]

_EXPANSION = 16
"""How many times its own size a file may unpack to."""
_FREE = 64 * 2**20
"""Bytes that anything may declare: what costs nothing to allocate."""

_TENSOR_CALLS = frozenset(
    f"torch._utils.{name}"
    for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_qtensor")
)
"""Calls whose arguments are (storage, offset, size, stride, ...)."""


@dataclass(frozen=True)
class Budget:
    """The bytes a file of a given size may declare.

    Attributes:
        path: Named in the refusal.
        size: Size of the file in bytes.
    """

    path: object
    size: int

    @property
    def limit(self) -> int:
        """Bytes beyond which a claim is not believed."""
        return _EXPANSION * self.size + _FREE

    def check(self, declared: int, what: str) -> None:
        """Refuse what is far beyond the file.

        Args:
            declared: Bytes that loading would need.
            what: What declares them, for the message.

        Raises:
            LoadError: It declares more than the limit.
        """
        if declared > self.limit:
            raise LoadError(
                f"{self.path} has {_amount(self.size)} but {what} declares {_amount(declared)}",
                "the file is damaged or made to exhaust memory; do not load it",
            )


def check_archive(archive: zipfile.ZipFile, budget: Budget) -> None:
    """Refuse zip bombs: members that overlap, repeat, or unpack to more than is plausible.

    Args:
        archive: The open archive.
        budget: Limits for the file.

    Raises:
        LoadError: The directory of the archive lies.
    """
    members = archive.infolist()
    budget.check(sum(member.file_size for member in members), "its zip directory")
    remedy = "the file is damaged or made to mislead; download it again from the source"
    if sum(member.compress_size for member in members) > budget.size:
        raise LoadError(f"{budget.path}: members of the zip archive overlap", remedy)
    if len({member.filename for member in members}) < len(members):
        raise LoadError(f"{budget.path}: the zip archive names a member twice", remedy)
    if any(
        member.header_offset >= budget.size
        or (member.compress_type == zipfile.ZIP_STORED and member.compress_size != member.file_size)
        for member in members
    ):
        raise LoadError(f"{budget.path}: the zip directory points outside of the file", remedy)


def check_reading(reading: Reading, budget: Budget, sizes: dict[str, int] | None = None) -> None:
    """Refuse a pickle whose storages or tensors are larger than the file can hold.

    Args:
        reading: The pickle, read inertly.
        budget: Limits for the file.
        sizes: Bytes available for each storage key, where the format tells.

    Raises:
        LoadError: A storage or tensor declares more than there is.
    """
    storages = storage_bytes(reading)
    budget.check(sum(storages.values()), "its list of storages")
    if sizes is not None:
        _check_storages(storages, sizes, budget)
    budget.check(sum(_call_bytes(call) for call in reading.calls), "its list of tensors")


def storage_bytes(reading: Reading) -> dict[str, int]:
    """Bytes that each storage key of a torch pickle declares.

    Args:
        reading: The pickle, read inertly.

    Returns:
        Storage key -> bytes.
    """
    found: dict[str, int] = {}
    for reference in reading.references:
        key = reference.key
        if isinstance(key, tuple) and len(key) >= 5 and isinstance(key[4], int):
            kind = key[1].path if isinstance(key[1], Name) else ""
            found[str(key[2])] = max(0, key[4]) * _element_size(kind)
    return found


def _check_storages(storages: dict[str, int], sizes: dict[str, int], budget: Budget) -> None:
    for key, declared in storages.items():
        if key not in sizes:
            raise LoadError(
                f"{budget.path}: the data of storage {key!r} are missing from the archive",
                "the file is incomplete; download it again",
            )
        if declared > sizes[key]:
            raise LoadError(
                f"{budget.path}: storage {key!r} declares {_amount(declared)} "
                f"but holds {_amount(sizes[key])}",
                "the file is damaged; download it again",
            )


def _call_bytes(call: Call) -> int:
    """Bytes that carrying out the call might allocate or stand for."""
    if call.path in _TENSOR_CALLS and call.args and isinstance(call.args[0], Reference):
        return sum(map(_elements, call.args[2:3])) * _reference_element_size(call.args[0])
    return 8 * sum(map(_elements, call.args))


def _reference_element_size(reference: Reference) -> int:
    kind = reference.key[1] if isinstance(reference.key, tuple) and len(reference.key) > 1 else None
    return _element_size(kind.path) if isinstance(kind, Name) else 8


def _elements(argument: Any) -> int:
    if isinstance(argument, tuple | list):
        sizes = [size for size in argument if type(size) is int]
        return math.prod(max(0, size) for size in sizes) if sizes else 0
    return max(0, argument) if type(argument) is int else 0


def _element_size(storage: str) -> int:
    """Bytes per element of a storage class; 1 for untyped storages."""
    dtype = torch.storage._storage_type_to_dtype_map().get(storage.rpartition(".")[2])
    return torch.empty((), dtype=dtype).element_size() if dtype is not None else 1


def _amount(size: int) -> str:
    """Bytes for people: "1.5 MB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}" if unit != "bytes" else f"{size} bytes"
        size /= 1000  # type: ignore[assignment]  # display only
    return f"{size:.3g} TB"
