"""The help texts, word for word; run this file to write them anew after a deliberate change."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from importlib.metadata import entry_points
from pathlib import Path
from unittest import mock

import pytest

GOLDEN = Path(__file__).parent / "golden"
COMMANDS = {
    "shiftscope": [],
    **{name: [name] for name in ("analyze", "fix", "compare", "report", "verify", "demo")},
}


def help_text(arguments: list[str]) -> str:
    """What ``shiftscope ARGUMENTS --help`` prints at 80 columns, without colours."""
    (script,) = entry_points(group="console_scripts", name="shiftscope")
    out = io.StringIO()
    fixed = {"COLUMNS": "80", "NO_COLOR": "1"}
    with mock.patch.dict(os.environ, fixed), contextlib.redirect_stdout(out):
        code = script.load()([*arguments, "--help"])
    assert code == 0
    return out.getvalue()


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="argparse words its usage differently")
@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_the_golden_text(name: str) -> None:
    golden = (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")
    assert help_text(COMMANDS[name]) == golden, f"run {Path(__file__).name} if this is meant"


def test_every_command_has_a_golden_text() -> None:
    listed = help_text([]).split("commands:\n")[1].split("\n\n")[0].splitlines()[1:]
    commands = {line.split()[0] for line in listed if line.startswith("    ") and line[4] != " "}
    assert commands == set(COMMANDS) - {"shiftscope"}


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for stem, words in COMMANDS.items():
        (GOLDEN / f"{stem}.txt").write_text(help_text(words), encoding="utf-8")
