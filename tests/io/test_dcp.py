"""Distributed checkpoints are read whole, from one file or many, without torch's own reader."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from shiftscope.errors import LoadError
from shiftscope.io import load_checkpoint


def save(state: dict[str, Any], path: Path) -> None:
    with pytest.warns(UserWarning, match="single process"):
        dcp.save(state, checkpoint_id=path, no_dist=True)


def test_plain_state(tmp_path: Path) -> None:
    state = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)).state_dict()
    save(state, tmp_path / "x")
    checkpoint = load_checkpoint(tmp_path / "x")
    assert checkpoint.format == "distributed checkpoint"
    assert checkpoint.state.keys() == state.keys()
    assert all(torch.equal(checkpoint.state[name], state[name]) for name in state)


def test_training_state(tmp_path: Path) -> None:
    model = nn.Linear(4, 8)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    save({"model": model.state_dict(), "optim": optimizer.state_dict(), "epoch": 3}, tmp_path / "x")
    checkpoint = load_checkpoint(tmp_path / "x")
    assert checkpoint.wrapping == "dict['model']"
    assert list(checkpoint.state) == ["weight", "bias"]
    assert torch.equal(checkpoint.state["weight"], model.weight)
    assert "no tensors" in checkpoint.notes[0]


def sharded(path: Path, pieces: dict[tuple[int, ...], Tensor], size: tuple[int, ...]) -> None:
    """One tensor whose pieces lie in files of their own, as several ranks write it."""
    path.mkdir()
    places: dict[MetadataIndex, _StorageInfo] = {}
    chunks = []
    for rank, (offsets, piece) in enumerate(pieces.items()):
        buffer = io.BytesIO()
        torch.save(piece.clone(), buffer)
        file = f"__{rank}_0.distcp"
        (path / file).write_bytes(b"padding" + buffer.getvalue())
        length = len(buffer.getvalue())
        places[MetadataIndex("w", torch.Size(offsets))] = _StorageInfo(file, 7, length)
        chunks.append(ChunkStorageMetadata(torch.Size(offsets), piece.shape))
    properties = TensorProperties(dtype=torch.bfloat16)
    record = TensorStorageMetadata(properties, torch.Size(size), chunks)
    whole = Metadata({"w": record}, storage_data=places)
    (path / ".metadata").write_bytes(pickle.dumps(whole))


def test_pieces_of_several_ranks_are_put_together(tmp_path: Path) -> None:
    whole = torch.arange(20, dtype=torch.bfloat16).view(4, 5)
    pieces = {(0, 0): whole[:2, :3], (0, 3): whole[:2, 3:], (2, 0): whole[2:]}
    sharded(tmp_path / "x", pieces, (4, 5))
    found = load_checkpoint(tmp_path / "x").state["w"]
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, whole)


def test_a_missing_piece_is_told(tmp_path: Path) -> None:
    sharded(tmp_path / "x", {(0, 0): torch.ones(2, 5)}, (4, 5))
    with pytest.raises(LoadError, match="'w' has 10 of its 20 values"):
        load_checkpoint(tmp_path / "x")


def test_a_piece_beyond_its_tensor_is_told(tmp_path: Path) -> None:
    sharded(tmp_path / "x", {(3, 0): torch.ones(2, 5)}, (4, 5))
    with pytest.raises(LoadError, match="does not fit"):
        load_checkpoint(tmp_path / "x")


def test_a_terabyte_is_not_allocated(tmp_path: Path) -> None:
    sharded(tmp_path / "x", {(0, 0): torch.ones(2, 5)}, (2**20, 2**20))
    with pytest.raises(LoadError, match=r"declares 2\.2 TB"):
        load_checkpoint(tmp_path / "x")


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    sharded(tmp_path / "x", {(0, 0): torch.ones(4, 5)}, (4, 5))
    (tmp_path / "x" / "__0_0.distcp").unlink()
    with pytest.raises(LoadError, match="does not exist"):
        load_checkpoint(tmp_path / "x")
