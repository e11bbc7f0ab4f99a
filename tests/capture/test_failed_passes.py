"""A forward pass that raises: what it recorded is left out, and nothing else is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tally_support import READERS, read_by
from torch import Tensor, nn

import shiftscope as ss

LEFT_OUT = "forward passes that raised are left out"


class Net(nn.Module):
    """Raises where it is told to, behind all but its last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv = nn.Linear(6, 8), nn.Conv1d(2, 3, 3)
        self.last = nn.Linear(6, 3)
        self.error: BaseException | None = None
        self.act: Callable[[], Any] = lambda: None

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        h = self.conv(h.view(-1, 2, 4)).flatten(1)
        self.act()
        if self.error is not None:
            raise self.error
        return self.last(torch.tanh(h))  # type: ignore[no-any-return]


def made(**options: Any) -> tuple[Net, torch.optim.Optimizer, ss.Probe]:
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, optimizer, ss.watch(model, optimizer, **{"every": 1, "window": 2, **options})


def fails(model: Net, x: Tensor, error: BaseException) -> None:
    model.error = error
    with pytest.raises(type(error)):
        model(x)
    model.error = None


def run(errors: dict[int, BaseException], handling: bool = False, micro: int = 2) -> ss.Trace:
    """Four steps of two batches each; before the second of some of them a batch raises."""
    model, optimizer, probe = made()
    draw = torch.Generator().manual_seed(1)

    def step(number: int) -> None:
        optimizer.zero_grad()
        for part in range(micro):
            x = torch.randn(5, 6, generator=draw)
            if part == micro - 1 and number in errors:
                fails(model, x if number % 2 else torch.full((9, 6), 1e3), errors[number])
            model(x).square().mean().backward()
        optimizer.step()

    for number in range(4):
        if not handling:
            step(number)
            continue
        try:
            raise ValueError("the user's, who trains on while handling it")
        except ValueError:
            step(number)
    probe.detach()
    return probe.trace


ERRORS = {
    "oom": lambda: torch.OutOfMemoryError("CUDA out of memory"),
    "interrupt": lambda: KeyboardInterrupt(),
}


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("steps", [(0,), (1,), (3,), (0, 1, 2, 3)])
@pytest.mark.parametrize("micro", [1, 2])
def test_a_batch_that_raised_is_as_if_it_had_never_been(
    kind: str, steps: tuple[int, ...], micro: int
) -> None:
    got = run({step: ERRORS[kind]() for step in steps}, micro=micro)
    want = run({}, micro=micro)
    assert [(w.first, w.last) for w in got] == [(w.first, w.last) for w in want] == [(0, 1), (2, 3)]
    for one, other in zip(got, want, strict=True):
        assert one.snapshot.manifest["batches"] == other.snapshot.manifest["batches"]
        a, b = (w.snapshot.neurons.select_dtypes("number").to_numpy() for w in (one, other))
        # A mean image is read with the rest from its second pass on, and rounds otherwise.
        np.testing.assert_allclose(a, b, rtol=1e-6)
        hit = any(one.first <= step <= one.last for step in steps)
        notes = {name: record.notes for name, record in one.snapshot.records.items()}
        assert notes["first"] == notes["conv"] == ((LEFT_OUT,) if hit else ())
        assert notes["last"] == ()  # the pass did not come so far


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_takes_back_what_it_read(reader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read_by(reader, monkeypatch)
    got, want = run({step: ERRORS["oom"]() for step in (0, 1, 2, 3)}), run({})
    for one, other in zip(got, want, strict=True):
        a, b = (w.snapshot.neurons.select_dtypes("number").to_numpy() for w in (one, other))
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_passes_that_end_well_count_while_the_user_handles_an_exception() -> None:
    for one, other in zip(run({}, handling=True), run({}), strict=True):
        assert one.snapshot.records["first"].calls == other.snapshot.records["first"].calls == 4
        assert one.snapshot.records["first"].notes == ()


def test_a_forward_that_returns_nothing_counts() -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> None:
            self.out = self.inner(x)

    model = Keeps()
    with ss.watch(model, every=1) as probe:
        model(torch.randn(5, 6))
        model.out.sum().backward()
        probe.step()
    assert probe.trace.last.records["inner"].calls == 1


def test_a_layer_that_raises_inside_a_pass_that_goes_on_counts() -> None:
    class Tries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.other = Net(), nn.Linear(6, 3)
            self.inner.error = ValueError()

        def forward(self, x: Tensor) -> Tensor:
            try:
                return self.inner(x)  # type: ignore[no-any-return]
            except ValueError:
                return self.other(x)  # type: ignore[no-any-return]

    model = Tries()
    with ss.watch(model, every=1) as probe:
        model(torch.randn(5, 6)).sum().backward()
        probe.step()
    records = probe.trace.last.records
    assert records["other"].calls == records["inner.first"].calls == 1


def test_the_last_pass_counts_where_a_hook_behind_it_detaches() -> None:
    model = Net()
    model.register_forward_hook(lambda *_: probe.detach())
    probe = ss.watch(model, every=1)
    model(torch.randn(5, 6))
    assert probe.trace.last.records["last"].calls == 1


def test_what_other_threads_record_meanwhile_stays_and_it_is_told() -> None:
    model, optimizer, probe = made(window=1)
    results: list[Tensor] = []

    def work() -> None:
        model.error, error = None, model.error
        results.append(model(torch.randn(7, 6)).square().mean())
        model.error = error

    def beside() -> None:
        model.act = lambda: None
        other = threading.Thread(target=work)
        other.start()
        other.join()

    model.act = beside
    fails(model, torch.randn(5, 6), ValueError())
    sum(results, model(torch.randn(3, 6)).square().mean()).backward()
    optimizer.step()
    probe.detach()
    records = probe.trace.last.records
    assert (records["last"].samples, records["first"].samples) == (10, 15)
    assert any("other threads" in note for note in records["first"].notes)


def test_a_pass_amid_which_a_step_ends_in_another_thread_is_told() -> None:
    model, optimizer, probe = made(window=1)
    model(torch.randn(3, 6)).square().mean().backward()

    def beside() -> None:
        other = threading.Thread(target=optimizer.step)
        other.start()
        other.join()

    model.act = beside
    fails(model, torch.randn(5, 6), ValueError())
    probe.detach()
    assert [(w.first, w.last) for w in probe.trace] == [(0, 0)]


def test_a_step_of_failed_passes_alone_has_no_window() -> None:
    model, optimizer, probe = made(window=1)
    fails(model, torch.randn(5, 6), ValueError())
    optimizer.step()
    model(torch.randn(3, 6)).square().mean().backward()
    optimizer.step()
    probe.detach()
    (window,) = probe.trace
    assert (window.first, window.last) == (1, 1)
    assert window.snapshot.manifest["batches"] == 1
