"""Data SPECs: right values, a fixed order, each row once, and clear words for what is wrong."""

from __future__ import annotations

import builtins
import gzip
import io
import pickle
import struct
import sys
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support import shared_path
from torch import Tensor

from shiftscope.errors import DataError, LoadError, ShiftscopeError, UsageError
from shiftscope.io import LoadedData, input_statistics, load_data

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (20, 1, 28, 28), dtype=np.uint8)
LABELS = np.arange(20) % 10


def gather(data: LoadedData) -> tuple[Tensor, Tensor | None]:
    batches = list(data)
    if data.has_labels:
        return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    return torch.cat(batches), None  # type: ignore[arg-type]


def same_rows(x: Tensor, expected: npt.NDArray[Any]) -> bool:
    """The same rows in any order."""
    ours = np.sort(x.reshape(len(x), -1).numpy().view(f"V{x[0].numel() * 4}"), axis=0)
    theirs = np.ascontiguousarray(expected.reshape(len(expected), -1), np.float32)
    return bool((ours == np.sort(theirs.view(f"V{theirs[0].size * 4}"), axis=0)).all())


def idx(values: npt.NDArray[Any], code: int = 8) -> bytes:
    head = bytes([0, 0, code, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return head + values.tobytes()


# Sources


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_mnist_raw_and_gzip(tmp_path: Path, zipped: bool, nested: bool) -> None:
    folder = tmp_path / "MNIST" / "raw" if nested else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in (("images-idx3", PIXELS[:, 0]), ("labels-idx1", LABELS.astype(np.uint8))):
        data, end = idx(values), ".gz" if zipped else ""
        path = folder / f"t10k-{name}-ubyte{end}"
        path.write_bytes(gzip.compress(data) if zipped else data)
    data = load_data(f"mnist:{tmp_path}", batch_size=6)
    x, y = gather(data)
    assert (data.rows, data.classes, tuple(x.shape)) == (20, 10, (20, 1, 28, 28))
    assert same_rows(x, PIXELS / np.float32(255))
    assert y is not None
    assert sorted(y.tolist()) == sorted(LABELS.tolist())


def test_mnist_as_published() -> None:
    x, y = gather(load_data(f"mnist:{shared_path('data/mnist')}", batch_size=5000))
    assert tuple(x.shape) == (10000, 1, 28, 28)
    assert y is not None
    assert torch.bincount(y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert float(x.double().mean()) == pytest.approx(0.1325, abs=1e-4)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
def test_cifar_batches(tmp_path: Path, kind: str, protocol: int) -> None:
    pixels = RNG.integers(0, 256, (7, 3072), dtype=np.uint8)
    name = b"labels" if kind == "cifar10" else b"fine_labels"
    batch = {b"data": pixels, name: [3, 1, 2, 0, 1, 2, 3]}
    folder = tmp_path / ("cifar-10-batches-py" if kind == "cifar10" else "cifar-100-python")
    folder.mkdir()
    file = folder / ("test_batch" if kind == "cifar10" else "test")
    file.write_bytes(pickle.dumps(batch, protocol))
    x, _ = gather(load_data(f"{kind}:{tmp_path}"))
    assert same_rows(x, pixels.reshape(-1, 3, 32, 32) / np.float32(255))


def test_cifar_batch_of_python_2(tmp_path: Path) -> None:
    """The published files are pickles of Python 2: text where Python 3 has bytes."""
    pixels = RNG.integers(0, 256, (2, 3072), dtype=np.uint8)
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        b"(I1\n(I2\nI3072\ntcnumpy\ndtype\n(S'u1'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI0\ntbI00\n"
    )
    data = b"\x80\x02}(U\x04data" + array + b"T" + struct.pack("<i", pixels.size)
    data += pixels.tobytes() + b"tbU\x06labels](K\x03K\x08eu."
    assert np.array_equal(pickle.loads(data, encoding="bytes")[b"data"], pixels)
    (tmp_path / "test_batch").write_bytes(data)
    x, y = gather(load_data(f"cifar10:{tmp_path}"))
    assert same_rows(x, pixels.reshape(-1, 3, 32, 32) / np.float32(255))
    assert y is not None
    assert sorted(y.tolist()) == [3, 8]


def test_exact_cifar_pixels() -> None:
    folder = shared_path("data/cifar10")
    data = load_data(f"cifar10:{folder}", normalize="cifar10")
    assert (data.rows, data.classes, data.normalization) == (932, 10, "cifar10")
    with np.load(folder / "cifar10_exact.npz") as arrays:
        x, y = arrays["x_test"], arrays["y_test"]
    found, labels = gather(data)
    mean = np.array([0.49139968, 0.48215841, 0.44653091]).reshape(1, 3, 1, 1)
    std = np.array([0.24703223, 0.24348513, 0.26158784]).reshape(1, 3, 1, 1)
    assert labels is not None
    assert np.bincount(y).tolist() == torch.bincount(labels).tolist()
    expected = ((x / 255 - mean) / std).mean()
    assert float(found.double().mean()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
def test_image_folder(tmp_path: Path, mode: str) -> None:
    for i, (name, file) in enumerate([("cat", "b.png"), ("cat", "a.PNG"), ("dog", "x/c.png")]):
        path = tmp_path / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 4), (10 * i, 20, 30)).convert(mode).save(path)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    data = load_data(f"images:{tmp_path}", batch_size=2)
    x, y = gather(data)
    assert data.class_names == ("cat", "dog")
    assert tuple(x.shape) == (3, 1 if mode == "L" else 3, 4, 5)
    assert y is not None
    assert sorted(y.tolist()) == [0, 0, 1]


def test_sprite_is_cut_row_by_row(tmp_path: Path) -> None:
    tiles = RNG.integers(0, 256, (6, 2, 3), dtype=np.uint8)
    sheet = tiles.reshape(2, 3, 2, 3).transpose(0, 2, 1, 3).reshape(4, 9)
    Image.fromarray(sheet).save(tmp_path / "s.png")
    data = load_data("sprite:s.png:2x3:2", base=tmp_path)
    x, y = gather(data)
    assert same_rows(x, tiles[:, None] / np.float32(255))
    assert y is not None
    assert torch.bincount(y).tolist() == [3, 3]
    first = x[y == 0].reshape(3, -1)
    assert same_rows(first, tiles[:3] / np.float32(255))
    assert not load_data("sprite:s.png:2x3", base=tmp_path).has_labels


def test_digits() -> None:
    data = load_data("digits", batch_size=1000)
    x, y = gather(data)
    assert (data.rows, data.classes, tuple(x.shape)) == (1797, 10, (1797, 64))
    assert (float(x.min()), float(x.max())) == (0.0, 1.0)
    assert y is not None
    assert torch.bincount(y).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4", "int64", "uint16"])
@pytest.mark.parametrize("names", [("x", "y"), ("x_test", "y_test"), ("images", "labels")])
def test_npz(tmp_path: Path, dtype: str, names: tuple[str, str]) -> None:
    x = RNG.integers(0, 9, (5, 4)).astype(dtype)
    np.savez(tmp_path / "d.npz", **{names[0]: x, names[1]: np.arange(5)[:, None]})
    data = load_data("d.npz", base=tmp_path)
    found, y = gather(data)
    assert same_rows(found.float(), x.astype(np.float32))
    assert y is not None
    assert sorted(y.tolist()) == [0, 1, 2, 3, 4]
    expected = {"float64": torch.float64, "int64": torch.int64, "uint16": torch.int64}
    assert found.dtype == expected.get(dtype, torch.float32)


def test_targets_that_are_real_numbers_stay_so(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones((5, 4)), y=np.linspace(-1, 1, 5))
    data = load_data("d.npz", base=tmp_path)
    _, y = gather(data)
    assert data.classes is None
    assert y is not None
    assert y.dtype == torch.float64


def test_safetensors_with_and_without_labels(tmp_path: Path) -> None:
    save_file({"x": torch.ones(5, 4, dtype=torch.bfloat16)}, tmp_path / "a.safetensors")
    save_file({"x": torch.ones(5, 4), "y": torch.zeros(5).int()}, tmp_path / "b.safetensors")
    plain = load_data("a.safetensors", base=tmp_path)
    assert not plain.has_labels
    assert gather(plain)[0].dtype == torch.float32
    assert load_data("b.safetensors", base=tmp_path).classes == 1


def test_synthetic_data_say_so_and_depend_on_the_seed_alone() -> None:
    data = load_data("normal:3x4x5:64", seed=1)
    assert data.synthetic
    assert "synthetic" in data.description
    first, again = gather(data)[0], gather(load_data("normal:3x4x5:64", seed=1))[0]
    assert torch.equal(first, again)
    assert not torch.equal(first, gather(load_data("normal:3x4x5:64", seed=2))[0])
    assert load_data("normal:7").rows == 1024


LOADERS = """
    import numpy as np
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    X, Y = torch.arange(24.).view(12, 2), torch.arange(12) % 3

    def arrays(): return X.numpy(), Y.numpy()
    def inputs(): return X
    def named(): return {"x": X, "y": Y}
    def dataset(): return TensorDataset(X, Y)
    def loader(batch_size): return DataLoader(TensorDataset(X, Y), batch_size)
    def shuffled(): return DataLoader(TensorDataset(X, Y), 5, shuffle=True)
    def batches(): return [(X[:7], Y[:7]), (X[7:], Y[7:])]
    def generator():
        for i in range(0, 12, 4):
            yield X[i : i + 4], Y[i : i + 4]
    ready = [(X, Y)]
    def empty(): return []
    def wrong(): return 3
    def odd(): return ["abc"]
    def nan(): return [(X, Y), (X * float("nan"), Y)]
    def failing(): raise OSError("disk gone")
    class Noisy(TensorDataset):
        def __getitem__(self, i): return X[i] + torch.rand(2), Y[i]
    def noisy(): return Noisy(X, Y)
    def noisy_loader(): return DataLoader(Noisy(X, Y), 5, shuffle=True)
    class Ragged(TensorDataset):
        def __getitem__(self, i): return torch.ones(i + 1)
    def ragged(): return Ragged(X)
    def keywords():
        pixels = {"mask": torch.ones(12).bool(), "pixel_values": X, "labels": Y}
        return [pixels, pixels]
    def several(): return [(X, X + 1, Y)]
    def triples(): return TensorDataset(X, X, Y)
"""


@pytest.fixture
def loaders(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(textwrap.dedent(LOADERS))
    return tmp_path


NAMES = ["arrays", "named", "dataset", "loader", "shuffled", "batches", "generator", "ready"]


@pytest.mark.parametrize("name", NAMES)
def test_own_loaders(loaders: Path, name: str) -> None:
    data = load_data(f"own.py:{name}", batch_size=4, base=loaders)
    state = torch.get_rng_state()
    first, again = gather(data), gather(data)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first[0], again[0])
    assert same_rows(first[0], np.arange(24.0).reshape(12, 2))
    assert first[1] is not None
    assert torch.equal(first[1], (first[0][:, 0] / 2).long() % 3)


@pytest.mark.parametrize("name", ["noisy", "noisy_loader"])
def test_random_transforms_are_repeated_and_leave_the_global_state_alone(
    loaders: Path, name: str
) -> None:
    data = load_data(f"own.py:{name}", batch_size=4, base=loaders)
    state = torch.get_rng_state()
    first, again = gather(data), gather(data)
    assert torch.equal(first[0], again[0])
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first[0], first[0].round())


