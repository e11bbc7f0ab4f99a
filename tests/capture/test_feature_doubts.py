"""Where the neurons of an activation lie: doubts, ops along a dimension, and changing layouts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from neuron_cases import agree, doubt, trained, watched
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import shiftscope as ss
from shiftscope.capture import probe
from shiftscope.capture.carry import carry
from shiftscope.capture.marks import MIXED, NEURONS, Step


class Own(nn.Module):
    """A layer of channels, and any function of its output."""

    def __init__(self, then: Callable[[Tensor], Tensor], layer: nn.Module | None = None) -> None:
        super().__init__()
        self.layer = layer or nn.Conv1d(3, 6, 1)
        self.then = then

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self.layer(x))


def images(*shape: int) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(shape, dtype=torch.float64)


GUESSED: dict[str, tuple[nn.Module, tuple[int, ...], int, str]] = {
    "summed": (Own(lambda x: torch.tanh(x.sum(1))), (4, 3, 10), 10, "dimension 1 of 2"),
    "squeezed": (
        Own(lambda x: torch.tanh(x.squeeze(-1)), nn.Linear(3, 1)), (4, 10, 3), 10, "picked out",
    ),
    "scores": (Own(lambda x: torch.tanh(x.mT @ x)), (4, 3, 10), 10, "dimension 2 of 3"),
    "split": (
        Own(lambda x: torch.tanh(x.view(4, 3, 10)), nn.Linear(5, 30)), (4, 5), 10, "are split",
    ),
    "data": (Own(lambda x: x, nn.Tanh()), (4, 3, 10), 10, "no layer was found above it"),
    "images": (Own(lambda x: x, nn.Tanh()), (4, 3, 10, 10), 3, "dimension 1 of 4"),
}  # fmt: skip


@pytest.mark.parametrize("name", GUESSED)
def test_a_guess_is_told(name: str) -> None:
    model, shape, neurons, told = GUESSED[name]
    site = "layer" if name in ("data", "images") else ":tanh"
    x = images(*shape)
    for snapshot in (watched(model.double(), x), ss.analyze(model, [x])):
        assert snapshot.sites.set_index("site").neurons[site] == neurons
        assert told in doubt(snapshot, site)


def test_a_guess_is_told_in_every_window() -> None:
    model, x = Own(lambda x: torch.tanh(x.sum(1))).double(), images(4, 3, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with ss.watch(model, optimizer, every=1, window=1) as probe:
        for _ in range(3):
            model(x).square().sum().backward()
            optimizer.step()
    assert [bool(doubt(window.snapshot)) for window in probe.trace] == [True] * 3


TAKEN: dict[str, tuple[tuple[int, ...], nn.Module, int]] = {
    "convolution": ((4, 3, 10), nn.Conv1d(3, 2, 1), 1),
    "linear": ((4, 5, 7, 3), nn.Linear(3, 2), -1),
    "batch norm": ((4, 3, 10), nn.BatchNorm1d(3), 1),
    "group norm": ((4, 6, 10), nn.GroupNorm(2, 6), 1),
    "layer norm": ((4, 6, 3, 10), nn.LayerNorm(10), -1),
    "rows": ((4, 3), nn.Identity(), -1),
}


@pytest.mark.parametrize("name", TAKEN)
def test_where_nothing_lies_above_the_next_layer_tells(name: str) -> None:
    shape, layer, dim = TAKEN[name]
    x = images(*shape)
    snapshot = ss.analyze(nn.Sequential(nn.Tanh(), layer).double(), [x])
    agree(snapshot, "0", "z", x, dim)
    assert not doubt(snapshot, "0")


ALONG: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "softmax": (lambda x: F.softmax(x, 1), 1),
    "softmax of positions": (lambda x: x.log_softmax(dim=-1), 2),
    "softmax of samples": (lambda x: F.softmax(x, 0), 1),
    "softmin": (lambda x: F.softmin(x, dim=1), 1),
    "glu": (lambda x: F.glu(x, 1), 1),
    "glu of positions": (lambda x: F.glu(x), 2),
    "gumbel": (lambda x: F.gumbel_softmax(x, 1.0, dim=1), 1),
}


@pytest.mark.parametrize("name", ALONG)
def test_ops_along_a_dimension(name: str) -> None:
    function, dim = ALONG[name]
    model, x = Own(function).double(), images(4, 3, 10)
    for snapshot in (trained(model, x), watched(model, x), ss.analyze(model, [x])):
        (site,) = snapshot.sites.site[snapshot.sites.kind == "activation"]
        agree(snapshot, site, "z", model.layer(x).detach(), dim)
        assert not doubt(snapshot, site)


def test_attention_weights_are_told_by_their_keys() -> None:
    model = nn.MultiheadAttention(6, 2, batch_first=True).double()
    x = images(4, 5, 6)
    snapshot = ss.analyze(
        nn.ModuleDict({"attention": model})["attention"], [{"query": x, "key": x, "value": x}]
    )
    (row,) = snapshot.sites[snapshot.sites.op == "softmax"].to_dict("records")
    assert (row["neurons"], row["notes"]) == (5, "")


class Shared(nn.Module):
    """One activation behind channels and, later, behind features of the same sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear, self.act = nn.Conv1d(3, 6, 1), nn.Linear(3, 6), nn.ReLU()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen = [self.conv(x), self.linear(x.mT[:, :6])]
        return sum(self.act(z).square().sum() for z in self.seen)


