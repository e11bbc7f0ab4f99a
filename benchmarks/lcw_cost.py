"""What the constraint costs: forms of LCW against the layer they constrain.

Two measurements, each as the median over interleaved pairs of process CPU times, one thread (for
``layer`` each time is that of a block of five calls):

* ``layer``: making the weight from its free parameters and its gradient back (``v -> W``, forward
  and backward through ``torch.nn.utils.parametrize``), divided by the plain ``nn.Linear``'s own
  forward and backward at batch 128;
* ``step``: a whole training step of ``mlp`` of ``workloads.py`` (50 hidden layers of 256 sigmoid
  units), divided by the plain network's. Every form starts from that network, its rows centred and
  rescaled on one batch, and is constrained afterwards: with torch's default weights the gradients
  would be denormal numbers, whose slow arithmetic would be timed in place of the constraint.

An A/A row tells what the ratios of equal things read on the machine used. Beside other work the
forms read higher: they move memory, the layer they are divided by computes. The dense basis is the
construction as usually written: an ``m x (m - 1)`` matrix times ``v``.

    python benchmarks/lcw_cost.py --out benchmarks/results
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from workloads import build

from shiftscope.fix.lcw import LCW, LCWProjection
from shiftscope.fix.subspace import embed
from shiftscope.fix.unroll import Unroll

SIZES = [(256, 256), (256, 1024), (3072, 256), (3072, 1024), (4608, 512)]
BATCH = 128


class Dense(nn.Module):
    """``w = Bv`` with the basis stored."""

    def __init__(self, unroll: Unroll) -> None:
        super().__init__()
        self.register_buffer("basis", embed(torch.eye(unroll.fan_in - 1)), persistent=False)

    def forward(self, v: Tensor) -> Tensor:
        return v @ self.basis

    def right_inverse(self, w: Tensor) -> Tensor:
        return w @ self.basis.T


FORMS: dict[str, Any] = {"householder": LCW, "projection": LCWProjection, "dense": Dense}


def cpu(run: Callable[[], None], calls: int) -> float:
    """Milliseconds a call, over a block of calls."""
    start = time.process_time_ns()
    for _ in range(calls):
        run()
    return (time.process_time_ns() - start) / 1e6 / calls


def ratio(
    run: Callable[[], None], base: Callable[[], None], pairs: int, calls: int = 5
) -> dict[str, float]:
    """Median ratio of a block of runs to the mean of the two blocks of the base beside it."""
    for _ in range(3):
        base()
        run()
    ratios, times, before = [], [], cpu(base, calls)
    for _ in range(pairs):
        taken, after = cpu(run, calls), cpu(base, calls)
        ratios.append(2 * taken / (before + after))
        times.append(taken)
        before = after
    low, _, high = statistics.quantiles(ratios, n=4)
    return {
        "ratio": statistics.median(ratios),
        "ratio_q25": low,
        "ratio_q75": high,
        "ms": statistics.median(times),
    }


def layer_cost(m: int, out: int, form: str, pairs: int) -> dict[str, Any]:
    plain = nn.Linear(m, out)
    x = torch.randn(BATCH, m, requires_grad=True)
    upstream, gradient = torch.randn(BATCH, out), torch.randn(out, m)

    def linear() -> None:
        plain.weight.grad = x.grad = None
        plain(x).backward(upstream)

    if form == "A/A":
        return ratio(linear, linear, pairs) | {"buffers_mb": 0.0}
    layer: Any = nn.Linear(m, out)
    parametrize.register_parametrization(layer, "weight", FORMS[form](Unroll.of(layer)))
    original = layer.parametrizations.weight.original

    def weight() -> None:
        original.grad = None
        layer.weight.backward(gradient)

    held = sum(b.numel() * b.element_size() for b in layer.buffers()) / 1e6
    return ratio(weight, linear, pairs) | {"buffers_mb": held}


def step_of(form: str) -> Callable[[], None]:
    work = build("mlp")
    for layer in work.model.children() if form in FORMS else ():
        if isinstance(layer, nn.Linear):
            parametrize.register_parametrization(layer, "weight", FORMS[form](Unroll.of(layer)))
    sgd = torch.optim.SGD(work.model.parameters(), 1e-3, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        sgd.zero_grad()
        F.cross_entropy(work.model(work.x), work.y).backward()
        sgd.step()

    return step


def measure(pairs: int, dense_limit: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for m, out in SIZES:
        for form in ("A/A", *FORMS):
            few = max(3, pairs // 10) if form == "dense" and m > 256 else pairs
            if form != "dense" or m <= dense_limit:
                found = layer_cost(m, out, form, few)
                rows.append({"what": "layer", "form": form, "m": m, "out": out} | found)
    plain = step_of("plain")
    for form in ("A/A", *FORMS):
        few = max(3, pairs // 5)
        found = ratio(step_of(form), plain, few, calls=1)
        rows.append({"what": "step", "form": form, "m": 256, "out": 256} | found)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| what | form | m x out | ratio | quartiles | ms | buffers, MB |", "|" + "---|" * 7]
    for r in rows:
        size = "50 x 256 MLP" if r["what"] == "step" else f"{r['m']} x {r['out']}"
        quartiles = f"{r['ratio_q25']:.3f}..{r['ratio_q75']:.3f}"
        held = f"{r['buffers_mb']:.1f}" if "buffers_mb" in r else ""
        lines.append(
            f"| {r['what']} | {r['form']} | {size} | {r['ratio']:.3f} | {quartiles} "
            f"| {r['ms']:.3f} | {held} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=60, help="interleaved pairs a row")
    parser.add_argument(
        "--dense-limit", type=int, default=3072, help="largest m for the dense basis"
    )
    parser.add_argument("--out", type=Path, help="folder for the dated JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    before = os.getloadavg()[0]
    rows = measure(options.pairs, options.dense_limit)
    now = datetime.now(UTC)
    about = {
        "date": now.isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load_average_before_and_after": [before, os.getloadavg()[0]],
        "threads": 1,
        "batch": BATCH,
        "clock": "process CPU time, median of interleaved pairs",
    }
    print(table(rows))
    print(
        f"load average {before:.1f} before, {os.getloadavg()[0]:.1f} after, {os.cpu_count()} cores"
    )
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / f"lcw_cost-{now:%Y-%m-%d}.json"
        path.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n", encoding="utf-8")
        print(f"written to {path}")


if __name__ == "__main__":
    main()
