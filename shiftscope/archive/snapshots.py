"""A snapshot as the bytes of its file: flat arrays, and a manifest that cuts them apart again.

The arrays of all sites that share a name are laid end to end, so that a model of a thousand sites
is some forty arrays, not forty thousand. The manifest holds the schema version, the description of
every site and the shapes of its arrays.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from shiftscope.archive.container import content_of, manifest_array, manifest_of, opened
from shiftscope.archive.vetting import Arrays, vet
from shiftscope.files import atomic_file
from shiftscope.record import SiteRecord, Stream
from shiftscope.site_table import SAMPLE_COLUMNS, site_row
from shiftscope.snapshot import Snapshot

__all__ = [
    "SAMPLE_BUDGET",
    "SCHEMA_VERSION",
    "dump",
    "parse",
    "read_snapshot",
    "write_snapshot",
]

SCHEMA_VERSION = 1
SAMPLE_BUDGET = 8 * 2**20
"""Bytes of row samples a file may carry; beyond it samples are thinned (quantiles stay exact)."""


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
    flat: dict[str, Any] = {
        name: np.concatenate([part.ravel() for part in parts]) for name, parts in pool.items()
    }
    flat["manifest"] = manifest_array(manifest)
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
        vet(meta["info"], arrays)
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
