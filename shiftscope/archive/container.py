"""The ``.npz`` file that snapshots and traces are kept in: read whole or refused, no pickles.

Besides its arrays it holds a manifest (key ``manifest``, UTF-8 bytes of strict JSON), which tells
the kind of the file and the version of its schema.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shiftscope.errors import LoadError
from shiftscope.files import strict
from shiftscope.given import shown

__all__ = ["content_of", "holds_trace", "manifest_array", "manifest_of", "opened"]

_END_RECORD = 22
"""Bytes of the record that closes a zip file, before its comment."""


def content_of(path: Any, remedy: str) -> bytes:
    """The bytes of a file.

    Args:
        path: The file.
        remedy: What to do where it cannot be read.

    Raises:
        LoadError: There is none, or it cannot be read.
    """
    try:
        if Path(path).is_char_device():  # some of them never end
            raise LoadError(f"{str(path)!r} is a device, no file", remedy)
        return Path(path).read_bytes()
    except OSError as error:
        raise LoadError(f"cannot read {str(path)!r}: {error.strerror or error}", remedy) from error
    except (TypeError, ValueError) as error:  # no path at all, or one with a null character
        raise LoadError(f"{shown(path)} is no name of a file", remedy) from error


@contextmanager
def opened(content: bytes, reason: str, remedy: str) -> Iterator[Any]:
    """The arrays of an archive, whose every flaw is a fault of the file.

    Args:
        content: The bytes of the file.
        reason: What to say where it cannot be read; the cause follows in brackets.
        remedy: What to do about it.

    Yields:
        The opened ``.npz``, which is read inside.

    Raises:
        LoadError: The bytes are no whole archive, or reading it raised.
    """
    try:
        _check_whole(content)
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            yield archive
    except LoadError:
        raise
    # Whatever a foreign file makes the readers raise (zlib, struct, an array of 2**60 numbers, ...)
    except Exception as error:
        words = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise LoadError(f"{reason} ({words})", remedy) from error


def manifest_of(archive: Any, kind: str, version: int, name: str) -> dict[str, Any]:
    """The manifest of an opened archive.

    Args:
        archive: What :func:`opened` yields.
        kind: What it is to hold: ``"snapshot"`` or ``"trace"``.
        version: The newest schema that can be read.
        name: What to call the file in an error.

    Raises:
        LoadError: Its schema is newer.
        ValueError: It holds something else.
    """
    manifest = _manifest(archive)
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != f"shiftscope-{kind}":
        known = found in ("shiftscope-snapshot", "shiftscope-trace")
        raise ValueError(f"it is a {found}" if known else "its manifest is of another kind")
    if int(manifest["schema_version"]) > version:
        raise LoadError(
            f"{name!r} has {kind} schema {manifest['schema_version']}, this version "
            f"reads up to {version}",
            f"update shiftscope, or write the {kind} again with this version",
        )
    return dict(manifest)


def manifest_array(manifest: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
    """A manifest as the array of its bytes, as :func:`manifest_of` reads it."""
    text = json.dumps(strict(manifest), allow_nan=False)
    return np.frombuffer(text.encode(), dtype=np.uint8)


def holds_trace(path: str | os.PathLike[str]) -> bool:
    """Whether a file is that of a trace."""
    try:
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return bool(_manifest(archive).get("format") == "shiftscope-trace")
    except Exception:  # whatever is wrong with it, the reader of snapshots says so better
        return False


def _manifest(archive: Any) -> Any:
    return json.loads(bytes(archive["manifest"]).decode())


def _check_whole(content: bytes) -> None:
    """Refuse a part of an archive, and one with something before or behind it.

    A directory is looked for from the end of the file, and offsets are corrected by where it is
    found: what remains of a trace that was cut off would be read as the last whole snapshot in it.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        first = min((member.header_offset for member in archive.infolist()), default=0)
        end = len(content) - len(archive.comment) - _END_RECORD
    if first or content[end : end + 4] != b"PK\5\6":
        raise ValueError("the file is cut off, or something was added to it")
