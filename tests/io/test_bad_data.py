"""Clear words for what is wrong with data, options and packages."""

from __future__ import annotations

import builtins
import gzip
import io
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_cases import PIXELS, X, Y, idx, images, sprite

from shiftscope.errors import DataError, LoadError, ShiftscopeError, UsageError
from shiftscope.io import load_data


def npz(**arrays: Any) -> Callable[[Path], object]:
    return lambda folder: np.savez(folder / "d.npz", **arrays)


def raw(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def bomb(folder: Path) -> None:
    """An npz that would unpack to a gigabyte of zeros."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": "<f4", "fortran_order": False, "shape": (2**36,)}
    )
    with zipfile.ZipFile(folder / "d.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", head.getvalue())


def broken_image(folder: Path) -> None:
    (folder / "i" / "a").mkdir(parents=True)
    (folder / "i" / "a" / "x.png").write_bytes(b"\x89PNG broken")


def mnist(images: bytes) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        (folder / "t10k-images-idx3-ubyte").write_bytes(images)
        (folder / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(2, np.uint8)))

    return make


TWO = idx(PIXELS[:2, 0])
NAN = np.where(np.arange(48).reshape(8, 6) == 20, np.nan, 1.0)
Bad = tuple[str, type[ShiftscopeError], str, Callable[[Path], object]]
BAD: list[Bad] = [
    ("imagenot", UsageError, "no data SPEC", lambda f: None),
    ("mnist:", UsageError, "incomplete", lambda f: None),
    ("mnist:nowhere", LoadError, "nowhere is no folder", lambda f: None),
    ("mnist:.", LoadError, "does not hold t10k.*nothing", lambda f: None),
    ("mnist:.", LoadError, "of another length", mnist(TWO[:-1])),
    ("mnist:.", LoadError, "of another length", mnist(TWO + b"x")),
    ("mnist:.", LoadError, "no IDX file", mnist(b"hello")),
    ("mnist:.", LoadError, "of another length", mnist(bytes([0, 0, 8, 3]) + b"\xff" * 12)),
    ("mnist:.", LoadError, "truncated", mnist(gzip.compress(TWO)[:40])),
    ("mnist:.", DataError, "x has 3 rows, y has 2", mnist(idx(PIXELS[:3, 0]))),
    ("cifar10:.", LoadError, "does not hold test_batch", lambda f: None),
    ("cifar10:.", LoadError, "no batch of CIFAR", raw("test_batch", b"hello")),
    ("cifar10:.", LoadError, "no batch of CIFAR", raw("test_batch", pickle.dumps({"a": 1}))),
    ("images:nowhere", LoadError, "no folder", lambda f: None),
    ("images:.", LoadError, "no images", lambda f: None),
    ("images:i", LoadError, "no readable image", broken_image),
    ("images:i", DataError, "has shape", images),
    ("sprite:s.png:3x3", DataError, "do not fill it", sprite),
    ("sprite:s.png:5x5:3", DataError, "4 tiles are no 3 equal runs", sprite),
    ("sprite:s.png", UsageError, "incomplete", sprite),
    ("sprite:nowhere.png:2x2", LoadError, "does not exist", lambda f: None),
    ("normal:3xx", UsageError, "no usable shape", lambda f: None),
    ("normal:0", UsageError, "no usable shape", lambda f: None),
    ("normal:100000x100000", UsageError, "no usable shape", lambda f: None),
    ("d.npz", LoadError, "does not exist", lambda f: None),
    ("d.npz", LoadError, "empty", raw("d.npz", b"")),
    ("d.npz", LoadError, "no npz file", raw("d.npz", b"PK\x03\x04 nothing")),
    ("d.npz", LoadError, r"no array 'x' \(it has inputs\)", npz(inputs=X)),
    ("d.npz", LoadError, "Python objects", npz(x=np.array([{}, 1], dtype=object))),
    ("d.npz", LoadError, "damaged", bomb),
    ("d.npz", DataError, "not numbers", npz(x=np.full((2, 2), "a"))),
    ("d.npz", DataError, "empty", npz(x=X[:0], y=Y[:0])),
    ("d.npz", DataError, r"shape \[8\]", npz(x=X[:, 0])),
    ("d.npz", DataError, "x has 8 rows, y has 5", npz(x=X, y=Y[:5])),
    ("d.npz", DataError, "label -2 in row 0 is negative", npz(x=X, y=Y - 2)),
    ("d.npz", DataError, r"x holds 1 values that are NaN.*row 3", npz(x=NAN, y=Y)),
    ("d.npz", DataError, "y holds 8 values", npz(x=X, y=np.full(8, np.inf))),
    ("d.safetensors", LoadError, "truncated", raw("d.safetensors", b"\x10" + bytes(20))),
    ("own.py:absent", UsageError, "has no 'absent'", lambda f: None),
    ("own.py:empty", DataError, "empty", lambda f: None),
    ("own.py:wrong", LoadError, "gives a int, not data", lambda f: None),
    ("own.py:odd", DataError, "batch 0 is a str", lambda f: None),
    ("own.py:ragged", DataError, "samples do not stack", lambda f: None),
    ("own.py:triples", DataError, r"neither x nor \(x, y\)", lambda f: None),
    ("own.py:nan", DataError, "batch 1: x holds", lambda f: None),
    ("own.py:failing", LoadError, r"OSError \(own\.py, line \d+\): disk gone", lambda f: None),
]


@pytest.mark.parametrize("case", BAD, ids=[f"{spec}-{says}" for spec, _, says, _ in BAD])
def test_bad_data(loaders: Path, case: Bad) -> None:
    spec, error, says, make = case
    make(loaders)
    if spec.startswith(("mnist:.", "cifar10:.")) and "nothing" in says:
        (loaders / "own.py").unlink()
    with pytest.raises(error, match=says) as caught:
        list(load_data(spec.replace(":.", f":{loaders}"), base=loaders))
    assert caught.value.remedy
    assert "\n" not in caught.value.reason


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 0}, "batch size is 0"),
        ({"batches": -1}, "number of batches is -1"),
        ({"rank": 2, "world_size": 2}, "rank 2 of 2"),
        ({"normalize": "1/0"}, "no normalisation"),
        ({"normalize": "imagenot"}, "no normalisation"),
        ({"normalize": "1,2/1,2,3"}, "2 means and 3"),
        ({"normalize": "nan/1"}, "no normalisation"),
    ],
)
def test_bad_options(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        load_data("normal:4", **options)


def test_normalisation_for_other_channels_is_told_at_once() -> None:
    with pytest.raises(DataError, match="for 3 channels"):
        load_data("normal:1x4x4", normalize="imagenet")


@pytest.mark.parametrize(("spec", "package"), [("digits", "sklearn"), ("images:i", "PIL")])
def test_missing_packages_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, package: str
) -> None:
    images(tmp_path)
    real = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return real(name, *rest)

    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UsageError, match="need") as caught:
        load_data(spec, base=tmp_path)
    assert "pip install" in caught.value.remedy
