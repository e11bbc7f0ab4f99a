"""Patterns of sites: what can match nothing is refused, what seems to is warned of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from watch_cases import SGD, network, train

import shiftscope as ss


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
