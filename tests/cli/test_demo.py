"""The demo: two networks trained, saved, measured and reported on, from any folder."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch

import shiftscope as ss

(SCRIPT,) = entry_points(group="console_scripts", name="shiftscope")
main: Callable[[list[str]], int] = SCRIPT.load()


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The quick networks, smaller still."""
    demonstration = import_module(f"{main.__module__.rpartition('.')[0]}.demonstration")
    size = demonstration.Size(depth=6, width=24, epochs=5)
    monkeypatch.setattr(demonstration, "QUICK", size)
    return size


def test_the_demo(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--quick", "--seed", "1"]) == 0
    out, err = capsys.readouterr()
    assert "6 sigmoid layers of 24 neurons, 5 epochs" in out
    assert err.splitlines()[0] == "training with plain weights …"
    assert "\x1b" not in out + err
    folder = tmp_path / "demo-report"
    for name, title in (("plain", "plain weights"), ("lcw", "zero-sum weights")):
        assert f"demo-report/{name}/report.html" in out
        report = json.loads((folder / name / "report.json").read_text(encoding="utf-8"))
        assert (folder / name / "report.html").stat().st_size > 10_000
        assert_row(out, title, ss.load(folder / name / "snapshot.npz"), report)
    assert_checkpoints(folder, tiny)


def assert_row(out: str, title: str, snapshot: ss.Snapshot, report: dict[str, Any]) -> None:
    """The printed numbers are those of the report, which are those of the snapshot."""
    (row,) = [line for line in out.splitlines() if line.strip().startswith(f"{title}  ")]
    loss, accuracy, share, decades = re.split(r"\s{2,}", row.strip())[1:]
    sites = snapshot.sites[snapshot.sites["kind"] == "linear"].iloc[:-1]
    assert len(sites) == 6
    lost = sites["log10_grad_z_var"].iloc[-1] - sites["log10_grad_z_var"].iloc[0]
    assert float(decades) == pytest.approx(lost, abs=0.051)
    assert float(share) == pytest.approx(sites["shift_share"].mean(), abs=0.0051)
    assert float(loss) == pytest.approx(report["manifest"]["loss"], abs=0.00051)
    assert float(accuracy[:-1]) == pytest.approx(100 * report["manifest"]["accuracy"], abs=0.051)
    assert report["manifest"]["samples"] == 360


def assert_checkpoints(folder: Path, size: Any) -> None:
    """Both fit a plain network; only the zero-sum one has learnt, and its rows sum to zero."""
    x, y = ss.experiments.digits(seed=1).held_out
    losses = {}
    for name in ("plain", "lcw"):
        model = ss.experiments.mlp(64, size.width, size.depth)
        state = torch.load(folder / f"{name}.pt", weights_only=True)
        model.load_state_dict(state, strict=True)
        losses[name] = torch.nn.functional.cross_entropy(model(x), y).item()
        sums = max(float(w.sum(1).abs().max()) for n, w in state.items() if n.endswith("weight"))
        assert (sums < 1e-4) == (name == "lcw")
    assert losses["lcw"] < losses["plain"] - 0.3


def test_without_scikit_learn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert main(["demo", "--quick", "--out", str(tmp_path / "out"), "--quiet"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    reason, remedy = err.splitlines()
    assert "needs scikit-learn" in reason
    assert remedy.startswith('  try: pip install "shiftscope[demo]"')
    assert not (tmp_path / "out").exists()


def test_an_unusable_folder_is_told_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert main(["demo", "--out", str(tmp_path / "file" / "out"), "--quiet"]) == 2
    assert "is no folder" in capsys.readouterr().err
