"""What watching costs: steps with a probe or a peer against bare steps, in interleaved pairs.

Each row pairs an instrumented copy of a workload (``workloads.py``) with a bare one: bare step,
instrumented step, bare step, ...; the ratio is the instrumented time over the mean of the two bare
ones beside it, the row its median with quartiles. One thread; process CPU time on the CPU; on a GPU
CUDA events around blocks of steps, within which the host may run ahead as it does in training. An
A/A row pairs two bare copies: ratios nearer to 1 than its quartiles mean nothing. Peers are
measured in the same run where they are installed, else the row says why not. One step in 50 is set
beside a bare copy in turns, as means with standard errors.

On a GPU the row of every step also tells the bandwidth floor: the bytes of all tensors that are
read, each once, over the bandwidth of a large copy (bytes read plus bytes written), and how much of
it the added time is; and a profile of one recorded step: kernels, copies to the host, and waits.

    python benchmarks/overhead.py --workloads mlp gpt resnet --pairs 30 --out benchmarks/results
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from clocks import bandwidth, clock, floor, profiled
from peers import PEERS
from torch.overrides import TorchFunctionMode
from workloads import NAMES, Workload, build

import shiftscope as ss
from shiftscope.tally.device_pages import Parts

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


def empty(work: Workload) -> Step:
    """A mode, a hook before each module and one on each node that do nothing at all.

    About what listening from Python costs before anything is done with what is heard.
    """
    model = work.model
    for module in model.modules():
        module.register_forward_pre_hook(lambda *_: None, with_kwargs=True)

    def step() -> None:
        with Nothing():
            loss = work.forward()
        loss.backward()
        work.optimizer.step()

    return step


class Nothing(TorchFunctionMode):
    """Sees every function and lets it run."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        node = out.grad_fn if isinstance(out, torch.Tensor) else None
        if node is not None:
            node.register_hook(lambda *_: None)
        return out


def ss_probe(work: Workload, **options: Any) -> ss.Probe:
    probe = ss.watch(work.model, work.optimizer, **({"window": NEVER} | options))
    work.model.__dict__["_benchmark_probe"] = probe  # as long as its model
    return probe


ROWS: dict[str, Callable[[Workload], Step]] = {
    "A/A": bare,
    "hooks that do nothing": empty,
    "shiftscope, every step": every_step,
    "shiftscope, attached and idle": idle,
    "shiftscope, detached": detached,
}
SAMPLED = "shiftscope, 1 step in 50"


def ratio(run: Step, base: Step, pairs: int, device: str, steps: int) -> dict[str, float]:
    for _ in range(max(4, steps)):
        base()
        run()
    ratios, times, bases, before = [], [], [], clock(base, device, steps)
    for _ in range(pairs):
        taken, after = clock(run, device, steps), clock(base, device, steps)
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


class Stopwatch:
    """Seconds that have passed inside its blocks."""

    def __init__(self) -> None:
        self.before, self.since = 0.0, 0.0

    def __call__(self) -> float:
        return self.before + (time.perf_counter() - self.since if self.since else 0.0)

    def __enter__(self) -> None:
        self.since = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.before, self.since = self(), 0.0


