"""Data on disk in small: pixels, IDX files, images, loaders of a user; what comes out of them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from shiftscope.io import LoadedData

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


X, Y = np.ones((8, 6), np.float32), np.zeros(8, np.int64)


def images(folder: Path) -> None:
    for i, size in enumerate(((4, 4), (5, 4))):
        (folder / "i" / "a").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(folder / "i" / "a" / f"{i}.png")


def sprite(folder: Path) -> None:
    Image.new("L", (10, 10)).save(folder / "s.png")


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
