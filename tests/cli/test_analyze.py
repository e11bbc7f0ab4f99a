"""``shiftscope analyze`` and ``shiftscope report``, end to end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import torch
from bad_inputs import LEARN, RUN, prepare

import shiftscope

(SCRIPT,) = entry_points(group="console_scripts", name="shiftscope")
main: Callable[[list[str]], int] = SCRIPT.load()
JSON = ["--format", "json", "--quiet"]
SHIFTED = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    layers = [nn.Linear(6, 32), nn.Sigmoid()]
    for _ in range(12):
        layers += [nn.Linear(32, 32), nn.Sigmoid()]
    return nn.Sequential(*layers, nn.Linear(32, 3))
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    prepare(folder)
    shutil.rmtree(folder / "out")
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "work"
    shutil.copytree(prepared, place)
    monkeypatch.chdir(place)
    return place


def test_a_whole_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All formats; results on stdout, stages on stderr, no colours in either."""
    assert main(["analyze", "good.pt", *LEARN, "--out", "deep/er/run"]) == 0
    out, err = capsys.readouterr()
    run = folder / "deep" / "er" / "run"
    names = {path.name for path in run.iterdir()}
    assert names == {"report.html", "report.json", "snapshot.npz", "figures"}
    assert list((run / "figures").glob("*.png"))
    assert "\x1b" not in out + err
    assert str(Path("deep/er/run/report.html")) in out
    stages = ["reading the checkpoint …", "building the model …", "reading the data …"]
    assert err.splitlines()[:4] == [*stages, "measuring …"]
    told = json.loads((run / "report.json").read_text())
    assert told["manifest"]["samples"] == 32
    assert told["manifest"]["checkpoint"] == "good.pt"
    assert told["inputs"]["rows"] == 32
    assert told["inputs"]["synthetic"] is False


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals of POSIX")
def test_progress_is_drawn_on_a_terminal_only(folder: Path) -> None:
    """stderr on a terminal, stdout in a pipe: bars in the one, plain text in the other."""
    import pty

    ours, theirs = pty.openpty()
    code = "import sys; from shiftscope.cli import main; sys.exit(main(sys.argv[1:]))"
    asked = ["analyze", "good.pt", *LEARN, "--out", "run", "--format", "json"]
    environment = {**os.environ, "TERM": "xterm", "OMP_NUM_THREADS": "1"}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(
        [sys.executable, "-c", code, *asked],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=environment,
        text=True,
    ) as run:
        os.close(theirs)
        drawn = b""
        while chunk := _read(ours):
            drawn += chunk
        out = run.communicate(timeout=60)[0]
    os.close(ours)
    assert run.returncode == 0
    assert b"measuring" in drawn
    assert b"\x1b[" in drawn
    assert "\x1b" not in out
    assert "run/report.json" in out


def _read(descriptor: int) -> bytes:
    """What a terminal was sent; nothing once nobody holds the other end any more."""
    try:
        return os.read(descriptor, 65536)
    except OSError:
        return b""


def test_weights_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyze", "good.pt", "--out", "run", *JSON]) == 0
    sites = shiftscope.load(folder / "run" / "snapshot.npz").sites
    weights = torch.load(folder / "good.pt", weights_only=True)
    measured = sites.set_index("site")["eta"]
    for name in ("0", "2"):
        expected = weights[f"{name}.weight"].double().square().sum(1).mean().item()
        assert measured[name] == pytest.approx(expected, rel=1e-6)
    assert sites["shift_share"].isna().all()
    assert capsys.readouterr().err == ""


