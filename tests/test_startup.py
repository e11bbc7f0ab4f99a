"""Starting up stays cheap: neither ``import shiftscope`` nor ``--help`` loads a heavy library."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

HEAVY = {"torch", "numpy", "scipy", "matplotlib", "seaborn", "pandas", "safetensors", "jinja2"}
HELP_SECONDS = 0.3

HELP = """
import sys
from importlib.metadata import entry_points
(script,) = [e for e in entry_points(group="console_scripts") if e.name == "shiftscope"]
try:
    script.load()(["--help"])
except SystemExit as stop:
    assert stop.code == 0, stop.code
"""
REPORT = "\nprint('LOADED', *{name.split('.')[0] for name in sys.modules}, file=sys.stderr)\n"
CLOCK = "\nimport time\nprint('CPU', time.process_time(), file=sys.stderr)\n"


def last_words(code: str, label: str) -> list[str]:
    """Run the code in a fresh interpreter; the words after `label` on its standard error."""
    env = {**os.environ, "PYTHONPATH": ""}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert run.returncode == 0, run.stderr
    (line,) = [line for line in run.stderr.splitlines() if line.startswith(label)]
    return line.split()[1:]


def test_the_console_script_is_registered() -> None:
    scripts = [e for e in entry_points(group="console_scripts") if e.name == "shiftscope"]
    assert [script.value for script in scripts] == ["shiftscope.cli:main"]


def test_import_loads_no_heavy_library() -> None:
    loaded = last_words(
        "import sys, shiftscope\nshiftscope.__all__, dir(shiftscope)" + REPORT, "LOADED"
    )
    assert "shiftscope" in loaded
    assert not HEAVY & set(loaded)


def test_help_loads_no_heavy_library() -> None:
    assert not HEAVY & set(last_words(HELP + REPORT, "LOADED"))


@pytest.mark.parametrize("command", ["analyze", "report", "verify"])
def test_help_of_a_command_loads_no_heavy_library(command: str) -> None:
    code = HELP.replace('["--help"]', f'["{command}", "--help"]')
    assert not HEAVY & set(last_words(code + REPORT, "LOADED"))


def test_help_takes_less_than_a_third_of_a_second() -> None:
    """Processor time of the whole interpreter, so that a busy machine does not matter much."""
    seconds = [float(last_words(HELP + CLOCK, "CPU")[0]) for _ in range(5)]
    assert statistics.median(seconds) < HELP_SECONDS
