"""Traces: saved and loaded whole, bounded, merged by the rules of their snapshots."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import shiftscope as ss
from shiftscope.trace import Trace, Window


@pytest.fixture(scope="module")
def snapshots() -> list[ss.Snapshot]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    return [ss.analyze(model, [torch.randn(40, 4) + k]) for k in range(6)]


def windows(snapshots: list[ss.Snapshot]) -> list[Window]:
    return [Window(k, k, "train", snapshot) for k, snapshot in enumerate(snapshots)]


def test_a_trace_is_saved_and_loaded(snapshots: list[ss.Snapshot], tmp_path: Path) -> None:
    trace = Trace([*windows(snapshots[:3]), Window(3, 5, "eval", snapshots[3])])
    trace.save(tmp_path / "run.npz")
    loaded = ss.load(tmp_path / "run.npz")
    assert isinstance(loaded, Trace)
    assert loaded.steps == trace.steps == (0, 1, 2, 3)
    assert [w.phase for w in loaded] == ["train"] * 3 + ["eval"]
    for name in ("sites", "neurons"):
        pd.testing.assert_frame_equal(getattr(loaded, name), getattr(trace, name))
    assert loaded.next_step == 6


def test_older_windows_keep_their_tables(snapshots: list[ss.Snapshot]) -> None:
    trace = Trace(windows(snapshots))
    for window, snapshot in zip(trace, snapshots, strict=True):
        pd.testing.assert_frame_equal(window.snapshot.neurons, snapshot.neurons)
        one = window.snapshot.sites.drop(columns=["shift_share_se", "sample_rows"])
        other = snapshot.sites.drop(columns=["shift_share_se", "sample_rows"])
        pd.testing.assert_frame_equal(one, other)
    kept = trace[0].snapshot.records["0"].streams
    assert kept["z"].sample is not None
    assert kept["z"].sample.kept == 20
    assert kept["a"].sample is None


def test_the_long_table_names_step_and_phase(snapshots: list[ss.Snapshot]) -> None:
    sites = Trace(windows(snapshots[:2])).sites
    assert list(sites.columns[:4]) == ["step", "step_last", "phase", "site"]
    assert list(sites.step) == [0, 0, 0, 1, 1, 1]


def test_merging_averages_the_snapshots(snapshots: list[ss.Snapshot]) -> None:
    merged = Trace(windows(snapshots)).merge()
    want = snapshots[0]
    for snapshot in snapshots[1:]:
        want = want.join(snapshot)
    columns = ["count", "z_mean", "z_var"]
    np.testing.assert_allclose(merged.neurons[columns], want.neurons[columns], rtol=1e-12)


@pytest.mark.parametrize("length", [60, 200, 333])
def test_a_long_trace_keeps_true_windows_evenly(length: int, snapshots: list[ss.Snapshot]) -> None:
    trace = Trace(limit=16)
    for k in range(length):
        trace.append(Window(k, k, "train" if k % 5 else "eval", snapshots[k % 6]))
    assert len(trace) == 16
    assert trace.next_step == length
    for phase, first in (("train", 1), ("eval", 0)):
        steps = trace.phase(phase).steps
        assert steps[0] == first
        assert steps[-1] == max(k for k in range(length) if (k % 5 > 0) == (phase == "train"))
    gaps = np.diff(trace.phase("train").steps)
    assert gaps.max() <= 4 * max(gaps.min(), length / 16)
    for window in trace:
        assert window.first == window.last
        want = snapshots[window.first % 6].sites.z_mean
        np.testing.assert_array_equal(window.snapshot.sites.z_mean, want)


def test_a_long_trace_keeps_where_values_ceased_to_be_finite(
    snapshots: list[ss.Snapshot],
) -> None:
    sick = replace(
        snapshots[0],
        records={
            name: replace(record, lost_since={"z": 37}) if name == "0" else record
            for name, record in snapshots[0].records.items()
        },
    )
    trace = Trace(limit=8)
    for k in range(200):
        trace.append(Window(k, k, "train", sick if k >= 37 else snapshots[k % 6]))
    assert {36, 37} <= set(trace.steps)


def test_the_steps_of_a_run_outlast_the_recorded_ones(
    snapshots: list[ss.Snapshot], tmp_path: Path
) -> None:
    trace = Trace(windows(snapshots[:2]))
    trace.steps_done = 90
    trace.save(tmp_path / "t.npz")
    assert Trace.load(tmp_path / "t.npz").next_step == trace.next_step == 90


def test_an_empty_trace_says_so() -> None:
    trace = Trace()
    assert (len(trace), trace.next_step, repr(trace)) == (0, 0, "Trace(empty)")
    assert list(trace.sites.columns) == ["step"]
    for use in (lambda: trace.last, trace.merge):
        with pytest.raises(ss.UsageError, match="no window"):
            use()


def test_the_last_training_window_is_diagnosed(snapshots: list[ss.Snapshot]) -> None:
    trace = Trace([*windows(snapshots[:2]), Window(2, 2, "eval", snapshots[2])])
    assert trace.last is snapshots[1]
    assert isinstance(ss.diagnose(trace), list)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a trace"])
def test_damaged_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    for read in (Trace.load, ss.load):
        with pytest.raises(ss.LoadError):
            read(path)


def test_newer_traces_and_pickles_are_refused(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return (Path(tmp_path / "ran").touch, ())

    evil = tmp_path / "evil.npz"
    np.savez(evil, manifest=np.array([Payload()], dtype=object), allow_pickle=True)
    with pytest.raises(ss.LoadError):
        ss.load(evil)
    assert not (tmp_path / "ran").exists()
    text = b'{"format": "shiftscope-trace", "schema_version": 99, "limit": 9, "windows": []}'
    newer = tmp_path / "newer.npz"
    np.savez(newer, manifest=np.frombuffer(text, dtype=np.uint8))
    with pytest.raises(ss.LoadError, match="99"):
        ss.load(newer)
