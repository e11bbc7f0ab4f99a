"""Bad input: exit code 2, one line why, one line what to do, and nothing lost."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from bad_inputs import CASES, Case, prepare

(SCRIPT,) = entry_points(group="console_scripts", name="shiftscope")
main: Callable[[list[str]], int] = SCRIPT.load()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    prepare(folder)
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with good inputs and an old report in out/."""
    place = tmp_path / "work"
    shutil.copytree(prepared, place)
    monkeypatch.chdir(place)
    return place


def content(folder: Path) -> dict[str, bytes]:
    """Every file below, hidden ones included; compiled model files do not count."""
    files = [p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_there_are_many_cases() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 50


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input(case: Case, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case.make(folder)
    before = content(folder)
    assert main([*case.arguments, "--out", "out", "--quiet"]) == 2
    out, err = capsys.readouterr()
    reason, remedy = err.splitlines()[-2:]
    assert out == ""
    assert "Traceback" not in err
    assert re.match("shiftscope: .{8,}", reason)
    assert re.search(case.says, reason)
    assert re.match("  try: .{8,}", remedy)
    assert [line for line in err.splitlines() if line.startswith("shiftscope: ")] == [reason]
    assert content(folder) == before