def test_keyword_batches_and_several_inputs_pass_whole(loaders: Path) -> None:
    data = load_data("own.py:keywords", base=loaders)
    batch = next(iter(data))
    assert isinstance(batch, dict)
    assert (set(batch), batch["mask"].dtype) == ({"mask", "pixel_values", "labels"}, torch.bool)
    found = input_statistics(data)
    assert (found["rows"], found["max"], found["classes"]["0"]) == (24, [23.0], 8)
    batch = next(iter(load_data("own.py:several", base=loaders)))
    assert isinstance(batch, tuple)
    assert [tuple(part.shape) for part in batch] == [(12, 2), (12, 2), (12,)]


def test_length_is_the_number_of_batches_where_it_is_known(loaders: Path) -> None:
    for spec in ("normal:4:10", "own.py:dataset"):
        data = load_data(spec, batch_size=3, base=loaders, rank=1, world_size=2)
        assert len(data) == len(list(data))
    with pytest.raises(TypeError):
        len(load_data("own.py:generator", base=loaders))


def test_own_inputs_without_labels(loaders: Path) -> None:
    assert not load_data("own.py:inputs", base=loaders).has_labels


@pytest.mark.parametrize("spec", ["d.npz", "own.py:arrays", "sprite:s.png:5x5", "images:i"])
def test_further_folders_are_searched_behind_the_base(loaders: Path, spec: str) -> None:
    np.savez(loaders / "d.npz", x=X)
    sprite(loaders)
    Image.new("L", (2, 2)).save((loaders / "i" / "a").mkdir(parents=True) or loaders / "i/a/x.png")
    (loaders / "base").mkdir()
    data = load_data(spec, base=loaders / "base", folders=[loaders])
    assert data.rows in {8, 12, 4, 1}
    np.savez(loaders / "base" / "d.npz", x=X[:3])
    assert load_data("d.npz", base=loaders / "base", folders=[loaders]).rows == 3


