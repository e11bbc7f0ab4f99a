"""The gallery's recipes run again, at seeds of their own, give the committed numbers."""

from __future__ import annotations

import importlib.util
import json
import math
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support import shared_path

GALLERY = Path(__file__).resolve().parents[2] / "reports"
RECIPES = sorted(path.stem for path in GALLERY.glob("[0-9]*.py"))
FRESH = "1000"
"""First seed of the runs here; no committed run uses it, so that the two are independent."""

LIMIT = 4.0
"""Standard errors that a number may be off; a chance of 6e-5 each, were the errors exact."""


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script of the gallery as a module; its siblings are found as when it is run."""
    monkeypatch.syspath_prepend(str(GALLERY))
    spec = importlib.util.spec_from_file_location(f"gallery_{name}", GALLERY / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def numbers(folder: Path, name: str) -> dict[str, dict[str, Any]]:
    """The numbers of a recipe by quantity."""
    entries = json.loads((folder / "numbers" / f"{name}.json").read_text(encoding="utf-8"))
    return {entry["quantity"]: entry for entry in entries}


def combined_error(committed: dict[str, Any], fresh: dict[str, Any]) -> float:
    """Standard error of the difference of two means over independent seeds.

    The error of the fresh mean is derived from the committed spread, which rests on more seeds: a
    spread over two or three seeds may be small by chance.
    """
    ratio = len(committed["seeds"]) / len(fresh["seeds"])
    return float(committed["standard_error"]) * math.sqrt(1 + ratio)


def misses(committed: dict[str, Any], fresh: dict[str, Any]) -> list[str]:
    """Quantities that differ by more than chance allows."""
    return [
        f"{name}: {fresh[name]['ours']} against {entry['ours']}"
        for name, entry in committed.items()
        if not abs(fresh[name]["ours"] - entry["ours"])
        <= LIMIT * combined_error(entry, fresh[name])
    ]


@pytest.mark.parametrize(
    ("recipe", "images"),
    [
        ("01_stripes", False),
        ("02_activation_boxplots", False),
        pytest.param("02_activation_boxplots", True, marks=pytest.mark.slow),
        ("03_layer_boxplots", False),
        ("03_layer_boxplots", True),
    ],
)
def test_the_numbers_repeat(
    recipe: str, images: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    option = ["--cifar", str(shared_path("data/cifar10"))] if images else []
    module = load(recipe, monkeypatch)
    module.main(["--quick", "--seed", FRESH, "--out", str(tmp_path), *option])
    name = f"{recipe}_cifar10" if images else recipe
    committed, fresh = numbers(GALLERY, name), numbers(tmp_path, name)
    assert committed.keys() == fresh.keys()
    assert not {s for e in fresh.values() for s in e["seeds"]} & set(first(committed)["seeds"])
    assert misses(committed, fresh) == []
    assert (tmp_path / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def first(entries: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return next(iter(entries.values()))


def test_a_wrong_number_is_noticed() -> None:
    """The negative control, with errors of the size that the gallery has."""
    entry = {"ours": 0.75, "standard_error": 0.004, "seeds": list(range(40))}
    near = {"ours": 0.78, "seeds": list(range(8))}
    far = {"ours": 0.80, "seeds": list(range(8))}
    assert misses({"share": entry}, {"share": near}) == []
    assert len(misses({"share": entry}, {"share": far})) == 1
    assert len(misses({"share": entry}, {"share": {**far, "ours": math.nan}})) == 1


COMMITTED = sorted(path.stem for path in (GALLERY / "numbers").glob("*.json"))


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_numbers_are_whole(name: str) -> None:
    """Every number has its error, rows and seeds, and says whose value it is compared with."""
    for entry in numbers(GALLERY, name).values():
        assert entry["rows"] >= 100
        assert len(set(entry["seeds"])) >= 5
        assert 0 < entry["standard_error"] < 1
        assert (entry["paper"] is None) == (entry["difference"] is None) == (not entry["source"])
        if entry["paper"] is not None:
            assert entry["difference"] == pytest.approx(entry["ours"] - entry["paper"], abs=1e-12)


@pytest.mark.parametrize("name", COMMITTED)
def test_pictures_are_small(name: str) -> None:
    assert 5_000 < (GALLERY / "figures" / f"{name}.png").stat().st_size < 300_000


def test_every_recipe_is_committed_with_numbers() -> None:
    assert {name.removesuffix("_cifar10") for name in COMMITTED} == set(RECIPES)


def test_the_page_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    written = (GALLERY / "README.md").read_text(encoding="utf-8")
    assert written == load("index", monkeypatch).page()
    for target in re.findall(r"\]\(([^)]+)\)", written):
        assert (GALLERY / target).exists(), target


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_use_public_names_alone(recipe: str) -> None:
    text = (GALLERY / f"{recipe}.py").read_text(encoding="utf-8")
    assert "import shiftscope as ss" in text
    assert "from shiftscope" not in text
    assert "._" not in text
