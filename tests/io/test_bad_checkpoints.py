"""Bad checkpoints: what is wrong, what is said about it, and at what cost."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import pickle
import resource
import struct
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

from shiftscope.errors import LoadError
from shiftscope.io import load_checkpoint


def good() -> dict[str, torch.Tensor]:
    return nn.Linear(64, 64).state_dict()


def torch_bytes(content: object, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def raw(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def save_as(content: object, legacy: bool = False) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(torch_bytes(content, legacy))


def cut(content: bytes, share: float) -> Callable[[Path], object]:
    return raw(content[: int(len(content) * share)])


def folder(files: dict[str, bytes]) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        path.mkdir()
        for name, content in files.items():
            (path / name).write_bytes(content)

    return make


def index(weights: dict[str, str], **files: bytes) -> Callable[[Path], object]:
    content = json.dumps({"weight_map": weights}).encode()
    return folder({"model.safetensors.index.json": content, **files})


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def zip_of(files: dict[str, bytes], compress: bool = False) -> bytes:
    buffer = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tar_of(name: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo(name))
    return buffer.getvalue()


def claim_elements(count: int, legacy: bool) -> bytes:
    """A file whose storage says it has `count` elements."""
    data = torch_bytes({"w": torch.zeros(1000)}, legacy)
    old, new = b"M\xe8\x03", b"\x8a\x08" + struct.pack("<q", count)
    if legacy:
        return data.replace(old, new, 1)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    return zip_of({n: c.replace(old, new, 1) if n.endswith("pkl") else c for n, c in files.items()})


def bytearray_bomb() -> bytes:
    """A call that torch itself allows: bytearray(10**13)."""
    program = b"\x80\x02}X\x01\x00\x00\x00wcbuiltins\nbytearray\n\x8a\x06"
    program += (10**13).to_bytes(6, "little") + b"\x85Rs."
    return zip_of({"x/data.pkl": program, "x/version": b"3\n"})


def overlapping_zip() -> bytes:
    """Two directory entries that point at the same bytes."""
    data = bytearray(zip_of({"x/data.pkl": b"\x80\x02}." + bytes(4000), "x/data/0": bytes(4000)}))
    second = data.rindex(b"PK\x01\x02")
    data[second + 42 : second + 46] = struct.pack("<I", 0)
    data[second + 20 : second + 28] = struct.pack("<II", 6000, 6000)
    return bytes(data)


def doubled_zip() -> bytes:
    buffer = io.BytesIO(torch_bytes(good()))
    with zipfile.ZipFile(buffer, "a") as archive:
        name = archive.namelist()[0]
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr(name, b"\x80\x02}.")
    return buffer.getvalue()


def without_storage() -> bytes:
    with zipfile.ZipFile(io.BytesIO(torch_bytes(good()))) as archive:
        return zip_of({n: archive.read(n) for n in archive.namelist() if not n.endswith("data/0")})


def npz(path: Path) -> None:
    with path.open("wb") as stream:
        np.savez(stream, x=np.ones(3))


def script(path: Path) -> None:
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)


def dcp(state: dict[str, Any], change: Callable[[Path], object]) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        import torch.distributed.checkpoint as checkpoint

        with pytest.warns(UserWarning, match="single process"):
            checkpoint.save(state, checkpoint_id=path, no_dist=True)
        change(path)

    return make


def shorten(path: Path) -> None:
    (file,) = path.glob("*.distcp")
    os.truncate(file, file.stat().st_size // 2)


def escape(path: Path) -> None:
    file = path / ".metadata"
    name = next(path.glob("*.distcp")).name.encode()
    assert name in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(name, b"../" + name[3:]))


def self_reference(path: Path) -> None:
    content: dict[str, Any] = {"a": []}
    content["a"].append(content)
    torch.save(content, path)


@dataclass(frozen=True)
class Case:
    """What is wrong, how it is made, and a word of the reason and of the remedy."""

    name: str
    make: Callable[[Path], object]
    says: str
    remedy: str = ""


ZIP, LEGACY = torch_bytes(good()), torch_bytes(good(), legacy=True)
SAFE = save(good())
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"

CASES = [
    Case("absent", lambda path: None, "does not exist", "path"),
    Case("empty", raw(b""), "empty", "download"),
    Case("folder", folder({}), "holds no weights", "inside"),
    Case("device", lambda path: path.symlink_to("/dev/zero"), "no regular file"),
    Case("pipe", os.mkfifo, "no regular file"),
    Case("dangling link", lambda path: path.symlink_to("nowhere"), "does not exist"),
    Case("LFS pointer", raw(POINTER), "LFS pointer", "git lfs pull"),
    Case("HTML", raw(b"\n <!DOCTYPE html><html>"), "web page", "raw file"),
    Case("JSON error page", raw(b'{"error": "not found"}'), "text file"),
    Case("text", raw(b"hello\n"), "text file"),
    Case("random bytes", raw(bytes(range(7, 256)) * 9), "no known checkpoint format"),
    Case("one byte", raw(b"\x80"), "damaged"),
    Case("gzip", raw(b"\x1f\x8b\x08\x00rest"), "gzip", "decompress"),
    Case("HDF5", raw(b"\x89HDF\r\n\x1a\nrest"), "HDF5", "safetensors"),
    Case("GGUF", raw(b"GGUFrest"), "GGUF", "original"),
    Case("npy", raw(b"\x93NUMPYrest"), "NumPy array"),
    Case("npz", npz, "npz", "--data"),
    Case("other zip", raw(zip_of({"readme.txt": b"x"})), "without data.pkl", "unpack"),
    Case("other tar", raw(tar_of("model.pth")), "tar archive", "tar xf"),
    Case("legacy tar", raw(tar_of("storages")), "first format", "re-save"),
    Case("cut zip", cut(ZIP, 0.5), "truncated", "download"),
    Case("cut zip, a little", cut(ZIP, 0.99), "truncated", "download"),
    Case("cut legacy", cut(LEGACY, 0.5), "truncated", "download"),
    Case("cut legacy, in the pickle", cut(LEGACY, 0.01), "truncated", "download"),
    Case("cut safetensors", cut(SAFE, 0.5), "truncated", "download"),
    Case("cut safetensors, in the header", cut(SAFE, 0.005), "truncated", "download"),
    Case("storage missing in zip", raw(without_storage()), "missing from the archive"),
    Case("plain pickle", raw(pickle.dumps({"w": [1.0]})), "plain pickle", "state_dict"),
    Case("module", save_as(nn.Sequential(nn.Linear(2, 2))), "Sequential", "state_dict"),
    Case("namespace", save_as({"a": argparse.Namespace(b=1)}), "argparse.Namespace", "trust"),
    Case("namespace, legacy", save_as({"a": argparse.Namespace()}, True), "argparse.Namespace"),
    Case("torchscript", script, "TorchScript", "torch.jit.load"),
    Case("no tensors", save_as({"epoch": 3, "loss": [1.0]}), "no named tensors: .*'epoch'"),
    Case("empty dictionary", save_as({}), "an empty dictionary", "state_dict"),
    Case("a tensor", save_as(torch.ones(3)), "no named tensors: a Tensor"),
    Case("optimizer only", save_as(torch.optim.Adam([torch.ones(2)]).state_dict()), "no named"),
    Case("self-reference", self_reference, "no named tensors"),
    Case("terabyte storage", raw(claim_elements(2**40, False)), r"declares 4\.4 TB"),
    Case("terabyte storage, legacy", raw(claim_elements(2**40, True)), r"declares 4\.4 TB"),
    Case("storage a little long", raw(claim_elements(1001, False)), "declares 4 kB but holds 4"),
    Case("terabyte view", save_as({"w": torch.zeros(1).expand(2**20, 2**20)}), r"4\.4 TB"),
    Case("bytearray bomb", raw(bytearray_bomb()), "declares 80 TB"),
    Case(
        "zip bomb",
        raw(zip_of({"x/data.pkl": bytes(2**27), "x/version": b"3"}, compress=True)),
        "zip directory declares 134 MB",
    ),
    Case("overlapping members", raw(overlapping_zip()), "overlap"),
    Case("repeated member", lambda path: path.write_bytes(doubled_zip()), "twice"),
    Case("header bomb", raw(struct.pack("<Q", 2**62) + b'{"w'), "header of 4611686018427387904"),
    Case("broken header", raw(safetensors(b'{"w": [1,')), "damaged"),
    Case("lying offsets", raw(safetensors({"w": tensor([4], 0, 2**40)}, b"\0" * 16)), "damaged"),
    Case("lying shape", raw(safetensors({"w": tensor([2**40], 0, 16)}, b"\0" * 16)), "damaged"),
    Case("unknown type", raw(safetensors({"w": tensor([4], 0, 4, "Q8")}, b"\0" * 4)), "damaged"),
    Case("no tensors in safetensors", raw(safetensors({})), "no named tensors"),
    Case("shard above", index({"w": "../x.safetensors"}), r"outside of its folder: '\.\./x"),
    Case("shard at a root", index({"w": "/etc/passwd"}), "outside of its folder"),
    Case("shard on a drive", index({"w": "C:\\x.safetensors"}), "outside of its folder"),
    Case("shard absent", index({"w": "a.safetensors"}), "not beside it", "all shards"),
    Case(
        "tensor absent in its shard",
        index({"other": "a.safetensors"}, **{"a.safetensors": SAFE}),
        "does not hold it",
    ),
    Case("index without map", folder({"model.safetensors.index.json": b"{}"}), "text file"),
    Case("metadata of nothing", folder({".metadata": b"\x80\x02}."}), "would call dict"),
    Case("cut metadata", folder({".metadata": b"\x80\x04\x95\x10"}), "not metadata"),
    Case("cut DCP data", dcp(good(), shorten), "ends at byte", "copy the whole folder"),
    Case("DCP file above", dcp(good(), escape), "outside of its folder"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_checkpoint(tmp_path: Path, case: Case) -> None:
    path = tmp_path / "bad"
    case.make(path)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    with pytest.raises(LoadError, match=case.says) as caught:
        load_checkpoint(path)
    assert time.perf_counter() - start < 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 300_000
    assert "\n" not in caught.value.reason + caught.value.remedy
    assert str(path) in caught.value.reason
    assert case.remedy in caught.value.remedy
    assert caught.value.remedy


def test_the_files_that_the_cases_damage_are_good(tmp_path: Path) -> None:
    for name, content in (("zip", ZIP), ("legacy", LEGACY), ("safe", SAFE)):
        (tmp_path / name).write_bytes(content)
        assert len(load_checkpoint(tmp_path / name).state) == 2


@pytest.mark.parametrize("share", np.linspace(0.02, 0.98, 25))
@pytest.mark.parametrize("content", [ZIP, LEGACY, SAFE], ids=["zip", "legacy", "safetensors"])
def test_any_truncation_is_told(tmp_path: Path, content: bytes, share: float) -> None:
    cut(content, share)(tmp_path / "bad")
    with pytest.raises(LoadError) as caught:
        load_checkpoint(tmp_path / "bad")
    assert caught.value.remedy


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("content", [ZIP, LEGACY, SAFE], ids=["zip", "legacy", "safetensors"])
def test_flipped_bytes_never_crash(tmp_path: Path, content: bytes, seed: int) -> None:
    """Damage in the structure gives a LoadError or, where it hits a value, other weights."""
    rng = np.random.default_rng(seed)
    data = bytearray(content)
    for place in rng.integers(0, min(len(data), 2000), 4):
        data[place] = rng.integers(256)
    (tmp_path / "bad").write_bytes(bytes(data))
    with contextlib.suppress(LoadError):
        assert load_checkpoint(tmp_path / "bad").state


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads anything")
def test_unreadable_file(tmp_path: Path) -> None:
    save_file(good(), tmp_path / "x")
    (tmp_path / "x").chmod(0)
    with pytest.raises(LoadError, match="cannot be read"):
        load_checkpoint(tmp_path / "x")


def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    failed: list[LoadError] = []

    def load() -> None:
        try:
            load_checkpoint(tmp_path / "pipe")
        except LoadError as error:
            failed.append(error)

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    thread.join(5)
    assert len(failed) == 1


def test_a_name_with_nul_is_told(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="no usable path"):
        load_checkpoint("a\0b")
