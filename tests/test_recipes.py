"""The recipes of the README work as typed: each block after a ``<!-- test:NAME -->`` is run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"
RECIPES = dict(
    re.findall(
        r"^<!-- test:(\w+) -->\n```py\n(.*?)^```",
        README.read_text(encoding="utf-8"),
        flags=re.DOTALL | re.MULTILINE,
    )
)
NEEDS = {"lightning": "lightning", "transformers": "accelerate"}


def run(name: str, folder: Path, *launcher: str) -> str:
    """Run the recipe as a file of its own, as a reader would."""
    path = folder / f"recipe_{name}.py"  # a file named lightning.py would hide the package
    path.write_text(RECIPES[name], encoding="utf-8")
    done = subprocess.run(
        [sys.executable, *launcher, str(path)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_recipe_is_tested() -> None:
    assert set(RECIPES) == {"loop", "trial", "lightning", "transformers", "ddp", "compiled"}


def test_a_plain_loop(tmp_path: Path) -> None:
    out = run("loop", tmp_path)
    assert "critical; " in out
    assert (tmp_path / "run" / "report.html").is_file()
    assert (tmp_path / "run" / "figures" / "evolution.png").is_file()
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in lines] == [*["train"] * 5, "eval"]
    assert (tmp_path / "trace.npz").is_file()


def test_a_trial(tmp_path: Path) -> None:
    assert "shift_share" in run("trial", tmp_path)


@pytest.mark.parametrize("name", NEEDS)
def test_a_trainer(name: str, tmp_path: Path) -> None:
    pytest.importorskip(NEEDS[name], exc_type=ImportError)
    pytest.importorskip(name, exc_type=ImportError)
    run(name, tmp_path)
    assert (tmp_path / "run" / "report.html").is_file()
    assert (tmp_path / "run" / "trace.npz").is_file()


def test_two_processes(tmp_path: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run("ddp", tmp_path, *launcher)
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_model(tmp_path: Path) -> None:
    assert "Trace(3 windows" in run("compiled", tmp_path)
