"""What is installed is what is on disk: wheel contents, entry point, pins, the two commands."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
ASSETS = {".html", ".css", ".js", ".pyi"}
COMPILED = ("shiftscope/capture/_calls.", "shiftscope/fix/_zerosum.", "shiftscope/tally/_native.")
BUILT_FROM_SOURCE = ("pyproject.toml", "README.md", "shiftscope", "cli")
EXPECTED = {
    "demo": 'python -m pip install -c constraints.txt ".[demo]" && shiftscope demo',
    "test": 'python -m pip install -c constraints.txt -e ".[test]" && python -m pytest -n 2',
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel pip builds from a clean copy of the sources (setuptools comes with torch)."""
    return built_wheel(tmp_path_factory.mktemp("wheel"), {})


def built_wheel(folder: Path, environment: dict[str, str]) -> zipfile.ZipFile:
    source, out = folder / "source", folder / "out"
    source.mkdir()
    for name in BUILT_FROM_SOURCE:
        if (ROOT / name).is_dir():
            unbuilt = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd")
            shutil.copytree(ROOT / name, source / name, ignore=unbuilt)
        else:
            shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation"]
    built = subprocess.run(
        [*command, "--no-index", "-w", str(out)],
        cwd=source,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (file,) = out.glob("shiftscope-*.whl")
    return zipfile.ZipFile(file)


def on_disk(pattern: str = "*") -> set[str]:
    """The files that belong into the wheel, by their place inside it."""
    found = set()
    for folder, prefix in (("shiftscope", "shiftscope"), ("cli", "shiftscope/cli")):
        for path in (ROOT / folder).rglob(pattern):
            if path.suffix in {".py", *ASSETS} or path.name == "py.typed":
                found.add(f"{prefix}/{path.relative_to(ROOT / folder).as_posix()}")
    return found


def test_the_wheel_holds_every_module_and_asset(wheel: zipfile.ZipFile) -> None:
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    stubs = {name + "pyi" for name in COMPILED}
    compiled = {name for name in packed if name.startswith(COMPILED)} - stubs
    assert packed - compiled == on_disk()
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    assert len(compiled) == (len(COMPILED) if shutil.which(compiler) else 0)
    assert {"shiftscope/py.typed", "shiftscope/cli/__init__.py"} | stubs <= packed


def test_no_compiler_is_needed(tmp_path: Path) -> None:
    packed = built_wheel(tmp_path, {"CC": "/nonexistent/cc"}).namelist()
    compiled = [name for name in packed if name.startswith(COMPILED)]
    assert sorted(compiled) == [name + "pyi" for name in COMPILED]
    assert on_disk() <= set(packed)


def test_the_wheel_holds_no_second_top_level_package(wheel: zipfile.ZipFile) -> None:
    assert {name.split("/")[0].split("-")[0] for name in wheel.namelist()} == {"shiftscope"}


def test_the_wheel_installs_the_console_script(wheel: zipfile.ZipFile) -> None:
    (name,) = [n for n in wheel.namelist() if n.endswith("entry_points.txt")]
    parser = configparser.ConfigParser()
    parser.read_string(wheel.read(name).decode())
    assert dict(parser["console_scripts"]) == {"shiftscope": "shiftscope.cli:main"}


def test_every_folder_is_a_listed_package() -> None:
    listed = set(PYPROJECT["tool"]["setuptools"]["packages"])
    folders = {Path(name).parent.as_posix().replace("/", ".") for name in on_disk("*.py")}
    assert listed == folders
    assert PYPROJECT["tool"]["setuptools"]["package-dir"] == {"shiftscope.cli": "cli"}


def pins() -> dict[str, str]:
    """Canonical name -> version of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def needed(requirements: list[str], extras: set[str]) -> set[str]:
    """Names of everything the requirements pull in, as far as it is installed here."""
    found: set[str] = set()
    queue: list[tuple[Requirement, set[str]]] = [(Requirement(r), extras) for r in requirements]
    while queue:
        requirement, wanted = queue.pop()
        marker = requirement.marker
        if marker and not any(marker.evaluate({"extra": extra}) for extra in wanted | {""}):
            continue
        name = canonicalize_name(requirement.name)
        if name in found or name == "shiftscope" or accelerator(name):
            continue
        found.add(name)
        try:
            children = requires(name) or []
        except PackageNotFoundError:
            continue
        queue += [(Requirement(child), set(requirement.extras)) for child in children]
    return found


def accelerator(name: str) -> bool:
    """Whether the package belongs to one build of torch only, and is pinned by that build."""
    return name.startswith(("nvidia-", "cuda-", "triton"))


@pytest.mark.parametrize("extra", ["", "demo", "test", "dev"])
def test_constraints_pin_everything_that_is_installed(extra: str) -> None:
    optional: dict[str, Any] = PYPROJECT["project"]["optional-dependencies"]
    asked = PYPROJECT["project"]["dependencies"] + optional.get(extra, [])
    assert needed(asked, {extra}) - set(pins()) == set()


def test_pins_satisfy_what_the_project_asks_for() -> None:
    project = PYPROJECT["project"]
    asked = project["dependencies"] + [
        r for rs in project["optional-dependencies"].values() for r in rs
    ]
    for requirement in map(Requirement, asked):
        name = canonicalize_name(requirement.name)
        assert name == "shiftscope" or requirement.specifier.contains(pins()[name]), requirement


@pytest.mark.parametrize("tag", ["demo", "test"])
def test_the_readme_has_the_two_commands(tag: str) -> None:
    block = re.search(rf"<!-- ci:{tag} -->\n```sh\n(.*?)```", README, flags=re.DOTALL)
    assert block is not None
    assert block[1].strip() == EXPECTED[tag]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_ci_runs_the_commands_of_the_readme() -> None:
    asked = [str(ROOT / ".ci" / "run"), "commands"]
    shown = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    assert shown.splitlines() == [EXPECTED["demo"], EXPECTED["test"]]
