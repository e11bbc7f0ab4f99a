"""Places that cannot be written: told alike, and without options of a command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import shiftscope as ss
from shiftscope.files import PlaceError, atomic_file, atomic_folder
from shiftscope.trace import Trace


@pytest.fixture(scope="module")
def snapshot() -> ss.Snapshot:
    return ss.analyze(torch.nn.Linear(3, 2), [torch.ones(4, 3)])


@pytest.mark.parametrize("path", ["", "a\0b", 3, None, b"bytes", "file/below", "x" * 300])
@pytest.mark.parametrize("opened", [atomic_file, atomic_folder])
def test_a_place_that_is_none_is_refused(
    opened: Callable[..., Any], path: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("in the way")
    with pytest.raises(PlaceError) as caught, opened(path):
        pass
    assert caught.value.remedy == "choose a place you may write to, with space left"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_python_is_told_of_no_options(snapshot: ss.Snapshot, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    below = tmp_path / "file" / "below"
    for write in (snapshot.save, Trace.of([snapshot]).save, lambda p: ss.report(snapshot, p)):
        with pytest.raises(ss.UsageError) as caught:
            write(below)
        assert "--" not in str(caught.value)


@pytest.mark.parametrize("path", [3, None, "a\0b", "", "x" * 300])
@pytest.mark.parametrize("read", [ss.load, Trace.load])
def test_a_file_that_is_none_is_not_read(read: Callable[..., Any], path: Any) -> None:
    with pytest.raises(ss.LoadError) as caught:
        read(path)
    assert caught.value.remedy
