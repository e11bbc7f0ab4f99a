"""What watching costs: steps with a probe or a peer against bare steps, in interleaved pairs.

Each row pairs an instrumented copy of a workload (``workloads.py``) with a bare one: bare step,
instrumented step, bare step, ...; the ratio is the instrumented time over the mean of the two bare
ones beside it, the row its median with quartiles. One thread; process CPU time on the CPU, CUDA
events on a GPU. An A/A row pairs two bare copies: ratios nearer to 1 than its quartiles mean
nothing. Peers are measured in the same run where they are installed, else the row says why not.

    python benchmarks/overhead.py --workloads mlp gpt resnet --pairs 30 --out benchmarks/results
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
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peers import PEERS
from workloads import NAMES, Workload, build

import shiftscope as ss

Step = Callable[[], None]
NEVER = 10**9


def bare(work: Workload) -> Step:
    return work.step


def every_step(work: Workload) -> Step:
    ss_probe(work, every=1)
    return work.step


def idle(work: Workload) -> Step:
    """Attached, and off schedule after the first step."""
    ss_probe(work, every=NEVER)
    return work.step


def detached(work: Workload) -> Step:
    probe = ss_probe(work, every=1)
    work.step()
    probe.detach()
    return work.step


def ss_probe(work: Workload, **options: Any) -> ss.Probe:
    probe = ss.watch(work.model, work.optimizer, **({"window": NEVER} | options))
    work.model.__dict__["_benchmark_probe"] = probe  # as long as its model
    return probe


ROWS: dict[str, Callable[[Workload], Step]] = {
    "A/A": bare,
    "shiftscope, every step": every_step,
    "shiftscope, attached and idle": idle,
    "shiftscope, detached": detached,
}


def clock(run: Step, device: str) -> float:
    """Milliseconds of one step."""
    if device == "cpu":
        start = time.process_time_ns()
        run()
        return (time.process_time_ns() - start) / 1e6
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


def ratio(run: Step, base: Step, pairs: int, device: str) -> dict[str, float]:
    for _ in range(4):
        base()
        run()
    ratios, times, bases, before = [], [], [], clock(base, device)
    for _ in range(pairs):
        taken, after = clock(run, device), clock(base, device)
        ratios.append(2 * taken / (before + after))
        times.append(taken)
        bases.append(after)
        before = after
    low, _, high = statistics.quantiles(ratios, n=4)
    return {
        "ratio": statistics.median(ratios),
        "ratio_q25": low,
        "ratio_q75": high,
        "ms": statistics.median(times),
        "bare_ms": statistics.median(bases),
    }


def budgeted(name: str, steps: int, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """The default budget over a run of some length, its first steps included.

    The ratio is that of all watched steps to all bare ones; what the probe itself says of the run
    stands beside it. One early step is recorded on credit, which a short run does not earn back.
    """
    base, work = build(name, device, dtype), build(name, device, dtype)
    for _ in range(4):
        base.step()
        work.step()
    probe = ss_probe(work, window=None)
    taken = bare_taken = 0.0
    for _ in range(steps):
        bare_taken += clock(base.step, device)
        taken += clock(work.step, device)
    told = dict(probe.overhead)
    probe.detach()
    return {
        "what": name,
        "row": f"shiftscope, default budget over {steps} steps",
        "total_ratio": taken / bare_taken,
        "overhead": told,
    }


def measured(
    name: str, row: str, make: Callable[[Workload], Step], pairs: int, device: str, dtype: Any
) -> dict[str, Any]:
    base, other = build(name, device, dtype), build(name, device, dtype)
    found: dict[str, Any] = {"what": name, "row": row}
    try:
        return found | ratio(make(other), base.step, pairs, device)
    except (ImportError, RuntimeError) as error:
        return found | {"skipped": str(error).splitlines()[0]}


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| workload | row | ratio | quartiles | ms | bare ms |", "|" + "---|" * 6]
    for r in rows:
        head = f"| {r['what']} | {r['row']} |"
        if "ratio" in r:
            spread = f"{r['ratio_q25']:.3f}..{r['ratio_q75']:.3f}"
            lines.append(
                f"{head} {r['ratio']:.3f} | {spread} | {r['ms']:.1f} | {r['bare_ms']:.1f} |"
            )
        elif "overhead" in r:
            told = r["overhead"]
            share = f"{told['steps_recorded']} recorded, by itself {told['overhead_share']:.4f}"
            lines.append(f"{head} {r['total_ratio']:.3f} | {share} | | |")
        else:
            lines.append(f"{head} not measured: {r['skipped']} | | | |")
    return "\n".join(lines)


def about(device: str, dtype: torch.dtype, load: float) -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "shiftscope": ss.__version__,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "gpu": gpu,
        "dtype": str(dtype),
        "threads": 1,
        "load_average_before_and_after": [load, os.getloadavg()[0]],
        "peers": {name: _version(name) for name in PEERS},
        "clock": "CUDA events" if gpu else "process CPU time, median of interleaved pairs",
    }


def _version(row: str) -> str | None:
    try:
        return version(row.split(",")[0])
    except ImportError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--workloads", nargs="+", choices=NAMES, default=["mlp", "gpt", "resnet"])
    parser.add_argument("--pairs", type=int, default=30, help="interleaved pairs a row")
    parser.add_argument("--budget-steps", type=int, default=300, help="0: leave that row out")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--out", type=Path, help="folder for the dated JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dtype, load, rows = getattr(torch, options.dtype), os.getloadavg()[0], []
    for name in options.workloads:
        for row, make in {**ROWS, **PEERS}.items():
            rows.append(measured(name, row, make, options.pairs, options.device, dtype))
        if options.budget_steps:
            rows.append(budgeted(name, options.budget_steps, options.device, dtype))
    print(table(rows))
    now, told = datetime.now(UTC), about(options.device, dtype, load)
    print(json.dumps(told, indent=1))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / f"overhead-{options.device}-{options.dtype}-{now:%Y-%m-%d}.json"
        content = {"date": now.isoformat(timespec="seconds"), **told, "rows": rows}
        path.write_text(json.dumps(content, indent=1) + "\n")
        print(path)


if __name__ == "__main__":
    main()
