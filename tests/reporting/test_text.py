"""The terminal summary: complete, inert, readable anywhere."""

from __future__ import annotations

import io
import re

import pytest
import torch
from report_cases import hostile, sick
from rich.console import Console

from shiftscope.capture.bare_weights import weights_only
from shiftscope.findings import diagnose
from shiftscope.reporting.text import plain_summary, summary
from shiftscope.snapshot import Snapshot


def shown(snapshot: Snapshot, width: int = 80, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, errors="strict")
    console = Console(file=stream, width=width, force_terminal=True, color_system="truecolor")
    console.print(summary(snapshot, diagnose(snapshot)))
    stream.flush()
    return raw.getvalue().decode(encoding)


def test_it_tells_everything() -> None:
    text = " ".join(plain_summary(sick(), diagnose(sick())).split())
    findings = diagnose(sick())
    assert all(finding.cause in text for finding in findings)
    assert "CRITICAL Means, not signals" in text
    for part in ("±", "threshold shift_share 0.5", "Worst 10 of 17 sites", "Coverage", "Inputs"):
        assert part in text
    assert findings[0].advice[:30] in text


@pytest.mark.parametrize("width", [40, 80, 200])
def test_lines_fit_the_width(width: int) -> None:
    for snapshot in (sick(), hostile()):
        lines = plain_summary(snapshot, diagnose(snapshot), width).splitlines()
        assert max(map(len, lines)) <= width


def test_hostile_names_are_inert() -> None:
    colours = re.compile(r"\x1b\[[0-9;]*m")
    bare = colours.sub("", shown(hostile(), 200))
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u2028\u202e]", bare)
    assert r"\x1b[2J" in bare
    assert "[bold red]x[/bold red]" in bare
    assert r"\x1b[31mbecause" in bare


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_encoding_can_show_it(encoding: str) -> None:
    text = shown(hostile(), encoding=encoding)
    assert ("+/-" in text) == (encoding != "utf-8")


def test_without_colour_there_is_no_escape() -> None:
    assert "\x1b" not in plain_summary(sick(), diagnose(sick()))


def test_nothing_measured_is_said() -> None:
    empty = Snapshot(records={})
    assert "Nothing was measured" in plain_summary(empty, diagnose(empty))


def test_weights_alone_are_told_where_no_data_went_through() -> None:
    state = {"0.weight": torch.randn(8, 4), "2.weight": torch.randn(3, 8)}
    snapshot = weights_only(state)
    text = plain_summary(snapshot, diagnose(snapshot))
    assert "First 2 of 2 sites" in text
    row = next(line for line in text.splitlines() if line.split()[:1] == ["0"])
    assert row.split()[1:3] == ["8", "4"]
    assert "–" not in row


@pytest.mark.parametrize("width", [40, 60, 66, 100])
def test_columns_of_the_table_are_whole_or_left_out(width: int) -> None:
    lines = plain_summary(sick(), diagnose(sick()), width).splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("Worst"))
    heading = next(line for line in lines[start + 1 :] if "site" in line)
    rows = [line for line in lines[start:] if re.match(r" \d+ ", line)]
    titles = re.split(r"\s{2,}", heading.strip())
    assert set(titles) <= {"site", "shift", "mean z", "sd z", "lg V(∇z)", "dead", "flat"}
    assert len(titles) >= 3
    assert rows
    assert all(len(line.split()) == len(titles) for line in rows)
