"""Places to write to, tried before anything is measured."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from shiftscope.errors import UsageError
from shiftscope.files import unwritable
from shiftscope.given import shown

__all__ = ["FILE_REMEDY", "check_file", "check_folder", "file_path"]

FILE_REMEDY = "give a file in a folder you may write to, with space left"
_FOLDER_REMEDY = "give a folder you may write to, with space left"


def check_folder(given: Any, remedy: str = _FOLDER_REMEDY) -> Path:
    """Try to make a folder and to write in it; of the trial nothing is left but its parents.

    Args:
        given: What was given as a folder.
        remedy: What to do where it cannot be used.

    Returns:
        The folder.

    Raises:
        UsageError: It is no path, or cannot be made or written.
    """
    folder = _path(given, remedy)
    fresh = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        if fresh:
            folder.rmdir()
    except OSError as error:
        raise unwritable(folder, error, remedy) from error
    return folder


def check_file(given: Any) -> Path:
    """Make the folder of a file that will be replaced as a whole, and try to write in it.

    Args:
        given: What was given as a file.

    Returns:
        Its path.

    Raises:
        UsageError: It is no path, a folder, or its folder cannot be made or written.
    """
    path = file_path(given)
    if path.is_dir():
        raise UsageError(f"cannot write {str(path)!r}: it is a folder", FILE_REMEDY)
    check_folder(path.parent, FILE_REMEDY)
    return path


def file_path(given: Any) -> Path:
    """The path of a file, whose folder is made.

    Args:
        given: What was given as a file.

    Raises:
        UsageError: It is no path, or its folder cannot be made.
    """
    path = _path(given, FILE_REMEDY)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error, FILE_REMEDY) from error
    return path


def _path(given: Any, remedy: str) -> Path:
    try:
        path = Path(given)
    except TypeError as error:
        raise UsageError(
            f"cannot write {shown(given)}: it names no file or folder", remedy
        ) from error
    if "\0" in str(path):
        raise UsageError(f"cannot write {str(path)!r}: a NUL byte is in its name", remedy)
    return path
