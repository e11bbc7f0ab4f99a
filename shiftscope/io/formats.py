"""What kind of file is this? Decided by its first bytes, never by its name.

People rename, download half, or save the web page instead of the file. :func:`sniff` recognises
what it can read, and gives everything else a reason and a way out before a loader touches it.
"""

from __future__ import annotations

import json
import stat
import struct
import zipfile
import zlib
from enum import StrEnum
from pathlib import Path

from shiftscope.errors import LoadError

__all__ = ["ZIP_ERRORS", "Format", "folder_member", "readable_file", "sniff"]

ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    NotImplementedError,
    EOFError,
    IndexError,
    KeyError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
)
"""What reading a damaged (or encrypted) zip archive raises."""


class Format(StrEnum):
    """The formats that can be read, by the name shown to the user."""

    TORCH_ZIP = "torch zip"
    TORCH_LEGACY = "torch legacy stream"
    TORCH_TAR = "torch legacy tar"
    PICKLE = "plain pickle"
    SAFETENSORS = "safetensors"
    SHARDED = "sharded index"
    EXPORTED = "exported program"
    DCP = "distributed checkpoint"


_LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The pickled number at the head of files written by torch before 1.6."""

_DOWNLOAD = "download the file again, and compare its size or checksum with the source"
_EXPECTED = "give a file written by torch.save, safetensors or torch.export.save"

_FOREIGN: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "is gzip-compressed", "decompress it first (gunzip)"),
    (b"BZh", "is bzip2-compressed", "decompress it first (bunzip2)"),
    (b"\xfd7zXZ\x00", "is xz-compressed", "decompress it first (unxz)"),
    (b"\x28\xb5\x2f\xfd", "is zstd-compressed", "decompress it first (zstd -d)"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7-zip archive", "unpack it first"),
    (b"\x89HDF\r\n\x1a\n", "is an HDF5 file (Keras?)", "convert the weights to safetensors"),
    (b"GGUF", "is a GGUF file (quantised weights)", "use the original, unquantised checkpoint"),
    (b"\x93NUMPY", "is a single NumPy array", "a checkpoint needs named tensors: use safetensors"),
    (b"\x89PNG", "is a PNG image", _EXPECTED),
    (b"%PDF", "is a PDF document", _EXPECTED),
)


def sniff(path: Path) -> Format:
    """Recognise a checkpoint by its content.

    Args:
        path: A file, or the folder of a distributed or sharded checkpoint.

    Returns:
        The format.

    Raises:
        LoadError: Nothing there that could be read, with the reason and what to do.
    """
    if path.is_dir():
        return _sniff_folder(path)
    readable_file(path)
    with path.open("rb") as stream:
        head = stream.read(1024)
    if head[:4] == b"PK\x03\x04":
        return _sniff_zip(path)
    if head[257:262] == b"ustar":
        return _sniff_tar(path)
    _refuse_foreign(path, head)
    if head[:1] == b"\x80" and head[2:].startswith(_LEGACY_MAGIC):
        return Format.TORCH_LEGACY
    if _is_safetensors(path, head):
        return Format.SAFETENSORS
    if head[:1] == b"\x80":
        return Format.PICKLE
    return _sniff_text(path, head)


def readable_file(path: Path) -> int:
    """Check that the path is a regular, readable file that holds something.

    Args:
        path: Any path.

    Returns:
        Its size in bytes.

    Raises:
        LoadError: It is absent, no regular file, unreadable or empty.
    """
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        raise _absent(path, error) from None
    if not stat.S_ISREG(found.st_mode):
        raise LoadError(f"{path} is no regular file (a device or a pipe)", _EXPECTED)
    try:
        path.open("rb").close()
    except OSError as error:
        raise LoadError(
            f"{path} cannot be read: {error.strerror}", "check the permissions of the file"
        ) from None
    if not found.st_size:
        raise LoadError(f"{path} is empty (0 bytes)", _DOWNLOAD)
    return found.st_size


def _absent(path: Path, error: Exception) -> LoadError:
    if isinstance(error, PermissionError):
        return LoadError(f"{path} cannot be reached: permission denied", "check the permissions")
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        return LoadError(f"{str(path)!r} is no usable path: {error}", "check the path")
    return LoadError(f"{path} does not exist", "check the path (relative paths start here)")


def _sniff_folder(path: Path) -> Format:
    if (path / ".metadata").is_file():
        return Format.DCP
    if folder_member(path) is not None:
        return Format.SHARDED
    raise LoadError(
        f"{path} holds no weights: a folder without .metadata or model.safetensors",
        "name the checkpoint file inside it",
    )


_MEMBERS = (
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "diffusion_pytorch_model.safetensors",
    "adapter_model.safetensors",
    "adapter_model.bin",
)


def folder_member(path: Path) -> Path | None:
    """The file to read in a folder of the Hugging Face layout, None where there is none.

    Args:
        path: The folder.

    Returns:
        The index or the single file; safetensors before pickled weights.
    """
    return next((path / name for name in _MEMBERS if (path / name).is_file()), None)


def _sniff_zip(path: Path) -> Format:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except ZIP_ERRORS:
        raise LoadError(
            f"{path} is truncated or damaged: its zip directory cannot be found", _DOWNLOAD
        ) from None
    leaves = {name.partition("/")[2] or name for name in names}
    if leaves & {"archive_format", "serialized_exported_program.json"} or any(
        name in names for name in ("archive_format", "serialized_exported_program.json")
    ):
        return Format.EXPORTED
    if "constants.pkl" in leaves or any(leaf.startswith("code/") for leaf in leaves):
        raise LoadError(
            f"{path} is a TorchScript archive: its compiled layers cannot be measured or unpacked",
            "build the Python model, load torch.jit.load(...).state_dict() into it, save that",
        )
    if "data.pkl" in leaves:
        return Format.TORCH_ZIP
    raise _foreign_zip(path, names)


def _foreign_zip(path: Path, names: list[str]) -> LoadError:
    if names and all(name.endswith(".npy") for name in names):
        return LoadError(
            f"{path} holds NumPy arrays (npz), not a checkpoint",
            "as data give it with --data; weights belong in safetensors",
        )
    return LoadError(
        f"{path} is a zip archive without data.pkl: not written by torch.save",
        "unpack it and name the checkpoint inside",
    )


def _sniff_tar(path: Path) -> Format:
    with path.open("rb") as stream:
        first = stream.read(100).rstrip(b"\x00").decode("latin-1")
    if first.removeprefix("./") in {"storages", "tensors", "pickle", "sys_info"}:
        return Format.TORCH_TAR
    raise LoadError(
        f"{path} is a tar archive, not a checkpoint",
        "unpack it (tar xf) and name the checkpoint inside",
    )


def _refuse_foreign(path: Path, head: bytes) -> None:
    if head.startswith(b"version https://git-lfs"):
        raise LoadError(
            f"{path} is a Git LFS pointer, not the file it points to",
            'run "git lfs pull" in its repository, then try again',
        )
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:64].lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise LoadError(
            f"{path} is a web page (HTML), not a checkpoint",
            "download the raw file; links of code hosts often lead to a page about it",
        )
    for magic, what, remedy in _FOREIGN:
        if head.startswith(magic):
            raise LoadError(f"{path} {what}", remedy)


def _is_safetensors(path: Path, head: bytes) -> bool:
    if len(head) < 9 or head[8:9] != b"{":
        return False
    length = int.from_bytes(head[:8], "little")
    # a length can begin with the first byte of a pickle: then it must also fit the file
    plausible = head[:1] != b"\x80" or length < path.stat().st_size
    return length > 0 and plausible and head[9:10] in (b'"', b"}", b" ", b"\n")


def _sniff_text(path: Path, head: bytes) -> Format:
    text = head.lstrip()
    if text.startswith(b"{") and _is_index(path):
        return Format.SHARDED
    if _is_text(head):
        raise LoadError(
            f"{path} is a text file, not a checkpoint: it begins {_beginning(head)}", _EXPECTED
        )
    raise LoadError(
        f"{path} is in no known checkpoint format (first bytes {head[:8].hex(' ')})",
        f"{_EXPECTED}; if it should be one, {_DOWNLOAD}",
    )


def _is_index(path: Path) -> bool:
    if path.stat().st_size > 2**27:
        return False
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and isinstance(content.get("weight_map"), dict)


def _is_text(head: bytes) -> bool:
    try:
        text = head[:512].decode("utf-8")
    except UnicodeDecodeError:
        return False
    return all(char.isprintable() or char in "\r\n\t" for char in text)


def _beginning(head: bytes) -> str:
    return repr(head[:40].decode("utf-8", "replace").splitlines()[0])
