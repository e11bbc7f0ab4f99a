"""Data files: IDX, the CIFAR batches, npz, safetensors.

Nothing here unpickles. The published CIFAR batches are pickles; they are read inertly
(:mod:`shiftscope.io.inert`), which yields their bytes without running them.
"""

from __future__ import annotations

import gzip
import io
import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shiftscope.errors import LoadError
from shiftscope.io.formats import ZIP_ERRORS, readable_file
from shiftscope.io.inert import Call, PickleError, read_pickle
from shiftscope.io.sources import ArraySource
from shiftscope.io.tensor_files import load_safetensors

__all__ = [
    "read_cifar",
    "read_idx",
    "read_mnist",
    "read_npz",
    "read_safetensors",
]

_Array = npt.NDArray[Any]
_AGAIN = "download the data set again, and compare its checksum with the source"
_IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_LIMIT = 8 * 2**30
"""Bytes an array may take in memory."""


def read_idx(path: Path) -> _Array:
    """Read an array in IDX format, raw or gzip-compressed.

    Args:
        path: The file.

    Returns:
        The array.

    Raises:
        LoadError: It is no IDX file, or its length is not what the header says.
    """
    readable_file(path)
    try:
        raw = path.open("rb")
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        with raw, gzip.open(raw) if zipped else raw as stream:
            head = stream.read(4)
            if len(head) < 4 or head[:2] != b"\x00\x00" or head[2] not in _IDX_TYPES:
                raise LoadError(f"{path} is no IDX file", _AGAIN)
            shape = tuple(int(n) for n in np.frombuffer(stream.read(4 * head[3]), ">u4"))
            dtype = np.dtype(_IDX_TYPES[head[2]])
            size = math.prod(shape) * dtype.itemsize
            data = stream.read(min(size, _LIMIT) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise LoadError(f"{path} is truncated or damaged: {error}", _AGAIN) from None
    if len(shape) != head[3] or len(data) != size:
        raise LoadError(f"{path} declares shape {list(shape)} but is of another length", _AGAIN)
    return np.frombuffer(data, dtype).reshape(shape)


def read_mnist(folder: Path) -> ArraySource:
    """The test images of MNIST or a set of its layout (Fashion-MNIST), else the training images.

    Args:
        folder: Holds ``t10k-images-idx3-ubyte`` and its labels, with or without ``.gz``.

    Returns:
        Inputs ``[rows, 1, 28, 28]`` bytes and labels.

    Raises:
        LoadError: The files are not there, or damaged.
    """
    for part in ("t10k", "train"):
        images = _either(folder, f"{part}-images-idx3-ubyte", f"{part}-images.idx3-ubyte")
        labels = _either(folder, f"{part}-labels-idx1-ubyte", f"{part}-labels.idx1-ubyte")
        if images and labels:
            x, y = read_idx(images), read_idx(labels)
            if x.ndim != 3:
                raise LoadError(f"{images} has shape {list(x.shape)}, expected images", _AGAIN)
            return ArraySource(x[:, None], y, str(images))
    raise _absent(folder, "t10k-images-idx3-ubyte[.gz] and t10k-labels-idx1-ubyte[.gz]")


def _either(folder: Path, *names: str) -> Path | None:
    places = (
        folder / sub / f"{name}{end}"
        for name in names
        for sub in ("", "MNIST/raw")
        for end in ("", ".gz")
    )
    return next((place for place in places if place.is_file()), None)


def _absent(folder: Path, wanted: str) -> LoadError:
    if not folder.is_dir():
        return LoadError(f"{folder} is no folder", "check the path")
    found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:6]) or "nothing"
    return LoadError(f"{folder} does not hold {wanted} (it holds {found})", "check the folder")


def read_cifar(folder: Path, kind: str) -> ArraySource:
    """CIFAR-10 or CIFAR-100: test images of the Python version, or of an npz of exact pixels.

    Args:
        folder: Holds ``test_batch`` (``test``), or an ``.npz`` with ``x_test`` and ``y_test``.
        kind: ``"cifar10"`` or ``"cifar100"``.

    Returns:
        Inputs ``[rows, 3, 32, 32]`` bytes, RGB, and labels.

    Raises:
        LoadError: The files are not there, or damaged.
    """
    inner = folder / ("cifar-10-batches-py" if kind == "cifar10" else "cifar-100-python")
    test, train = ("test_batch", "data_batch_1") if kind == "cifar10" else ("test", "train")
    for place in (folder / test, inner / test, folder / train, inner / train):
        if place.is_file():
            return _cifar_batch(place)
    for archive in sorted(folder.glob("*.npz")) if folder.is_dir() else []:
        if {"x_test", "y_test"} <= _npz_names(archive):
            return read_npz(archive)
    raise _absent(folder, f"{test} (the Python version) or an npz with x_test and y_test")