# Order, limits, processes


@pytest.mark.parametrize("batches", [None, 1, 2, 3])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_processes_share_the_rows_of_one(tmp_path: Path, world: int, batches: int | None) -> None:
    x = np.arange(23, dtype=np.float32)[:, None]
    np.savez(tmp_path / "d.npz", x=x)
    options: dict[str, Any] = {"batch_size": 7, "batches": batches, "base": tmp_path, "seed": 4}
    alone = gather(load_data("d.npz", **options))[0].flatten().tolist()
    parts = [load_data("d.npz", rank=r, world_size=world, **options) for r in range(world)]
    rows = [row for part in parts for row in gather(part)[0].flatten().tolist()]
    assert sorted(rows) == sorted(alone)
    assert len(alone) == min(23, 7 * (batches or 99))
    assert {part.rows for part in parts} == {len(alone)}


@pytest.mark.parametrize("world", [2, 3, 4])
def test_processes_see_the_very_batches_of_one(tmp_path: Path, world: int) -> None:
    np.savez(tmp_path / "d.npz", x=np.arange(23, dtype=np.float32)[:, None])
    options: dict[str, Any] = {"batch_size": 6, "base": tmp_path, "seed": 4}
    alone = {tuple(x.flatten().tolist()) for x in load_data("d.npz", **options)}
    parts = [load_data("d.npz", rank=r, world_size=world, **options) for r in range(world)]
    dealt = [tuple(x.flatten().tolist()) for part in parts for x in part]
    assert set(dealt) == alone
    assert len(dealt) == len(alone)


