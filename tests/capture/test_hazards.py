"""Odd models: measured right, or listed with the reason."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import shiftscope as ss


def loss(out: Any, _: Any) -> Tensor:
    out = out if isinstance(out, Tensor) else out[0]
    return (out.double() * torch.linspace(-1, 2, out.shape[-1])).square().mean()


def measured(model: nn.Module, x: Any, **options: Any) -> ss.Snapshot:
    return ss.analyze(model, [(x, torch.zeros(1))], loss, **options)


def numbers(snapshot: ss.Snapshot) -> np.ndarray[Any, Any]:
    columns = ["count", "z_mean", "z_var", "grad_z_mean", "grad_z_var", "grad_a_var"]
    return snapshot.neurons[columns].to_numpy(dtype=float)


class Block(nn.Module):
    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.block = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 4))
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if self.reentrant is None:
            return self.block(h)
        out = torch.utils.checkpoint.checkpoint(self.block, h, use_reentrant=self.reentrant)
        assert isinstance(out, Tensor)
        return out


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_counts_each_forward_and_gradient_once(reentrant: bool) -> None:
    x = torch.rand(9, 4)
    results = []
    for mode in (None, reentrant):
        torch.manual_seed(0)
        model = Block(mode)
        results.append(measured(model, x))
        assert all(p.grad is None for p in model.parameters())
    np.testing.assert_allclose(numbers(results[1]), numbers(results[0]), rtol=1e-6, atol=1e-12)


def test_a_compiled_model_runs_eagerly_and_stays_compiled() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 2))
    graphs: list[int] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(1)
        return graph.forward

    compiled = torch.compile(model, backend=backend)
    x = torch.rand(5, 4)
    compiled(x)
    snapshot = measured(compiled, x)
    compiled(x)
    assert list(snapshot.records) == ["0", "1", "2"]
    assert len(graphs) == 1
    np.testing.assert_array_equal(numbers(snapshot), numbers(measured(model, x)))


def test_autocast_is_widened_before_statistics() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    x = torch.rand(64, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        snapshot = measured(model, x)
    exact = measured(model, x)
    np.testing.assert_allclose(snapshot.neurons.z_mean, exact.neurons.z_mean, atol=2e-2)
    assert snapshot.neurons.grad_z_var.notna().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_overflow(dtype: torch.dtype) -> None:
    model = nn.Linear(2, 1, bias=False).to(dtype)
    with torch.no_grad():
        model.weight.fill_(100.0)
    x = torch.full((4096, 2), 300.0, dtype=dtype)
    x[::2] = 200.0
    neuron = ss.analyze(model, [x]).neurons.iloc[0]
    stored = model(x).double().detach().numpy()
    assert neuron.z_mean == pytest.approx(stored.mean(), rel=1e-6)
    assert neuron.z_var == pytest.approx(stored.var(), rel=1e-6)


def test_non_finite_values_are_counted_and_others_keep_theirs() -> None:
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    x = torch.tensor([[1.0, float("inf")], [3.0, 4.0], [5.0, 8.0]])
    snapshot = ss.analyze(layer, [x])
    assert snapshot.sites.nonfinite.iloc[0] > 0
    assert snapshot.neurons.z_mean.iloc[1] == 6.0
    assert "non-finite" in snapshot.sites.notes.iloc[0]


def test_effective_weights_are_read_without_side_effects() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(4, 5)),
        parametrizations.weight_norm(nn.Linear(5, 4)),
        parametrizations.orthogonal(nn.Linear(4, 4)),
        prune.l1_unstructured(nn.Linear(4, 3), "weight", 0.5),
    ).eval()
    snapshot = ss.analyze(model, [torch.rand(6, 4)])
    for name, layer in model.named_children():
        norms = snapshot.neurons[snapshot.neurons.site == name].weight_norm
        want = layer.weight.detach().norm(dim=1)  # type: ignore[operator, union-attr]
        np.testing.assert_allclose(norms, want, rtol=1e-6)
    assert snapshot.coverage["modules"]["seen"] == snapshot.coverage["modules"]["total"] == 4


class Attention(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(8, 2, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        other = x if self.mha._qkv_same_embed_dim else x[..., :6]
        return self.mha(x, other, other, need_weights=False)[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("options", [{}, {"kdim": 6, "vdim": 6}, {"bias": False}])
def test_projections_of_attention_are_sites(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = Attention(**options).double()
    x = torch.rand(3, 5, 8, dtype=torch.float64)
    snapshot = measured(model, x)
    assert snapshot.gaps == ()
    names = list(snapshot.records)
    assert "mha.out_proj" in names
    assert sum("in_proj" in name for name in names) == (3 if options.get("kdim") else 1)
    neurons = snapshot.neurons
    shift = neurons.shift_predicted + neurons.bias.fillna(0)
    np.testing.assert_allclose(neurons.z_mean, shift, atol=1e-12)
    if not options.get("kdim"):
        want = F.linear(x, model.mha.in_proj_weight, model.mha.in_proj_bias).flatten(0, 1)
        own = neurons[neurons.site == "mha:in_proj"]
        np.testing.assert_allclose(own.z_var, want.detach().var(dim=0, correction=0), rtol=1e-10)


RECURRENT = {
    "lstm": lambda: nn.LSTM(3, 4, 2, batch_first=True, bidirectional=True),
    "projected lstm": lambda: nn.LSTM(3, 4, 2, proj_size=2, bias=False),
    "gru": lambda: nn.GRU(3, 4, 2, bidirectional=True),
    "rnn": lambda: nn.RNN(3, 4, 2, batch_first=True),
    "relu rnn": lambda: nn.RNN(3, 4, nonlinearity="relu"),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("kind", RECURRENT)
@pytest.mark.parametrize("packed", [False, True])
def test_recurrent_layers_are_unfused_exactly(kind: str, packed: bool) -> None:
    torch.manual_seed(0)
    rnn = RECURRENT[kind]().double()
    x = torch.rand(5, 5, 3, dtype=torch.float64)
    out_seen: list[Tensor] = []

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = rnn

        def forward(self, x: Tensor) -> Tensor:
            given: Any = x
            if packed:
                lengths = torch.tensor([5, 2, 4, 1, 3])
                given = nn.utils.rnn.pack_padded_sequence(
                    x, lengths, batch_first=rnn.batch_first, enforce_sorted=False
                )
            out, hidden = self.rnn(given)
            data = out.data if packed else out
            last = hidden[0] if isinstance(hidden, tuple) else hidden
            out_seen.append(torch.cat([data.flatten(), last.flatten()]).detach())
            return data.sum() + last.square().sum()

    model = Model()
    fused = model(x).item()
    weights = list(model.parameters())
    want = torch.autograd.grad(model(x), weights)
    snapshot = ss.analyze(model, [(x, None)], lambda out, _: out)
    assert snapshot.gaps == ()
    assert snapshot.manifest["loss"] == pytest.approx(fused, rel=1e-12)
    torch.testing.assert_close(out_seen[-1], out_seen[0], rtol=1e-12, atol=1e-14)
    neurons = snapshot.neurons.set_index("site")
    if not packed:
        # Sums of grad_z over all rows are the gradients of the biases.
        for name, gradient in zip(dict(model.named_parameters()), want, strict=True):
            if "bias_hh" in name:
                own = neurons.loc[name.replace("rnn.bias_", "rnn:")]
                total = own.grad_z_mean * own.grad_z_count
                np.testing.assert_allclose(total, gradient, rtol=1e-9, atol=1e-12)
    linear = snapshot.neurons.dropna(subset="shift_predicted")
    np.testing.assert_allclose(
        linear.z_mean, linear.shift_predicted + linear.bias.fillna(0), rtol=1e-10, atol=1e-12
    )


def test_dropout_between_recurrent_layers_is_a_gap() -> None:
    model = nn.LSTM(3, 4, 2, dropout=0.5)
    snapshot = measured(model, torch.rand(5, 2, 3))
    assert [reason for _, reason in snapshot.gaps if "dropout" in reason]


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)
        self.table = nn.Embedding(5, 4)
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.used.weight
        self.act = nn.ReLU()

    def forward(self, x: Tensor, *, scale: float = 1.0) -> tuple[Tensor, dict[str, Any]]:
        h = self.table(torch.tensor([1, 2])).mean(dim=0) + x * scale
        h = self.tied(torch.relu(self.used(h)))
        return self.act(h.repeat(1, 2)) + self.act(h).repeat(1, 2), {"kind": "odd"}


def test_unused_tied_and_looked_up_modules() -> None:
    snapshot = measured(Odd(), torch.rand(6, 4))
    reasons = dict(snapshot.gaps)
    assert reasons["unused"] == "not called"
    assert "look-up" in reasons["table"]
    assert {"used", "tied", ":relu", "act", "act~2"} == set(snapshot.records)


def test_no_gradient_is_absent_not_zero() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).detach())  # type: ignore[no-any-return]

    sites = measured(Cut(), torch.rand(5, 3)).sites.set_index("site")
    assert np.isnan(sites.loc["a"].grad_z_var)
    assert "0 of 1" in sites.loc["a"].notes
    assert sites.loc["b"].grad_z_var > 0


def test_a_forward_only_analysis_misses_no_gradients() -> None:
    sites = ss.analyze(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), [torch.rand(5, 3)]).sites
    assert list(sites.notes) == ["", ""]
    assert sites.grad_z_var.isna().all()


def test_frozen_models_are_measured_backward_too() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).requires_grad_(False)
    snapshot = measured(model, torch.rand(7, 4))
    assert snapshot.sites.grad_z_var.notna().all()
    assert not any(p.requires_grad for p in model.parameters())


def test_float64_copy_keeps_gradients_that_float32_loses() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*[m for _ in range(40) for m in (nn.Linear(32, 32), nn.Sigmoid())])
    x, y = torch.rand(16, 32), torch.arange(16)
    deep = ss.analyze(model, [(x, y)], F.cross_entropy, dtype=torch.float64).sites
    assert next(model.parameters()).dtype == torch.float32
    assert deep.log10_grad_z_var.notna().all()
    assert deep.log10_grad_z_var.iloc[0] < -45
    assert deep.log10_grad_z_var.is_monotonic_increasing


def test_the_accuracy_gate_of_a_deep_sigmoid_net() -> None:
    """sd of z down to 1e-8 beside a mean of 0.2: right, or flagged; never wrong."""
    torch.manual_seed(0)
    model = nn.Sequential(*[m for _ in range(30) for m in (nn.Linear(64, 64), nn.Sigmoid())])
    x = torch.rand(128, 64)
    single, double = (ss.analyze(model, [x], dtype=t).neurons for t in (None, torch.float64))
    exact = double.z_var.to_numpy()
    off = np.abs(single.z_var.to_numpy() - exact) > 0.05 * exact
    flagged = single.z_below_resolution.to_numpy(dtype=bool)
    assert off.any()
    assert flagged[off].all()
    assert not flagged[exact > 1e-11].any()
    assert not double.z_below_resolution[exact > 1e-24].any()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "no batch"),
        ([torch.zeros(0, 4)], "no batch"),
        (["text"], "a batch is"),
        ([5], "a batch is"),
        (None, "data is NoneType"),
        (torch.zeros(6, 4), "data is a tensor"),
        ((torch.zeros(6, 4), torch.zeros(6, 4)), "data is a pair of tensors"),
        ({"x": torch.zeros(6, 4)}, "data is a mapping"),
    ],
)
def test_data_that_are_none(data: Any, words: str) -> None:
    with pytest.raises(ss.DataError, match=words) as caught:
        ss.analyze(nn.Linear(4, 2), data)
    assert caught.value.remedy


def test_a_loss_that_is_no_scalar_is_refused() -> None:
    with pytest.raises(ss.DataError, match="scalar"):
        ss.analyze(nn.Linear(4, 2), [(torch.rand(3, 4), torch.zeros(3))], lambda o, y: o)


def test_a_missing_target_is_refused() -> None:
    with pytest.raises(ss.DataError, match="no targets"):
        ss.analyze(nn.Linear(4, 2), [torch.rand(3, 4)], F.cross_entropy)


def test_a_shape_that_does_not_fit_is_one_line_and_a_remedy() -> None:
    with pytest.raises(ss.MeasureError, match="batch 0") as caught:
        ss.analyze(nn.Linear(4, 2), [torch.rand(3, 5)])
    assert "\n" not in caught.value.reason
    assert caught.value.remedy


@pytest.mark.parametrize("model", [None, nn.Linear, "model.pt", torch.relu])
def test_what_is_no_model_is_refused(model: Any) -> None:
    with pytest.raises(ss.UsageError, match=r"expected a torch\.nn\.Module") as caught:
        ss.analyze(model, [torch.rand(3, 4)])
    assert caught.value.remedy


def test_the_loss_is_told_apart_from_the_model() -> None:
    labels = torch.tensor([0, 1, 9])
    with pytest.raises(ss.MeasureError, match=r"the loss raised IndexError.*9 is out of") as caught:
        ss.analyze(nn.Linear(4, 2), [(torch.rand(3, 4), labels)], F.cross_entropy)
    assert "target" in caught.value.remedy


@pytest.mark.parametrize("dtype", ["float64", torch.float64])
def test_a_precision_may_be_named(dtype: Any) -> None:
    snapshot = ss.analyze(nn.Linear(4, 2), [torch.rand(9, 4)], dtype=dtype)
    assert snapshot.manifest["dtype"] == "float64"


def test_another_precision_keeps_the_imaginary_parts() -> None:
    class Spectral(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.filter = nn.Parameter(torch.randn(5, dtype=torch.cfloat))
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.fft.irfft(torch.fft.rfft(x) * self.filter))

    torch.manual_seed(0)
    model, data = Spectral(), [(torch.randn(16, 8), torch.randint(2, (16,)))]
    means = [ss.analyze(model, data, dtype=d).neurons["z_mean"] for d in (None, "float64")]
    assert means[1].to_numpy() == pytest.approx(means[0].to_numpy(), rel=1e-4)
    assert model.filter.dtype is torch.cfloat
    first = ss.trial(model, data, F.cross_entropy, steps=1, dtype="float64")[0].snapshot
    assert first.manifest["dtype"] == "float64"


@pytest.mark.parametrize("dtype", ["float65", torch.int8, 64])
def test_a_precision_that_is_none_is_refused(dtype: Any) -> None:
    with pytest.raises(ss.UsageError, match="dtype"):
        ss.analyze(nn.Linear(4, 2), [torch.rand(3, 4)], dtype=dtype)


def test_units_behind_a_nan_are_not_called_dead() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
        model[0].bias.fill_(100.0)
        model[0].bias[1] = -100.0
    snapshot = ss.analyze(model, [torch.rand(50, 4)])
    dead = snapshot.sites.set_index("site")["dead"]
    assert dead["1"] == 1
    assert math.isnan(dead["3"])


def test_one_row_is_not_called_rounding_noise() -> None:
    snapshot = ss.analyze(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), [torch.rand(1, 4)])
    assert "one row only" in snapshot.sites["notes"][0]
    assert {f.cause for f in ss.diagnose(snapshot)}.isdisjoint({"below_resolution"})


def test_a_complex_layer_is_a_gap() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wave = nn.Linear(4, 4, dtype=torch.complex64)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.wave(x).abs())

    snapshot = ss.analyze(Mixed(), [torch.rand(9, 4, dtype=torch.complex64)])
    assert [(path, "complex" in reason) for path, reason in snapshot.gaps] == [("wave", True)]
    assert snapshot.coverage["parameters"] == {"seen": 8, "total": 24}
