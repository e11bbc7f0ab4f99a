"""The layers: torch's own, with rows that sum to zero; and the normalisations beside them."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from support import golden
from torch import Tensor, nn

import shiftscope as ss
from shiftscope.errors import UsageError
from shiftscope.fix.unroll import Unroll

LAYERS: dict[str, tuple[Any, tuple[int, ...], dict[str, Any], tuple[int, ...]]] = {
    "Linear": (nn.Linear, (6, 5), {}, (3, 6)),
    "Conv1d": (nn.Conv1d, (4, 6, 3), {"groups": 2}, (2, 4, 7)),
    "Conv2d": (nn.Conv2d, (4, 6, 3), {"padding": 1, "padding_mode": "reflect"}, (2, 4, 7, 7)),
    "Conv3d": (nn.Conv3d, (2, 3, 2), {"bias": False}, (2, 2, 4, 4, 4)),
    "ConvTranspose1d": (nn.ConvTranspose1d, (4, 6, 3), {"stride": 2}, (2, 4, 5)),
    "ConvTranspose2d": (nn.ConvTranspose2d, (4, 6, 3), {"groups": 2}, (2, 4, 5, 5)),
    "ConvTranspose3d": (nn.ConvTranspose3d, (2, 3, 2), {}, (2, 2, 3, 3, 3)),
}


def build(name: str, seed: int = 0, **more: Any) -> Any:
    torch.manual_seed(seed)
    _, args, kwargs, _ = LAYERS[name]
    return getattr(ss.nn, f"LCW{name}")(*args, **kwargs, **more)


@pytest.mark.parametrize("form", ["householder", "projection"])
@pytest.mark.parametrize("name", LAYERS)
def test_layer_is_torchs_own_with_centred_rows(name: str, form: str) -> None:
    plain, args, kwargs, shape = LAYERS[name]
    torch.manual_seed(0)
    reference = plain(*args, **kwargs, dtype=torch.float64)
    layer = build(name, form=form, dtype=torch.float64)
    assert isinstance(layer, plain)
    unroll = Unroll.of(reference)
    rows = unroll.rows(reference.weight.detach())
    with torch.no_grad():
        reference.weight.copy_(unroll.fold(rows - rows.mean(1, keepdim=True)))
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(layer(x), reference(x))
    assert unroll.rows(layer.weight).sum(1).abs().max().item() < 1e-14


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "Linear"])
def test_channelwise_kernels(name: str) -> None:
    layer = build(name, channelwise=True)
    rows = Unroll.of(layer).rows(layer.weight.detach())
    sums = rows.view(len(rows), -1, layer.kernel_size[0] ** len(layer.kernel_size)).sum(2)
    assert float(sums.abs().max()) < 1e-6


@pytest.mark.parametrize("name", LAYERS)
def test_reset_parameters_draws_as_torch_does(name: str) -> None:
    layer, again = build(name), build(name, seed=1)
    torch.manual_seed(0)
    again.reset_parameters()
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in layer.state_dict().items())


@pytest.mark.parametrize("name", LAYERS)
def test_round_trips(name: str) -> None:
    layer, shape = build(name), LAYERS[name][3]
    layer.eval()
    x = torch.randn(shape)
    state = torch.get_rng_state()
    file = io.BytesIO()
    torch.save(nn.Sequential(layer), file)
    file.seek(0)
    copies = [
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(file, weights_only=False)[0],
    ]
    assert torch.equal(torch.get_rng_state(), state)
    other = build(name, seed=3).eval()
    other.load_state_dict(layer.state_dict(), strict=True)
    for twin in (*copies, other):
        assert type(twin).__name__ == type(layer).__name__
        assert not twin.training
        assert torch.equal(twin(x), layer(x))
        twin(x).sum().backward()
    assert all(p.grad is None for p in layer.parameters())


def test_a_copy_trains_apart_from_its_source() -> None:
    layer = build("Linear")
    before = layer.weight.detach().clone()
    twin = pickle.loads(pickle.dumps(layer))
    sgd = torch.optim.SGD(twin.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(5):
        twin(torch.ones(2, 6)).square().sum().backward()
        sgd.step()
    assert torch.equal(layer.weight, before)
    assert not torch.allclose(twin.weight, before)
    assert float(twin.weight.detach().sum(1).abs().max()) < 1e-6


def test_release_gives_a_plain_layer_of_the_same_class() -> None:
    layer = build("Conv2d")
    x = torch.randn(LAYERS["Conv2d"][3])
    before = layer(x)
    (change,) = ss.release(layer)
    assert (change.layer, change.method) == ("LCWConv2d", "lcw")
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert torch.equal(layer(x), before)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), before)
    layer.reset_parameters()
    plain = nn.Conv2d(4, 6, 3)
    plain.load_state_dict(layer.state_dict(), strict=True)


def test_mistakes_are_told() -> None:
    with pytest.raises(UsageError, match="form='helmert' is not known"):
        ss.nn.LCWLinear(4, 4, form="helmert")
    with pytest.raises(UsageError, match="one entry"):
        ss.nn.LCWLinear(1, 4)
    with pytest.raises(UsageError, match="one tap"):
        ss.nn.LCWConv2d(4, 4, 1, channelwise=True)
    for layer in (ss.nn.MeanOnlyBatchNorm(3), ss.nn.StandardizationLayer(3)):
        with pytest.raises(UsageError, match="expected an input"):
            layer(torch.ones(2, 4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_and_conversion(dtype: torch.dtype) -> None:
    made, moved = build("Linear", dtype=dtype), build("Linear").to(dtype)
    for layer in (made, moved):
        assert layer(torch.ones(2, 6, dtype=dtype)).dtype == dtype
        w = layer.weight.detach().double()
        bound = torch.finfo(dtype).eps * 6**0.5 * w.norm(dim=1)
        assert bool((w.sum(1).abs() <= bound).all())


def test_under_autocast_the_constraint_is_computed_in_full_precision() -> None:
    layer = build("Linear")
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.weight.dtype == torch.float32
        assert layer(torch.ones(2, 6)).dtype == torch.bfloat16


def double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


NORMS = {
    "none": nn.Identity(),
    "batch_norm_or_standardization_layer": ss.nn.StandardizationLayer(4, dtype=torch.float64),
    "layer_norm_noaffine": nn.LayerNorm(4, elementwise_affine=False),
    "rms_norm": nn.RMSNorm(4, eps=1e-5, elementwise_affine=False),
}


@pytest.mark.parametrize("name", NORMS)
def test_normalisations_and_the_shift_they_leave(name: str) -> None:
    gold = golden("norm_layers")
    case, w = gold[name], double(gold["W"])
    a = NORMS[name](double(gold["A_rows_are_samples"]))
    close = {"atol": 1e-10, "rtol": 0}
    torch.testing.assert_close(a, double(case["output"]), **close)
    torch.testing.assert_close(a.mean(0), double(case["mu_hat"]), **close)
    layer = ss.nn.LCWLinear(4, 3, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight = w
    z = layer(a).detach()
    torch.testing.assert_close((a @ w.T).mean(0), double(case["E_z"]), **close)
    torch.testing.assert_close(z.mean(0), double(case["E_z_lcw"]), **close)
    difference = float((a @ w.T - z).abs().max())
    assert difference == pytest.approx(case["max_abs_z_minus_z_lcw"], abs=1e-10)


def test_mean_only_normalisation_is_the_absorbed_bias() -> None:
    torch.manual_seed(0)
    layer = ss.nn.MeanOnlyBatchNorm(4, momentum=0.5).double()
    x = torch.randn(8, 4, 3, dtype=torch.float64) + 2
    mean = x.mean((0, 2))
    torch.testing.assert_close(layer(x), x - mean[:, None])
    torch.testing.assert_close(layer.running_mean, mean / 2)
    layer.eval()
    torch.testing.assert_close(layer(x), x - mean[:, None] / 2)
    assert not list(layer.parameters())
    offset = ss.nn.MeanOnlyBatchNorm(4, bias=True).double()
    assert [n for n, _ in offset.named_parameters()] == ["bias"]
    with torch.no_grad():
        offset.bias.fill_(3.0)
    torch.testing.assert_close(offset(x).mean((0, 2)), torch.full((4,), 3.0).double())


def test_mean_only_normalisation_matches_batch_normalisation_up_to_its_scale() -> None:
    torch.manual_seed(1)
    x = torch.randn(16, 3, 4, 4, dtype=torch.float64) + 1
    theirs = nn.BatchNorm2d(3, eps=1e-30, affine=False).double()
    std = x.std((0, 2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(ss.nn.MeanOnlyBatchNorm(3).double()(x), theirs(x) * std)


def _train_rank(rank: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    torch.manual_seed(0)
    model = nn.Sequential(ss.nn.LCWLinear(6, 8), nn.Sigmoid(), nn.Linear(8, 3))
    x = torch.rand(8, 6, generator=torch.Generator().manual_seed(rank))
    every = torch.cat(
        [torch.rand(8, 6, generator=torch.Generator().manual_seed(r)) for r in (0, 1)]
    )
    ss.constrain(model, "lcw-data", "2", batch=every, momentum=0.1)
    parallel = nn.parallel.DistributedDataParallel(model)
    sgd = torch.optim.SGD(parallel.parameters(), 0.1, momentum=0.9, weight_decay=1e-3)
    for _ in range(5):
        sgd.zero_grad()
        parallel(x).square().sum().backward()
        sgd.step()
    torch.save({n: p.detach() for n, p in model.named_parameters()}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_of_a_distributed_job_stay_equal(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_train_rank, (str(tmp_path),), nprocs=2)
    one, other = (torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in (0, 1))
    assert one.keys() == other.keys()
    assert all(torch.equal(v, other[k]) for k, v in one.items())
