"""A user's own loaders: right rows, repeatable, the global state left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from data_cases import X, gather, same_rows, sprite
from PIL import Image

from shiftscope.io import input_statistics, load_data

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
