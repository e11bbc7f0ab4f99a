"""``shiftscope fix``: a checkpoint in, a fixed one out that its own class loads strictly."""

from __future__ import annotations

import json
import math
import re
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import shared_path
from torch import nn

import shiftscope as ss

(SCRIPT,) = entry_points(group="console_scripts", name="shiftscope")
main: Any = SCRIPT.load()

NET = """
from torch import nn

def build():
    layers = []
    for inputs in (12, 24, 24, 24, 24):
        layers += [nn.Linear(inputs, 24), nn.Sigmoid()]
    return nn.Sequential(*layers, nn.Linear(24, 3))

def bare():
    return nn.Sequential(nn.Linear(12, 8, bias=False), nn.Tanh(), nn.Linear(8, 3, bias=False))
"""


def build() -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs in (12, 24, 24, 24, 24):
        layers += [nn.Linear(inputs, 24), nn.Sigmoid()]
    return nn.Sequential(*layers, nn.Linear(24, 3))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A deep sigmoid network that cannot learn, and data."""
    torch.manual_seed(0)
    state = build().state_dict()
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "a.pt")
    torch.save(
        {"0.weight": torch.randn(8, 12), "2.weight": torch.randn(3, 8)}, tmp_path / "bare.pt"
    )
    (tmp_path / "net.py").write_text(NET)
    rng = np.random.default_rng(0)
    x = rng.random((200, 12), dtype=np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=rng.integers(0, 3, 200))
    monkeypatch.chdir(tmp_path)
    return tmp_path


RUN = ["--model", "net.py:build", "--data", "data.npz", "--quiet"]


@pytest.mark.parametrize("name", ["fixed.pt", "fixed.safetensors"])
def test_the_class_loads_the_result_strictly(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (folder / "a.pt").read_bytes()
    assert main(["fix", "a.pt", *RUN, "--method", "lcw", "--rescale", "--out", name]) == 0
    assert (folder / "a.pt").read_bytes() == before
    state = load(folder / name)
    model = build()
    model.load_state_dict(state, strict=True)
    assert list(model.state_dict()) == list(build().state_dict())
    x = torch.from_numpy(np.load(folder / "data.npz")["x"])
    for layer in model:
        if isinstance(layer, nn.Linear):
            size = layer.weight.norm(dim=1).max() * layer.in_features**0.5
            assert layer.weight.sum(1).abs().max() < 1e-6 * size
    first = model[0](x)
    assert first.std(correction=0).item() == pytest.approx(1, abs=1e-3)
    out = capsys.readouterr().out
    assert "gradient gain per layer" in out
    assert "gone activation shift" in out
    assert f"weights: {name}" in out


def load(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return state


def test_the_report_sets_before_predicted_and_after_side_by_side(folder: Path) -> None:
    arguments = ["--method", "lcw", "--rescale", "--out", "f.pt", "--report", "r"]
    assert main(["fix", "a.pt", *RUN, *arguments]) == 0
    document = json.loads((folder / "r" / "comparison.json").read_text())
    predicted = {e["site"]: e["after"] for e in document["predicted"]["effects"]}
    for site in document["sites"]:
        assert site["shift_share_after"] == pytest.approx(predicted[site["site"]], abs=0.02)
        assert site["shift_share_after"] < site["shift_share_before"]
    assert document["predicted"]["gradient"]["premises_hold"]
    page = (folder / "r" / "comparison.html").read_text()
    assert "predicted" in page
    assert (folder / "r" / "figures" / "before-after.png").stat().st_size > 10_000
    assert ss.load(folder / "r" / "after.npz").sites.shape[0] == 11


def test_without_a_method_the_best_fix_is_chosen(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fix", "a.pt", *RUN, "--out", "f.pt"]) == 0
    out = capsys.readouterr().out
    assert re.match(r"(lcw|lcw-data|standardize)\S* .*against activation shift", out)


def test_a_dry_run_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(folder.iterdir())
    assert main(["fix", "a.pt", *RUN, "--dry-run"]) == 0
    assert [p for p in sorted(folder.iterdir()) if p.name != "__pycache__"] == before
    out = capsys.readouterr().out
    assert 'ss.constrain(model, "lcw")' in out
    assert "Batch normalisation" in out


def test_trained_weights_keep_their_means(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A published network at 95 %: the honest cost of taking the ones direction away."""
    sprite = shared_path("data/fashion_sprite/fashion-mnist-sprite.png")
    checkpoint = shared_path("checkpoints/uva_mlp_fashion_relu.tar")
    told = {}
    for name, extra in (("bare", ()), ("kept", ("--mean-preserving",))):
        out = tmp_path / f"{name}.pt"
        arguments = ["fix", str(checkpoint), "--model", "mlp:relu", "--normalize", "half"]
        arguments += ["--data", f"sprite:{sprite}:28x28:10", "--method", "lcw", *extra]
        assert main([*arguments, "--out", str(out), "--quiet"]) == 0
        text = capsys.readouterr().out
        accuracy = re.search(r"accuracy: ([\d.]+) → ([\d.]+)", text)
        changed = re.search(r"output: changed by ([\d.]+)%", text)
        assert accuracy is not None
        assert changed is not None
        told[name] = (float(accuracy[1]), float(accuracy[2]), float(changed[1]))
        assert "and relu: under lcw" in text
    assert told["kept"][0] == pytest.approx(0.9511, abs=1e-4)
    assert told["kept"][1] > 0.9
    assert told["kept"][1] >= told["bare"][1]
    assert told["kept"][2] < told["bare"][2]


