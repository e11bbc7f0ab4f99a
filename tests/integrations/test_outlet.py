"""The outlet in a training loop: a sink that fails ends neither the loop nor the other sinks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

import shiftscope as ss
from shiftscope.errors import UsageError
from shiftscope.integrations import Csv, JsonLines, Outlet, feed
from shiftscope.trace import Window

FULL = Path("/dev/full")


@pytest.fixture(scope="module")
def windows() -> list[Window]:
    torch.manual_seed(0)
    snapshot = ss.analyze(nn.Linear(6, 3), [torch.randn(20, 6)])
    return [Window(k, k, "train", snapshot) for k in range(3)]


class Kept:
    """A sink that keeps the steps, and can be told to fail."""

    def __init__(self, failing: int = -1) -> None:
        self.steps: list[int] = []
        self.failing, self.closed = failing, 0

    def write(self, step: int, phase: str, snapshot: Any) -> None:
        if step == self.failing:
            raise OSError(28, "No space left on device")
        self.steps.append(step)

    def close(self) -> None:
        self.closed += 1


def test_a_sink_that_fails_is_closed_and_the_others_go_on(windows: list[Window]) -> None:
    bad, good = Kept(failing=1), Kept()
    outlet = Outlet(bad, good)
    with pytest.warns(RuntimeWarning, match="Kept failed at step 1.*No space left") as caught:
        outlet.drain(windows[:2])
    assert len(caught) == 1
    assert bad.closed == 1
    outlet.drain(windows)  # told once
    outlet.close()
    assert (bad.steps, good.steps) == ([0], [0, 1, 2])
    assert (bad.closed, good.closed) == (1, 1)


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
def test_a_full_disk_does_not_end_the_loop(windows: list[Window]) -> None:
    outlet = Outlet(JsonLines(FULL))
    with pytest.warns(RuntimeWarning, match="cannot write '/dev/full': No space left"):
        outlet.drain(windows)
    outlet.close(windows)


def test_what_cannot_be_written_in_the_end_is_a_warning(
    windows: list[Window], tmp_path: Path
) -> None:
    folder, good = tmp_path / "folder", Kept()
    table = Csv(folder / "sites.csv")
    outlet = Outlet(table, good)
    outlet.drain(windows)
    folder.rmdir()
    folder.touch()
    with pytest.warns(RuntimeWarning, match=r"Csv could not be closed.*sites\.csv"):
        outlet.close()
    assert good.closed == 1
    folder.unlink()
    table.close()  # nothing is lost
    assert list(pd.read_csv(folder / "sites.csv")["step"]) == [0, 1, 2]


def test_outside_of_training_failures_are_raised(windows: list[Window], tmp_path: Path) -> None:
    folder, other = tmp_path / "folder", Kept()
    table = Csv(folder / "sites.csv")
    folder.rmdir()
    folder.touch()
    with pytest.raises(UsageError, match=r"cannot write .*sites\.csv"):
        feed(windows, other, table)
    assert (other.steps, other.closed) == ([0, 1, 2], 1)


def test_sinks_take_one_run_after_another(windows: list[Window], tmp_path: Path) -> None:
    lines, table = JsonLines(tmp_path / "run.jsonl"), Csv(tmp_path / "run.csv")
    for _ in range(2):
        feed(windows, lines, table)
    told = [json.loads(line)["step"] for line in lines.path.read_text().splitlines()]
    assert told == [0, 1, 2, 0, 1, 2]
    assert list(pd.read_csv(table.path)["step"]) == [0, 1, 2, 0, 1, 2]
    written = table.path.stat().st_mtime_ns
    table.close()
    assert table.path.stat().st_mtime_ns == written


def test_tensorboard_takes_one_run_after_another(windows: list[Window], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from shiftscope.integrations import TensorBoard

    sink = TensorBoard(tmp_path)
    feed(windows[:1], sink)
    sink.close()
    feed(windows[1:], sink)
    read = [EventAccumulator(str(file)).Reload() for file in sorted(tmp_path.iterdir())]
    name = "train/nonfinite"
    assert [event.step for log in read for event in log.Scalars(name)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("junk", "told"), [(3, "got 3"), ("run.jsonl", "run.jsonl"), (JsonLines, "the class JsonLines")]
)
def test_what_is_no_sink_is_refused(junk: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        Outlet(junk)
    assert "JsonLines(" in caught.value.remedy
    with pytest.raises(UsageError, match=told):
        feed([], junk)
