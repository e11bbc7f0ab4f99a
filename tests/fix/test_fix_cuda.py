"""The same on a CUDA device: constraints, initialisation, release, compiled training."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from shiftscope.fix.constrain import METHODS, constrain, release
from shiftscope.fix.initialise import rescale_
from shiftscope.fix.unroll import Unroll

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # from inductor, as the next
    pytest.mark.filterwarnings("ignore:.*TensorFloat32 tensor cores"),
]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Sigmoid(),
        nn.ConvTranspose2d(8, 4, 2, stride=2, groups=2),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(4 * 64, 10),
    )


@pytest.mark.parametrize("method", METHODS)
def test_constrained_rescaled_and_released_as_on_the_cpu(method: str) -> None:
    x = torch.rand(32, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    results = []
    for device in ("cpu", "cuda"):
        net = network().double().to(device).eval()
        options: dict[str, Any] = {"batch": x.to(device)} if method == "lcw-data" else {}
        torch.manual_seed(2)  # spectral norm draws its first vectors
        constrain(net, method, **options)
        if method != "spectral_norm":
            rescale_(net, x.to(device))
        y = net(x.to(device)).detach()
        release(net)
        torch.testing.assert_close(net(x.to(device)), y)
        assert all(p.device.type == device for p in net.parameters())
        results.append(y.cpu())
    # torch's own kernel of the weight norm takes roots in single precision, whatever the dtype
    tolerance = 1e-6 if method == "weight_norm" else 1e-8
    if method != "spectral_norm":
        torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)


def test_rescaling_leaves_the_random_state_of_the_device() -> None:
    net = nn.Sequential(network(), nn.Dropout(0.5)).cuda()
    x = torch.rand(8, 3, 4, 4, device="cuda")
    before = torch.cuda.get_rng_state()
    rescale_(net, x)
    assert torch.equal(torch.cuda.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("compiled", [False, True])
def test_sums_stay_zero_while_training(dtype: torch.dtype, compiled: bool) -> None:
    torch._dynamo.reset()
    net = network().to("cuda", dtype)
    x = torch.rand(32, 3, 4, 4, device="cuda", dtype=dtype)
    y = torch.randint(10, (32,), device="cuda")
    constrain(net)
    call = torch.compile(net, fullgraph=True) if compiled else net
    sgd = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
    for _ in range(20 if compiled else 1000):
        sgd.zero_grad()
        F.cross_entropy(call(x).float(), y).backward()
        sgd.step()
    for layer in net:
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            rows = Unroll.of(layer).rows(layer.weight.detach()).double()
            bound = torch.finfo(dtype).eps * math.sqrt(rows.shape[1]) * rows.norm(dim=1)
            assert bool((rows.sum(1).abs() <= bound).all())