BAD = {
    "no model": ["--data", "data.npz", "--out", "f.pt"],
    "no data": ["--model", "net.py:build", "--out", "f.pt"],
    "no out": [*RUN, "--method", "lcw"],
    "unknown suffix": [*RUN, "--method", "lcw", "--out", "f.txt"],
    "out is a folder": [*RUN, "--method", "lcw", "--out", "folder.pt"],
    "out is the input": [*RUN, "--method", "lcw", "--out", "./a.pt"],
    "out below a file": [*RUN, "--method", "lcw", "--out", "net.py/f.pt"],
    "report is a file": [*RUN, "--method", "lcw", "--out", "f.pt", "--report", "net.py"],
    "no method to rescale": [*RUN, "--rescale", "--out", "f.pt"],
    "no method to preserve": [*RUN, "--mean-preserving", "--out", "f.pt"],
    "preserving and rescaling": [
        *(*RUN, "--method", "lcw", "--rescale", "--mean-preserving", "--out", "f.pt")
    ],
    "cannot preserve": [*RUN, "--method", "cwn", "--mean-preserving", "--out", "f.pt"],
    "no such site": [*RUN, "--method", "lcw", "--sites", "conv*", "--out", "f.pt"],
    "another model": [
        *("--model", "net.py:bare", "--data", "data.npz", "--method", "lcw", "--out", "f.pt")
    ],
    "missing data": ["--model", "net.py:build", "--data", "none.npz", "--out", "f.pt"],
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_writes_nothing(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "folder.pt").mkdir()
    before = {p.name for p in folder.iterdir()}
    assert main(["fix", "a.pt", *BAD[name]]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    reason, remedy = err.splitlines()[-2:]
    assert re.match("shiftscope: .{8,}", reason)
    assert re.match("  try: .{8,}", remedy)
    assert {p.name for p in folder.iterdir()} - {"__pycache__"} == before


def test_nothing_to_change_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["fix", "bare.pt", "--model", "net.py:bare", "--data", "data.npz", "--quiet"]
    keep = ["--method", "lcw", "--mean-preserving"]
    assert main([*run, *keep, "--out", "f.pt"]) == 2
    assert "no bias to keep its mean" in capsys.readouterr().err
    assert not (folder / "f.pt").exists()


def test_weights_that_are_not_finite_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.load("a.pt", weights_only=True)["state_dict"]
    state["module.2.weight"][1, 3] = torch.nan
    torch.save(state, "nan.pt")
    assert main(["fix", "nan.pt", *RUN, "--method", "lcw", "--out", "f.pt"]) == 2
    assert "2.weight holds NaN" in capsys.readouterr().err
    assert not (folder / "f.pt").exists()
    assert main(["analyze", "nan.pt", "--quiet", "--fail-on", "critical"]) == 1
    assert main(["compare", "a.pt", "nan.pt", "--quiet", "--fail-on", "serious"]) == 1
    assert main(["compare", "a.pt", "a.pt", "--quiet", "--fail-on", "info"]) == 0


def test_the_precision_of_the_file_is_kept(folder: Path) -> None:
    state = {k: v.bfloat16() for k, v in build().state_dict().items()}
    torch.save(state, "half.pt")
    assert main(["fix", "half.pt", *RUN, "--method", "lcw", "--out", "f.pt"]) == 0
    fixed = torch.load("f.pt", weights_only=True)
    assert {t.dtype for t in fixed.values()} == {torch.bfloat16}
    rows = fixed["2.weight"].double()
    bound = torch.finfo(torch.bfloat16).eps * math.sqrt(rows.shape[1]) * rows.norm(dim=1)
    assert bool((rows.sum(1).abs() <= bound).all())
