"""The compiled maps of the ones direction: against float64, the torch way, out of their reach."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrize

from shiftscope.fix import zerosum
from shiftscope.fix.lcw import LCW, LCWProjection
from shiftscope.fix.unroll import Unroll
from shiftscope.fix.zerosum import built, coordinates, embed, project

# torch's own forward-mode rules go through torch.jit; a trace is one of it
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning")

needs_compiled = pytest.mark.skipif(
    not built(), reason="the compiled maps were not built: no C compiler at installation"
)
WIDTHS = (1, 2, 3, 7, 8, 9, 31, 32, 33, 64, 255, 256, 257, 3072)
PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "embed": zerosum._embed,
    "coordinates": coordinates,
    "project": zerosum._project,
}
LONGER = {"embed": 1, "coordinates": -1, "project": 0}


@pytest.fixture(params=[pytest.param("compiled", marks=needs_compiled), "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setattr(zerosum, "_zerosum", None)
    return str(request.param)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def compiled(name: str, x: Tensor) -> Tensor:
    made = zerosum._compiled(name, x, LONGER[name])
    assert made is not None
    return made


def refused(name: str, x: Tensor) -> bool:
    return zerosum._compiled(name, x, LONGER[name]) is None


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the maps that compiled code made."""
    names: list[str] = []
    inner = zerosum._compiled

    def spy(name: str, x: Tensor, longer: int) -> Tensor | None:
        made = inner(name, x, longer)
        names.extend([name] if made is not None else [])
        return made

    monkeypatch.setattr(zerosum, "_compiled", spy)
    return names


@needs_compiled
@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", WIDTHS)
def test_compiled_maps_are_those_of_torch(name: str, dtype: torch.dtype, width: int) -> None:
    torch.manual_seed(width)
    if width + LONGER[name] < 1:
        assert refused(name, torch.randn(5, width, dtype=dtype))
        return
    for shape in ((5, width), (2, 3, width), (width,)):
        x = torch.randn(shape, dtype=dtype)
        made = compiled(name, x)
        torch.testing.assert_close(made, PLAIN[name](x), rtol=1e-5, atol=1e-5)
        exact = PLAIN[name](x.double())
        eps = torch.finfo(dtype).eps
        # the first entry of embed and the shift of all are as large as a sum of the row
        size = 4 * eps * math.sqrt(width) * x.double().norm(dim=-1, keepdim=True)
        assert bool(((made.double() - exact).abs() <= size).all())


@needs_compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [2, 7, 64, 257, 3072])
@pytest.mark.parametrize("common", [0.0, 1.0, 1e4, 1e8, -1e20])
def test_rows_sum_to_zero_whatever_they_share(
    dtype: torch.dtype, width: int, common: float
) -> None:
    torch.manual_seed(width)
    x = (torch.randn(300, width, dtype=torch.float64) + common).to(dtype)
    x[7] = common
    x[8] *= torch.logspace(-20, 10, width, dtype=torch.float64).to(dtype)
    for w in (compiled("embed", x), compiled("project", x)):
        sums = torch.tensor([math.fsum(row) for row in w.tolist()], dtype=torch.float64)
        bound = torch.finfo(dtype).eps * math.sqrt(w.shape[1]) * w.double().norm(dim=1)
        assert bool((sums.abs() <= bound).all())
    assert not compiled("project", torch.full_like(x, common)).any()


