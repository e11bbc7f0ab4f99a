"""What surrounds a command: the environment, closed streams, places, other runs beside it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from bad_inputs import RUN as MODEL
from bad_inputs import prepare

import shiftscope as ss

(SCRIPT,) = entry_points(group="console_scripts", name="shiftscope")
main: Callable[[list[str]], int] = SCRIPT.load()
COMMAND = [sys.executable, "-c", "import sys; from shiftscope.cli import main; sys.exit(main())"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a checkpoint, a model, data, and a snapshot of the weights."""
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def analyze(*options: str) -> int:
    return main(["analyze", "good.pt", "--out", "run", "--quiet", "--format", "json", *options])


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE='abc'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE='0'"),
        ({"WORLD_SIZE": "-3"}, "WORLD_SIZE='-3'"),
        ({"WORLD_SIZE": "2", "RANK": "x"}, "RANK='x'"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "WORLD_SIZE is 2, but RANK is 2"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but RANK is not set"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "do not find one another: .*MASTER_ADDR"),
    ],
)
def test_an_environment_of_processes_that_are_none(
    folder: Path,
    variables: dict[str, str],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["analyze", "good.pt", "--out", "run"]) == 2
    reason, remedy = capsys.readouterr().err.splitlines()[-2:]
    assert re.search(says, reason)
    assert "torchrun" in remedy
    assert not (folder / "run").exists()


def test_a_process_that_is_alone_reports_whatever_its_number(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("RANK", "5")
    assert analyze() == 0
    assert "report.json" in capsys.readouterr().out
    assert (folder / "run" / "report.json").exists()


@pytest.mark.parametrize("command", ["analyze", "demo"])
def test_seeds_have_an_end(folder: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["good.pt", *MODEL] if command == "analyze" else ["--quick"]
    assert main([command, *arguments, "--seed", str(2**63), "--out", "run"]) == 2
    assert "below 2**63" in capsys.readouterr().err


def test_the_largest_seed_is_one(folder: Path) -> None:
    assert analyze(*MODEL, "--seed", str(2**63 - 1)) == 0


def test_a_slip_in_a_range_of_propositions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--propositions", "1-999999999999"]) == 2
    assert "such as 1-6" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "reason", "option"),
    [
        (["--out", "f.pt", "--report", "good.pt"], "write the report to 'good.pt'", "--report"),
        (["--out", "good.pt/f.pt"], "write the weights to 'good.pt'", "--out"),
    ],
)
def test_the_option_that_named_a_place_is_told(
    folder: Path, options: list[str], reason: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fix", "good.pt", *MODEL, "--method", "lcw", *options]) == 2
    why, remedy = capsys.readouterr().err.splitlines()[-2:]
    assert reason in why
    assert remedy == f"  try: give another folder by {option}"


@pytest.mark.parametrize(("taken", "kind"), [("report.json", "folder"), ("figures", "file")])
def test_what_is_in_the_way_of_one_file_stops_all(
    folder: Path, taken: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = folder / "run" / taken
    place.mkdir(parents=True) if kind == "folder" else place.parent.mkdir()
    if kind == "file":
        place.write_text("mine")
    assert main(["analyze", "good.pt", "--out", "run", "--quiet"]) == 2
    why, remedy = capsys.readouterr().err.splitlines()[-2:]
    assert f"a {kind} is in the way at" in why
    assert taken in why
    assert "--out" in remedy
    assert [p.name for p in (folder / "run").rglob("*")] == [taken]


def closed(streams: tuple[int, ...]) -> Callable[[], None]:
    return lambda: [os.close(stream) for stream in streams] and None


@pytest.mark.skipif(os.name != "posix", reason="streams are closed by number")
@pytest.mark.parametrize("streams", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_streams_change_no_exit_code(folder: Path, streams: tuple[int, ...]) -> None:
    for arguments, code in ((["good.pt", "--out", "run", "--format", "json"], 0), (["none.pt"], 2)):
        command = [*COMMAND, "analyze", *arguments]
        assert subprocess.run(command, preexec_fn=closed(streams)).returncode == code
    assert (folder / "run" / "report.json").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_stderr_that_is_full_changes_no_exit_code(folder: Path) -> None:
    with Path("/dev/full").open("w") as full:
        for arguments, code in ((["good.pt", "--format", "json"], 0), (["none.pt"], 2)):
            command = [*COMMAND, "analyze", *arguments]
            assert (
                subprocess.run(command, stderr=full, stdout=subprocess.DEVNULL).returncode == code
            )


def test_runs_side_by_side_leave_whole_files(folder: Path) -> None:
    command = [*COMMAND, "analyze", "good.pt", *MODEL, "--out", "run", "--format", "json"]
    runs = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(3)]
    assert [run.wait() for run in runs] == [0, 0, 0]
    assert isinstance(ss.load("run/snapshot.npz"), ss.Snapshot)
    assert {p.name for p in folder.iterdir() if p.name.startswith(".")} == set()
