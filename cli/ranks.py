"""Several processes, as torchrun starts them: each measures its share, the first one reports."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["first", "joined", "local", "rank", "world_size"]


def world_size() -> int:
    """How many processes measure together.

    Returns:
        The number torchrun set, 1 without it.
    """
    return int(os.environ.get("WORLD_SIZE") or 1)


def rank() -> int:
    """The number of this process.

    Returns:
        0 to ``world_size() - 1``.
    """
    return int(os.environ.get("RANK") or 0)


def local() -> int:
    """The number of this process on its machine.

    Returns:
        0 for the first one of each machine.
    """
    return int(os.environ.get("LOCAL_RANK") or 0)


def first() -> bool:
    """Whether this process writes and prints.

    Returns:
        True for exactly one of the processes.
    """
    return rank() == 0


@contextmanager
def joined() -> Iterator[None]:
    """Connect the processes for the time of the measurement; nothing where there is only one."""
    if world_size() == 1:
        yield
        return
    import torch.distributed

    torch.distributed.init_process_group("gloo")
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
