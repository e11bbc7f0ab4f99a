"""A run that is watched is the run it would have been, and nothing is left of the watching."""

from __future__ import annotations

import copy
import gc
import pickle
import shutil
import warnings
import weakref
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from training_cases import CASES, MODELS, mlp, run, same

import shiftscope as ss


@pytest.mark.parametrize(("name", "how"), CASES)
def test_training_is_equal_bit_for_bit(name: str, how: str) -> None:
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model = make()
    twins = [copy.deepcopy(model) for _ in range(2)]
    bare = run(model, shape, how, None)
    for twin, every in zip(twins, (1, 3), strict=True):
        assert same(bare, run(twin, shape, how, every))


@pytest.mark.parametrize("in_place", [False, True])
def test_compiled_training_is_equal_bit_for_bit(in_place: bool) -> None:
    torch._dynamo.reset()
    graphs: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(1)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    def compiled(model: nn.Module) -> nn.Module:
        if in_place:
            model.compile(backend=backend)
            return model
        return torch.compile(model, backend=backend)  # type: ignore[return-value]

    torch.manual_seed(0)
    model = mlp()
    twin = copy.deepcopy(model)
    bare = run(compiled(model), (7, 6), "adam", None)
    count = len(graphs)
    assert same(bare, run(compiled(twin), (7, 6), "adam", 3))
    assert len(graphs) <= 2 * count
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_under_inductor_a_recorded_step_differs_in_the_last_bits_only() -> None:
    """The one exception to equality bit for bit: eager kernels round otherwise."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = mlp(32)
    twin = copy.deepcopy(model)
    bare = run(torch.compile(model), (7, 6), "adam", None)  # type: ignore[arg-type]
    torch._dynamo.utils.counters.clear()
    watched = run(torch.compile(twin), (7, 6), "adam", 3)  # type: ignore[arg-type]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 1  # and never again
    for a, b in zip(bare["weights"], watched["weights"], strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=1e-4)  # 1 % of one update of Adam
    for a, b in zip(bare["losses"], watched["losses"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert torch.equal(bare["rng"][0], watched["rng"][0])
    torch._dynamo.reset()


def test_off_schedule_nothing_is_installed() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe = ss.watch(model, optimizer, every=3)
    seen = []
    for _ in range(7):
        seen.append(bool(model._forward_hooks))
        model(torch.randn(8, 6)).sum().backward()
        optimizer.step()
    assert seen == [True, False, False, True, False, False, True]
    probe.detach()


def test_copies_pickles_and_state_dicts_of_a_watched_model() -> None:
    model = mlp()
    shown, keys = repr(model), list(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe = ss.watch(model, optimizer, every=1)
    twin, unpickled = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    copy.deepcopy(optimizer)
    pickle.dumps(optimizer)
    twin(torch.randn(3, 6))
    unpickled(torch.randn(3, 6))
    assert (repr(model), list(model.state_dict())) == (shown, keys)
    with pytest.raises(ss.MeasureError):
        probe.snapshot()
    probe.detach()


def test_a_probe_that_is_dropped_takes_its_hooks_along() -> None:
    model = mlp()
    probe = ss.watch(model, every=1)
    assert probe.attached
    del probe
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_an_interrupt_is_unwound_at_the_next_forward() -> None:
    class Stops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.stop = nn.Linear(4, 4), True

        def forward(self, x: Tensor) -> Tensor:
            h = self.inner(x)
            if self.stop:
                raise KeyboardInterrupt
            return h  # type: ignore[no-any-return]

    model = Stops()
    probe = ss.watch(model, every=1)
    with pytest.raises(KeyboardInterrupt):
        model(torch.randn(3, 4))
    model.stop = False
    model(torch.randn(3, 4)).sum().backward()
    assert torch._C._len_torch_function_stack() == 0
    probe.step()
    assert probe.snapshot().records["inner"].calls == 1
    probe.detach()


def test_the_inference_fast_path_stays_and_is_told() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.TransformerEncoder(layer, 2).eval()
        x, mask = torch.randn(3, 5, 8), torch.zeros(3, 5, dtype=torch.bool)
        mask[0, 3:] = True
        with torch.no_grad():
            want = model(x, src_key_padding_mask=mask)
            probe = ss.watch(model, every=1)
            got = model(x, src_key_padding_mask=mask)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert any("inference" in reason for _, reason in probe._recording.attachment.gaps)  # type: ignore[union-attr]
    probe.detach()


def test_nothing_is_kept_alive_and_memory_is_flat() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    probe = ss.watch(model, optimizer, every=1, window=250)
    alive = []
    gc.collect()
    for step in range(1000):
        optimizer.zero_grad()
        out = model(torch.randn(4, 6))
        out.sum().backward()
        optimizer.step()
        if step in (40, 240, 999):
            alive.append(sum(issubclass(type(o), Tensor) for o in gc.get_objects()))
        watcher = weakref.ref(out)
        del out
        assert watcher() is None
    # Windows add their own numbers; the steps within one add nothing.
    assert alive[1] <= alive[0] + 5
    assert len(probe.trace) == 4
    reference = weakref.ref(model)
    probe.detach()
    del model, optimizer
    gc.collect()
    assert reference() is None
    assert len(probe.trace.sites) == 20
