"""A run that cannot finish leaves the old report as it was, and says so in two lines."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from bad_inputs import LEARN, prepare

(SCRIPT,) = entry_points(group="console_scripts", name="shiftscope")
main: Callable[[list[str]], int] = SCRIPT.load()
POSIX = pytest.mark.skipif(os.name != "posix", reason="limits and signals of POSIX")
FULL_DISK = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
"""
KILLED = """
import os, signal
import shiftscope.files
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
shiftscope.files._move_files = die
"""
MAIN = """
import sys
from shiftscope.cli import main
sys.exit(main(["report", "snapshot.npz", "--out", "out", "--quiet", "--format", "json"]))
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a snapshot and an old report."""
    folder = tmp_path_factory.mktemp("prepared")
    prepare(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        options = ["--out", "run", "--quiet", "--format", "json"]
        assert main(["analyze", "good.pt", *LEARN, *options]) == 0
    shutil.move(folder / "run" / "snapshot.npz", folder / "snapshot.npz")
    shutil.rmtree(folder / "run")
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "work"
    shutil.copytree(prepared, place)
    monkeypatch.chdir(place)
    return place


def python(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter, without bytecode files that a small disk would refuse."""
    command = [sys.executable, "-B", "-c", code]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload,no-any-return]


def visible(folder: Path) -> dict[str, bytes]:
    files = [p for p in folder.rglob("*") if p.is_file() and not p.parent.name.startswith(".")]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@POSIX
def test_a_full_disk_leaves_the_old_report(folder: Path) -> None:
    before = visible(folder)
    run = python(FULL_DISK + MAIN)
    reason, remedy = run.stderr.splitlines()
    assert run.returncode == 2
    assert reason.startswith("shiftscope: cannot write 'out'")
    assert remedy.startswith("  try: ")
    assert visible(folder) == before
    assert sorted(p.name for p in folder.iterdir() if p.name.startswith(".")) == []


@POSIX
def test_a_killed_run_leaves_the_old_report(folder: Path) -> None:
    before = visible(folder)
    assert python(KILLED + MAIN).returncode == -9
    assert visible(folder) == before
    assert python(MAIN, stdout=subprocess.DEVNULL).returncode == 0
    assert (folder / "out" / "report.json").is_file()


def test_a_closed_pipe_does_not_stop_the_report(folder: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        run = python(MAIN, stdout=closed)
    assert (run.returncode, run.stderr) == (0, "")
    assert (folder / "out" / "report.json").is_file()


def test_interrupted_while_measuring(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = visible(folder)
    (folder / "net.py").write_text(
        (folder / "net.py").read_text().replace('KeyError("inside forward")', "KeyboardInterrupt")
    )
    arguments = ["analyze", "good.pt", "--model", "net.py:crashing", "--data", "data.npz"]
    assert main([*arguments, "--out", "out", "--quiet"]) == 130
    assert capsys.readouterr() == ("", "shiftscope: interrupted\n")
    after = visible(folder)
    assert {name: after[name] for name in before if name != "net.py"} == {
        name: before[name] for name in before if name != "net.py"
    }


@pytest.mark.parametrize("out", ["good.pt", "good.pt/below", "", "a\0b"])
def test_a_place_that_cannot_be_written_is_refused_at_once(
    folder: Path, out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = visible(folder)
    assert main(["analyze", "no_such_checkpoint", "--out", out]) == 2
    reason, remedy = capsys.readouterr().err.splitlines()
    assert repr(out).replace("\\", "\\\\")[:4] in reason.replace("\\", "\\\\")
    assert "no_such_checkpoint" not in reason
    assert remedy == "  try: give another folder by --out"
    assert visible(folder) == before


def test_a_read_only_place_is_refused_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    assert main(["analyze", "no_such_checkpoint", "--out", "locked/report"]) == 2
    assert "read-only" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
def test_a_place_that_only_looks_writable(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Found out when the report is written; nobody may make folders in /proc, not even root."""
    place = ["--out", "/proc/shiftscope/report", "--quiet", "--format", "json"]
    assert main(["report", "snapshot.npz", *place]) == 2
    reason, remedy = capsys.readouterr().err.splitlines()
    assert "/proc/shiftscope/report" in reason
    assert "--out" in remedy