def test_a_plan_is_not_used_for_neurons_that_lie_elsewhere() -> None:
    x = images(4, 3, 6)
    for measure in (trained, watched):
        model = Shared().double()
        snapshot = measure(model, x, 3)
        rows = [
            z.detach().transpose(1, 2) if not k else z.detach() for k, z in enumerate(model.seen)
        ]
        agree(snapshot, "act", "z", torch.cat(rows * 3), -1)


class Rolled(nn.Module):
    """Channels in the second and then in the last dimension, from one step to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last, self.seen = nn.Conv1d(3, 6, 1), False, list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv(x)
        z = z.transpose(1, 2) if self.last else z
        self.last = not self.last
        self.seen.append(z.detach().transpose(1, 2) if self.last else z.detach())
        return torch.tanh(z)


def test_a_layout_that_changes_from_step_to_step() -> None:
    model = Rolled().double()
    agree(trained(model, images(4, 3, 6), 4), ":tanh", "z", torch.cat(model.seen), -1)


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_calls_know_where_their_neurons_lie(reentrant: bool) -> None:
    act, last = nn.Tanh(), nn.Conv1d(6, 6, 1).double()
    seen: list[Tensor] = []

    def block(x: Tensor) -> Tensor:
        seen.append(x.roll(1, -1))
        if seen[-1].requires_grad:
            seen[-1].retain_grad()
        return last(act(seen[-1]))

    model = Own(lambda x: torch.tanh(checkpoint(block, x, use_reentrant=reentrant))).double()
    model.add_module("act", act)
    snapshot = trained(model, images(4, 3, 10))
    agree(snapshot, "act", "z", seen[-1], 1)
    agree(snapshot, ":tanh", "z", last(torch.tanh(seen[-1])), 1)
    graded = [z.grad for z in seen if z.grad is not None]
    agree(snapshot, "act", "grad_z", graded[-1], 1)


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "select": lambda x: x[:, :, 0],
    "slice": lambda x: x[:, :4],
    "transposed": lambda x: x.transpose(1, 2),
    "whole": lambda x: x.view(4, 6, 10),
}


@pytest.mark.parametrize("name", VIEWS)
def test_gradients_of_an_in_place_op_on_a_part(name: str) -> None:
    view = VIEWS[name]
    model, x = Own(lambda x: view(x).relu_()).double(), images(4, 3, 10)
    snapshot = trained(model, x)
    z = view(model.layer(x)).detach().requires_grad_()
    torch.relu(z).square().sum().backward()
    assert z.grad is not None
    dim = -1 if name in ("select", "transposed") else 1
    agree(snapshot, ":relu", "z", z, dim)
    agree(snapshot, ":relu", "grad_z", z.grad, dim)


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_parameters_are_read_without_gradients(without: Callable[[], Any]) -> None:
    """A learned query in inference mode: torch finds no edge of it."""

    class Queries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.queries, self.linear = nn.Parameter(torch.randn(7, 3)), nn.Linear(3, 6)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(
                self.linear(torch.relu_(self.queries * 1)) + self.linear(self.queries)
            )

    with ss.watch(model := Queries(), every=1) as watching:
        with watching.record(), without():
            model(images(1))
        snapshot = watching.snapshot()
    assert snapshot.sites.set_index("site").neurons["linear"] == 6


RESHAPED: list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = [
    ((4, 6, 10), (0, NEURONS, 0), (4, 2, 3, 10), (0, NEURONS, NEURONS, 0)),
    ((4, 6, 10), (0, NEURONS, 0), (4, 60), (0, MIXED)),
    ((4, 6, 10), (0, NEURONS, 0), (24, 10), (MIXED, 0)),
    ((4, 2, 3), (0, NEURONS, NEURONS), (4, 6), (0, NEURONS)),
    ((5, 4, 6), (0, 0, NEURONS), (5, 8, 3), (0, MIXED, NEURONS)),
    ((4, 10, 1), (0, 0, NEURONS), (2, 20, 1), (0, 0, NEURONS)),
    ((4, 1, 10), (0, NEURONS, 0), (4, 1, 2, 5), (0, NEURONS, 0, 0)),
    ((4, 1, 10), (0, NEURONS, 0), (40,), (0,)),
    ((1, 6), (0, NEURONS), (6, 1, 1), (NEURONS, 0, 0)),
]


@pytest.mark.parametrize(("before", "marks", "after", "wanted"), RESHAPED)
def test_reshaping(before: Any, marks: Any, after: Any, wanted: Any) -> None:
    assert carry(Step("view", before, after), marks) == wanted
    # A number for each neuron, reshaped, varies along the dimensions that are marked.
    values = np.arange(np.prod([n if m else 1 for n, m in zip(before, marks, strict=True)]))
    values = values.reshape([n if m else 1 for n, m in zip(before, marks, strict=True)])
    moved = np.broadcast_to(values, before).reshape(after)
    varies = [bool(np.any(np.diff(moved, axis=axis))) for axis in range(len(after))]
    assert all(mark for mark, does in zip(wanted, varies, strict=True) if does)


def test_an_unknown_op_that_changes_the_number_of_dimensions_gives_up() -> None:
    assert carry(Step("unheardof", (4, 6), (4, 6)), (0, NEURONS)) == (0, NEURONS)
    assert carry(Step("unheardof", (4, 6), (4, 6, 2)), (0, NEURONS)) == (0, 0, 0)


class Residual(nn.Module):
    """One activation behind a norm and, again, behind a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.norm(self.conv(self.act(self.norm(x)))))


