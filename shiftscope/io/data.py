"""Data sets by name: from a SPEC on the command line to batches in a fixed order.

========================== =====================================================================
``digits``                 scikit-learn's 8x8 digits: ``[1797, 64]``, pixels divided by 16
``mnist:DIR``              IDX files, raw or gzip; test images (training images if alone)
``cifar10:DIR``            the published Python batches, or an npz with ``x_test``, ``y_test``
``cifar100:DIR``           the same for CIFAR-100
``images:DIR``             ``DIR/CLASS/IMAGE``, classes in alphabetical order
``sprite:FILE:28x28[:10]`` one image of tiles; with a number, that many equal runs of classes
``FILE.npz``               arrays ``x`` and optionally ``y``
``FILE.safetensors``       tensors ``x`` and optionally ``y``
``package.module:loader``  a function returning batches, ``(x, y)`` tensors or a data set
``file.py:loader``         the same in a file
``normal:3x32x32[:N]``     N rows (1024) of independent standard normal numbers, without labels
========================== =====================================================================

Bytes become fractions of 255; then the normalisation is applied. Rows come in a seeded random
order, because files are often sorted by class and a few batches should see all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from shiftscope.errors import LoadError, UsageError
from shiftscope.io.batches import LoadedData, Plan, from_source, make_plan
from shiftscope.io.images import read_image_folder, read_sprite
from shiftscope.io.readers import (
    read_cifar,
    read_mnist,
    read_npz,
    read_safetensors,
)
from shiftscope.io.sources import ArraySource, Source
from shiftscope.io.user_data import from_loader

__all__ = ["FORMS", "LoadedData", "load_data"]

FORMS = (
    "digits, mnist:DIR, cifar10:DIR, cifar100:DIR, images:DIR, sprite:FILE:HxW[:CLASSES], "
    "FILE.npz, FILE.safetensors, FILE.py:LOADER, PACKAGE.MODULE:LOADER, normal:CxHxW[:N]"
)
"""The forms of a data SPEC, for messages."""

_SYNTHETIC_LIMIT = 2**30
"""Values that a synthetic data set may hold (4 GiB)."""


def load_data(
    spec: str,
    *,
    batch_size: int = 256,
    batches: int | None = None,
    normalize: str | None = None,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    base: str | Path | None = None,
    folders: Sequence[Path] = (),
) -> LoadedData:
    """Read the data a SPEC names.

    Args:
        spec: See the table above.
        batch_size: Rows a batch, per process.
        batches: How many batches of rows to use, over all processes; all rows by default.
        normalize: A preset, ``MEAN/STD`` or ``none`` (:func:`parse_normalization`).
        seed: Fixes the order of rows, and synthetic values.
        rank: Number of this process.
        world_size: Number of processes; each row goes to one of them.
        base: Folder for relative paths; the working directory.
        folders: Further folders to look in (the checkpoint's), in order.

    Returns:
        The batches.

    Raises:
        UsageError: The SPEC cannot be meant.
        LoadError: The files cannot be read.
        DataError: The data are empty, not finite, or do not fit together.
    """
    plan = make_plan(batch_size, batches, seed, rank, world_size, normalize)
    places = [Path(base) if base is not None else Path.cwd(), *folders]
    try:
        return _load(spec, places, plan)
    except OSError as error:
        raise LoadError(
            f"{spec} cannot be read: {error.strerror or error}", "check the files and their disk"
        ) from None


def _load(spec: str, places: Sequence[Path], plan: Plan) -> LoadedData:
    kind, _, rest = spec.partition(":")
    name = _file_name(kind, rest) if kind in _READERS else spec
    folder = next((place for place in places if (place / name).exists()), places[0])
    if kind in _READERS:
        if kind != "digits" and not rest:
            raise UsageError(f"data SPEC {spec!r} is incomplete", f"use one of {FORMS}")
        return from_source(_READERS[kind](rest, folder, plan.seed), spec, plan, kind == "normal")
    if spec.endswith((".npz", ".safetensors")):
        read = read_npz if spec.endswith(".npz") else read_safetensors
        return from_source(read(folder / Path(spec).expanduser()), spec, plan)
    if not rest:
        raise UsageError(f"{spec!r} is no data SPEC", f"use one of {FORMS}")
    return from_loader(spec, places, plan)


def _file_name(kind: str, rest: str) -> str:
    """The path in a SPEC, without what follows it."""
    return _sprite_parts(rest)[0] if kind == "sprite" else rest


def _digits(_: str, __: Path, ___: int) -> Source:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UsageError(
            "data 'digits' needs scikit-learn", 'pip install "shiftscope[demo]" or scikit-learn'
        ) from None
    digits = load_digits()
    x = (digits.data / 16).astype(np.float32)
    return ArraySource(x, digits.target, "digits", [str(n) for n in digits.target_names])


def _normal(rest: str, folder: Path, seed: int) -> Source:
    size, _, count = rest.partition(":")
    try:
        shape = (int(count or 1024), *(int(part) for part in size.split("x")))
    except ValueError:
        shape = (0,)
    if min(shape) < 1 or math.prod(shape) > _SYNTHETIC_LIMIT:
        raise UsageError(
            f"'normal:{rest}' is no usable shape", "write normal:3x32x32 or normal:3x32x32:512"
        )
    generator = torch.Generator().manual_seed(seed)
    return ArraySource(torch.randn(shape, generator=generator), None, "normal")


def _sprite(rest: str, folder: Path, _: int) -> Source:
    path, size, classes = _sprite_parts(rest)
    return read_sprite(folder / Path(path).expanduser(), size, classes)


def _sprite_parts(rest: str) -> tuple[str, tuple[int, ...], int]:
    head, _, last = rest.rpartition(":")
    classes = int(last) if last.isdecimal() else 0
    if last.isdecimal():
        head, _, last = head.rpartition(":")
    tile = tuple(int(part) for part in last.split("x") if part.isdecimal())
    if not head or len(tile) != 2 or min(tile) < 1:
        raise UsageError(f"'sprite:{rest}' is incomplete", "write sprite:FILE.png:28x28[:CLASSES]")
    return head, tile, classes


_READERS: dict[str, Callable[[str, Path, int], Source]] = {
    "digits": _digits,
    "mnist": lambda rest, folder, _: read_mnist(folder / Path(rest).expanduser()),
    "cifar10": lambda rest, folder, _: read_cifar(folder / Path(rest).expanduser(), "cifar10"),
    "cifar100": lambda rest, folder, _: read_cifar(folder / Path(rest).expanduser(), "cifar100"),
    "images": lambda rest, folder, _: read_image_folder(folder / Path(rest).expanduser()),
    "sprite": _sprite,
    "normal": _normal,
}