@needs_compiled
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("shape", [(70_000, 9), (300, 3072), (3, 400_000)])
def test_threads_share_large_tables(name: str, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape)
    torch.testing.assert_close(compiled(name, x), PLAIN[name](x), rtol=1e-4, atol=1e-4)
    half = compiled(name, x[: shape[0] // 2])
    assert torch.equal(compiled(name, x)[: shape[0] // 2], half)  # whichever thread has a row


@needs_compiled
@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [3, 8, 40, 300])
def test_what_is_not_finite_passes_through(name: str, dtype: torch.dtype, width: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, width, dtype=dtype)
    for row, value in enumerate((math.nan, math.inf, -math.inf)):
        x[row, row], x[row + 3, -1] = value, value
    made, want = compiled(name, x), PLAIN[name](x)
    torch.testing.assert_close(made[-2:], want[-2:])
    assert torch.equal(made.isfinite(), want.isfinite())
    if name == "coordinates":  # a single pass: its infinities have signs
        torch.testing.assert_close(made, want, equal_nan=True)


@pytest.mark.parametrize("function", [embed, project])
@pytest.mark.usefixtures("way")
def test_derivatives_both_ways(function: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(2)
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    batched: dict[str, Any] = {"check_batched_grad": True}
    assert gradcheck(function, x, check_forward_ad=True, check_batched_forward_grad=True, **batched)
    assert gradgradcheck(function, x, check_fwd_over_rev=True, check_rev_over_rev=True, **batched)


@needs_compiled
def test_what_makes_a_weight_and_its_gradient(used: list[str]) -> None:
    v = torch.randn(4, 5, requires_grad=True)
    w = embed(v)
    w.backward(torch.randn(4, 6), retain_graph=True)
    assert used == ["embed", "coordinates"]
    w.backward(torch.randn(6, 4).t(), retain_graph=True)  # a gradient laid out otherwise
    w.sum().backward()
    (first,) = torch.autograd.grad(embed(v).square().sum(), v, create_graph=True)
    assert used == ["embed", "coordinates", "embed"]
    torch.testing.assert_close(torch.autograd.grad(first.sum(), v)[0], torch.full_like(v, 2.0))
    with forward_ad.dual_level():
        made = embed(v)
        gradient = forward_ad.make_dual(torch.randn(4, 6), torch.ones(4, 6))
        (found,) = torch.autograd.grad(made, v, gradient)
        tangent = forward_ad.unpack_dual(found).tangent
    torch.testing.assert_close(tangent, torch.zeros(4, 5), rtol=0, atol=1e-6)


@needs_compiled
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_tensors_that_torch_maps() -> None:
    x = torch.randn(4, 6)

    class Own(Tensor):
        pass

    assert not refused("project", x)
    assert not refused("project", nn.Parameter(x))
    others = [
        x.half(), x.bfloat16(), x.to(torch.complex64), x.to_sparse(), x.to("meta"), x.t(),
        x[:, 1:], x[:1].expand(4, 6), x.as_subclass(Own), torch.nested.nested_tensor([x]),
        torch._neg_view(x), torch.empty(0, 6), torch.empty(4, 0),
    ]  # fmt: skip
    for other in others:
        assert all(refused(name, other) for name in PLAIN)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["strided", "expanded", "empty", "meta"])
def test_every_tensor_is_mapped(dtype: torch.dtype, layout: str) -> None:
    torch.manual_seed(0)
    x = {
        "strided": torch.randn(8, 7).to(dtype).t(),
        "expanded": torch.randn(1, 8).to(dtype).expand(7, 8),
        "empty": torch.empty(0, 8, dtype=dtype),
        "meta": torch.empty(7, 8, dtype=dtype, device="meta"),
    }[layout]
    for function, longer in ((embed, 1), (project, 0), (coordinates, -1)):
        x = x.detach().requires_grad_()
        y = function(x)
        assert (y.dtype, y.shape) == (dtype, (x.shape[0], 8 + longer))
        y.backward(torch.ones_like(y))
        assert x.grad is not None
        assert x.grad.shape == x.shape
        if layout != "meta":
            torch.testing.assert_close(
                y, function(x.detach().double()).to(dtype), atol=4e-2, rtol=0
            )


@pytest.mark.usefixtures("way")
def test_what_watches_operations_sees_them() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 5)
    for function in (embed, project):
        traced = make_fx(function)(torch.randn(4, 5))
        torch.testing.assert_close(traced(x), function(x))
    with torch.device("meta"):
        assert embed(x).is_cpu


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # the width becomes a constant
@pytest.mark.usefixtures("way")
def test_a_trace_follows_the_parameters() -> None:
    layer = nn.Linear(6, 4)
    parametrize.register_parametrization(layer, "weight", LCW(Unroll.of(layer)))
    x = torch.randn(3, 6)
    traced = torch.jit.trace(layer, x)
    with torch.no_grad():
        layer.parametrizations["weight"].original.mul_(2)
    torch.testing.assert_close(traced(x), layer(x))
    assert "^" not in str(traced.inlined_graph)


@pytest.mark.usefixtures("way")
def test_transforms_and_autocast() -> None:
    torch.manual_seed(0)
    v = torch.randn(4, 5)
    for function in (embed, project):
        one_by_one = torch.stack([function(row) for row in v])
        torch.testing.assert_close(torch.func.vmap(function)(v), one_by_one)
        gradient = torch.func.grad(lambda u, f=function: f(u).square().sum())(v)
        reference = v.clone().requires_grad_()
        function(reference).square().sum().backward()
        torch.testing.assert_close(gradient, reference.grad)
        torch.testing.assert_close(torch.func.functionalize(function)(v), one_by_one)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(function(v), function(v.clone()))
            assert function(v).dtype is torch.float32


@pytest.mark.parametrize("form", [LCW, LCWProjection])
def test_a_layer_trains_alike_both_ways(
    form: type[LCW] | type[LCWProjection], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    layer: Any = nn.Conv2d(3, 6, 3)
    parametrize.register_parametrization(layer, "weight", form(Unroll.of(layer), channelwise=True))
    other, x, found = copy.deepcopy(layer), torch.randn(2, 3, 5, 5), []
    for each in (layer, other):
        each(x).square().sum().backward()
        found.append(each.parametrizations.weight.original.grad)
        assert each.weight.is_contiguous()
        monkeypatch.setattr(zerosum, "_zerosum", None)
    torch.testing.assert_close(*found)
    assert list(other.state_dict()) == ["bias", "parametrizations.weight.original"]
    made = layer.weight.detach()
    parametrize.remove_parametrizations(other, "weight")
    torch.testing.assert_close(other.weight, made)


@needs_compiled
def test_the_gradient_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    made, inner = [], zerosum._compiled
    monkeypatch.setattr(
        zerosum, "_compiled", lambda *given: made.append(y := inner(*given)) or y.view_as(y)
    )
    v = torch.randn(4, 5, requires_grad=True)
    embed(v).backward(torch.randn(4, 6))
    assert v.grad is not None
    assert v.grad.data_ptr() == made[-1].data_ptr()


@needs_compiled
def test_arguments_of_another_kind_are_refused() -> None:
    native: Any = zerosum._zerosum
    x, y = torch.randn(4, 6), torch.empty(4, 6)
    good = [x.data_ptr(), y.data_ptr(), 0, 4, 6, 1]
    for place, value in ((0, 0), (1, 0), (2, 2), (2, -1), (3, 0), (4, 0)):
        with pytest.raises(ValueError, match="expected"):
            native.project(*good[:place], value, *good[place + 1 :])
    for given in ((), good[:5], [*good[:5], None], [x, *good[1:]]):
        with pytest.raises(TypeError):
            native.embed(*given)


GUARDED = """
import ctypes, mmap, torch
from shiftscope.fix import zerosum

page = mmap.PAGESIZE
libc = ctypes.CDLL(None)
memories = [mmap.mmap(-1, 9 * page) for _ in range(2)]
for memory in memories:
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    for place in (0, 8):
        address = ctypes.c_void_p(whole.data_ptr() + place * page)
        assert libc.mprotect(address, ctypes.c_size_t(page), 0) == 0

def between(memory, dtype, size, end):
    start = 8 * page - size * dtype.itemsize if end else page
    return torch.frombuffer(memory, dtype=dtype, count=size, offset=start)

for number, dtype in enumerate((torch.float32, torch.float64)):
    for rows, width in ((1, 1), (1, 2), (3, 5), (2, 8), (4, 17), (3, 33), (5, 64), (3, 100)):
        for name, less, fewer in (("embed", 1, 0), ("coordinates", 0, 1), ("project", 0, 0)):
            for end in (False, True):
                x = between(memories[0], dtype, max(1, rows * (width - less)), end)
                y = between(memories[1], dtype, max(1, rows * (width - fewer)), end)
                x.fill_(1.5)
                apply = getattr(zerosum._zerosum, name)
                apply(x.data_ptr(), y.data_ptr(), number, rows, width, 1)
                assert y.isfinite().all()
print("within bounds")
import os, sys
sys.stdout.flush(); os._exit(0)
"""


@needs_compiled
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="uses mprotect")
def test_nothing_beyond_the_tables_is_touched() -> None:
    """Tables between two pages that must not be touched: one element too far ends the process."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", GUARDED], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert done.stdout == b"within bounds\n"