# Without gradients both calls are known by their marks alone, which are the same.
@pytest.mark.parametrize(("measure", "times"), [(trained, 2), (watched, 1)])
def test_what_is_known_of_an_op_is_not_asked_again(
    measure: Callable[..., ss.Snapshot], times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    decide = probe.neurons_lie
    monkeypatch.setattr(probe, "neurons_lie", lambda *args: asked.append(1) or decide(*args))
    measure(Residual().double(), images(4, 3, 10), 5)
    assert len(asked) == times


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_passed_by(layout: torch.layout) -> None:
    def pad(x: Tensor) -> Tensor:
        nested = torch.nested.as_nested_tensor([*x.unbind()], layout=layout) * 2
        return torch.tanh(torch.nested.to_padded_tensor(nested, 0.0) * 2)

    model, x = Own(pad, nn.Linear(3, 6)), images(4, 10, 3).float()
    for snapshot in (trained(model, x), watched(model, x)):
        assert snapshot.sites.set_index("site").neurons[":tanh"] == 6
        assert "no layer" in doubt(snapshot)


def test_the_trail_of_a_pass_ends_with_it() -> None:
    model, kept = Own(torch.tanh).requires_grad_(False), []
    with ss.watch(model, every=1) as watching, watching.record():
        for _ in range(2):
            z = model(images(4, 3, 10).float())
            trail = watching._recording.attachment._local.run.trail  # type: ignore[union-attr]
            kept.append((len(trail.tensors), len(trail._nodes), trail.marks(z)))
    assert kept == [(0, 0, None)] * 2


ODD: list[tuple[str, tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = [
    ("squeeze", (), (), (0,)),
    ("transpose", (), (), (0, 0)),
    ("transpose", (4, 6), (6, 4), ()),
    ("movedim", (4, 6), (6, 4), (0,)),
    ("permute", (4, 6), (6, 4), (1,)),
    ("sum", (4, 6), (), ()),
    ("asstrided", (4, 0), (4,), (1,)),
    ("view", (4, 0), (0, 2), ()),
    ("view", (4, 6), (5, 5), ()),
    ("matmul", (6,), (4,), ()),
    ("mt", (6,), (6,), ()),
    ("stack", (6,), (2, 6), ()),
]


@pytest.mark.parametrize(("name", "before", "after", "dims"), ODD)
def test_calls_that_are_not_understood_give_up(
    name: str, before: Any, after: Any, dims: Any
) -> None:
    marks = (0, NEURONS)[-len(before) :] if before else ()
    got = carry(Step(name, before, after, dims), marks)
    assert len(got) == len(after)
    assert not any(got) or name == "mt"
