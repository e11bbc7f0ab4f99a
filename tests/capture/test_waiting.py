"""What is asked of the device at the first step of a window, and how often at its end.

No GPU is needed: the CPU, or torch's device without values, takes its place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tally_support import READERS, NoWaiting, as_if_on_a_device, read_by
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from training_cases import MODELS

import shiftscope as ss
from shiftscope.capture import recorder, weights, window_ledger
from shiftscope.capture.blocks import Block
from shiftscope.capture.lean import LeanRecorder
from shiftscope.capture.linear_ops import LINEAR_OPS
from shiftscope.capture.mean_inputs import MeanInput
from shiftscope.capture.totals import Totals
from shiftscope.capture.weights import OpenFacts, close_facts
from shiftscope.capture.windows import OpenWindow
from shiftscope.record import SiteRecord, WeightFacts
from shiftscope.tally import transfer
from shiftscope.trace import Window

pytestmark = [  # the interpreter computes with numpy
    pytest.mark.filterwarnings("ignore:invalid value encountered"),
    pytest.mark.filterwarnings("ignore:overflow encountered"),
]


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map, self.table = nn.Bilinear(4, 3, 5), nn.Embedding(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        words = self.table(x[:, 0].long().clamp(0, 6))
        return self.map(words, x[:, :3])  # type: ignore[no-any-return]


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular", groups=2), nn.ReLU(),
        nn.ConvTranspose2d(6, 4, 3, stride=2, bias=False), nn.Sigmoid(),
        nn.Conv2d(4, 2, 3, dilation=2),
    )  # fmt: skip


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    **MODELS,
    "bilinear": (Bilinear, (6, 5)),
    "convolutions": (convolutions, (3, 4, 5, 6)),
    "double": (lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double(), (5, 4)),
}


def train(model: nn.Module, x: Tensor, steps: int, window: int) -> ss.Probe:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with ss.watch(model, optimizer, every=1, window=window) as probe:
        for _ in range(steps):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    return probe


def case(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape = CASES[name]
    model = make()
    return model, torch.randn(shape, dtype=next(model.parameters()).dtype)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", CASES)
def test_settling_asks_the_device_for_nothing(
    name: str, reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_by(reader, monkeypatch)
    settle, settled = LeanRecorder.settle, []

    def watched(self: LeanRecorder) -> None:
        with NoWaiting():
            settle(self)
        settled.append([site for site, state in self.states.items() if state.facts is not None])

    monkeypatch.setattr(LeanRecorder, "settle", watched)
    probe = train(*case(name), steps=2, window=2)
    linear = [r.info.site for r in probe.trace.last.records.values() if r.info.kind == "linear"]
    assert [sorted(sites) for sites in settled] == [sorted(linear)]


class OnOneDevice(TorchDispatchMode):
    """Refuses what brings numbers from one device to another, but for single ones."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in (*args, out) if isinstance(t, Tensor) and t.dim()]
        assert len({t.device for t in tensors}) < 2, func
        return out


def bare(tensor: Tensor) -> Tensor:
    """A tensor of the same kind whose values nobody can read."""
    place = tuple(tensor.shape), tuple(tensor.stride())
    return torch.empty_strided(*place, dtype=tensor.dtype, device="meta")


def without_values(found: Any) -> Any:
    """A frozen record with the tensors of it bare."""
    changed = {key: bare(t) for key, t in vars(found).items() if isinstance(t, Tensor)}
    return replace(found, **changed)


