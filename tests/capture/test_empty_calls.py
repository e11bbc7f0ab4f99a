"""Calls without rows: an expert that got no tokens, an empty last batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import shiftscope as ss
from shiftscope.absences import joined_gaps, joined_notes
from shiftscope.capture import hooks, probe
from shiftscope.capture.mode import PlainMode


@pytest.fixture(params=["compiled", "python"], autouse=True)
def calls_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Calls are recorded by compiled code where it is built, and by Python."""
    if request.param == "python":
        monkeypatch.setattr(probe, "Mode", PlainMode)
        monkeypatch.setattr(hooks, "entered", lambda *_: False)
        monkeypatch.setattr(hooks, "left", lambda *_: False)
    return


class Experts(nn.Module):
    """Each expert gets the rows whose first number names it."""

    def __init__(self, make: Callable[[], nn.Module], number: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.experts = nn.ModuleList(make() for _ in range(number))

    def forward(self, x: Tensor) -> Tensor:
        first = x.flatten(1)[:, 0].round()
        rows = [torch.nonzero(first == number)[:, 0] for number in range(len(self.experts))]
        parts = [expert(x[k]) for expert, k in zip(self.experts, rows, strict=True)]
        return torch.cat([part.flatten(1) for part in parts])


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))


def image() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 3, 2), nn.GELU())


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.w)


KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[str, ...]]] = {
    "dense": (dense, (4,), (".0", ".1", ".2")),
    "image": (image, (2, 3, 3), (".0", ".1")),
    "functions": (Functional, (4,), (":matmul", ":tanh")),
}


def batch(shape: tuple[int, ...], *owners: int) -> Tensor:
    """Rows for the experts that are named."""
    x = torch.randn(len(owners), *shape)
    x.view(len(owners), -1)[:, 0] = torch.tensor(owners, dtype=torch.float32)
    return x


def watched(model: nn.Module, batches: list[Tensor], **options: Any) -> ss.Probe:
    with ss.watch(model, every=1, **options) as probe:
        for x in batches:
            model(x).square().sum().backward()
            probe.step()
    return probe


def reason(calls: int) -> str:
    return f"called {calls} time{'s' * (calls > 1)}, always with no rows (empty batches)"


@pytest.mark.parametrize("kind", KINDS)
def test_what_never_gets_rows_is_a_gap(kind: str) -> None:
    make, shape, sites = KINDS[kind]
    gaps = tuple((f"experts.2{site}", reason(3)) for site in sites)
    batches = [batch(shape, 0, 1, 1) for _ in range(3)]
    snapshot = watched(Experts(make), batches).snapshot()
    assert snapshot.gaps == gaps
    assert set(snapshot.records) == {f"experts.{k}{site}" for k in (0, 1) for site in sites}
    assert ss.analyze(Experts(make), batches).gaps == gaps


