"""Snapshots: saved, loaded, merged; the same numbers each time."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import shiftscope as ss
from shiftscope.archive import snapshots


def snapshot(rows: int = 300, seed: int = 0) -> ss.Snapshot:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 8), nn.Sigmoid(), nn.Linear(8, 3))
    x = torch.rand(rows, 5, generator=torch.Generator().manual_seed(1))
    y = torch.arange(rows) % 3
    data = list(zip(x.split(100), y.split(100), strict=True))
    return ss.analyze(model, data, nn.functional.cross_entropy, inputs={"mean": 0.5})


def assert_same_tables(one: ss.Snapshot, other: ss.Snapshot) -> None:
    for table in ("sites", "neurons", "input_neurons"):
        pd.testing.assert_frame_equal(getattr(one, table), getattr(other, table))


def test_a_saved_snapshot_is_the_same(tmp_path: Path) -> None:
    before = snapshot()
    before.save(tmp_path / "run.npz")
    after = ss.load(tmp_path / "run.npz")
    assert_same_tables(before, after)
    assert after.gaps == before.gaps
    assert after.manifest == before.manifest
    assert after.coverage == before.coverage
    assert after.inputs == before.inputs
    for site, picture in before.pictures.items():
        for key, values in picture.items():
            np.testing.assert_array_equal(after.pictures[site][key], values)


def test_what_is_printed_of_one_is_short() -> None:
    whole = snapshot()
    assert repr(whole) == "Snapshot(3 sites, 300 samples)"
    assert repr(ss.Snapshot({}, (("rnn", "fused"),))) == "Snapshot(1 gap)"
    assert len(repr(ss.compare(whole, whole))) < 5000


def test_tables_survive_a_thinned_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "SAMPLE_BUDGET", 4000)
    before = snapshot()
    before.save(tmp_path / "run.npz")
    after = ss.load(tmp_path / "run.npz")
    held = after.records["0"].streams["z"].sample
    assert held is not None
    assert held.rows.shape[0] < 100
    assert_same_tables(before, after)
    after.save(tmp_path / "again.npz")
    assert_same_tables(before, ss.load(tmp_path / "again.npz"))


def test_the_file_holds_no_pickle(tmp_path: Path) -> None:
    snapshot().save(tmp_path / "run.npz")
    with zipfile.ZipFile(tmp_path / "run.npz") as file:
        for name in file.namelist():
            header = file.read(name)[:200]
            assert b"'|O'" not in header
    with np.load(tmp_path / "run.npz", allow_pickle=False) as data:
        manifest = json.loads(bytes(data["manifest"]))
    assert manifest["schema_version"] == snapshots.SCHEMA_VERSION


def test_merged_snapshots_are_that_of_all_rows() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Sigmoid(), nn.Linear(8, 3)).double()
    x = torch.rand(60, 5, dtype=torch.float64)
    parts = [ss.analyze(model, [part]) for part in x.split(20)]
    merged = parts[0].merge(parts[1]).merge(parts[2])
    whole = ss.analyze(model, [x])
    numbers = whole.neurons.select_dtypes("number").columns.difference(["z_q50"])
    quantiles = [column for column in numbers if "_q" in column]
    exact = numbers.difference(quantiles)
    np.testing.assert_allclose(
        merged.neurons[exact].to_numpy(), whole.neurons[exact].to_numpy(), rtol=1e-11, atol=1e-14
    )
    assert merged.manifest["samples"] == 60


def test_sites_of_other_widths_do_not_merge() -> None:
    one, other = (ss.analyze(nn.Linear(3, width), [torch.rand(4, 3)]) for width in (2, 5))
    with pytest.raises(ss.UsageError, match="2 neurons in one snapshot and 5"):
        one.merge(other)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"\x93NUMPY\x01\x00", b"text"])
def test_damaged_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    path.write_bytes(content)
    with pytest.raises(ss.LoadError, match=r"run\.npz") as caught:
        ss.load(path)
    assert caught.value.remedy


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    snapshot(100).save(tmp_path / "run.npz")
    content = (tmp_path / "run.npz").read_bytes()
    for share in np.linspace(0.05, 0.99, 12):
        (tmp_path / "cut.npz").write_bytes(content[: int(len(content) * share)])
        with pytest.raises(ss.LoadError):
            ss.load(tmp_path / "cut.npz")


def test_nothing_stands_before_or_behind_a_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    snapshot(100).save(path)
    content = path.read_bytes()
    for changed in (b"junk" + content, content + b"junk", content + content):
        path.write_bytes(changed)
        with pytest.raises(ss.LoadError, match="cut off, or something was added"):
            ss.load(path)


def test_flipped_bytes_are_refused_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    whole = snapshot(100)
    whole.save(path)
    content, refused = path.read_bytes(), 0
    for place in np.linspace(0, len(content) - 1, 200).astype(int):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        try:
            pd.testing.assert_frame_equal(ss.load(path).sites, whole.sites)
        except ss.LoadError:
            refused += 1
    assert refused > 100


def test_a_newer_schema_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "SCHEMA_VERSION", 99)
    snapshot(100).save(tmp_path / "run.npz")
    monkeypatch.undo()
    with pytest.raises(ss.LoadError, match="schema 99"):
        ss.load(tmp_path / "run.npz")


def test_a_missing_file_and_another_npz(tmp_path: Path) -> None:
    with pytest.raises(ss.LoadError, match="nowhere"):
        ss.load(tmp_path / "nowhere.npz")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(ss.LoadError, match="not a readable"):
        ss.load(tmp_path / "other.npz")


def forged(path: Path, change: Any) -> None:
    """A whole archive whose content was changed by somebody else's hand."""
    with np.load(path) as archive:
        arrays = dict(archive)
    manifest = json.loads(bytes(arrays.pop("manifest")).decode())
    change(manifest, arrays)
    text = np.frombuffer(json.dumps(manifest).encode(), dtype=np.uint8)
    np.savez(path, manifest=text, **arrays)


