"""What a probe is given must belong together: what is certain is refused, the rest is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import shiftscope as ss

SGD = torch.optim.SGD


def network(width: int = 5, last: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), last or nn.Linear(width, 2))


def train(model: nn.Module, steps: int = 2, **options: Any) -> ss.Probe:
    optimizer = SGD(model.parameters(), lr=0.1)
    with ss.watch(model, optimizer, every=1, window=1, **options) as probe:
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.ones(3, 4)).square().mean().backward()
            optimizer.step()
    return probe


def hooks_left(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model": torch.ones(3)}, "the model is a Tensor"),
        ({"rows": "a"}, "rows must be a whole number, got 'a'"),
        ({"rows": 1}, "rows must be at least 2"),
        ({"window": "a"}, "window must be a whole number"),
        ({"window": 0}, "window must be at least 1"),
        ({"scaler": 3}, "scaler is 3"),
        ({"every": float("nan")}, "every must be a whole number, got nan"),
        ({"every": "x"}, "every must be a whole number, got 'x'"),
        ({"every": True}, "every must be a whole number, got True"),
        ({"budget": "x"}, "budget must be a positive number, got 'x'"),
        ({"budget": float("nan")}, "budget must be a positive number, got nan"),
        ({"budget": 2}, r"budget must lie in \(0, 1\]"),
        ({"sites": 3}, "sites is 3"),
        ({"sites": None}, "sites is None"),
        ({"sites": []}, r"sites is \(\)"),
        ({"sites": [3]}, r"sites is \(3,\)"),
        ({"resume": 3}, "resume is 3"),
        ({"seed": "x"}, "seed must be a whole number"),
        ({"boundaries": 3}, "boundaries is 3"),
    ],
)
def test_arguments_without_a_meaning_are_refused(options: dict[str, Any], says: str) -> None:
    model = network()
    given = {"model": model, "optimizer": SGD(model.parameters(), lr=0.1), **options}
    with pytest.raises(ss.UsageError, match=says) as caught:
        ss.watch(**given)
    assert caught.value.remedy
    assert "\n" not in caught.value.reason
    assert hooks_left(model) == 0


def test_whole_floats_are_taken_for_every() -> None:
    assert ss.watch(network(), every=5.0).overhead["every"] == 5  # type: ignore[arg-type]


# -- optimizers -----------------------------------------------------------------------------------


def test_the_optimizer_of_another_model_is_refused() -> None:
    model, other = network(), network()
    with pytest.raises(ss.UsageError, match="the SGD holds no parameter of the model"):
        ss.watch(model, SGD(other.parameters(), lr=0.1))
    with pytest.raises(ss.UsageError, match="holds no parameter"):
        ss.watch(torch.compile(model, backend="eager"), SGD(other.parameters(), lr=0.1))


@pytest.mark.parametrize("model", [nn.Sequential(), nn.ReLU(), nn.BatchNorm1d(3, affine=False)])
def test_an_optimizer_is_none_of_a_model_without_parameters(model: nn.Module) -> None:
    with pytest.raises(
        ss.UsageError, match="the SGD holds parameters, and there are none"
    ) as caught:
        ss.watch(model, SGD(network().parameters(), lr=0.1))
    assert "call probe.step()" in caught.value.remedy
    assert hooks_left(model) == 0
    ss.watch(model).detach()


class Bare(nn.Module):
    """Its weights are plain tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.randn(4, 3).requires_grad_()
        self.more = {"v": torch.randn(3, 2).requires_grad_()}

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.w) @ self.more["v"]