def _cifar_batch(path: Path) -> ArraySource:
    if readable_file(path) > 2**29:
        raise LoadError(f"{path} is larger than any CIFAR batch", _AGAIN)
    try:
        content = read_pickle(io.BytesIO(path.read_bytes())).value
        fields = {_text(key): value for key, value in content.items()}
        labels = fields.get("labels", fields.get("fine_labels"))
        x, y = _pixels(fields["data"]), np.asarray(labels, dtype=np.int64)
    except (PickleError, AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise LoadError(f"{path} is no batch of CIFAR: {error!s:.120}", _AGAIN) from None
    return ArraySource(x, y, str(path))


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _pixels(record: Any) -> _Array:
    """The array inside numpy's pickle: a call to _reconstruct, its shape and bytes in the state."""
    names = {f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")}
    if not isinstance(record, Call) or record.path not in names:
        raise ValueError("its data are no NumPy array")
    _, shape, dtype, fortran, raw = record.state
    if dtype.path != "numpy.dtype" or _text(dtype.args[0]) not in {"u1", "|u1"} or fortran:
        raise ValueError("its data are no bytes in C order")
    pixels = np.frombuffer(_raw_bytes(raw), np.uint8).reshape(shape)
    return pixels.reshape(-1, 3, 32, 32)


def _raw_bytes(raw: Any) -> bytes:
    """Bytes in a pickle: as such, or as the text of Python 2."""
    return raw.encode("latin-1") if isinstance(raw, str) else bytes(raw)


def read_npz(path: Path) -> ArraySource:
    """Arrays ``x`` (or ``x_test``, ``x_train``, ``images``) and optionally ``y`` of the same kind.

    Args:
        path: The ``.npz`` file.

    Returns:
        Inputs and labels, as stored.

    Raises:
        LoadError: Damaged, object arrays, or no ``x``.
    """
    names = _npz_names(path)
    pairs = (("x", "y"), ("x_test", "y_test"), ("x_train", "y_train"), ("images", "labels"))
    inputs, targets = next((pair for pair in pairs if pair[0] in names), ("", ""))
    if not inputs:
        raise LoadError(
            f"{path} has no array 'x' (it has {', '.join(sorted(names)[:8]) or 'nothing'})",
            "save it with np.savez(path, x=inputs, y=labels)",
        )
    x = _npz_array(path, inputs)
    y = _npz_array(path, targets) if targets in names else None
    classes = _npz_array(path, "class_names") if "class_names" in names else None
    named = [str(name) for name in classes] if classes is not None and classes.ndim == 1 else None
    return ArraySource(x, y, str(path), named)


def _npz_names(path: Path) -> set[str]:
    size = readable_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except ZIP_ERRORS:
        raise LoadError(f"{path} is no npz file, or truncated", "save it again") from None
    declared = sum(member.file_size for member in members)
    if declared > min(_LIMIT, 1100 * size):
        raise LoadError(
            f"{path} has {size} bytes but would unpack to {declared}", "do not load this file"
        )
    return {member.filename.removesuffix(".npy") for member in members}


def _npz_array(path: Path, name: str) -> _Array:
    try:
        _check_npy(path, name)
        with np.load(path, allow_pickle=False) as arrays:
            return np.asarray(arrays[name])
    except ZIP_ERRORS as error:
        raise LoadError(
            f"{path}: array {name!r} is damaged: {_first_line(error):.120}", "save it again"
        ) from None
    except MemoryError:
        raise LoadError(
            f"{path}: array {name!r} does not fit in memory", "use fewer rows"
        ) from None


def _check_npy(path: Path, name: str) -> None:
    """Hold the header of an array against its bytes, before memory is spent on what it claims."""
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo(f"{name}.npy")
        with archive.open(member) as stream:
            version = np.lib.format.read_magic(stream)
            header = _NPY_HEADERS[version[0]]
            shape, _, dtype = header(stream)
    if dtype.hasobject:
        raise LoadError(
            f"{path}: array {name!r} holds Python objects, which are pickles",
            "save a numeric array (all rows of one shape, one dtype)",
        )
    if math.prod(shape) * dtype.itemsize > member.file_size:
        raise ValueError(f"shape {shape} needs more than its {member.file_size} bytes")


_NPY_HEADERS: dict[int, Any] = {
    1: np.lib.format.read_array_header_1_0,
    2: np.lib.format.read_array_header_2_0,
}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def read_safetensors(path: Path) -> ArraySource:
    """Tensors ``x`` and optionally ``y``.

    Args:
        path: The file.

    Returns:
        Inputs and labels, as stored.

    Raises:
        LoadError: Damaged, or no ``x``.
    """
    tensors = load_safetensors(path)
    if "x" not in tensors:
        raise LoadError(
            f"{path} has no tensor 'x' (it has {', '.join(list(tensors)[:8]) or 'nothing'})",
            "save it with safetensors.torch.save_file({'x': inputs, 'y': labels}, path)",
        )
    return ArraySource(tensors["x"], tensors.get("y"), str(path))
