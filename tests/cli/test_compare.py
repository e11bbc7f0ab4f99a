"""``shiftscope compare``: snapshots and checkpoints, and a gate for what got worse."""

from __future__ import annotations

import json
import re
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fix_cases import batches, mlp
from torch import nn
from torch.nn import functional as F

import shiftscope as ss
from shiftscope.trace import Trace

(SCRIPT,) = entry_points(group="console_scripts", name="shiftscope")
main: Any = SCRIPT.load()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Snapshots and weights of a sigmoid network, sick and fixed, and data."""
    folder = tmp_path_factory.mktemp("compare")
    torch.manual_seed(0)
    model, data = mlp(nn.Sigmoid), batches()[:2]
    torch.save(model.state_dict(), folder / "sick.pt")
    ss.analyze(model, data, F.cross_entropy).save(folder / "sick.npz")
    ss.constrain(model, "lcw")
    ss.rescale_(model, data[0][0])
    ss.release(model)
    torch.save(model.state_dict(), folder / "fixed.pt")
    ss.analyze(model, data, F.cross_entropy).save(folder / "fixed.npz")
    x, y = torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])
    np.savez(folder / "data.npz", x=x.numpy(), y=y.numpy())
    ss.analyze(nn.Sequential(nn.ReLU()), [torch.rand(8, 4)]).save(folder / "other.npz")
    (folder / "notes.npz").write_text("no snapshot")
    return folder


@pytest.fixture(autouse=True)
def _there(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved)


def test_the_gate_opens_one_way(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "sick.npz", "fixed.npz", "--fail-on", "info"]) == 0
    assert "gone vanishing gradient" in capsys.readouterr().out
    assert main(["compare", "fixed.npz", "sick.npz", "--fail-on", "critical"]) == 1
    assert "worse: critical" in capsys.readouterr().out
    assert main(["compare", "fixed.npz", "sick.npz"]) == 0
    assert main(["compare", "sick.npz", "sick.npz", "--fail-on", "info"]) == 0


def test_checkpoints_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    run = ["--model", "mlp:sigmoid", "--data", "data.npz", "--json", "--quiet"]
    assert main(["compare", "sick.pt", "fixed.pt", *run]) == 0
    document = json.loads(capsys.readouterr().out)
    shares = [site["shift_share_after"] for site in document["sites"]]
    measured = ss.load("fixed.npz").sites["shift_share"]
    np.testing.assert_allclose(shares, measured, rtol=1e-5, atol=1e-6)
    assert document["lost"]


def test_the_last_window_of_a_saved_trace_counts(capsys: pytest.CaptureFixture[str]) -> None:
    Trace.of([ss.load("fixed.npz"), ss.load("sick.npz")]).save("run.npz")
    try:
        assert main(["compare", "fixed.npz", "run.npz", "--fail-on", "critical"]) == 1
        assert main(["compare", "sick.npz", "run.npz", "--fail-on", "watch"]) == 0
    finally:
        Path("run.npz").unlink()


def test_weights_alone_can_be_compared(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "sick.pt", "fixed.pt", "--json", "--quiet"]) == 0
    first = json.loads(capsys.readouterr().out)["sites"][0]
    assert first["lcw_residual_after"] < 1e-6 < first["lcw_residual_before"]
    assert first["shift_share_before"] is None


def test_a_report_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "er"
    assert main(["compare", "sick.npz", "fixed.npz", "--out", str(out), "--quiet"]) == 0
    names = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    snapshots = {"before.npz", "after.npz"}
    assert names == {
        *snapshots, "comparison.html", "comparison.json", "figures/before-after.png"
    }  # fmt: skip
    assert main(["compare", str(out / "before.npz"), "sick.npz", "--fail-on", "info"]) == 0
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["none.npz", "sick.npz"], "cannot read 'none.npz'"),
        (["sick.npz", "notes.npz"], "not a readable shiftscope snapshot"),
        (["sick.npz", "other.npz"], "share no site"),
        (["sick.pt", "fixed.pt", "--model", "mlp:sigmoid"], "--model needs --data"),
        (["sick.npz", "fixed.npz", "--out", "data.npz"], "is no folder"),
        (["sick.npz", "fixed.npz", "--fail-on", "fatal"], "invalid choice"),
        (["sick.npz"], "required"),
        (["none.pt", "sick.npz", "--data", "data.npz"], "none.pt"),
    ],
)
def test_bad_input(
    arguments: list[str], says: str, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p.name for p in saved.iterdir()}
    assert main(["compare", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    reason, remedy = err.splitlines()[-2:]
    assert re.match("shiftscope: ", reason)
    assert says in reason
    assert re.match("  try: .{8,}", remedy)
    assert {p.name for p in saved.iterdir()} == before