class Wrapper:
    """As trainers wrap optimizers."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer


class Tagged(nn.Parameter):
    """As sharded parameters are: of another class."""


def flat_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """One buffer holds all parameters, which become views of it."""
    flat = torch.cat([p.detach().ravel() for p in model.parameters()]).requires_grad_()
    start = 0
    for p in model.parameters():
        p.data = flat.detach()[start : start + p.numel()].view_as(p)
        start += p.numel()
    return SGD([flat], lr=0.1)


def own(model: nn.Module) -> Any:
    return SGD(model.parameters(), lr=0.1)


def constrained() -> nn.Module:
    return network(last=parametrizations.weight_norm(nn.Linear(5, 2)))


def of_another(_: nn.Module) -> Any:
    return own(network())


CASES: dict[str, tuple[Any, Any]] = {
    "one layer": (network, lambda m: own(m[0])),
    "a larger model": (network, lambda m: own(nn.ModuleList([m, nn.Linear(2, 2)]))),
    "wrapped": (network, lambda m: Wrapper(own(m))),
    "parametrized": (constrained, own),
    "compiled": (lambda: torch.compile(network(), backend="eager"), own),
    "data parallel": (lambda: nn.DataParallel(network()), own),
    "flat": (network, flat_optimizer),
    "plain tensors": (Bare, lambda m: SGD([m.w], lr=0.1)),
    "plain tensors in a table": (Bare, lambda m: SGD(m.more.values(), lr=0.1)),
    "frozen": (lambda: network().requires_grad_(False), of_another),
    "master copies": (lambda: network().bfloat16(), of_another),
    "without an address": (lambda: network().to("meta"), lambda _: own(network().to("meta"))),
    "tensors of a class": (
        lambda: network(),
        lambda _: SGD([Tagged(torch.ones(2))], lr=0.1),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_not_certain_is_not_refused(name: str) -> None:
    make, optimizer = CASES[name]
    model = make()
    ss.watch(model, optimizer(model)).detach()


def test_groups_may_be_filled_later() -> None:
    model, optimizer = network(), SGD([torch.zeros(1)], lr=0.1)
    optimizer.param_groups.clear()
    optimizer.param_groups.append({"params": []})
    ss.watch(model, optimizer).detach()


def test_several_processes_are_not_judged(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/s", rank=0, world_size=1)
    try:
        ss.watch(network(), of_another(network())).detach()
    finally:
        dist.destroy_process_group()


# -- patterns -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sites", ["nope*", ["nope", "3"], "0x", "0.x", "0.2", "20:relu"])
def test_patterns_that_can_match_nothing_are_refused_at_once(sites: Any) -> None:
    for use in (ss.watch, lambda model, **options: ss.analyze(model, [], **options)):
        with pytest.raises(ss.UsageError, match="no site matches") as caught:
            use(network(), sites=sites)
        assert caught.value.remedy.endswith("sites are named like: 0, 1, 2")


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(torch.tanh(self.fc(x)) * 2)


@pytest.mark.parametrize("sites", ["fc", "f*", ":relu", ":*", "*tanh", "?c", ":[rt]*"])
def test_patterns_of_modules_and_functions_are_kept(sites: Any) -> None:
    assert 1 <= len(train(Functional(), sites=sites).trace.last.records) < 3


@pytest.mark.filterwarnings("ignore:no site matches")
@pytest.mark.parametrize("sites", ["*nope*", "fc:relu", "fc~2", ["fc~3", ":gelu"]])
def test_where_nothing_matches_the_errors_say_so(sites: Any, tmp_path: Path) -> None:
    probe = train(Functional(), sites=sites)
    uses = (
        lambda: probe.snapshot(),
        lambda: probe.trace.last,
        lambda: ss.report(probe.trace, tmp_path / "run"),
    )
    for use in uses:
        with pytest.raises((ss.UsageError, ss.MeasureError), match="no site matches") as caught:
            use()
        assert caught.value.remedy.endswith("sites are named like: fc, :tanh, :relu")


class Own(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.gelu(x)


class Parts(nn.Module):
    """Layers of all kinds of names."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Own())
        self.block = nn.ModuleDict({"fc1": parametrizations.weight_norm(nn.Linear(4, 4))})
        self.rnn = nn.LSTM(4, 4, num_layers=2, bidirectional=True)
        self.cell = nn.GRUCell(8, 4)
        self.mixing = nn.MultiheadAttention(4, 2)
        self.kernel = nn.Parameter(torch.randn(4, 4, 1))
        self.act = nn.RReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.block["fc1"](self.encoder(x))
        x = self.cell(self.rnn(x)[0])
        x = self.mixing(x, x, x)[0]
        x = nn.functional.relu(nn.functional.relu(x) @ self.kernel[:, :, 0])
        return self.act(torch.softmax(nn.functional.conv1d(x.T, self.kernel).T, 1))