@pytest.mark.parametrize("world", [1, 2])
def test_processes_share_the_batches_of_an_own_loader(loaders: Path, world: int) -> None:
    rows: list[float] = []
    for rank in range(world):
        part = load_data("own.py:generator", base=loaders, rank=rank, world_size=world)
        rows += gather(part)[0][:, 0].tolist()
    assert sorted(rows) == [2.0 * i for i in range(12)]


def test_order_is_seeded_repeatable_and_leaves_the_global_state_alone(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.arange(50.0)[:, None])
    torch.manual_seed(9)
    state = torch.get_rng_state()
    data = load_data("d.npz", base=tmp_path, seed=1, batch_size=8)
    assert torch.equal(gather(data)[0], gather(data)[0])
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(
        gather(data)[0], gather(load_data("d.npz", base=tmp_path, seed=2, batch_size=8))[0]
    )


def test_few_batches_of_sorted_data_see_all_classes(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones((1000, 1)), y=np.repeat(np.arange(10), 100))
    _, y = gather(load_data("d.npz", base=tmp_path, batches=1, batch_size=200))
    assert y is not None
    assert len(set(y.tolist())) == 10


# Normalisation


@pytest.mark.parametrize(
    ("spec", "mean", "std"),
    [
        ("0.5/0.25", [0.5] * 3, [0.25] * 3),
        ("0.1,0.2,0.3/1,2,4", [0.1, 0.2, 0.3], [1, 2, 4]),
        ("imagenet", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ("none", [0] * 3, [1] * 3),
    ],
)
def test_normalisation(tmp_path: Path, spec: str, mean: list[float], std: list[float]) -> None:
    x = RNG.random((6, 3, 2, 2), dtype=np.float32)
    np.savez(tmp_path / "d.npz", x=x)
    found, _ = gather(load_data("d.npz", base=tmp_path, normalize=spec, batch_size=100))
    order, _ = gather(load_data("d.npz", base=tmp_path, batch_size=100))
    shape = (1, 3, 1, 1)
    expected = (order.numpy() - np.reshape(mean, shape)) / np.reshape(std, shape)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)


