"""The order of data: fixed by the seed, each row once, shared among processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_cases import gather

from shiftscope.io import load_data


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
