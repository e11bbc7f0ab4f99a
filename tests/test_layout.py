"""Imports run downhill: the layout of the package, read from its source.

Function-level and TYPE_CHECKING imports count as well: an annotation that looks uphill is a
dependency of the design even where it is none at run time.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

RANK = {
    "errors": 0,
    "files": 1,
    "given": 1,
    "geometry": 1,
    "tally": 1,
    "theory": 1,
    "absences": 1,
    "record": 2,
    "columns": 2,
    "site_table": 2,
    "archive": 2,
    "snapshot": 2,
    "trace": 2,
    "findings": 3,
    "prediction": 3,
    "comparison": 3,
    "draw": 4,
    "reporting": 5,
    "cli": 6,
}
"""Part of the package -> its height; a part may import its own height and below."""

BESIDE = {
    "io": {p for p, rank in RANK.items() if rank <= 2},
    "capture": {p for p, rank in RANK.items() if rank <= 2},
    "fix": {p for p, rank in RANK.items() if rank <= 3} | {"capture"},
    "nn": {"errors", "fix"},
    "experiments": {"errors", "io"},
    "integrations": set(RANK) - {"cli"} | {"capture", "fix", "io"},
}
"""Parts that make or change what the others read -> the parts they may import."""

PLOTTING = {"matplotlib", "seaborn"}


def sources() -> list[tuple[str, Path]]:
    """Every module by its dotted name, ``shiftscope.cli.*`` read from the folder cli/."""
    found = []
    for base, prefix in ((ROOT / "shiftscope", "shiftscope"), (ROOT / "cli", "shiftscope.cli")):
        for path in sorted(base.rglob("*.py")):
            parts = [prefix, *path.relative_to(base).with_suffix("").parts]
            found.append((".".join(p for p in parts if p != "__init__"), path))
    return found


MODULES = dict(sources())


def part(module: str) -> str:
    """The second component: ``shiftscope.draw.depth`` belongs to ``draw``."""
    return (*module.split("."), "")[1]


def imported(module: str, path: Path) -> Iterator[tuple[str, ast.stmt]]:
    """The absolute names a module imports, anywhere in it, ``import_module("...")`` included."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name != "shiftscope":  # the names used are told by their attributes
                    yield alias.name, node
        elif isinstance(node, ast.ImportFrom):
            head = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join(
                [*(head if node.level else []), *([node.module] if node.module else [])]
            )
            for alias in node.names:
                yield f"{base}.{alias.name}", node
        elif isinstance(node, ast.Call) and node.args:
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            first = node.args[0]
            if called in {"import_module", "__import__"} and isinstance(first, ast.Constant):
                yield str(first.value), ast.Expr(node, lineno=node.lineno)
        elif isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "shiftscope":
            yield f"shiftscope.{node.attr}", ast.Expr(node, lineno=node.lineno)


def own(name: str) -> bool:
    return name.split(".")[0] == "shiftscope"


def home(name: str) -> str:
    """The module an imported name comes from: the longest prefix that is a module."""
    while name not in MODULES and "." in name:
        name = name.rpartition(".")[0]
    return name


def test_every_part_has_a_place() -> None:
    parts = {part(module) for module in MODULES} - {""}
    assert parts - set(RANK) - set(BESIDE) == set()


def may_import(here: str, there: str) -> bool:
    """Whether the part `here` may use the part `there`."""
    if here == "cli" or there == "__version__":
        return True
    if here in BESIDE:
        return there in BESIDE[here]
    return there in RANK and RANK[there] <= RANK.get(here, -1)


@pytest.mark.parametrize("module", [m for m in MODULES if part(m)])
def test_imports_run_downhill(module: str) -> None:
    here = part(module)
    for name, node in imported(module, MODULES[module]):
        there = part(name)
        if not own(name) or there == here:
            continue
        assert may_import(here, there), f"{module}:{node.lineno} imports {name}"


@pytest.mark.parametrize("module", MODULES)
def test_nothing_imports_the_command_line(module: str) -> None:
    if part(module) != "cli":
        names = [name for name, _ in imported(module, MODULES[module])]
        assert [n for n in names if own(n) and part(n) == "cli"] == []


def test_the_front_door_imports_nothing() -> None:
    path = MODULES["shiftscope"]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    eager = {n for n, node in imported("shiftscope", path) if node in tree.body}
    assert {name.split(".")[0] for name in eager} <= {"__future__", "importlib", "typing"}


def test_modules_import_without_circles() -> None:
    """Module-level imports form no cycle, also within one part."""
    graph: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {home(n) for n, node in imported(module, path) if node in tree.body and own(n)}
        graph[module] = names - {module}
    list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("module", MODULES)
def test_plotting_stays_in_draw_and_reporting(module: str) -> None:
    if part(module) not in {"draw", "reporting"}:
        used = {name.split(".")[0] for name, _ in imported(module, MODULES[module])}
        assert not used & PLOTTING


@pytest.mark.parametrize("module", MODULES)
def test_hooks_are_installed_by_capture_alone(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    called = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    hooks = {name for name in called if name.startswith("register_") and name.endswith("hook")}
    modes = called & {"TorchFunctionMode", "TorchDispatchMode"}
    if part(module) not in {"capture", "integrations"}:
        assert not hooks | modes


def test_the_reader_of_imports_sees_every_form(tmp_path: Path) -> None:
    path = tmp_path / "sample.py"
    path.write_text(
        "import shiftscope.draw\n"
        "from .. import io\n"
        "from ..reporting.text import summary\n"
        "def f():\n    from shiftscope import cli\n    import_module('shiftscope.fix')\n"
        "    import shiftscope\n    shiftscope.diagnose\n"
    )
    names = {name for name, _ in imported("shiftscope.capture.sample", path)}
    expected = {"draw", "io", "reporting.text.summary", "cli", "fix", "diagnose"}
    assert names == {f"shiftscope.{name}" for name in expected}