def test_packed_weights_are_told_in_the_report(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = {"scale": torch.ones(1), "_packed_params._packed_params": (torch.ones(2), None)}
    state = {f"module.0.{name}": value for name, value in packed.items()}
    torch.save(state, "packed.pt")
    assert main(["analyze", "packed.pt", "--out", "run", *JSON]) == 0
    assert [tuple(gap) for gap in shiftscope.load(folder / "run" / "snapshot.npz").gaps] == [
        ("0", "packed weights of a quantised layer cannot be read")
    ]
    assert "no weights were found" in capsys.readouterr().out


def test_the_numbers_are_those_of_python(folder: Path) -> None:
    assert main(["analyze", "good.pt", *LEARN, "--out", "run", "--batch-size", "10", *JSON]) == 0
    with np.load(folder / "data.npz") as data:
        x, y = torch.tensor(data["x"]), torch.tensor(data["y"])
    space: dict[str, Callable[[], torch.nn.Module]] = {}
    exec(compile((folder / "net.py").read_text(), "net.py", "exec"), space)
    model = space["build"]()
    model.load_state_dict(torch.load(folder / "good.pt", weights_only=True))
    known = shiftscope.analyze(model.eval(), [(x, y)], torch.nn.functional.cross_entropy)
    found = shiftscope.load(folder / "run" / "snapshot.npz")
    columns = ["z_mean", "z_var", "z_min", "z_max", "shift_predicted"]
    np.testing.assert_allclose(found.neurons[columns], known.neurons[columns], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("level", "code"), [(None, 0), ("info", 1), ("watch", 1), ("serious", 1), ("critical", 1)]
)
def test_fail_on(folder: Path, level: str | None, code: int) -> None:
    """A 13-layer sigmoid network at initialisation cannot be trained, and is told so."""
    (folder / "shifted.py").write_text(SHIFTED)
    space: dict[str, Callable[[], torch.nn.Module]] = {}
    exec(compile(SHIFTED, "shifted.py", "exec"), space)
    torch.save(space["build"]().state_dict(), folder / "shifted.pt")
    asked = ["--model", "shifted.py:build", "--data", "data.npz", "--dtype", "float64"]
    chosen = ["--fail-on", level] if level else []
    assert main(["analyze", "shifted.pt", *asked, *chosen, "--out", "run", *JSON]) == code
    findings = json.loads((folder / "run" / "report.json").read_text())["findings"]
    assert (findings[0]["cause"], findings[0]["severity"]) == ("activation_shift", "critical")


def test_a_sound_model_passes(folder: Path) -> None:
    assert main(["analyze", "good.pt", *RUN, "--fail-on", "critical", "--out", "run", *JSON]) == 0


def test_from_any_working_directory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model file is found beside the checkpoint."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    data = ["--data", str(folder / "data.npz"), "--out", "run"]
    assert main(["analyze", str(folder / "good.pt"), "--model", "net.py:build", *data, *JSON]) == 0
    assert (elsewhere / "run" / "report.json").is_file()


def test_labels_choose_the_loss_and_none_switches_it_off(folder: Path) -> None:
    for more, gradients in (([], True), (["--loss", "none"], False)):
        assert main(["analyze", "good.pt", *RUN, *more, "--out", "run", *JSON]) == 0
        told = json.loads((folder / "run" / "report.json").read_text())
        assert told["manifest"]["gradients"] is gradients


def test_synthetic_inputs_are_told(folder: Path) -> None:
    asked = ["--model", "mlp:sigmoid", "--data", "normal:6:64"]
    assert main(["analyze", "good.pt", *asked, "--out", "run", *JSON]) == 0
    told = json.loads((folder / "run" / "report.json").read_text())
    assert told["inputs"]["synthetic"] is True
    assert "synthetic" in told["manifest"]["data"]


def test_batches_and_normalisation_are_respected(folder: Path) -> None:
    more = ["--batches", "2", "--batch-size", "5", "--normalize", "0.5/2"]
    assert main(["analyze", "good.pt", *RUN, *more, "--out", "run", *JSON]) == 0
    told = json.loads((folder / "run" / "report.json").read_text())
    assert told["manifest"]["samples"] == told["inputs"]["rows"] == 10
    assert told["manifest"]["normalization"] == told["inputs"]["normalization"] == "0.5/2"


def test_report_rebuilds_everything_without_the_model(folder: Path) -> None:
    assert main(["analyze", "good.pt", *LEARN, "--out", "run", *JSON]) == 0
    shutil.move(folder / "run" / "snapshot.npz", folder / "kept.npz")
    for name in ("good.pt", "net.py", "data.npz"):
        (folder / name).unlink()
    assert main(["report", "kept.npz", "--out", "again", *JSON]) == 0
    old = json.loads((folder / "run" / "report.json").read_text())
    new = json.loads((folder / "again" / "report.json").read_text())
    assert new == old


def test_severities_and_formats_are_those_of_the_library() -> None:
    """The command line repeats them, so that --help need not import what defines them."""
    from shiftscope.findings import SEVERITIES
    from shiftscope.reporting import FORMATS

    options = sys.modules["shiftscope.cli.options"]
    assert options.SEVERITIES == SEVERITIES
    assert set(options.FORMATS) == set(FORMATS)


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_measure_what_one_does(folder: Path) -> None:
    """Under torchrun the data are dealt out, the tallies merged, and one report is written."""
    assert main(["analyze", "good.pt", *LEARN, "--out", "one", *JSON]) == 0
    command = [*LEARN, "--out", "two", *JSON, "--device", "cpu"]
    (folder / "run.py").write_text(
        "import sys\nfrom importlib.metadata import entry_points\n"
        "(script,) = entry_points(group='console_scripts', name='shiftscope')\n"
        "sys.exit(script.load()())\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run(
        [*launcher, "run.py", "analyze", "good.pt", *command],
        check=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    one, two = (shiftscope.load(folder / name / "snapshot.npz") for name in ("one", "two"))
    assert two.manifest["ranks"] == 2
    assert two.manifest["samples"] == one.manifest["samples"] == 32
    columns = ["count", "z_mean", "z_var", "z_min", "z_max", "grad_z_count", "shift_predicted"]
    np.testing.assert_allclose(two.neurons[columns], one.neurons[columns], rtol=1e-5, atol=1e-7)
    assert two.inputs == one.inputs
