"""Writing files so that a reader never sees half of one.

Everything shiftscope writes goes to a temporary sibling first, is flushed to the disk, and is then
moved into place by one rename. When anything fails on the way the temporary is removed and what
stood there before is untouched.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from shiftscope.errors import UsageError
from shiftscope.given import shown

__all__ = [
    "PlaceError",
    "atomic_file",
    "atomic_folder",
    "place_named",
    "strict",
    "strict_json",
    "unwritable",
]


class PlaceError(UsageError):
    """A file or folder cannot be written where it was asked for."""


_REMEDY = "choose a place you may write to, with space left"


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a binary file that appears under its name whole, or not at all.

    Args:
        path: The file to write; its parent folders are made.

    Yields:
        A writable binary file object (a temporary sibling of ``path``).

    Raises:
        PlaceError: It cannot be written there (permissions, full disk, a folder in the way).
    """
    target = place_named(path)
    temporary = ""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name[:40]}.", dir=target.parent)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _adopt_mode(Path(temporary))
        Path(temporary).replace(target)
        temporary = ""
    except OSError as error:
        raise unwritable(target, error) from error
    finally:
        if temporary:
            with suppress(OSError):
                Path(temporary).unlink()


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Fill a temporary folder, then move its files into ``path`` one by one.

    Each file is replaced by a rename, so that readers see the old or the new version of it. Files
    already in ``path`` that are not written anew stay as they are. When the body raises, nothing
    in ``path`` has changed.

    Args:
        path: The folder to fill; made when it does not exist.

    Yields:
        The temporary folder to write into, on the same file system as ``path``.

    Raises:
        PlaceError: It cannot be written there.
    """
    target = place_named(path)
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not target.is_dir():
            raise NotADirectoryError(20, "a file of that name is in the way", str(target))
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name[:40]}.", dir=target.parent))
        yield temporary
        _move_files(temporary, target)
    except OSError as error:
        raise unwritable(target, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def strict(value: Any) -> Any:
    """Make a value fit for strict JSON: NaN and infinities become None, numpy scalars plain."""
    if isinstance(value, dict):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [strict(item) for item in value]
    if isinstance(value, bool) or value is None or isinstance(value, str | int):
        return value
    if hasattr(value, "tolist"):
        return strict(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)


def strict_json(value: Any, *, indent: int | None = None) -> str:
    """Serialise to strict JSON (RFC 8259: no NaN, no Infinity)."""
    return json.dumps(strict(value), indent=indent, allow_nan=False, ensure_ascii=True)


def _move_files(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    _check_ways(source, target)
    for item in sorted(source.rglob("*")):
        place = target / item.relative_to(source)
        if item.is_dir():
            place.mkdir(parents=True, exist_ok=True)
            continue
        with item.open("rb") as file:
            os.fsync(file.fileno())
        _adopt_mode(item)
        item.replace(place)


def _check_ways(source: Path, target: Path) -> None:
    """Tell what is in the way of any file before the first one is moved."""
    for item in source.rglob("*"):
        place = target / item.relative_to(source)
        if place.exists() and place.is_dir() != item.is_dir():
            kind = "folder" if place.is_dir() else "file"
            raise FileExistsError(17, f"a {kind} is in the way at {str(place)!r}", str(place))


def _adopt_mode(path: Path) -> None:
    # mkstemp makes files private; a report is to have the mode any other new file would have.
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def place_named(path: Any) -> Path:
    """The place that a name stands for.

    Args:
        path: What was given as the name of a file or folder.

    Raises:
        PlaceError: It is none.
    """
    if not isinstance(path, str | os.PathLike) or not os.fspath(path) or "\0" in str(path):
        name = f"{str(path)!r:.60}" if isinstance(path, os.PathLike) else shown(path)
        raise PlaceError(f"{name} is no name of a file or folder", _REMEDY)
    return Path(path)


def unwritable(target: Path, error: OSError, remedy: str = _REMEDY) -> PlaceError:
    """The error of a place that cannot be written.

    Args:
        target: The place.
        error: What the system said.
        remedy: What to do.
    """
    return PlaceError(f"cannot write {str(target)!r}: {error.strerror or error}", remedy)
