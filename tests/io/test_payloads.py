"""A checkpoint that wants to run code does not get to, whatever it is dressed as."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from shiftscope.errors import LoadError
from shiftscope.io import load_checkpoint, load_data, load_model


class Payload:
    """Makes a folder when unpickled: harmless, and seen at once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def zip_file(path: Path, payload: Any) -> None:
    torch.save({"state_dict": {"w": torch.ones(2)}, "extra": payload}, path)


def legacy(path: Path, payload: Any) -> None:
    torch.save({"w": torch.ones(2), "x": payload}, path, _use_new_zipfile_serialization=False)


def legacy_head(path: Path, payload: Any) -> None:
    """The payload stands where the system information should be."""
    legacy(path, 0)
    data = path.read_bytes()
    stream = io.BytesIO(data)
    pickle.load(stream)
    pickle.load(stream)
    place = stream.tell()
    pickle.load(stream)
    rest = data[stream.tell() :]
    path.write_bytes(data[:place] + pickle.dumps(payload, 2) + rest)


def legacy_tail(path: Path, payload: Any) -> None:
    """The payload stands where the list of storage keys should be."""
    torch.save({"w": 1}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().removesuffix(pickle.dumps([], 2)) + pickle.dumps(payload, 2))


def bare(path: Path, payload: Any) -> None:
    path.write_bytes(pickle.dumps({"w": payload}))


def bare_old(path: Path, payload: Any) -> None:
    path.write_bytes(pickle.dumps({"w": payload}, protocol=0))


def tar(path: Path, payload: Any) -> None:
    """The layout of torch 0.1: a tar with storages, tensors and a pickle."""
    with tarfile.open(path, "w") as archive:
        for name, content in (("storages", 0), ("tensors", 0), ("pickle", payload)):
            data = pickle.dumps(content, 2)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def torchscript(path: Path, payload: Any) -> None:
    """An archive that torch.load would hand to torch.jit.load, with a pickle in it."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl"):
            archive.writestr(f"x/{name}", pickle.dumps(payload, 2))


def dcp_metadata(path: Path, payload: Any) -> None:
    path.mkdir()
    (path / ".metadata").write_bytes(pickle.dumps(payload))


def dcp_inside(path: Path, payload: Any) -> None:
    from torch.distributed.checkpoint.metadata import Metadata

    path.mkdir()
    whole = Metadata(state_dict_metadata={"w": payload}, storage_data={}, planner_data=payload)
    (path / ".metadata").write_bytes(pickle.dumps(whole))


def shard(path: Path, payload: Any) -> None:
    path.mkdir()
    torch.save({"w": payload}, path / "a.bin")
    index = {"weight_map": {"w": "a.bin"}}
    (path / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def exported_member(name: str, protocol: int | None = None) -> Callable[[Path, Any], None]:
    """A program one member of which is a torch archive, or a pickle of a protocol."""

    def make(path: Path, payload: Any) -> None:
        program = torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),))
        good = path.with_name("good.pt2")
        torch.export.save(program, good)
        buffer = io.BytesIO()
        if protocol is None:
            torch.save(payload, buffer)
        else:
            buffer.write(pickle.dumps(payload, protocol))
        with (
            zipfile.ZipFile(good) as source,
            zipfile.ZipFile(path, "w") as target,
        ):
            for member in source.namelist():
                evil = member.partition("/")[2] == name
                target.writestr(member, buffer.getvalue() if evil else source.read(member))
            if name not in {member.partition("/")[2] for member in source.namelist()}:
                folder = source.namelist()[0].partition("/")[0]
                target.writestr(f"{folder}/{name}", buffer.getvalue())

    return make


MAKERS: dict[str, Callable[[Path, Any], None]] = {
    "zip": zip_file,
    "legacy": legacy,
    "legacy head": legacy_head,
    "legacy tail": legacy_tail,
    "bare": bare,
    "bare, protocol 0": bare_old,
    "tar": tar,
    "torchscript": torchscript,
    "dcp": dcp_metadata,
    "dcp inside": dcp_inside,
    "shard": shard,
    "exported, sample inputs": exported_member("data/sample_inputs/model.pt"),
    "exported, sample inputs, protocol 0": exported_member("data/sample_inputs/model.pt", 0),
    "exported, weights": exported_member("data/weights/model.pt", 2),
    "exported, opaque object": exported_member("data/constants/opaque_obj_0", 2),
}


@pytest.mark.parametrize("suffix", ["", ".pt", ".safetensors", ".pt2", ".ckpt"])
@pytest.mark.parametrize("name", MAKERS)
def test_no_code_runs(tmp_path: Path, name: str, suffix: str) -> None:
    trap, path = tmp_path / "ran", tmp_path / f"bad{suffix}"
    MAKERS[name](path, Payload(trap))
    with pytest.raises(LoadError) as caught:
        load_checkpoint(path)
    assert not trap.exists()
    assert caught.value.remedy


def test_the_trap_works(tmp_path: Path) -> None:
    """The payload does run where pickles are trusted: the tests above can fail."""
    trap = tmp_path / "ran"
    zip_file(tmp_path / "x", Payload(trap))
    with pytest.raises(LoadError, match="mkdir"):
        load_checkpoint(tmp_path / "x")
    checkpoint = load_checkpoint(tmp_path / "x", trust_pickle=True)
    assert trap.is_dir()
    assert list(checkpoint.state) == ["w"]


def test_trusted_tar_runs_and_untrusted_does_not(tmp_path: Path) -> None:
    trap = tmp_path / "ran"
    tar(tmp_path / "x", Payload(trap))
    with pytest.raises(LoadError, match="tar of torch's first format"):
        load_checkpoint(tmp_path / "x")
    assert not trap.exists()


def test_trusted_module_is_the_model(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
    torch.save(model, tmp_path / "x")
    with pytest.raises(LoadError, match=r"whole pickled module.*Sequential"):
        load_checkpoint(tmp_path / "x")
    checkpoint = load_checkpoint(tmp_path / "x", trust_pickle=True)
    loaded = load_model(None, checkpoint)
    assert loaded.model is checkpoint.module
    assert torch.equal(checkpoint.state["0.weight"], model[0].weight)


def test_object_arrays_in_data_do_not_run(tmp_path: Path) -> None:
    import numpy as np

    trap = tmp_path / "ran"
    np.savez(tmp_path / "x.npz", x=np.array([Payload(trap)], dtype=object))
    with pytest.raises(LoadError, match="Python objects"):
        load_data("x.npz", base=tmp_path)
    assert not trap.exists()


def test_cifar_batches_do_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "ran"
    batch = {b"data": Payload(trap), b"labels": [1]}
    (tmp_path / "test_batch").write_bytes(pickle.dumps(batch, 2))
    with pytest.raises(LoadError, match="no batch of CIFAR"):
        load_data(f"cifar10:{tmp_path}")
    assert not trap.exists()
