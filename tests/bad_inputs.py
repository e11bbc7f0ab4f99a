"""The bad inputs of test_bad_input.py: how each is made, how it is passed, what must be said."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

__all__ = ["CASES", "Case", "prepare"]

NET = """
from torch import nn

def build():
    return nn.Sequential(nn.Linear(6, 8), nn.Sigmoid(), nn.Linear(8, 3))

def wide():
    return nn.Sequential(nn.Linear(6, 9), nn.Sigmoid(), nn.Linear(9, 3))

def deep():
    return nn.Sequential(nn.Linear(6, 8), nn.Sigmoid(), nn.Linear(8, 3), nn.Linear(3, 3))

def shallow():
    return nn.Sequential(nn.Linear(6, 8))

def nothing():
    return None

def failing():
    raise RuntimeError("no such luck")

class Crashing(nn.Sequential):
    def forward(self, x):
        raise KeyError("inside forward")

def crashing():
    return Crashing(*build())

number = 3
"""
LFS_POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n"
RUN = ["--model", "net.py:build", "--data", "data.npz"]
LEARN = [*RUN, "--loss", "cross_entropy"]


class Payload:
    """Writes a file when unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("executed"),))


def prepare(folder: Path) -> None:
    """A good checkpoint, model and data set, and a report that must survive."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Sigmoid(), nn.Linear(8, 3))
    torch.save(model.state_dict(), folder / "good.pt")
    (folder / "net.py").write_text(NET)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((32, 6), dtype=np.float32), rng.integers(0, 3, 32)
    np.savez(folder / "data.npz", x=x, y=y)
    (folder / "out").mkdir()
    (folder / "out" / "report.html").write_text("the old report")


@dataclass(frozen=True)
class Case:
    """One bad input.

    Attributes:
        name: What is wrong.
        arguments: The command line.
        says: A regular expression found in the reason.
        make: Makes the bad file in the folder.
    """

    name: str
    arguments: list[str]
    says: str
    make: Callable[[Path], object] = lambda folder: None


def analyze(name: str, says: str, make: Callable[[Path], object], *more: str) -> Case:
    """A bad checkpoint, called ``bad``."""
    return Case(name, ["analyze", "bad", *more], says, make)


def with_data(name: str, says: str, **arrays: object) -> Case:
    """Arrays that do not fit the model or the loss."""

    def make(folder: Path) -> None:
        np.savez(folder / "bad.npz", **arrays)  # type: ignore[arg-type]

    arguments = ["analyze", "good.pt", "--model", "net.py:build", "--data", "bad.npz"]
    return Case(name, [*arguments, "--loss", "cross_entropy"], says, make)


def with_model(name: str, spec: str, says: str) -> Case:
    """A model that cannot take the weights, or is none."""
    return Case(name, ["analyze", "good.pt", "--model", spec, "--data", "data.npz"], says)


def text(content: str, name: str = "bad") -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


def raw(content: bytes, name: str = "bad") -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def truncated(folder: Path) -> None:
    whole = (folder / "good.pt").read_bytes()
    (folder / "bad").write_bytes(whole[: len(whole) // 2])


def escaping_shards(folder: Path) -> None:
    (folder / "bad").mkdir()
    index = {"weight_map": {"w": "../../secret.safetensors"}}
    (folder / "bad" / "model.safetensors.index.json").write_text(json.dumps(index))


def foreign_npz(folder: Path) -> None:
    np.savez(folder / "bad.npz", anything=np.zeros(3))


def object_npz(folder: Path) -> None:
    np.savez(folder / "bad.npz", x=np.array([Payload(), Payload()], dtype=object))


X = np.zeros((8, 6), np.float32)
Y = np.zeros(8, np.int64)

CHECKPOINTS = [
    analyze("missing file", "bad", lambda folder: None),
    analyze("empty file", "empty", raw(b"")),
    analyze("truncated file", "truncated|damaged|incomplete|cut", truncated),
    analyze("LFS pointer", "LFS", text(LFS_POINTER)),
    analyze("HTML page", "HTML", text("<!DOCTYPE html><html><body>404</body></html>")),
    analyze("random bytes", "bad", raw(bytes(range(7, 256)) * 9)),
    analyze(
        "code in a checkpoint",
        "touch|Path|code|pickle",
        lambda folder: torch.save({"state_dict": Payload()}, folder / "bad"),
    ),
    analyze("plain pickle", "pickle", raw(pickle.dumps({"w": Payload()}))),
    analyze("empty folder", "no weights|holds|empty", lambda folder: (folder / "bad").mkdir()),
    analyze("no tensors", "tensor", lambda folder: torch.save({"epoch": 3}, folder / "bad")),
    analyze(
        "safetensors header longer than the file",
        "header|bytes",
        raw(struct.pack("<Q", 2**40) + b"{}"),
    ),
    analyze("shards outside of the folder", r"\.\./", escaping_shards),
    Case("device file", ["analyze", "/dev/zero"], "file|device"),
    Case("unknown state", ["analyze", "good.pt", "--state", "ema"], "ema"),
]
MODELS = [
    with_model("no such model file", "nowhere.py:build", "nowhere.py"),
    with_model("no such factory", "net.py:absent", "absent"),
    with_model("no such package", "no_such_package:build", "no_such_package"),
    with_model("not a spec", "resnet", "resnet"),
    with_model("not callable", "net.py:number", "number|int"),
    with_model("not a module", "net.py:nothing", "NoneType|nothing"),
    with_model("failing factory", "net.py:failing", "no such luck"),
    with_model("failing forward", "net.py:crashing", "inside forward"),
    with_model("wrong shapes", "net.py:wide", r"0\.weight|shape"),
    with_model("missing keys", "net.py:deep", r"missing|3\.weight"),
    with_model("unexpected keys", "net.py:shallow", r"unexpected|2\.weight"),
    with_model("unknown activation", "mlp:sigmoidal", "sigmoidal"),
    Case(
        "syntax error in the model file",
        ["analyze", "good.pt", "--model", "bad.py:build", "--data", "data.npz"],
        r"bad\.py",
        text("def build(:\n", "bad.py"),
    ),
    Case("model without data", ["analyze", "good.pt", "--model", "net.py:build"], "--data"),
    Case("data without model", ["analyze", "good.pt", "--data", "data.npz"], "model"),
    Case("loss without data", ["analyze", "good.pt", "--loss", "mse"], "--loss"),
]

DATA = [
    with_data("label out of range", "3|label|class", x=X, y=np.full(8, 3)),
    with_data("negative label", "-2|label|class", x=X, y=np.full(8, -2)),
    with_data("loss without labels", "y|label|target", x=X),
    with_data("more labels than samples", "8.*5|5.*8", x=X, y=Y[:5]),
    with_data("no samples", "empty|no |0", x=X[:0], y=Y[:0]),
    with_data("no array x", "x", inputs=X, y=Y),
    with_data("wrong width", "5|shape", x=X[:, :5], y=Y),
    with_data("NaN in the inputs", "(?i)nan|finite", x=np.full_like(X, np.nan), y=Y),
    with_data("text for numbers", "dtype|<U|str", x=np.full((8, 6), "a"), y=Y),
    Case("objects in an npz", ["analyze", "good.pt", *RUN[:3], "bad.npz"], "bad.npz", object_npz),
    Case("no such data", ["analyze", "good.pt", *RUN[:3], "nowhere.npz"], "nowhere.npz"),
    Case(
        "npz that is none",
        ["analyze", "good.pt", *RUN[:3], "bad.npz"],
        "bad.npz",
        raw(b"PK\x03\x04 nothing", "bad.npz"),
    ),
    Case("no such data set", ["analyze", "good.pt", *RUN[:3], "imagenot"], "imagenot"),
    Case("no such data folder", ["analyze", "good.pt", *RUN[:3], "mnist:nowhere"], "nowhere"),
    Case("folder without images", ["analyze", "good.pt", *RUN[:3], "images:out"], "out|image"),
    Case("nonsense shape", ["analyze", "good.pt", *RUN[:3], "normal:3xx"], "3xx"),
    Case("unknown loss", ["analyze", "good.pt", *RUN, "--loss", "crossentropy"], "crossentropy"),
    Case("unknown device", ["analyze", "good.pt", *RUN, "--device", "abacus"], "abacus"),
    Case("device that is not there", ["analyze", "good.pt", *RUN, "--device", "cuda:97"], "cuda"),
    Case("bad normalisation", ["analyze", "good.pt", *RUN, "--normalize", "1/0"], "normal|1/0|std"),
]

SNAPSHOTS = [
    Case("no such snapshot", ["report", "nowhere.npz"], "nowhere.npz"),
    Case("folder as snapshot", ["report", "out"], "out"),
    Case("empty snapshot", ["report", "bad.npz"], "bad.npz", raw(b"", "bad.npz")),
    Case("npz of something else", ["report", "bad.npz"], "bad.npz", foreign_npz),
    Case("pickled snapshot", ["report", "bad.npz"], "bad.npz", object_npz),
    Case("checkpoint as snapshot", ["report", "good.pt"], "good.pt"),
]

CASES = [*CHECKPOINTS, *MODELS, *DATA, *SNAPSHOTS]