@pytest.mark.parametrize("window", [1, 2, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_calls_with_rows_are_counted_and_nothing_else_is_said(kind: str, window: int) -> None:
    make, shape, sites = KINDS[kind]
    full, none = (0, 1, 2, 2, 2), (0, 1, 1)
    batches = [batch(shape, *owners) for owners in (full, none, none, full, none, none)]
    snapshot = watched(Experts(make), batches, window=window).snapshot()
    assert snapshot.gaps == ()
    expected = watched(Experts(make), [batches[0], batches[3]]).snapshot()
    for site in sites:
        got, want = (s.records[f"experts.2{site}"] for s in (snapshot, expected))
        assert (got.calls, got.samples) == (2, 10)
        assert got.notes == ("4 further calls had no rows",)
        assert snapshot.records[f"experts.1{site}"].notes == ()
        assert got.streams.keys() == want.streams.keys() >= {"a", "z", "grad_z"}
        for name, stream in got.streams.items():
            mine, theirs = stream.moments, want.streams[name].moments
            assert torch.equal(mine.count, theirs.count)
            np.testing.assert_allclose(mine.mean, theirs.mean, rtol=1e-6, atol=1e-12)
            np.testing.assert_allclose(mine.m2, theirs.m2, rtol=1e-5, atol=1e-12)


def test_each_window_tells_of_its_own_steps() -> None:
    batches = [batch((4,), *owners) for owners in ((0, 2), (0, 0), (0, 1), (2, 2))]
    trace = watched(Experts(dense), batches, window=1).trace
    absent = [{path[:9] for path, _ in window.snapshot.gaps} for window in trace]
    assert absent == [
        {"experts.1"},
        {"experts.1", "experts.2"},
        {"experts.2"},
        {"experts.0", "experts.1"},
    ]
    assert {why for window in trace for _, why in window.snapshot.gaps} == {reason(1)}
    joined = trace.merge()
    assert joined.gaps == ()
    assert joined.coverage["activations"] == {"seen": 3, "total": 3}


def test_an_empty_last_batch_is_told_of() -> None:
    model = dense()
    data = [torch.randn(6, 4), torch.randn(0, 4)]
    with ss.watch(model, every=1) as probe:
        for x in data:
            model(x).sum().backward()
            probe.step()
    notes = {record.notes for record in probe.snapshot().records.values()}
    assert notes == {("1 further call had no rows",)}
    snapshot = ss.analyze(model, data)
    assert (snapshot.manifest["batches"], snapshot.manifest["empty_batches"]) == (1, 1)
    assert "empty_batches" not in ss.analyze(model, data[:1]).manifest
    with pytest.raises(ss.DataError, match="no batch with samples"):
        ss.analyze(model, data[1:])


class Shared(nn.Module):
    """Functions of one module, which are told apart by their order."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        parts = x[:0], x[:2], x[2:]
        return torch.cat([F.relu(f(x)) for f, x in zip(self.layers, parts, strict=True)])


def test_a_function_keeps_its_name_where_one_before_it_had_no_rows() -> None:
    snapshot = watched(Shared(), [torch.randn(5, 4)] * 2).snapshot()
    counts = {name: int(n) for name, n in snapshot.sites[["site", "count"]].to_numpy()}
    assert counts == {"layers.1": 4, ":relu.2": 4, "layers.2": 6, ":relu.3": 6}
    assert snapshot.gaps == (("layers.0", reason(2)), (":relu", reason(2)))


class Early(nn.Module):
    """Its second half is left out where the input says so."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return x if len(x) < 3 else self.last(x)


def test_a_layer_that_is_called_in_some_windows_is_absent_in_the_others() -> None:
    model = Early()
    batches = [torch.randn(rows, 4) for rows in (2, 3, 2)]
    trace = watched(model, batches, window=1).trace
    gaps = [window.snapshot.gaps for window in trace]
    assert gaps == [(("last", "not called"),), (), (("last", "not called in these steps"),)]
    joined = trace.merge()
    assert joined.gaps == ()
    assert joined.coverage["parameters"] == {"seen": 32, "total": 32}
    assert watched(model, batches[:1]).snapshot().coverage["parameters"]["seen"] == 16


def test_an_expert_is_no_gap_of_all_ranks_where_one_has_tokens_for_it() -> None:
    model = Experts(dense)
    shards = [ss.analyze(model, [batch((4,), *owners)]) for owners in ((0, 2), (0, 0))]
    merged = shards[0].merge(shards[1])
    assert merged.gaps == tuple((f"experts.1.{k}", reason(2)) for k in range(3))
    assert merged.records["experts.2.0"].notes == ("1 further call had no rows",)
    assert merged.records["experts.2.0"].calls == 1
    assert merged.records["experts.0.0"].notes == ()


def test_overflowing_steps_count_no_calls_without_rows() -> None:
    model = Experts(dense)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    with ss.watch(model, optimizer, every=1, scaler=scaler) as probe:
        for step in range(3):
            loss = model(batch((4,), 0, 1)).sum()
            scaler.scale(loss * (float("inf") if step == 1 else 1.0)).backward()
            scaler.step(optimizer)
            optimizer.zero_grad()
            scaler.update()
    assert dict(probe.snapshot().gaps)["experts.2.0"] == reason(2)


def test_reasons_of_several_windows_become_one() -> None:
    gaps = [("a", "not called"), ("a", reason(2)), ("a", "not called in these steps")]
    gaps += [("b", "not called"), ("b", "not called in these steps"), ("a", reason(3))]
    gaps += [
        ("c", "not called"),
        ("d", "complex weights"),
        ("d", "complex weights"),
        ("e", reason(1)),
    ]
    kept, without_rows = joined_gaps(gaps, {"c", "d", "e"})
    assert kept == (("a", reason(5)), ("b", "not called in these steps"), ("d", "complex weights"))
    assert without_rows == {"e": 1}
    notes = joined_notes(["x", "2 further calls had no rows", "1 further call had no rows", "x"])
    assert notes == ("x", "3 further calls had no rows")
