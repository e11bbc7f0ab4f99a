"""The end of a step: steps like those before, against all rows stored, and against plain Python."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tally_support import READERS, read_by

from shiftscope.capture import events
from shiftscope.capture.lean import LeanRecorder
from shiftscope.capture.readings import ROWS
from shiftscope.capture.recorder import Settings
from shiftscope.capture.site_state import SiteState
from shiftscope.capture.totals import PagedReader
from shiftscope.record import SiteInfo
from shiftscope.tally import native
from shiftscope.tally.native import Reader

WIDTHS = (1, 3, 8)
Read = list[tuple[int, torch.Tensor]]
"""What is read in a step: site, rows."""


class Window:
    """Recorded by the ledger, and all rows stored.

    Each step is averaged with those before; what is left out, or thrown away, is no part of it.
    """

    def __init__(self) -> None:
        self.recorder = LeanRecorder(Settings())
        self.states = [self._site(str(k), width) for k, width in enumerate(WIDTHS)]
        self.slots = [self.recorder.slot(state, "z") for state in self.states]
        self.steps: list[Read] = []
        self.read: Read = []
        self.passes = 0

    def _site(self, name: str, width: int) -> SiteState:
        return self.recorder._state(SiteInfo(name, "activation", "relu", name, width))

    def forward(self, order: list[int], rows: int, bad: bool, draw: random.Random) -> None:
        """One forward pass: the sites in some order, the same one perhaps several times."""
        self.passes += 1
        for site in order:
            x = torch.tensor([[draw.gauss(1, 2) for _ in range(WIDTHS[site])] for _ in range(rows)])
            if bad and draw.random() < 0.3:
                x[draw.randrange(rows), 0] = torch.nan
            self.recorder.take(self.slots[site], x, ROWS)
            self.recorder.called(self.states[site], (self.passes, rows), hooked=True)
            self.recorder.arrived(self.states[site], True, draw.random() < 0.9, False)
            self.read.append((site, x))

    def end(self) -> None:
        self.recorder.step += 1
        self.recorder.flush()
        self.steps.append(self.read)
        self.read = []

    def discard(self) -> None:
        self.recorder.discard()
        self.read = []

    def restart(self) -> None:
        self.recorder.restart()
        self.steps = []


def run(seed: int, nans: bool = True) -> list[Any]:
    """A random run; at the end of every window it is compared with its rows."""
    draw, window, found = random.Random(seed), Window(), list[Any]()
    structures = [draw.choices(range(3), k=draw.randint(1, 5)) for _ in range(3)]
    for _ in range(4):
        for turn in range(draw.randint(1, 7)):
            order = structures[turn % 2 if draw.random() < 0.8 else 2]  # they alternate
            lost = draw.random() < 0.15  # a step that overflowed, which is never emptied midway
            for _ in range(draw.choice((1, 1, 1, 3))):  # micro-batches
                window.forward(order, draw.choice((4, 4, 4, 2)), nans and draw.random() < 0.2, draw)
                if not lost and draw.random() < 0.1:
                    window.recorder.flush(ended=False)
            window.discard() if lost else window.end()
        records = window.recorder.records()
        compare(records, window)
        found.append(plain(records))
        window.restart()
    return found


def compare(records: Any, window: Window) -> None:
    for site, width in enumerate(WIDTHS):
        steps = [[x for own, x in step if own == site] for step in window.steps]
        rows = [torch.cat(step).double().numpy() for step in steps if step]
        if not rows:
            assert str(site) not in records
            continue
        record = records[str(site)]
        assert record.calls == sum(map(len, steps))
        moments = record.streams["z"].moments
        assert moments.count.tolist() == [
            sum(int(np.isfinite(x[:, c]).sum()) for x in rows) for c in range(width)
        ]
        lost = sum(int(np.isnan(x).sum()) for x in rows)
        assert ("z" in record.lost_since) == bool(lost)
        sums = sum(np.nan_to_num(x).sum(0) for x in rows)
        for column, mean in enumerate(moments.mean.tolist()):
            if moments.count[column]:
                np.testing.assert_allclose(mean * moments.count[column], sums[column], atol=1e-4)


def plain(records: Any) -> Any:
    return {
        name: (
            *(record.calls, record.samples, record.notes, record.lost_since, record.paired),
            {key: own.moments.to_arrays() for key, own in record.streams.items()},
            {key: own.counts and own.counts.to_arrays() for key, own in record.streams.items()},
        )
        for name, record in records.items()
    }


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("seed", range(8))
def test_every_window_is_what_its_rows_say(
    seed: int, reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_by(reader, monkeypatch)
    run(seed, nans=reader != "torch")  # torch's kernels leave out whole columns


@pytest.mark.skipif(not native.built(), reason="the compiled part was not built")
@pytest.mark.parametrize("seed", range(8, 24))
def test_compiled_and_plain_ends_of_steps_agree_to_the_bit(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = run(seed)
    monkeypatch.setattr(native, "built", lambda: False)  # the reader stays the compiled one
    np.testing.assert_equal(run(seed), compiled)


@pytest.mark.skipif(not native.built(), reason="the compiled part was not built")
def test_a_step_like_the_last_one_begins_nothing_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    window, draw = Window(), random.Random(0)
    reader: Any = window.recorder.readers.compiled
    begun: list[Any] = []
    begin = reader._begin
    monkeypatch.setattr(reader, "_begin", lambda *step: begun.append(step) or begin(*step))
    monkeypatch.setattr(events, "_count_any", None)  # passes come in order
    for turn in range(10):
        window.forward(([0, 1, 2], [2, 2, 0])[turn % 2], 1 + turn % 3, False, draw)
        window.end()
    assert len(begun) == 2
    compare(window.recorder.records(), window)


class Half(PagedReader):
    """Stands for the reader of one of two GPUs, whose readings are written down together."""

    def __init__(self) -> None:
        self.reader, self.added = Reader(), list[Any]()

    def take(self) -> Any:
        return self.reader.take()

    def give_back(self, pages: Any) -> None:
        self.reader.give_back(pages)

    def _new(self, key: Any, readings: Any, gradient: Any) -> Any:
        self.added.append((key, gradient))
        return SimpleNamespace(add=lambda pages, readings, inverse, step: self.added.append(step))


@pytest.mark.skipif(not native.built(), reason="the compiled part was not built")
def test_each_of_two_readers_takes_its_own_readings() -> None:
    halves = [Half(), Half()]
    for step in range(3):
        writes = [
            (10 * k + slot, halves[k].reader.look(torch.ones(2, 3), 0, 0, False))
            for slot in range(2)
            for k in range(2)
        ]
        for half in halves:
            assert list(half.merge(writes, [slot > 10 for slot in range(12)], None, step)) == []
    assert halves[0].added == [(((0, 1), (0, 1)), [False, False]), 0, 1, 2]
    assert halves[1].added == [(((10, 11), (0, 1)), [False, True]), 0, 1, 2]