def emptied(self: LeanRecorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all that the recorder holds lie where its values cannot be read."""
    for kind in (Totals, Block):
        columns: Any = kind.columns
        there = property(lambda totals, own=columns: [bare(t) for t in own.fget(totals)])
        monkeypatch.setattr(kind, "columns", there)
    for entry in self._mean_images._sums.values():
        entry.total = bare(entry.total)
        if isinstance(entry.samples, Tensor):
            entry.samples = bare(entry.samples)
    self._totals = {slot: without_values(moments) for slot, moments in self._totals.items()}
    for state in self.states.values():
        state.weight = without_values(state.weight) if state.weight is not None else None
        state.mean_input = None if state.mean_input is None else without_values(state.mean_input)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", CASES)
def test_settling_reads_no_values(name: str, reader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read_by(reader, monkeypatch)
    for module in (
        weights,
        recorder,
        window_ledger,
    ):  # whether it holds numbers is not what is asked here
        monkeypatch.setattr(module, "is_readable", lambda weight: True)
    monkeypatch.setattr(transfer, "sent", lambda run, device: bare(run))
    found: list[LeanRecorder] = []
    settle = LeanRecorder.settle
    monkeypatch.setattr(LeanRecorder, "settle", lambda self: found.append(self))
    model, x = case(name)
    probe = ss.watch(model, every=1, window=2)
    model(x).square().mean().backward()
    probe.step()
    with monkeypatch.context() as inside:
        emptied(found[0], inside)
        with OnOneDevice():
            settle(found[0])
    settled = [state.facts for state in found[0].states.values() if state.facts is not None]
    assert settled
    assert all(tensor.is_meta for facts in settled for tensor in facts.tensors().values())
    found[0].restart()  # there are no values for a record
    found[0].states.clear()
    probe.detach()


def deep(sites: int) -> nn.Module:
    torch.manual_seed(0)
    images = [m for _ in range(sites) for m in (nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())]
    rows = [m for _ in range(sites) for m in (nn.Linear(12, 12), nn.Sigmoid())]
    return nn.Sequential(*images, nn.Flatten(), *rows, nn.Linear(12, 2))


def transfers(sites: int, window: int) -> list[tuple[int, int]]:
    """How often each window waits at its end, and how many copies are made beside that."""
    ends: list[tuple[int, int]] = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        runs, alone = as_if_on_a_device(monkeypatch), [0]
        cpu, closed, records = Tensor.cpu, OpenWindow.closed, LeanRecorder.records

        def counted(self: Tensor, *args: Any) -> Tensor:
            alone[0] += 1
            return cpu(self, *args)

        def recorded(self: LeanRecorder, **options: Any) -> dict[str, SiteRecord]:
            alone[0] = 0
            with pytest.MonkeyPatch.context() as inside:
                inside.setattr(Tensor, "cpu", counted)
                return records(self, **options)

        def ended(self: OpenWindow, *args: Any) -> Window | None:
            before = len(runs)
            result = closed(self, *args)
            ends.append((len(runs) - before, alone[0]))
            return result

        monkeypatch.setattr(LeanRecorder, "records", recorded)
        monkeypatch.setattr(OpenWindow, "closed", ended)
        train(deep(sites), torch.randn(2, 3, 2, 2), steps=2 * window, window=window)
    return ends


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("window", [1, 3])
def test_how_often_a_window_waits_does_not_depend_on_its_sites(
    window: int, reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_by(reader, monkeypatch)
    few, many = transfers(1, window), transfers(3, window)
    assert few == many
    # Accumulators, row samples, sizes of rounded terms, facts of the weights, pictures; and, as
    # nothing counts as being on the CPU here, finished streams; moments of a tensor read alone.
    assert all(waits in (6, 7) and alone == 0 for waits, alone in few)


@pytest.mark.parametrize("reader", ["compiled", "torch"])
@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_what_is_moved_says_the_same(
    name: str, window: int, reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_by(reader, monkeypatch)
    want = train(*case(name), steps=3, window=window).trace.last
    as_if_on_a_device(monkeypatch)
    got = train(*case(name), steps=3, window=window).trace.last
    assert got.pictures.keys() == want.pictures.keys()
    for site, record in want.records.items():
        found = got.records[site].to_arrays()
        for key, value in record.to_arrays().items():
            np.testing.assert_array_equal(found[key], value, err_msg=f"{site} {key}")


@pytest.mark.parametrize("kernel", [(), (3, 3)])
def test_open_facts_merge_as_closed_ones(kernel: tuple[int, ...]) -> None:
    """Weights that are gone when the window ends are read at each call, and averaged there."""
    torch.manual_seed(0)
    opened = []
    for rows in (3, 5, 4):
        weight = torch.randn(5, 4, *kernel)
        image = torch.randn(rows, 4, *[6] * len(kernel))
        call = (image, weight, torch.randn(5))
        op = LINEAR_OPS[F.conv2d if kernel else F.linear](call, {}, lambda w: True)
        assert op is not None
        found = OpenFacts.of(op, MeanInput.of(op, image), rows)
        assert found is not None
        opened.append(found)
    got = close_facts({"x": reduce(OpenFacts.merge, opened)})["x"].to_arrays()
    apart = close_facts({str(number): facts for number, facts in enumerate(opened)})
    for name, value in reduce(WeightFacts.merge, apart.values()).to_arrays().items():
        np.testing.assert_allclose(got[name], value, rtol=1e-14, atol=1e-15, err_msg=name)
