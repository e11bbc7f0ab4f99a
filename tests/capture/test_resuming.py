"""A run that goes on from an earlier part of it, and what is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from watch_cases import SGD, hooks_left, network, train

import shiftscope as ss


def test_a_run_goes_on_from_a_file(tmp_path: Path) -> None:
    model = network()
    train(model).trace.save(tmp_path / "run.npz")
    for path in (tmp_path / "run.npz", str(tmp_path / "run.npz")):
        assert train(model, resume=path).trace.steps == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("missing.npz", "cannot read .*No such file"),
        ("folder", "cannot read .*Is a directory"),
        ("empty.npz", "not a readable shiftscope trace"),
        ("one.npz", r"not a readable shiftscope trace \(it is a shiftscope-snapshot\)"),
        ("cut.npz", r"not a readable shiftscope trace"),
        ("weights.pt", "not a readable shiftscope trace"),
        ("newer.npz", "has trace schema 99"),
    ],
)
def test_a_file_without_a_run_is_told_as_one(name: str, says: str, tmp_path: Path) -> None:
    model = network()
    trace = train(model).trace
    trace.save(tmp_path / "run.npz")
    trace.last.save(tmp_path / "one.npz")
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.npz").touch()
    (tmp_path / "cut.npz").write_bytes((tmp_path / "run.npz").read_bytes()[:-200])
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    text = b'{"format": "shiftscope-trace", "schema_version": 99, "limit": 9, "windows": []}'
    np.savez(tmp_path / "newer.npz", manifest=np.frombuffer(text, dtype=np.uint8))
    with pytest.raises(ss.LoadError, match=says) as caught:
        ss.watch(model, resume=tmp_path / name)
    told = "update shiftscope" if name == "newer.npz" else r"trace\.save\(.*on the first start"
    assert caught.match(told)
    assert "snapshot.npz" not in caught.value.remedy
    assert hooks_left(model) == 0


def test_a_snapshot_is_no_run() -> None:
    model = network()
    with pytest.raises(ss.UsageError, match="resume is a Snapshot, expected a trace") as caught:
        ss.watch(model, resume=train(model).trace.last)  # type: ignore[arg-type]
    assert "on the first start" in caught.value.remedy


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (lambda: network(7), "site '0' has 5 neurons, here it has 7"),
        (lambda: nn.ModuleDict({"head": network()})["head"].append(nn.ReLU()), None),
        (lambda: nn.Sequential(network()), "its sites are 0, 1, 2, here are 0.0, 0.1, 0.2"),
        (lambda: network(7, nn.Linear(7, 2)), "5 neurons"),
    ],
)
def test_the_trace_of_another_model_is_refused(other: Any, says: str | None) -> None:
    trace, model = train(network()).trace, other()
    if says is None:
        assert train(model, resume=trace).trace.steps == (0, 1, 2, 3)
        return
    with pytest.raises(ss.UsageError, match=says):
        train(model, resume=trace)
    assert trace.steps == (0, 1)
    assert hooks_left(model) == 0


class Sliced(nn.Module):
    """Uses some rows of its weight, as slimmable networks do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc, self.width = nn.Linear(4, 8), width

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.fc.weight[: self.width])


def test_widths_that_only_a_step_tells_are_refused_by_it() -> None:
    trace = train(Sliced(5)).trace
    assert train(Sliced(5), resume=trace).trace.steps == (0, 1, 2, 3)
    model = Sliced(6)
    with pytest.raises(ss.UsageError, match="has 5 neurons, here it has 6"):
        train(model, resume=trace)
    assert (len(trace), hooks_left(model)) == (4, 0)


def test_other_patterns_may_be_watched_from_there_on() -> None:
    model = network()
    trace = train(model, sites="0").trace
    assert set(train(model, sites="2", resume=trace).trace.last.records) == {"2"}


def test_a_model_may_change_within_a_run() -> None:
    """Only the first window after a resumption is compared with what was before."""
    model = Sliced(5)
    trace = train(model).trace
    optimizer = SGD(model.parameters(), lr=0.1)
    with ss.watch(model, optimizer, every=1, window=1, resume=trace) as probe:
        for model.width in (5, 6):
            model(torch.ones(3, 4)).square().mean().backward()
            optimizer.step()
    widths = [{r.info.neurons for r in w.snapshot.records.values()} for w in probe.trace]
    assert [*map(max, widths)] == [5, 5, 5, 6]
