"""What the tests of the tallies share: layouts, slow second implementations, comparisons."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from shiftscope.capture import device_reader, readers
from shiftscope.tally import Tally, transfer
from shiftscope.tally.native import built

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def same(a: Tally, b: Tally, rtol: float = 1e-12) -> None:
    """Equal up to rounding; m2 on the scale of the squares it is summed from."""
    x, y = a.to_arrays(), b.to_arrays()
    assert x.keys() == y.keys()
    for name in x:
        atol = 1e-300
        if name in ("mean", "m2"):
            size = np.nan_to_num(x["scale"])
            atol = rtol * (size if name == "mean" else size**2 * np.maximum(1, x["count"]))
        np.testing.assert_array_equal(np.isnan(x[name]), np.isnan(y[name]), err_msg=name)
        with np.errstate(invalid="ignore"):
            equal = (x[name] == y[name]) | (np.abs(x[name] - y[name]) <= atol + rtol * abs(y[name]))
        assert np.all(equal | np.isnan(np.asarray(x[name], dtype=float))), (name, x[name], y[name])


def rows_of(x: torch.Tensor, dim: int) -> np.ndarray:
    """[rows, neurons] in float64, the slow way."""
    return np.moveaxis(x.double().numpy(), dim, -1).reshape(-1, x.shape[dim])


def naive(rows: np.ndarray) -> dict[str, np.ndarray]:
    """Moments of each neuron from all its finite values."""
    kept = [column[np.isfinite(column)] for column in rows.T]
    return {
        "count": np.array([len(k) for k in kept]),
        "mean": np.array([k.mean() if len(k) else np.nan for k in kept]),
        "var": np.array([k.var() if len(k) else np.nan for k in kept]),
        "low": np.array([k.min() if len(k) else np.inf for k in kept]),
        "high": np.array([k.max() if len(k) else -np.inf for k in kept]),
    }


def exactly(a: Tally, b: Tally) -> None:
    x, y = a.to_arrays(), b.to_arrays()
    for name in x:
        np.testing.assert_array_equal(x[name], y[name], err_msg=name)


LAYOUTS: dict[str, Callable[[], tuple[torch.Tensor, int]]] = {
    "rows": lambda: (torch.randn(9, 4), -1),
    "unbatched": lambda: (torch.randn(4), -1),
    "one row": lambda: (torch.randn(1, 4), 1),
    "no rows": lambda: (torch.randn(0, 4), -1),
    "no positions": lambda: (torch.randn(2, 4, 0), 1),
    "tokens": lambda: (torch.randn(2, 5, 4), 2),
    "images": lambda: (torch.randn(3, 4, 5, 6), 1),
    "volumes": lambda: (torch.randn(2, 4, 3, 2, 2), 1),
    "unbatched image": lambda: (torch.randn(4, 5, 6), 0),
    "channels last": lambda: (
        torch.randn(3, 4, 5, 6).contiguous(memory_format=torch.channels_last),
        1,
    ),
    "transposed": lambda: (torch.randn(4, 9).T, -1),
    "strided": lambda: (torch.randn(9, 12)[::2, ::3], -1),
    "heads": lambda: (torch.randn(2, 3, 5, 4).transpose(1, 2), -1),
    "cropped image": lambda: (torch.randn(3, 4, 7, 8)[:, :, 1:6, 2:7], 1),
    "features first": lambda: (torch.randn(5, 4, 6).transpose(1, 2).movedim(2, 0), 0),
    "expanded": lambda: (torch.randn(1, 5, 4).expand(3, 5, 4), -1),
    "expanded positions": lambda: (torch.randn(3, 4, 1, 1).expand(3, 4, 5, 6), 1),
}


def interpret_triton() -> None:
    """Skip where Triton's kernels cannot run on the CPU, element by element (see conftest.py)."""
    if torch.cuda.is_available():
        pytest.skip("Triton compiles for the GPU here: the tests marked cuda run its kernels")
    pytest.importorskip("triton", reason="triton is not installed")


READERS = ("compiled", "triton", "torch")
"""The ways of reading a tensor."""


def read_by(chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all that is recorded be read in one way, on the CPU."""
    if chosen == "compiled" and not built():
        pytest.skip("the compiled reader was not built: no C compiler at installation")
    if chosen == "triton":
        interpret_triton()
        monkeypatch.setattr(device_reader, "usable", lambda device: True)
    monkeypatch.setattr(readers, "built", lambda: chosen == "compiled")


def as_if_on_a_device(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Let every tensor be moved as if none lay where it is wanted.

    Returns:
        A list that grows by each run of bytes that is moved to the host.
    """
    runs: list[torch.Size] = []

    def copied(run: torch.Tensor, device: torch.device) -> torch.Tensor:
        if device is transfer._CPU:  # itself: other devices are told by the tensors
            runs.append(run.shape)
        return run.to(device, copy=True)

    monkeypatch.setattr(transfer, "_lies_on", lambda tensor, device: False)
    monkeypatch.setattr(transfer, "sent", copied)
    return runs


class NoWaiting(TorchDispatchMode):
    """Refuses every operation whose result, or whose shape, the host would have to wait for."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = str(func.overloadpacket).removeprefix("aten.")
        assert name.strip("_") not in {w.strip("_") for w in self.WAITING}, name
        for value in args[1] if name == "index" else ():
            assert value is None or value.dtype != torch.bool
        assert "device" not in (kwargs or {}) or name != "_to_copy"
        return func(*args, **(kwargs or {}))
