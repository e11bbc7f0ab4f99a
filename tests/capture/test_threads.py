"""Several threads that train one model: what one is amid of stays whole, whatever another does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import shiftscope as ss
from shiftscope.capture.lean import LeanRecorder
from shiftscope.capture.readings import ROWS
from shiftscope.capture.recorder import Settings
from shiftscope.capture.sampling import Sampler
from shiftscope.capture.site_state import SiteState


def test_rows_are_drawn_in_ones_own_order() -> None:
    other = Sampler(Settings())
    other.draw(0, torch.randn(1000, 3), ROWS, -1, object())

    class Shared(Sampler):
        """Another thread has always just put its order there."""

        @property
        def _order(self) -> Any:
            return other._order

        @_order.setter
        def _order(self, own: Any) -> None:
            pass

    x = torch.randn(20, 3)
    got = Shared(Settings()).draw(0, x, ROWS, -1, object())
    want = Sampler(Settings()).draw(0, x, ROWS, -1, object())
    assert got is not None
    assert want is not None
    assert torch.equal(got.rows, want.rows)


def test_a_site_that_another_thread_adds_meanwhile_is_no_harm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = LeanRecorder._read_weight

    def read(self: LeanRecorder, state: SiteState, *moments: Any) -> None:
        info = replace(state.info, site=f"{len(self.states)}")
        self.states[info.site] = SiteState(info)
        original(self, state, *moments)

    monkeypatch.setattr(LeanRecorder, "_read_weight", read)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    with ss.watch(model, every=1) as watched:
        model(torch.randn(3, 4)).sum().backward()
        watched.step()
    assert set(watched.trace[-1].snapshot.records) == {"0", "1", "2"}