def test_no_site_that_is_measured_is_warned_of() -> None:
    torch.manual_seed(0)
    for model, x in (
        *((Parts(), torch.randn(6, 4)), (Functional(), torch.randn(6, 4))),
        *((nn.Linear(4, 2), torch.randn(6, 4)), (nn.ReLU(), torch.randn(6, 4))),
        *((nn.GRU(4, 2), torch.randn(3, 6, 4)), (nn.Bilinear(4, 4, 2), torch.randn(6, 4))),
    ):
        data = [((x, x), None)] if isinstance(model, nn.Bilinear) else [x]
        names = list(ss.analyze(model, data).records)
        assert names
        for name in names:
            ss.watch(model, sites=name).detach()
            ss.watch(model, sites=f"{name[:-1]}?").detach()


@pytest.mark.parametrize(
    ("sites", "meant"),
    [
        ("encoder", "encoder.*"),
        ("encoder.2", "encoder.2:*"),
        ("rnn", "rnn:*"),
        ("mixing", "mixing.*"),
        ("*encodr*", "*encoder*"),
        ("*.fcc1", "*.fc1"),
        (["block.*", "rnnn*"], "rnn*"),
        ("*.gone", None),
        ("cell:gelu", None),
    ],
)
def test_a_pattern_that_no_name_seems_to_fit_is_warned_of(sites: Any, meant: str | None) -> None:
    with pytest.warns(UserWarning, match=r"no site matches .* as it is now") as told:
        ss.watch(Parts(), sites=sites).detach()
    (warning,) = told
    assert warning.filename == __file__
    text = str(warning.message)
    assert "sites are named like: encoder, encoder.0" in text
    assert ("did you mean" in text) == (meant is not None)
    assert meant is None or f"did you mean {meant!r}?" in text


@pytest.mark.parametrize(
    ("sites", "meant"), [("encodr.*", "encoder.*"), ("fc1", "*.fc1"), ("Block.*", "block.*")]
)
def test_where_no_name_can_fit_a_close_one_is_proposed(sites: str, meant: str) -> None:
    for use in (ss.watch, lambda model, **options: ss.analyze(model, [], **options)):
        with pytest.raises(ss.UsageError, match="no site matches") as caught:
            use(Parts(), sites=sites)
        assert f"did you mean {meant!r}?" in caught.value.remedy


def test_modules_may_come_after_the_warning() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match="no site matches"):
        probe = ss.watch(model, optimizer, every=1, sites=["0", "*head*"])
    model.add_module("head", nn.Linear(2, 2))
    for _ in range(2):
        model(torch.ones(3, 4)).square().mean().backward()
        optimizer.step()
    assert list(probe.snapshot().records) == ["0", "head"]
    probe.detach()


def test_a_model_without_a_site_says_so() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    with pytest.raises(ss.UsageError, match="no linear map and no activation was seen"):
        _ = train(Plain()).trace.last


# -- an earlier part of the run -------------------------------------------------------------------


