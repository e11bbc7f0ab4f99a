"""Habits that keep users safe and the repository clean, read from the source."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = {".py", ".md", ".toml", ".txt", ".html", ".css", ".js", ".json", ".yaml", ".yml", ""}
SHIPPED = sorted([*(ROOT / "shiftscope").rglob("*.py"), *(ROOT / "cli").rglob("*.py")])
AUDITED_OPT_IN = "shiftscope/io/torch_files.py"
"""The file whose one call may run code from a checkpoint, where the user typed --trust-pickle."""

PICKLE_READ = re.compile(r"^(?:eval|exec)$|^(?:c?pickle|dill|joblib)\.|(?:^|\.)Unpickler$")
HOMES = re.compile(r"(?<![\w.\-])/(?:work|root|home|Users|tmp/v)/")
"""Folders of some developer's machine."""


def repository_files() -> list[Path]:
    """What git tracks or would track; every file outside hidden folders where there is no git."""
    if shutil.which("git") and (ROOT / ".git").exists():
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        hidden = re.compile(r"^\.(?!ci)|^__pycache__$|\.egg-info$")
        found = [p for p in ROOT.rglob("*") if p.is_file()]
        paths = [p for p in found if not any(map(hidden.search, p.relative_to(ROOT).parts[:-1]))]
    return [path for path in paths if path.is_file() and path.suffix in TEXT]


def test_no_file_names_a_folder_of_one_machine() -> None:
    guilty = {}
    for path in repository_files():
        hits = HOMES.findall(path.read_text(encoding="utf-8"))
        if hits and path != Path(__file__):
            guilty[str(path.relative_to(ROOT))] = hits
    assert guilty == {}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def keywords(path: Path, name: str, value: object) -> list[int]:
    """Lines of calls that pass the keyword with exactly this constant."""
    return [
        keyword.value.lineno
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == name
        and isinstance(keyword.value, ast.Constant)
        and keyword.value.value is value
    ]


@pytest.mark.parametrize("path", SHIPPED, ids=name_of)
def test_users_never_meet_an_assertion(path: Path) -> None:
    lines = [node.lineno for node in ast.walk(tree(path)) if isinstance(node, ast.Assert)]
    assert lines == []


@pytest.mark.parametrize("path", SHIPPED, ids=name_of)
def test_code_in_files_is_not_run(path: Path) -> None:
    assert keywords(path, "allow_pickle", True) == []
    assert len(keywords(path, "weights_only", False)) == (name_of(path) == AUDITED_OPT_IN)
    assert pickle_reads(path) == []


def pickle_reads(path: Path) -> list[int]:
    """Lines that read a pickle or evaluate text."""
    found = []
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.Call):
            continue
        if PICKLE_READ.search(ast.unparse(node.func)):
            found.append(node.lineno)
    return found


@pytest.mark.parametrize("path", SHIPPED, ids=name_of)
def test_files_stay_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_every_torch_load_says_weights_only() -> None:
    """The default differs between versions of torch, so it is always spelled out."""
    for path in SHIPPED:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert "weights_only" in {k.arg for k in node.keywords}, f"{path}:{node.lineno}"
