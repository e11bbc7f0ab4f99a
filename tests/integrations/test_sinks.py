"""Sinks: what was measured arrives, number for number, in the files of the real tools."""

from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from torch import nn

import shiftscope as ss
from shiftscope.errors import UsageError
from shiftscope.integrations import Csv, JsonLines, LiveTable, Sink, feed
from shiftscope.integrations.sink import CURVES, headline, required, scalars
from shiftscope.trace import Window


def snapshot(seed: int, name: str = "hidden") -> ss.Snapshot:
    torch.manual_seed(seed)
    model = nn.Sequential()
    model.add_module(name, nn.Linear(6, 5))
    model.add_module("act", nn.ReLU())
    model.add_module("head", nn.Linear(5, 3))
    data = [(torch.randn(40, 6), torch.randint(3, (40,)))]
    return ss.analyze(model, data, nn.functional.cross_entropy)


@pytest.fixture(scope="module")
def windows() -> list[Window]:
    return [Window(10 * k, 10 * k, "train", snapshot(k)) for k in range(3)]


def test_json_lines_are_strict_and_appended(windows: list[Window], tmp_path: Path) -> None:
    path = tmp_path / "new" / "run.jsonl"
    feed(windows[:2], JsonLines(path))
    feed(windows[2:], JsonLines(path))  # a resumed job goes on in the same file
    lines = path.read_text(encoding="utf-8").splitlines()
    read = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert [line["step"] for line in read] == [0, 10, 20]
    for line, window in zip(read, windows, strict=True):
        rows = window.snapshot.sites.to_dict("records")
        assert [row["site"] for row in line["sites"]] == [row["site"] for row in rows]
        for told, row in zip(line["sites"], rows, strict=True):
            assert told["shift_share"] == pytest.approx(row["shift_share"], rel=1e-12, nan_ok=True)
            assert (told["eta"] is None) == bool(pd.isna(row["eta"]))
        assert line["loss"] == pytest.approx(window.snapshot.manifest["loss"])


