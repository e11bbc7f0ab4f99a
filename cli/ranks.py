"""Several processes, as torchrun starts them: each measures its share, the first one reports."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from shiftscope.errors import UsageError

__all__ = ["first", "joined", "local", "rank", "world_size"]

_REMEDY = "start several processes by torchrun; unset WORLD_SIZE and RANK for one"


def world_size() -> int:
    """How many processes measure together.

    Returns:
        The number torchrun set, 1 without it.

    Raises:
        UsageError: The environment holds no such number.
    """
    return _number("WORLD_SIZE", 1, 1)


def rank() -> int:
    """The number of this process.

    Returns:
        0 to ``world_size() - 1``.

    Raises:
        UsageError: The environment holds no such number.
    """
    processes = world_size()
    if processes == 1:  # alone, whatever number a cluster gave this process
        return 0
    number = _number("RANK", -1, 0)
    if not 0 <= number < processes:
        told = "not set" if number < 0 else str(number)
        raise UsageError(f"WORLD_SIZE is {processes}, but RANK is {told}", _REMEDY)
    return number


def local() -> int:
    """The number of this process on its machine.

    Returns:
        0 for the first one of each machine.

    Raises:
        UsageError: The environment holds no such number.
    """
    return _number("LOCAL_RANK", 0, 0)


def _number(name: str, default: int, least: int) -> int:
    text = os.environ.get(name) or str(default)
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least and text != str(default):
        raise UsageError(f"the environment has {name}={text!r}, no number from {least}", _REMEDY)
    return value


def first() -> bool:
    """Whether this process writes and prints.

    Returns:
        True for exactly one of the processes.
    """
    return rank() == 0


@contextmanager
def joined() -> Iterator[None]:
    """Connect the processes for the time of the measurement; nothing where there is only one.

    Raises:
        UsageError: The other processes are not to be found.
    """
    if world_size() == 1:
        yield
        return
    import torch.distributed

    try:
        torch.distributed.init_process_group("gloo")
    except (ValueError, RuntimeError) as error:
        words = (str(error).splitlines() or [""])[0]
        reason = f"the {world_size()} processes of WORLD_SIZE do not find one another: {words:.150}"
        raise UsageError(reason, _REMEDY) from error
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
