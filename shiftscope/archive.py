"""A snapshot as one ``.npz`` file: flat arrays, a JSON manifest, no pickles.

The arrays of all sites that share a name are laid end to end, so that a model of a thousand sites
is some forty arrays, not forty thousand. The manifest (key ``manifest``, UTF-8 bytes) holds the
schema version, the description of every site and the shapes that cut the flat arrays apart again.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shiftscope.columns import QUANTILES
from shiftscope.errors import LoadError
from shiftscope.files import atomic_file, strict
from shiftscope.given import shown
from shiftscope.record import SiteRecord, Stream
from shiftscope.site_table import SAMPLE_COLUMNS, site_row
from shiftscope.snapshot import Snapshot

__all__ = [
    "SAMPLE_BUDGET",
    "SCHEMA_VERSION",
    "content_of",
    "dump",
    "manifest_of",
    "opened",
    "parse",
    "read_snapshot",
    "write_snapshot",
]

SCHEMA_VERSION = 1
SAMPLE_BUDGET = 8 * 2**20
"""Bytes of row samples a file may carry; beyond it samples are thinned (quantiles stay exact)."""

_END_RECORD = 22
"""Bytes of the record that closes a zip file, before its comment."""

_INFO: dict[str, type] = {"site": str, "kind": str, "op": str, "module": str, "params": dict}
_INFO |= {"neurons": int, "fan_in": int, "order": int, "elementwise": bool}
_SCALARS = ("moments.eps", "sample.size", "sample.seed", "sample.seen", "rows", "xi", "eta_map")
_WHOLE = (*(f"counts.{name}" for name in ("count", "active", "saturated", "nonfinite")), "rows")
_WHOLE += ("moments.count", "sample.priority", "sample.size", "sample.seed", "sample.seen", "group")

Arrays = dict[str, npt.NDArray[Any]]


def write_snapshot(snapshot: Snapshot, path: str | os.PathLike[str]) -> None:
    """Write a snapshot atomically.

    Args:
        snapshot: What to save.
        path: The file to write.

    Raises:
        UsageError: The file cannot be written.
    """
    content = dump(snapshot)
    with atomic_file(path) as file:
        file.write(content)


def read_snapshot(path: str | os.PathLike[str]) -> Snapshot:
    """Read a snapshot file; nothing in it is executed.

    Args:
        path: The file.

    Returns:
        The snapshot.

    Raises:
        LoadError: The file is missing, damaged, of another kind or of a newer version.
    """
    return parse(content_of(path, "give the path of a saved snapshot or trace"), str(path))


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


def dump(snapshot: Snapshot, *, thin: bool = True) -> bytes:
    """A snapshot as the bytes of its file.

    Args:
        snapshot: What to serialise.
        thin: Whether row samples beyond :data:`SAMPLE_BUDGET` are thinned.
    """
    pool: dict[str, list[npt.NDArray[Any]]] = {}
    keep = _sample_share(snapshot) if thin else 1.0
    records = [_thinned(record, keep) for record in snapshot.records.values()]
    shapes = [_deposit(pool, _site_arrays(snapshot, record)) for record in records]
    manifest = {
        "format": "shiftscope-snapshot",
        "schema_version": SCHEMA_VERSION,
        "sites": [record.meta() for record in records],
        "shapes": shapes,
        **{key: getattr(snapshot, key) for key in ("gaps", "manifest", "coverage", "inputs")},
    }
    text = json.dumps(strict(manifest), allow_nan=False).encode()
    flat: dict[str, Any] = {
        name: np.concatenate([part.ravel() for part in parts]) for name, parts in pool.items()
    }
    flat["manifest"] = np.frombuffer(text, dtype=np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **flat)
    return buffer.getvalue()


def parse(content: bytes, name: str = "the received snapshot") -> Snapshot:
    """The inverse of :func:`dump`; nothing in the bytes is executed.

    Args:
        content: The bytes of a snapshot file.
        name: What to call them in an error.

    Returns:
        The snapshot.

    Raises:
        LoadError: The bytes are damaged, of another kind or of a newer version.
    """
    remedy = "give a file written by shiftscope analyze, ss.report, Snapshot.save or Trace.save"
    with opened(content, f"{name!r} is not a readable shiftscope snapshot", remedy) as archive:
        manifest = manifest_of(archive, "snapshot", SCHEMA_VERSION, name)
        flat = {key: archive[key] for key in archive.files if key != "manifest"}
        return _assemble(manifest, flat)


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
    manifest: Any = json.loads(bytes(archive["manifest"]).decode())
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


def _site_arrays(snapshot: Snapshot, record: SiteRecord) -> Arrays:
    name = record.info.site
    arrays: Arrays = dict(record.to_arrays())
    arrays |= {f"quantiles/{stream}": q for stream, q in snapshot.quantiles[name].items()}
    picture = snapshot.pictures.get(name, {})
    return arrays | {f"picture/{key}": np.asarray(value) for key, value in picture.items()}


def _sample_share(snapshot: Snapshot) -> float:
    size = sum(
        stream.sample.rows.numel() * stream.sample.rows.element_size()
        for record in snapshot.records.values()
        for stream in record.streams.values()
        if stream.sample is not None
    )
    return min(1.0, SAMPLE_BUDGET / size) if size else 1.0


def _thinned(record: SiteRecord, keep: float) -> SiteRecord:
    if keep >= 1.0:
        return record
    row = site_row(record)
    kept = {column: row[column] for column in SAMPLE_COLUMNS if column in row}
    streams = {name: _thin(stream, keep) for name, stream in record.streams.items()}
    return replace(record, streams=streams, kept=kept)


def _thin(stream: Stream, keep: float) -> Stream:
    if stream.sample is None:
        return stream
    rows = max(16, int(stream.sample.rows.shape[0] * keep))
    return replace(stream, sample=stream.sample.thin(rows))


def _deposit(pool: dict[str, list[npt.NDArray[Any]]], arrays: Arrays) -> dict[str, list[int]]:
    for name, array in arrays.items():
        pool.setdefault(f"{name}|{array.dtype.name}", []).append(array)
    return {f"{name}|{array.dtype.name}": list(array.shape) for name, array in arrays.items()}


def _assemble(manifest: Mapping[str, Any], flat: Arrays) -> Snapshot:
    cursors = dict.fromkeys(flat, 0)
    records, pictures, quantiles = {}, {}, {}
    for meta, shapes in zip(manifest["sites"], manifest["shapes"], strict=True):
        arrays = {
            key.split("|")[0]: _take(flat, cursors, key, shape) for key, shape in shapes.items()
        }
        _vet(meta["info"], arrays)
        quantiles[meta["info"]["site"]] = _pop_part(arrays, "quantiles/")
        if picture := _pop_part(arrays, "picture/"):
            pictures[meta["info"]["site"]] = picture
        record = SiteRecord.from_parts(meta, arrays)
        records[record.info.site] = record
    if not all(isinstance(manifest[key], dict) for key in ("manifest", "coverage", "inputs")):
        raise ValueError("its description is no mapping")
    return Snapshot(
        records=records,
        gaps=tuple((str(module), str(reason)) for module, reason in manifest["gaps"]),
        manifest=manifest["manifest"],
        coverage=manifest["coverage"],
        inputs=manifest["inputs"],
        pictures=pictures,
        kept_quantiles=quantiles,
    )


def _vet(info: Mapping[str, Any], arrays: Arrays) -> None:
    """Refuse a site whose parts do not go together, before a table or a figure meets them."""
    for name, kind in _INFO.items():
        if type(info[name]) is not kind:
            raise ValueError(f"{name!r} of a site is {info[name]!r:.40}")
    for key, array in arrays.items():
        part, name = key.split("/", 1)
        kinds = "iu" if name in _WHOLE else "fiu"
        if array.dtype.kind not in kinds or not _fits(part, name, info["neurons"], arrays):
            raise ValueError(f"array {key!r} of site {info['site']!r} does not fit the others")
        if name.startswith("counts.") and np.any(array < 0):
            raise ValueError(f"array {key!r} of site {info['site']!r} counts less than nothing")
    groups, mu = arrays.get("weights/group"), arrays.get("weights/mu")
    if groups is None or mu is None or not mu.size:
        return
    if np.any(groups < 0) or np.any(groups >= len(mu)):
        raise ValueError(f"the groups of site {info['site']!r} do not fit its inputs")


def _fits(part: str, name: str, neurons: int, arrays: Arrays) -> bool:
    """Whether an array of a site has the shape that its name and the others ask for."""
    array = arrays[f"{part}/{name}"]
    if part == "picture" or (name == "z_mean" and array.shape == (0,)):
        return True
    if name == "mu" or name in _SCALARS:
        return array.ndim == (2 if name == "mu" else 0)
    stream = name if part == "quantiles" else part
    own = stream in ("z", "grad_z", "weights")
    width = neurons if own else arrays[f"{stream}/moments.mean"].size
    if part == "quantiles":
        return array.shape == (len(QUANTILES), width)
    if not name.startswith("sample."):
        return array.shape == (width,)
    rows = len(arrays[f"{part}/sample.priority"])
    return array.shape == ((rows, width) if name == "sample.rows" else (rows,))


def _take(flat: Arrays, cursors: dict[str, int], key: str, shape: list[int]) -> npt.NDArray[Any]:
    size = int(np.prod(shape, dtype=np.int64))
    start = cursors[key]
    piece = flat[key][start : start + size]
    if piece.size != size:
        raise ValueError(f"array {key!r} is shorter than its manifest says")
    cursors[key] = start + size
    return piece.reshape(shape)


def _pop_part(arrays: Arrays, prefix: str) -> Arrays:
    names = [name for name in arrays if name.startswith(prefix)]
    return {name.removeprefix(prefix): arrays.pop(name) for name in names}
