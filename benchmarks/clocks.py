"""Time of steps on the CPU and on a GPU, and what a GPU could do at best."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

__all__ = ["bandwidth", "clock", "floor", "profiled"]

WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "aten::item")
"""Not cudaDeviceSynchronize: the profiler's own."""


def clock(run: Callable[[], None], device: str, steps: int = 1) -> float:
    """Milliseconds of one step, over a block of them."""
    if device == "cpu":
        start = time.process_time_ns()
        for _ in range(steps):
            run()
        return (time.process_time_ns() - start) / 1e6 / steps
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(steps):
        run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / steps


def floor(sizes: Sequence[int], added: float) -> dict[str, float]:
    """The time a copy of as many bytes takes, and how many times as long the added time is."""
    if not sizes:
        raise RuntimeError("no tensor was read by Triton")
    limit = sum(sizes) / bandwidth() * 1e3
    return {
        "tensors_read": len(sizes),
        "stream_mb": sum(sizes) / 1e6,
        "floor_ms": limit,
        "added_over_floor": added / limit,
    }


@cache
def bandwidth() -> float:
    """Bytes per second, read plus written, of a copy of 2 GB on the GPU."""
    source = torch.randn(2**29, device="cuda")
    target = torch.empty_like(source)
    times = [clock(lambda: target.copy_(source), "cuda", 5) for _ in range(9)]
    return 2 * source.nbytes / (statistics.median(times) / 1e3)


def profiled(step: Callable[[], None]) -> dict[str, Any]:
    """What the GPU and the host did in one recorded step."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        step()
    events = seen.key_averages()
    ours = [e for e in events if e.key.startswith(("read_columns", "read_images", "merge_parts"))]
    return {
        "profile": {
            "kernels_of_the_probe": sum(e.count for e in ours),
            "their_ms": sum(e.device_time_total for e in ours) / 1e3,
            "copies_to_host": sum(e.count for e in events if "DtoH" in e.key),
            "waits": sum(e.count for e in events if e.key in WAITS),
        }
    }