def budgeted(name: str, steps: int, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """The default budget over a run of some length, its first steps included.

    Three copies take turns: a bare one, a watched one, another bare one. What the recorded steps
    took above the median of the others is the share of recording; the totals of all steps hold
    the noise of the machine as well, of which the ratio of the bare copies tells how large it is.
    One early step is recorded on credit, which a short run does not earn back.
    """
    base, work, again = (build(name, device, dtype) for _ in range(3))
    for _ in range(4):
        for copy in (base, work, again):
            copy.step()
    probe, watch = ss_probe(work, window=None), Stopwatch()
    probe._schedule.clock = watch  # or the budget would be a share of what all copies take
    bare_times, times, again_times, recorded = [], [], [], []
    for _ in range(steps):
        bare_times.append(clock(base.step, device))
        recorded.append(probe.attached)
        with watch:
            times.append(clock(work.step, device))
        again_times.append(clock(again.step, device))
    told = dict(probe.overhead)
    probe.detach()
    others = statistics.median([t for t, r in zip(times, recorded, strict=True) if not r])
    extra = sum(t - others for t, r in zip(times, recorded, strict=True) if r)
    both = (sum(bare_times) + sum(again_times)) / 2
    return {
        "what": name,
        "row": f"shiftscope, default budget over {steps} steps",
        "total_ratio": sum(times) / both,
        "total_ratio_of_bare_copies": sum(again_times) / sum(bare_times),
        "recording_share": extra / both,
        "others_ratio": 2
        * others
        / (statistics.median(bare_times) + statistics.median(again_times)),
        "overhead": told,
    }


def sampled(name: str, device: str, dtype: torch.dtype, groups: int) -> dict[str, Any]:
    """One step in 50, and beside it a bare copy, both against another bare one.

    The three take turns of ten steps; a group is 50 steps of each, one of which is recorded. Both
    ratios are means over groups, with their standard errors. The default window is ten groups
    long; what its end takes is told apart.
    """
    base, work, again = (build(name, device, dtype) for _ in range(3))
    for _ in range(4):
        for copy in (base, work, again):
            copy.step()
    probe, ratios, bare_ratios = ss_probe(work, every=50, window=None), [], []
    for _ in range(50):
        work.step()  # the first recorded step compiles, and plans
    for _ in range(groups):
        taken = [[clock(copy.step, device, 10) for copy in (base, work, again)] for _ in range(5)]
        one, watched, two = (sum(times) for times in zip(*taken, strict=True))
        ratios.append(2 * watched / (one + two))
        bare_ratios.append(two / one)
    end = clock(probe._close_windows, device)
    probe.detach()
    found: dict[str, Any] = {"what": name, "row": SAMPLED, "groups": groups, "window_end_ms": end}
    for key, values in (("ratio", ratios), ("bare_ratio", bare_ratios)):
        found[f"{key}_mean"] = statistics.mean(values)
        found[f"{key}_se"] = statistics.stdev(values) / len(values) ** 0.5
    return found


def measured(
    name: str, row: str, make: Callable[[Workload], Step], pairs: int, device: str, dtype: Any
) -> dict[str, Any]:
    base, other = build(name, device, dtype), build(name, device, dtype)
    found: dict[str, Any] = {"what": name, "row": row, "pairs": pairs}
    steps = 1 if device == "cpu" else 10
    try:
        found |= ratio(make(other), base.step, pairs, device, steps)
        if device == "cuda" and make is every_step:
            found |= floor(read_in(other), found["ms"] - found["bare_ms"])
            found |= profiled(other.step)
    except (ImportError, RuntimeError) as error:
        return found | {"skipped": str(error).splitlines()[0]}
    return found


def read_in(work: Workload) -> list[int]:
    """Bytes of each tensor that a recorded step reads."""
    probe = work.model.__dict__["_benchmark_probe"]
    work.forward().backward()
    (recorder,) = probe._phases.recorders.values()
    read = {id(found): found for _, found in recorder._pending}.values()
    work.optimizer.step()
    return [r.rows * r.width * (4, 8, 2, 2)[r.dtype] for r in read if type(r) is Parts]


HEAD = "| workload | row | ratio | quartiles | ms | bare ms |\n" + "|" + "---|" * 6


def line(r: dict[str, Any]) -> str:
    """A row of the table, and one more for the floor."""
    head = f"| {r['what']} | {r['row']} |"
    if "ratio_mean" in r:
        return (
            f"{head} {r['ratio_mean']:.4f} ± {r['ratio_se']:.4f} | bare copies "
            f"{r['bare_ratio_mean']:.4f} ± {r['bare_ratio_se']:.4f}, "
            f"end of a window {r['window_end_ms']:.0f} ms | | |"
        )
    if "ratio" in r:
        spread = f"{r['ratio_q25']:.3f}..{r['ratio_q75']:.3f}"
        told = f"{head} {r['ratio']:.3f} | {spread} | {r['ms']:.2f} | {r['bare_ms']:.2f} |"
        if "floor_ms" in r:
            told += (
                f"\n| {r['what']} | floor: {r['stream_mb']:.0f} MB, {r['tensors_read']} tensors "
                f"| {r['added_over_floor']:.2f} | {r['profile']} | {r['floor_ms']:.3f} | |"
            )
        return told
    if "overhead" in r:
        told = r["overhead"]
        share = f"{told['steps_recorded']} steps recorded: {r['recording_share']:.4f}"
        return (
            f"{head} {r['total_ratio']:.3f} | bare {r['total_ratio_of_bare_copies']:.3f}, "
            f"{share}, by itself {told['overhead_share']:.4f} | | |"
        )
    return f"{head} not measured: {r['skipped']} | | | |"


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
        "copy_gb_per_s": bandwidth() / 1e9 if gpu else None,
        "clock": "CUDA events, median of interleaved pairs of blocks of steps"
        if gpu
        else "process CPU time, median of interleaved pairs",
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
    parser.add_argument("--rows", nargs="+", help="names of the rows wanted; default: all")
    parser.add_argument("--groups", type=int, default=6, help="groups of 50 steps for 1 in 50")
    parser.add_argument("--budget-steps", type=int, default=300, help="0: leave that row out")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--out", type=Path, help="folder for the dated JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dtype, load, rows = getattr(torch, options.dtype), os.getloadavg()[0], []
    print(HEAD)
    for row in wanted(options, dtype):
        rows.append(row)
        print(line(row), flush=True)
        if options.out:  # after each row: a run that is cut short keeps what it measured
            write(options.out, options.device, about(options.device, dtype, load), rows)
    print(json.dumps(about(options.device, dtype, load), indent=1))


def wanted(options: argparse.Namespace, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    """Measure the rows that are asked for."""
    device = options.device
    for name in options.workloads:
        for row, make in {**ROWS, **PEERS}.items():
            if not options.rows or row in options.rows:
                yield measured(name, row, make, options.pairs, device, dtype)
        if SAMPLED in (options.rows or ([SAMPLED] if device == "cuda" else [])):
            yield sampled(name, device, dtype, options.groups)
        if options.budget_steps:
            yield budgeted(name, options.budget_steps, device, dtype)


def write(folder: Path, device: str, told: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """The dated result."""
    now = datetime.now(UTC)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = told["dtype"].removeprefix("torch.")
    path = folder / f"overhead-{device}-{dtype}-{now:%Y-%m-%d}.json"
    content = {"date": now.isoformat(timespec="seconds"), **told, "rows": rows}
    path.write_text(json.dumps(joined(path, content), indent=1) + "\n")


def joined(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """With the rows measured earlier on the same day, on the same machine, in the same file."""
    if not path.exists():
        return content
    before = json.loads(path.read_text())
    same = ("torch", "machine", "gpu", "dtype")
    if any(before[key] != content[key] for key in same):
        return content
    new = {(row["what"], row["row"]) for row in content["rows"]}
    kept = [row for row in before["rows"] if (row["what"], row["row"]) not in new]
    return content | {"rows": kept + content["rows"]}


if __name__ == "__main__":
    main()
