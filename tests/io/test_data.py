"""Data SPECs: right values from every source, normalised as told."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from data_cases import LABELS, PIXELS, RNG, gather, idx, same_rows
from PIL import Image
from safetensors.torch import save_file
from support import shared_path

from shiftscope.io import load_data


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