MEAN, M2 = "z/moments.mean|float64", "z/moments.m2|float64"
ACTIVE, GROUP = "z/counts.active|int64", "weights/group|int64"
FORGERIES: dict[str, Any] = {
    "half an array": lambda m, a: a.update({M2: a[M2][:2]}),
    "words": lambda m, a: a.update({MEAN: a[MEAN].astype("U")}),
    "no rows": lambda m, a: m["shapes"][0].update({MEAN: [0]}),
    "neurons": lambda m, a: m["sites"][0]["info"].update(neurons=2.5),
    "other neurons": lambda m, a: m["sites"][0]["info"].update(neurons=2),
    "site": lambda m, a: m["sites"][0]["info"].update(site=None),
    "a flat mu": lambda m, a: m["shapes"][0].update({"weights/mu|float64": [4]}),
    "groups": lambda m, a: a.update({GROUP: a[GROUP] + 7}),
    "counts": lambda m, a: a.update({ACTIVE: a[ACTIVE] - 10**6}),
    "quantiles": lambda m, a: m["shapes"][0].update({"quantiles/z|float64": [1, 5]}),
    "manifest": lambda m, a: m.update(manifest=[1]),
    "coverage": lambda m, a: m.update(coverage=True),
    "gaps": lambda m, a: m.update(gaps=3),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_parts_that_do_not_go_together_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    snapshot(100).save(path)
    forged(path, lambda manifest, arrays: None)
    assert isinstance(ss.load(path), ss.Snapshot)
    forged(path, FORGERIES[name])
    with pytest.raises(ss.LoadError, match="not a readable"):
        ss.load(path)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no /dev/zero")
def test_a_device_is_not_read_for_ever() -> None:
    with pytest.raises(ss.LoadError, match="is a device"):
        ss.load("/dev/zero")