# What is wrong


X, Y = np.ones((8, 6), np.float32), np.zeros(8, np.int64)


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


def images(folder: Path) -> None:
    for i, size in enumerate(((4, 4), (5, 4))):
        (folder / "i" / "a").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(folder / "i" / "a" / f"{i}.png")


def broken_image(folder: Path) -> None:
    (folder / "i" / "a").mkdir(parents=True)
    (folder / "i" / "a" / "x.png").write_bytes(b"\x89PNG broken")


def sprite(folder: Path) -> None:
    Image.new("L", (10, 10)).save(folder / "s.png")


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


# Statistics


@pytest.mark.parametrize("shape", [(50, 3, 4, 5), (50, 7), (50, 32, 2)])
def test_input_statistics_against_numpy(shape: tuple[int, ...]) -> None:
    x = (RNG.standard_normal(shape) * 0.01 + 1000).astype(np.float32)
    y = torch.arange(50) % 4
    batches = [(torch.from_numpy(x[i : i + 8]), y[i : i + 8]) for i in range(0, 50, 8)]
    found = input_statistics(batches)
    wide = x.astype(np.float64)
    pooled = wide.reshape(1, -1) if shape[1] != 3 else wide.transpose(1, 0, 2, 3).reshape(3, -1)
    np.testing.assert_allclose(found["mean"], pooled.mean(1), rtol=1e-13)
    np.testing.assert_allclose(found["std"], pooled.std(1), rtol=1e-9)
    assert found["min"] == pooled.min(1).tolist()
    assert found["max"] == pooled.max(1).tolist()
    assert (found["rows"], found["shape"], found["nonfinite"]) == (50, list(shape[1:]), 0.0)
    assert found["classes"] == {"0": 13, "1": 13, "2": 12, "3": 12}


def test_input_statistics_count_what_is_not_finite_and_leave_it_out() -> None:
    x = torch.tensor([[[1.0], [torch.nan]], [[3.0], [torch.inf]]])
    found = input_statistics([x])
    assert found["mean"] == [2.0, None]
    assert found["std"] == [1.0, None]
    assert found["max"] == [3.0, None]
    assert found["nonfinite"] == 0.5
    assert found["classes"] is None


def test_input_statistics_of_nothing() -> None:
    found = input_statistics([])
    assert (found["rows"], found["mean"], found["nonfinite"]) == (0, [], None)
