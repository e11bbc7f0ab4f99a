"""Files of torch.save: zip archives, the older streams, and what must be refused.

Each file is first read inertly (:mod:`shiftscope.io.inert`): which names would be imported, how
much memory do the storages declare. Only then ``torch.load(weights_only=True)`` reads it, from the
same open file. The one place where a pickle may run code is :func:`_load_trusted`.
"""

from __future__ import annotations

import io
import mmap
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from shiftscope.errors import LoadError
from shiftscope.io.bounds import Budget, check_archive, check_reading
from shiftscope.io.formats import ZIP_ERRORS, Format
from shiftscope.io.inert import Reading, read_pickle
from shiftscope.io.safe_names import known_to_torch, stand_ins, unknown_names

__all__ = ["load_bytes", "load_torch_file"]

_DAMAGED = "download or copy the file again, and compare its size with the source"
_WAY_OUT = (
    "save the weights alone, torch.save(model.state_dict(), path), or as safetensors; "
    "only if you trust its author with your machine, allow pickles (--trust-pickle)"
)


def load_torch_file(path: Path, kind: Format, *, trust_pickle: bool = False) -> Any:
    """Read a file of torch.save.

    Args:
        path: The file.
        kind: Its format, as sniffed.
        trust_pickle: Let the file run code, as Python's own pickle would.

    Returns:
        The saved object, tensors on the CPU.

    Raises:
        LoadError: Damaged, or refused: it needs code, or more memory than it can hold.
    """
    with path.open("rb") as stream:
        if kind is not Format.TORCH_TAR:
            reading = _survey(stream, path, kind)
            stream.seek(0)
            refused = unknown_names(reading.names)
            if not refused and kind is not Format.PICKLE:
                return _load_vetted(stream, path)
        if trust_pickle and kind is not Format.PICKLE:
            return _load_trusted(stream, path)
    if kind is Format.TORCH_TAR:
        raise LoadError(
            f"{path} is a tar of torch's first format, which can only be read by running pickles",
            f"re-save it with a current torch; {_WAY_OUT}",
        )
    if kind is Format.PICKLE:
        raise _plain_pickle(path, refused)
    raise _refusal(path, refused)


def load_bytes(data: bytes, path: Path, *, tensors_only: bool = False) -> Any:
    """Read a torch zip archive that lies inside another file, with the same checks.

    Args:
        data: The archive.
        path: Named in errors.
        tensors_only: Refuse also the harmless names that `safe_names` stands in for.

    Returns:
        The saved object, tensors on the CPU.

    Raises:
        LoadError: Damaged, or refused.
    """
    stream = io.BytesIO(data)
    try:
        reading = _survey_zip(stream, Budget(path, len(data)))
    except ZIP_ERRORS as error:
        raise LoadError(f"{path} is truncated or damaged: {_first_line(error)}", _DAMAGED) from None
    refused = unknown_names(reading.names)
    if tensors_only:
        refused = [name for name in reading.names if not known_to_torch(name)]
    if refused:
        raise _refusal(path, refused)
    stream.seek(0)
    return _load_vetted(stream, path)


def _load_vetted(stream: IO[bytes], path: Path) -> Any:
    """``torch.load(weights_only=True)`` on an open file, with errors in one line."""

    def load() -> Any:
        with torch.serialization.safe_globals(stand_ins()):
            return torch.load(stream, map_location="cpu", weights_only=True)

    return _guarded(load, path)


def _load_trusted(stream: IO[bytes], path: Path) -> Any:
    """The audited opt-in: a pickle that may run any code. Reached by ``trust_pickle=True`` only."""

    def load() -> Any:
        return torch.load(stream, map_location="cpu", weights_only=False)

    return _guarded(load, path)


def _guarded(load: Callable[[], Any], path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            # torch tells of pickle protocols and retired storage classes: nothing a user can act on
            warnings.simplefilter("ignore")
            return load()
    except MemoryError:
        raise LoadError(f"{path} needs more memory than there is", "use a larger machine") from None
    except pickle.UnpicklingError as error:
        raise LoadError(f"{path} cannot be read safely: {_first_line(error)}", _WAY_OUT) from None
    except Exception as error:
        # Damaged bytes surface as any exception type inside torch's reader.
        raise LoadError(
            f"{path} is truncated or damaged: {type(error).__name__}: {_first_line(error)}",
            _DAMAGED,
        ) from None


def _first_line(error: Exception) -> str:
    """The informative line of a torch error, without its advice on unsafe loading."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "WeightsUnpickler error" in line] or lines
    return telling[0].rpartition("WeightsUnpickler error:")[2].strip()[:200] if telling else ""


def _survey(stream: IO[bytes], path: Path, kind: Format) -> Reading:
    """Read the pickles inertly and hold their claims against the file."""
    budget = Budget(path, path.stat().st_size)
    try:
        if kind is Format.TORCH_ZIP:
            return _survey_zip(stream, budget)
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
            return _survey_stream(view, kind, budget)
    except ZIP_ERRORS as error:
        raise LoadError(f"{path} is truncated or damaged: {_first_line(error)}", _DAMAGED) from None


def _survey_zip(stream: IO[bytes], budget: Budget) -> Reading:
    with zipfile.ZipFile(stream) as archive:
        check_archive(archive, budget)
        names = [name for name in archive.namelist() if name.partition("/")[2] == "data.pkl"]
        if len(names) != 1:
            raise zipfile.BadZipFile(f"{len(names)} members called data.pkl, expected one")
        (data,) = names
        folder = data.partition("/")[0]
        reading = read_pickle(io.BytesIO(archive.read(data)))
        sizes = {
            member.filename.removeprefix(f"{folder}/data/"): member.file_size
            for member in archive.infolist()
        }
    check_reading(reading, budget, sizes)
    return reading


def _survey_stream(view: mmap.mmap, kind: Format, budget: Budget) -> Reading:
    """The older layout: magic, version, system, content, storage keys; or one plain pickle."""
    stream: Any = view
    if kind is Format.PICKLE:
        return read_pickle(stream)
    names: dict[str, None] = {}
    for _ in range(3):
        names |= read_pickle(stream).names
    content = read_pickle(stream)
    content.names |= names | read_pickle(stream).names
    check_reading(content, budget)
    return content


def _plain_pickle(path: Path, names: list[str]) -> LoadError:
    imports = f" that would import {_listed(names)}" if names else ", not written by torch.save"
    return LoadError(
        f"{path} is a plain pickle{imports}: refused",
        "if you trust its author, unpickle it in Python and torch.save the state_dict",
    )


def _refusal(path: Path, names: list[str]) -> LoadError:
    if any(name.startswith("torch.nn.modules.") for name in names):
        return LoadError(
            f"{path} holds a whole pickled module, not weights: it would import {_listed(names)}",
            _WAY_OUT,
        )
    return LoadError(f"{path} is a pickle that would import {_listed(names)}: refused", _WAY_OUT)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
