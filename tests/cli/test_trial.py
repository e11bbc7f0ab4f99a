"""``shiftscope analyze --trial``, and reports of runs rebuilt from their trace."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
from bad_inputs import LEARN, prepare

import shiftscope as ss
from shiftscope.trace import Trace

(SCRIPT,) = entry_points(group="console_scripts", name="shiftscope")
main: Callable[[list[str]], int] = SCRIPT.load()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    prepare(tmp_path)
    shutil.rmtree(tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_trial_is_reported_and_rebuilt(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (folder / "good.pt").read_bytes()
    command = ["analyze", "good.pt", *LEARN, "--trial", "4", "--lr", "0.05", "--quiet"]
    assert main([*command, "--out", "run"]) == 0
    out = capsys.readouterr().out
    assert "trace.npz" in out
    run = folder / "run"
    assert (run / "figures" / "evolution.png").exists()
    told = json.loads((run / "report.json").read_text())
    assert [window["first"] for window in told["windows"]] == [0, 1, 2, 3, 4]
    assert all(window["loss"] > 0 for window in told["windows"])
    assert told["manifest"]["learning_rate"] == 0.05
    page = (run / "report.html").read_text()
    assert 'id="figure-evolution"' in page
    assert 'id="figure-curves"' in page
    trace = ss.load(run / "trace.npz")
    assert isinstance(trace, Trace)
    assert trace.steps == (0, 1, 2, 3, 4)
    assert (folder / "good.pt").read_bytes() == before

    again = ["report", "run/trace.npz", "--out", "again", "--quiet", "--format", "json"]
    assert main(again) == 0
    copied = json.loads((folder / "again" / "report.json").read_text())
    assert copied["windows"] == told["windows"]
    assert copied["findings"] == told["findings"]


def test_equal_seeds_give_equal_trials(folder: Path) -> None:
    command = ["analyze", "good.pt", *LEARN, "--trial", "2", "--quiet", "--format", "json"]
    for name in ("one", "two"):
        torch.manual_seed(len(name))
        assert main([*command, "--out", name]) == 0
    one, two = (json.loads((folder / n / "report.json").read_text()) for n in ("one", "two"))
    assert one["windows"] == two["windows"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--trial", "3"], "--trial needs --model and --data"),
        ([*LEARN, "--lr", "0.1"], "--lr is of a trial"),
        ([*LEARN, "--trial", "0"], "expected a whole number from 1 on"),
        ([*LEARN, "--trial", "2", "--lr", "-1"], "expected a number above 0"),
        ([*LEARN, "--trial", "2", "--loss", "none"], "neither --loss nor the model's output"),
    ],
)
def test_mistakes_are_named(
    folder: Path, arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyze", "good.pt", *arguments, "--quiet", "--out", "run"]) == 2
    out, err = capsys.readouterr()
    assert reason in err
    assert out == ""
    assert not (folder / "run").exists()
