"""Weights of a state dict without data: every matrix is a site, or a gap with a reason."""

import math

import pytest
import torch
from torch import Tensor, nn

import shiftscope as ss
from shiftscope.capture.bare_weights import weights_only


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 8, bidirectional=True, proj_size=3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.rnn(x)[0]
        return out


class _Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LSTMCell(4, 6), nn.GRUCell(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        state: Tensor = self.second(self.first(x)[0])
        return state


class _Columns(nn.Module):
    """A layer as GPT-2 has it in Hugging Face's code: ``[in, out]``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


MODELS = {
    "transformer": lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
    "recurrent": _Recurrent,
    "convolution": lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.LazyLinear(2)),
    "a layer alone": lambda: nn.Linear(3, 2),
    "cells": _Cells,
    "columns": lambda: nn.Sequential(_Columns(3, 5), nn.Linear(5, 2, bias=False)),
    "transposed": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ConvTranspose2d(4, 6, 2, groups=2), nn.ConvTranspose2d(6, 3, 2)
    ),
    "generator": lambda: nn.Sequential(
        nn.ConvTranspose2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 4, 2)
    ),
}
SHAPES = {
    "transformer": (4, 5, 16),
    "recurrent": (5, 4, 4),
    "convolution": (4, 2, 6, 6),
    "cells": (4, 4),
    "transposed": (4, 2, 6, 6),
    "generator": (4, 2, 6, 6),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_weight_is_a_site_named_as_in_a_run(name: str) -> None:
    torch.manual_seed(0)
    model: nn.Module = MODELS[name]()
    measured = ss.analyze(model, [torch.randn(SHAPES.get(name, (4, 3)))])
    alone = weights_only(model.state_dict())
    matrices = {key: w for key, w in model.state_dict().items() if w.dim() >= 2}
    assert len(alone.records) == len(matrices)
    assert not alone.gaps
    assert alone.coverage["parameters"] == {
        "seen": sum(w.numel() for w in matrices.values()),
        "total": sum(w.numel() for w in matrices.values()),
    }
    for site, record in alone.records.items():
        known = measured.records.get(site)
        if ":hr_" in site:  # a run looks into the cell, and not at the projection of its output
            continue
        assert known is not None, site
        assert record.info.neurons == known.info.neurons
        assert record.info.fan_in == known.info.fan_in
        assert record.weights is not None
        assert known.weights is not None
        assert record.weights.norm2 == pytest.approx(known.weights.norm2, rel=1e-12)
        assert record.weights.bias == pytest.approx(known.weights.bias, nan_ok=True)


class _Turned(nn.Module):
    """A linear map whose weight lies as ``[inputs, outputs]``, as in the GPT-2 of a library."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c_fc, self.c_proj = _Turned(6, 24), _Turned(24, 6)
        self.inner = nn.ModuleDict({"c_proj": _Turned(6, 6), "square": nn.Linear(6, 6)})

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner["square"](self.inner["c_proj"](x))
        out: Tensor = self.c_proj(self.c_fc(x))
        return out


UPSIDE_DOWN = {
    "linear maps": (_Block, (5, 6)),
    "convolutions": (
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3), nn.ConvTranspose2d(6, 4, 2, groups=2)),
        (5, 4, 3, 3),
    ),
}


@pytest.mark.parametrize("name", UPSIDE_DOWN)
def test_weights_that_lie_the_other_way_round(name: str) -> None:
    torch.manual_seed(0)
    make, shape = UPSIDE_DOWN[name]
    model: nn.Module = make()
    measured = ss.analyze(model, [torch.randn(shape)])
    alone = weights_only(model.state_dict())
    assert alone.records.keys() == measured.records.keys()
    for site, record in alone.records.items():
        known = measured.records[site]
        assert record.info.op == known.info.op
        assert (record.info.neurons, record.info.fan_in) == (known.info.neurons, known.info.fan_in)
        assert record.weights is not None
        assert known.weights is not None
        for fact in ("norm2", "row_sum", "bias", "group"):
            assert getattr(record.weights, fact) == pytest.approx(getattr(known.weights, fact))
        turned = "square" not in site
        assert any("transposed" in note for note in record.notes) == turned


def test_what_is_no_weight_by_its_name_is_a_gap() -> None:
    state = {
        "places": torch.randn(4, 8),
        "fc.weight_v": torch.randn(3, 8),  # its norm is not that of the weight
        "fc.bias": torch.randn(3),
        "head.weight": torch.randn(2, 3),
        "steps": torch.zeros(2, 2, dtype=torch.long),
    }
    snapshot = weights_only(state)
    assert list(snapshot.records) == ["head"]
    reasons = dict(snapshot.gaps)
    assert list(reasons) == ["places", "fc.weight_v"]
    assert "name does not say" in reasons["places"]
    assert "a part of a weight" in reasons["fc.weight_v"]
    assert snapshot.coverage["parameters"] == {"seen": 6, "total": 32 + 24 + 6}


def test_complex_and_quantised_weights_are_gaps() -> None:
    state = {
        "spectral": torch.randn(3, 4, dtype=torch.cfloat),
        "f.weight": torch.randn(3, 4, dtype=torch.cfloat),
        "q.weight": torch.ones(3, 4, dtype=torch.int8),
        "g.qweight": torch.ones(3, 4, dtype=torch.int32),
        "positions": torch.zeros(1, 8, dtype=torch.long),
        "none.weight": torch.zeros(0, 4),
    }
    packed = ("0._packed_params.dtype", "0._packed_params._packed_params", "epoch")
    reasons = dict(weights_only(state, left_out=packed).gaps)
    assert list(reasons) == ["spectral", "f.weight", "q.weight", "g.qweight", "0"]
    assert all("complex" in reasons[key] for key in ("spectral", "f.weight"))
    assert all("quantised" in reasons[key] for key in ("q.weight", "g.qweight", "0"))


def test_look_up_tables_are_gaps_by_their_names_as_in_a_run() -> None:
    tables = ("wte", "h.word_embeddings", "embed_tokens", "model.Embedding", "tok_emb")
    state = {f"{path}.weight": torch.randn(9, 4) for path in (*tables, "patch_embed.proj", "head")}
    state |= {"time_embed.weight": torch.randn(8, 4), "time_embed.bias": torch.randn(8)}
    snapshot = weights_only(state)
    assert [path for path, reason in snapshot.gaps if "look-up" in reason] == list(tables)
    assert list(snapshot.records) == ["patch_embed.proj", "head", "time_embed"]
    assert snapshot.coverage["parameters"] == {"seen": 36 + 36 + 32, "total": 36 + 36 + 32}


def test_groups_of_convolutions_are_not_guessed() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 6, 1))
    measured = ss.analyze(model, [torch.randn(2, 4, 6, 6)]).records
    alone = weights_only(model.state_dict()).records
    assert math.isnan(alone["0"].weights.xi)  # type: ignore[union-attr]
    assert math.isclose(alone["1"].weights.xi, measured["1"].weights.xi)  # type: ignore[union-attr]
    assert any("groups" in note for note in alone["1"].notes)


def test_weights_that_cannot_be_read_are_a_gap() -> None:
    state = {"a.weight": torch.empty(3, 2, device="meta"), "b.weight": torch.ones(2, 2)}
    snapshot = weights_only(state)
    assert snapshot.gaps == (("a.weight", "its weights cannot be read"),)
    assert math.isclose(snapshot.records["b"].weights.norm2[0], 2.0)  # type: ignore[union-attr]