def test_a_torn_line_costs_no_other(windows: list[Window], tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    feed(windows[:2], JsonLines(path))
    path.write_text(path.read_text()[:-100])  # the disk was full, or the job was killed
    feed(windows[2:], JsonLines(path))
    lines = path.read_text().splitlines()
    assert len(lines) == 3
    assert [json.loads(lines[k])["step"] for k in (0, 2)] == [0, 20]


def test_the_steps_of_a_wide_window_are_told(windows: list[Window], tmp_path: Path) -> None:
    wide = Window(3, 17, "train", windows[0].snapshot)  # its manifest does not tell them
    feed([wide], JsonLines(tmp_path / "a.jsonl"), Csv(tmp_path / "a.csv"))
    line = json.loads((tmp_path / "a.jsonl").read_text())
    assert (line["step"], line["step_last"]) == (3, 17)
    table = pd.read_csv(tmp_path / "a.csv")
    assert set(table["step"]) == {3}
    assert set(table["step_last"]) == {17}


def test_unknown_numbers_are_null(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    unknown = ss.analyze(model, [torch.full((8, 6), math.nan)])
    feed([Window(0, 0, "train", unknown)], JsonLines(tmp_path / "a.jsonl"))
    line = json.loads((tmp_path / "a.jsonl").read_text())
    for name in ("loss", "accuracy", "shift_share_max", "shift_share_mean"):
        assert line[name] is None
    assert line["nonfinite"] > 0


@pytest.mark.parametrize("kind", [JsonLines, Csv])
def test_a_place_that_cannot_be_written_is_refused(kind: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "file" / "run", 3, "a\0b"):
        with pytest.raises(UsageError, match="cannot write") as caught:
            kind(place)
        assert "folder you may write to" in caught.value.remedy
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def check_table(table: pd.DataFrame, windows: list[Window]) -> None:
    assert list(table.columns[:4]) == ["step", "step_last", "phase", "site"]
    assert list(table["step_last"]) == list(table["step"])
    assert list(dict.fromkeys(table["step"])) == [0, 10, 20]
    for window in windows:
        part, sites = table[table["step"] == window.last], window.snapshot.sites
        assert list(part["site"]) == list(sites["site"])
        for name in ("shift_share", "log10_grad_z_var", "eta", "phi_fw", "count"):
            expected = sites[name].to_numpy(dtype=float)
            np.testing.assert_allclose(part[name].to_numpy(dtype=float), expected, rtol=1e-12)


def test_csv_holds_every_row(windows: list[Window], tmp_path: Path) -> None:
    path = tmp_path / "sites.csv"
    feed(windows, Csv(path))
    check_table(pd.read_csv(path), windows)


HOSTILE = '=cmd|calc!A1\0\x1b[31m\u202e\n,"'
"""A name of a module that a spreadsheet would run, with characters that a terminal obeys."""


def test_names_in_csv_are_inert(tmp_path: Path) -> None:
    path = tmp_path / "sites.csv"
    feed([Window(0, 0, "@phase", snapshot(0, HOSTILE))], Csv(path))
    text = path.read_text(encoding="utf-8")
    assert all(c.isprintable() or c == "\n" for c in text)
    table = pd.read_csv(path)
    assert table["site"][0] == "'=cmd|calc!A1\\x00\\x1b[31m\\u202e\\n,\""
    assert table["phase"][0] == "'@phase"
    assert table["site"][1] == "act"


def test_names_in_parquet_are_kept(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from shiftscope.integrations import Parquet

    path = tmp_path / "sites.parquet"
    feed([Window(0, 0, "train", snapshot(0, HOSTILE))], Parquet(path))
    assert pd.read_parquet(path)["site"][0] == HOSTILE


def test_a_sink_without_windows_writes_nothing(tmp_path: Path) -> None:
    Csv(tmp_path / "sites.csv").close()
    assert list(tmp_path.iterdir()) == []


def test_parquet_holds_every_row(windows: list[Window], tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from shiftscope.integrations import Parquet

    path = tmp_path / "sites.parquet"
    feed(windows, Parquet(path))
    check_table(pd.read_parquet(path), windows)


def test_tensorboard_reads_back_what_was_written(windows: list[Window], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from shiftscope.integrations import TensorBoard

    feed(windows, TensorBoard(tmp_path))
    log = EventAccumulator(str(tmp_path)).Reload()
    assert set(log.Tags()["scalars"]) == set(scalars("train", windows[0].snapshot))
    for window, event in zip(windows, log.Scalars("train/shift_share/hidden"), strict=True):
        sites = window.snapshot.sites.set_index("site")
        assert event.step == window.last
        assert event.value == pytest.approx(sites.loc["hidden", "shift_share"], rel=1e-6)
    assert log.Histograms("train/z_mean/hidden")[0].histogram_value.num == 5


def test_a_folder_of_logs_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from shiftscope.integrations import TensorBoard

    (tmp_path / "file").touch()
    target: Any
    for target in (tmp_path / "file" / "logs", 3):
        with pytest.raises(UsageError, match="folder of logs") as caught:
            TensorBoard(target)
        assert caught.value.remedy


def test_wandb_offline_logs_every_window(
    windows: list[Window], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    from shiftscope.integrations import WeightsAndBiases

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with wandb.init(project="shiftscope-test", dir=str(tmp_path)) as run:
        run.log({"loss": 1.0}, step=500)  # the run's own steps may be far ahead
        logged: list[dict[str, Any]] = []
        own = run.log
        monkeypatch.setattr(run, "log", lambda data: (logged.append(data), own(data)))
        feed(windows, WeightsAndBiases())
        last = dict(run.summary)
    assert [line["shiftscope/step"] for line in logged] == [0, 10, 20]
    expected = windows[-1].snapshot.sites.set_index("site").loc["hidden", "shift_share"]
    assert last["shiftscope/train/shift_share/hidden"] == pytest.approx(expected)
    assert list(tmp_path.rglob("*.wandb"))


def test_wandb_without_a_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    from shiftscope.integrations import WeightsAndBiases

    monkeypatch.setattr(wandb, "run", None)
    with pytest.raises(UsageError, match="no Weights & Biases run"):
        WeightsAndBiases()


def test_what_is_no_run_is_refused() -> None:
    pytest.importorskip("wandb")
    from shiftscope.integrations import WeightsAndBiases

    with pytest.raises(UsageError, match="str is no run"):
        WeightsAndBiases("my-project")


def test_the_live_table_prints_lines_where_there_is_no_terminal(windows: list[Window]) -> None:
    out = io.StringIO()
    feed(windows, LiveTable(console=Console(file=out, width=60)))
    lines = out.getvalue().splitlines()
    assert [line.split(" · ")[0] for line in lines] == ["step 0", "step 10", "step 20"]
    assert "\x1b" not in out.getvalue()


def test_the_live_table_shows_the_worst_sites_and_no_markup() -> None:
    out = io.StringIO()
    console = Console(file=out, width=120, force_terminal=True, color_system=None)
    sink = LiveTable(sites=2, console=console)
    sink.write(7, "train", snapshot(0, "[red]\x1b[31mname"))
    sink.close()
    text = out.getvalue()
    assert "step 7" in text
    assert "[red]\\x1b[31mname" in text
    last = text[text.rindex("step 7") :]
    assert last.count("│") == 2 * 8  # two rows of seven cells


def test_headlines_are_the_worst_of_the_sites(windows: list[Window]) -> None:
    frame = windows[0].snapshot.sites
    entering = frame[frame["kind"] == "activation"]["shift_share"]
    told = headline(windows[0].snapshot)
    assert told["shift_share_max"] == pytest.approx(entering.max())
    assert told["nonfinite"] == 0
    assert all(math.isfinite(value) for value in told.values())


def test_curves_are_columns_of_the_site_table(windows: list[Window]) -> None:
    assert set(CURVES) <= set(windows[0].snapshot.sites.columns)


def test_a_missing_tool_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.delitem(sys.modules, "shiftscope.integrations.wandb", raising=False)
    with pytest.raises(UsageError, match=r"'wandb'.*not installed") as caught:
        _ = ss.integrations.WeightsAndBiases
    assert "shiftscope[wandb]" in str(caught.value.remedy)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match="pyarrow"):
        required("pyarrow", "parquet", "Parquet")


def test_files_are_sinks(tmp_path: Path) -> None:
    sinks = [JsonLines(tmp_path / "a.jsonl"), Csv(tmp_path / "a.csv"), LiveTable()]
    assert all(isinstance(sink, Sink) for sink in sinks)
    feed([], *sinks)
