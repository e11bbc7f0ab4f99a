"""A report on disk: complete, whole or not at all, rebuilt from its snapshot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_cases import hostile, sick

import shiftscope as ss
from shiftscope.errors import UsageError
from shiftscope.reporting import bundle
from shiftscope.snapshot import Snapshot


def content(folder: Path) -> dict[str, bytes]:
    found = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def _undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without figures, for tests that are about files."""
    monkeypatch.setattr(bundle, "_pictures", lambda *_: [])


def test_all_files_and_the_path_of_the_folder(tmp_path: Path) -> None:
    result = ss.report(sick(), tmp_path / "a" / "run")
    names = set(content(tmp_path / "a" / "run"))
    assert {"report.html", "report.json", "snapshot.npz", "figures/depth-profile.png"} <= names
    assert {p.relative_to(result.folder).as_posix() for p in result.files} == names
    assert Path(result) == tmp_path / "a" / "run"
    assert listed(tmp_path / "a") == ["run"]
    assert [f.cause for f in result.findings] == [f.cause for f in ss.diagnose(sick())]


def test_formats_choose_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    ss.report(sick(), tmp_path / "r", formats=("json",))
    assert set(content(tmp_path / "r")) == {"report.json", "snapshot.npz"}
    ss.report(sick(), tmp_path / "s", formats="json")
    with pytest.raises(UsageError, match="'pdf'"):
        ss.report(sick(), tmp_path / "t", formats=("html", "pdf"))
    assert not (tmp_path / "t").exists()


def test_rebuilt_from_its_snapshot_the_report_is_the_same(tmp_path: Path) -> None:
    ss.report(sick(), tmp_path / "one")
    ss.report(ss.load(tmp_path / "one" / "snapshot.npz"), tmp_path / "two")
    one, two = content(tmp_path / "one"), content(tmp_path / "two")
    assert set(one) == set(two)
    assert one["report.json"] == two["report.json"]
    assert one["report.html"] == two["report.html"]


@pytest.mark.usefixtures("_undrawn")
def test_a_failure_midway_leaves_the_old_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "run"
    ss.report(sick(), place, formats=("html", "json"))
    before = content(place)

    def full(self: Snapshot, path: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Snapshot, "save", full)
    with pytest.raises(UsageError, match="No space left"):
        ss.report(hostile(), place, formats=("html", "json"))
    assert content(place) == before
    assert listed(tmp_path) == ["run"]


@pytest.mark.usefixtures("_undrawn")
def test_an_interrupt_leaves_no_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle, "page", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ss.report(sick(), tmp_path / "run", formats=("html",))
    assert listed(tmp_path) == []


def test_hostile_names_make_no_paths(tmp_path: Path) -> None:
    ss.report(hostile(), tmp_path / "deep" / "run")
    assert listed(tmp_path) == ["deep"]
    assert listed(tmp_path / "deep") == ["run"]
    names = {name.removeprefix("figures/") for name in content(tmp_path / "deep" / "run")}
    assert all(name.replace("-", "").replace(".", "").isalnum() for name in names)


def test_an_empty_snapshot_can_be_reported(tmp_path: Path) -> None:
    result = ss.report(Snapshot(records={}), tmp_path)
    told = json.loads((tmp_path / "report.json").read_text())
    assert "Nothing was measured" in told["verdict"]["sentence"]
    assert not (tmp_path / "figures").exists()
    assert len(result.files) == 3


def test_a_file_in_the_way_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(UsageError, match="cannot write"):
        ss.report(sick(), tmp_path / "run", formats=("json",))
    assert (tmp_path / "run").read_text() == "mine"
