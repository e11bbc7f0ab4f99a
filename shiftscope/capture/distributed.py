"""One snapshot from many processes: every rank measures its shard, tallies merge."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce

import torch
import torch.distributed as dist
from torch import Tensor

from shiftscope.archive import dump, parse
from shiftscope.errors import MeasureError
from shiftscope.snapshot import Snapshot

__all__ = ["merge_over_ranks", "rank", "world_size"]


def world_size() -> int:
    """Number of processes of the default group; 1 where none is initialised."""
    return dist.get_world_size() if _running() else 1


def rank() -> int:
    """Number of this process in the default group; 0 where none is initialised."""
    return dist.get_rank() if _running() else 0


def merge_over_ranks(snapshot: Snapshot | None, error: str = "") -> Snapshot:
    """Merge the snapshots of all ranks; every rank gets the same result.

    Snapshots travel in their file format, as bytes, so that nothing is unpickled. A rank that
    failed takes part with its error, so that the others stop too and do not wait for ever.

    Args:
        snapshot: This rank's snapshot, or None if it failed.
        error: Why it failed.

    Returns:
        The merged snapshot, in the order of ranks.

    Raises:
        MeasureError: Some rank failed.
    """
    if world_size() == 1 and snapshot is not None:
        return snapshot
    content = dump(snapshot, thin=False) if snapshot is not None else error.encode()
    status, parts = _gather(int(snapshot is not None)), _gather_bytes(content)
    failed = [f"rank {k}: {parts[k].decode()}" for k, fine in enumerate(status) if not fine]
    if failed:
        raise MeasureError(
            f"measuring failed on {failed[0]}", "mend it there; no rank was measured"
        )
    snapshots = [parse(part) for part in parts]
    merged = reduce(Snapshot.merge, snapshots)
    ranks = sum(1 for snapshot in snapshots if snapshot.records)
    return replace(merged, manifest={**merged.manifest, "ranks": ranks})


def _running() -> bool:
    return dist.is_available() and dist.is_initialized()


def _device() -> torch.device:
    return (
        torch.device("cuda", torch.cuda.current_device())
        if dist.get_backend() == "nccl"
        else torch.device("cpu")
    )


def _gather(value: int) -> list[int]:
    mine = torch.tensor([value], dtype=torch.int64, device=_device())
    parts = [torch.zeros_like(mine) for _ in range(world_size())]
    dist.all_gather(parts, mine)
    return [int(part) for part in parts]


def _gather_bytes(content: bytes) -> list[bytes]:
    sizes = _gather(len(content))
    room = torch.zeros(max(sizes), dtype=torch.uint8, device=_device())
    room[: len(content)] = torch.frombuffer(bytearray(content or b"\0"), dtype=torch.uint8)[
        : len(content)
    ]
    parts: list[Tensor] = [torch.zeros_like(room) for _ in sizes]
    dist.all_gather(parts, room)
    return [
        bytes(part[:size].cpu().numpy().tobytes()) for part, size in zip(parts, sizes, strict=True)
    ]
