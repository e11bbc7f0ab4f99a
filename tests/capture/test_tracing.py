"""Tracing in a recorded step: the user's graph is his own, and no fake tensor is counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import shiftscope as ss

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Sequential(nn.Linear(16, 5)))


def ops(graph: Any) -> list[str]:
    return [str(node.target) for node in graph.nodes if node.op.startswith("call")]


def faked(net: nn.Module) -> Any:
    with FakeTensorMode() as mode:
        state = {k: mode.from_tensor(v) for k, v in net.state_dict(keep_vars=True).items()}
        return functional_call(net, state, (mode.from_tensor(torch.zeros(4, 12)),)).shape


def half_faked(net: nn.Module) -> Any:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        return net(mode.from_tensor(torch.zeros(4, 12))).shape


def on_meta(net: nn.Module) -> Any:
    state = {k: v.to("meta") for k, v in net.state_dict().items()}
    return functional_call(net, state, (torch.zeros(4, 12, device="meta"),)).shape


TRACES: dict[str, Callable[[nn.Module, torch.Tensor], Any]] = {
    "export": lambda net, x: ops(torch.export.export(net, (x,)).graph),
    "strict export": lambda net, x: ops(torch.export.export(net, (x,), strict=True).graph),
    "jit.trace": lambda net, x: [n.kind() for n in torch.jit.trace(net, x).inlined_graph.nodes()],
    "make_fx": lambda net, x: ops(make_fx(lambda x: net(x))(x).graph),
    "symbolic make_fx": lambda net, x: ops(
        make_fx(lambda x: net(x), tracing_mode="symbolic", _allow_non_fake_inputs=True)(x).graph
    ),
    "symbolic_trace": lambda net, x: ops(torch.fx.symbolic_trace(net).graph),
    "functionalize": lambda net, x: torch.func.functionalize(net)(x).tolist(),
    "fake weights": lambda net, x: faked(net),
    "fake input": lambda net, x: half_faked(net),
    "meta weights": lambda net, x: on_meta(net),
}


@pytest.mark.parametrize("name", TRACES)
def test_a_trace_in_a_recorded_step_is_left_alone(name: str) -> None:
    trace, x = TRACES[name], torch.randn(8, 12)
    bare = trace(model(), x)
    net = model()
    junk = [torch.full((64,), 1e30) for _ in range(50)]
    del junk  # what a fake tensor points at, read by mistake, is then no small number
    with ss.watch(net, every=1) as probe:
        for _ in range(2):
            net(x).square().mean().backward()
            assert trace(net, x) == bare
            probe.step()
    snapshot = probe.snapshot()
    assert snapshot.sites["count"].tolist() == [16, 16, 16]
    assert snapshot.sites["notes"].tolist() == ["", "", ""]
    torch.testing.assert_close(
        torch.tensor(snapshot.neurons.query("site == '0'")["z_mean"].to_numpy()),
        net[0](x).mean(dim=0).double(),
        rtol=1e-4,
        atol=1e-5,
    )
    assert snapshot.gaps == ()


def test_other_dispatch_modes_are_recorded_under() -> None:
    class Own(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            return func(*args, **(kwargs or {}))

    net, x = model(), torch.randn(8, 12)
    with FlopCounterMode(display=False) as bare:
        net(x).square().mean().backward()
    with ss.watch(net, every=1) as probe:
        with FlopCounterMode(display=False) as counter:
            net(x).square().mean().backward()
        with Own():
            net(x).square().mean().backward()
        probe.step()
    assert counter.get_total_flops() == bare.get_total_flops()
    assert probe.snapshot().sites["count"].tolist() == [16, 16, 16]


def test_scripting_an_armed_model_says_what_to_do() -> None:
    net = model()
    with ss.watch(net, every=1):
        with pytest.raises(AttributeError, match=r"before ss\.watch"):
            torch.jit.script(net)
        net(torch.zeros(2, 12))
    torch.jit.script(net)