def test_a_run_goes_on_from_a_file(tmp_path: Path) -> None:
    model = network()
    train(model).trace.save(tmp_path / "run.npz")
    for path in (tmp_path / "run.npz", str(tmp_path / "run.npz")):
        assert train(model, resume=path).trace.steps == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("missing.npz", "cannot read .*No such file"),
        ("folder", "cannot read .*Is a directory"),
        ("empty.npz", "not a readable shiftscope trace"),
        ("one.npz", r"not a readable shiftscope trace \(it is a shiftscope-snapshot\)"),
        ("cut.npz", r"not a readable shiftscope trace"),
        ("weights.pt", "not a readable shiftscope trace"),
        ("newer.npz", "has trace schema 99"),
    ],
)
def test_a_file_without_a_run_is_told_as_one(name: str, says: str, tmp_path: Path) -> None:
    model = network()
    trace = train(model).trace
    trace.save(tmp_path / "run.npz")
    trace.last.save(tmp_path / "one.npz")
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.npz").touch()
    (tmp_path / "cut.npz").write_bytes((tmp_path / "run.npz").read_bytes()[:-200])
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    text = b'{"format": "shiftscope-trace", "schema_version": 99, "limit": 9, "windows": []}'
    np.savez(tmp_path / "newer.npz", manifest=np.frombuffer(text, dtype=np.uint8))
    with pytest.raises(ss.LoadError, match=says) as caught:
        ss.watch(model, resume=tmp_path / name)
    told = "update shiftscope" if name == "newer.npz" else r"trace\.save\(.*on the first start"
    assert caught.match(told)
    assert "snapshot.npz" not in caught.value.remedy
    assert hooks_left(model) == 0


def test_a_snapshot_is_no_run() -> None:
    model = network()
    with pytest.raises(ss.UsageError, match="resume is a Snapshot, expected a trace") as caught:
        ss.watch(model, resume=train(model).trace.last)  # type: ignore[arg-type]
    assert "on the first start" in caught.value.remedy


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (lambda: network(7), "site '0' has 5 neurons, here it has 7"),
        (lambda: nn.ModuleDict({"head": network()})["head"].append(nn.ReLU()), None),
        (lambda: nn.Sequential(network()), "its sites are 0, 1, 2, here are 0.0, 0.1, 0.2"),
        (lambda: network(7, nn.Linear(7, 2)), "5 neurons"),
    ],
)
def test_the_trace_of_another_model_is_refused(other: Any, says: str | None) -> None:
    trace, model = train(network()).trace, other()
    if says is None:
        assert train(model, resume=trace).trace.steps == (0, 1, 2, 3)
        return
    with pytest.raises(ss.UsageError, match=says):
        train(model, resume=trace)
    assert trace.steps == (0, 1)
    assert hooks_left(model) == 0


class Sliced(nn.Module):
    """Uses some rows of its weight, as slimmable networks do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc, self.width = nn.Linear(4, 8), width

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.fc.weight[: self.width])


def test_widths_that_only_a_step_tells_are_refused_by_it() -> None:
    trace = train(Sliced(5)).trace
    assert train(Sliced(5), resume=trace).trace.steps == (0, 1, 2, 3)
    model = Sliced(6)
    with pytest.raises(ss.UsageError, match="has 5 neurons, here it has 6"):
        train(model, resume=trace)
    assert (len(trace), hooks_left(model)) == (4, 0)


def test_other_patterns_may_be_watched_from_there_on() -> None:
    model = network()
    trace = train(model, sites="0").trace
    assert set(train(model, sites="2", resume=trace).trace.last.records) == {"2"}


def test_a_model_may_change_within_a_run() -> None:
    """Only the first window after a resumption is compared with what was before."""
    model = Sliced(5)
    trace = train(model).trace
    optimizer = SGD(model.parameters(), lr=0.1)
    with ss.watch(model, optimizer, every=1, window=1, resume=trace) as probe:
        for model.width in (5, 6):
            model(torch.ones(3, 4)).square().mean().backward()
            optimizer.step()
    widths = [{r.info.neurons for r in w.snapshot.records.values()} for w in probe.trace]
    assert [*map(max, widths)] == [5, 5, 5, 6]
