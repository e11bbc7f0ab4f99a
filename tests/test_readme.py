"""The README keeps its word: its Python runs, its commands and its files exist."""

from __future__ import annotations

import doctest
import re
import shlex
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("code", blocks("python"))
def test_the_python_runs(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(devices=[]):
        exec(compile(code, "README.md", "exec"), {})
    assert "critical; " in capsys.readouterr().out
    assert (tmp_path / "report" / "report.html").is_file()


@pytest.mark.parametrize("session", blocks("pycon"))
def test_the_sessions_print_what_they_say(session: str) -> None:
    test = doctest.DocTestParser().get_doctest(session, {}, "README.md", "README.md", 0)
    assert len(test.examples) > 8
    with torch.random.fork_rng(devices=[]):
        assert doctest.DocTestRunner().run(test).failed == 0


def commands() -> list[list[str]]:
    """Each ``shiftscope ...`` of the shell blocks, as arguments."""
    lines = [line.split("  #")[0] for block in blocks("sh") for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("shiftscope ")]


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_the_commands_are_grammatical(arguments: list[str]) -> None:
    (script,) = entry_points(group="console_scripts", name="shiftscope")
    package = script.load().__module__.rpartition(".")[0]
    build: Callable[[], object] = sys.modules[f"{package}.parser"].build_parser
    assert build().parse_args(arguments).run  # type: ignore[attr-defined]


def test_links_and_paths_exist() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    named = re.findall(r"`((?:shiftscope|cli|tests|reports|benchmarks)/[\w./]*)`", README)
    missing = [name for name in [*links, *named] if not (ROOT / name).exists()]
    assert links
    assert named
    assert missing == []


def test_every_part_is_on_the_map() -> None:
    table = README.split("## Architecture")[1].split("## Development")[0]
    parts = {path.name for path in (ROOT / "shiftscope").iterdir() if path.name[0] not in "_."}
    parts -= {"py.typed"}
    assert [name for name in sorted(parts) if name not in table] == []


def test_every_module_of_capture_is_on_its_map() -> None:
    import shiftscope.capture

    modules = {path.stem for path in (ROOT / "shiftscope" / "capture").glob("[!_]*.py")}
    named = re.findall(r"``(\w+)``", shiftscope.capture.__doc__ or "")
    assert sorted(named) == sorted(modules)
