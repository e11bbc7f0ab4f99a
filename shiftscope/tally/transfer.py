"""Moving many tensors between devices at once.

Every copy to the host waits until the device has done all that was asked of it before. What is
wanted of many sites is therefore packed into one run of bytes, moved, and taken apart again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from shiftscope.tally.base import Tally

__all__ = ["groups_to_host", "sent", "tallies_to_host", "to_devices", "to_host"]

_MOST = 2**26
"""Bytes packed at once: beyond, the copies take longer than the waits, and packing costs memory."""
_CPU = torch.device("cpu")

T = TypeVar("T", bound=Tally)


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors on the CPU; waits once for each device, however many they are.

    Args:
        tensors: On any devices; one that stands there twice is moved once.

    Returns:
        The same values in the same order; those that lie on the CPU as they are.
    """
    return _moved(tensors, [_CPU] * len(tensors))


def groups_to_host(groups: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
    """Likewise, of several lists of tensors together.

    Args:
        groups: The lists.

    Returns:
        Lists of the same lengths.
    """
    moved = iter(to_host([tensor for group in groups for tensor in group]))
    return [[next(moved) for _ in group] for group in groups]


def tallies_to_host(tallies: Sequence[T]) -> list[T]:
    """Tallies with their tensors on the CPU.

    Args:
        tallies: On any devices.

    Returns:
        The same tallies in the same order; those that lie on the CPU as they are.
    """
    parts = [tally.tensors() for tally in tallies]
    moved = groups_to_host([list(own.values()) for own in parts])
    return [
        tally
        if all(new is old for new, old in zip(tensors, own.values(), strict=True))
        else replace(tally, **dict(zip(own, tensors, strict=True)))
        for tally, own, tensors in zip(tallies, parts, moved, strict=True)
    ]


def to_devices(tensors: Sequence[Tensor], devices: Sequence[torch.device]) -> list[Tensor]:
    """Tensors on a device each; nothing waits for what is sent from the CPU to a GPU.

    Args:
        tensors: On any devices.
        devices: Where each is to lie.

    Returns:
        The same values in the same order; those that lie there already as they are.
    """
    return _moved(tensors, devices)


def _moved(tensors: Sequence[Tensor], devices: Sequence[torch.device]) -> list[Tensor]:
    result = list(tensors)
    places: dict[tuple[int, torch.device], list[int]] = {}
    for number, (tensor, device) in enumerate(zip(tensors, devices, strict=True)):
        if _lies_on(tensor, device):
            continue
        if type(tensor) is Tensor:
            places.setdefault((id(tensor), device), []).append(number)
        else:  # the numbers of a subclass may lie anywhere
            result[number] = tensor.to(device)
    ways: dict[tuple[torch.device, torch.device], list[list[int]]] = {}
    for (_, device), numbers in places.items():
        ways.setdefault((tensors[numbers[0]].device, device), []).append(numbers)
    for (_, device), lists in ways.items():
        # The widest numbers first: so each begins at a multiple of its own size.
        lists.sort(key=lambda numbers: -tensors[numbers[0]].element_size())
        for part in _parts(tensors, lists):
            own = _carried([tensors[numbers[0]] for numbers in part], device)
            for numbers, made in zip(part, own, strict=True):
                for number in numbers:
                    result[number] = made
    return result


def _lies_on(tensor: Tensor, device: torch.device) -> bool:
    return tensor.device == device


def _parts(tensors: Sequence[Tensor], lists: Sequence[list[int]]) -> Iterator[list[list[int]]]:
    """What is moved at once; a tensor of the limit and more goes alone."""
    part: list[list[int]] = []
    size = 0
    for numbers in lists:
        more = tensors[numbers[0]].nbytes
        if part and size + more > _MOST:
            yield part
            part, size = [], 0
        part.append(numbers)
        size += more
    if part:
        yield part


def _carried(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    runs = [_bytes_of(tensor.detach()) for tensor in tensors]
    if len(runs) == 1:
        return [sent(runs[0], device).view(tensors[0].dtype).reshape(tensors[0].shape)]
    pieces = sent(torch.cat(runs), device).split([len(run) for run in runs])
    own = [
        piece.view(tensor.dtype).reshape(tensor.shape)
        for piece, tensor in zip(pieces, tensors, strict=True)
    ]
    # On the host one that is kept shall not keep all the others.
    return [tensor.clone() for tensor in own] if device.type == "cpu" else own


def _bytes_of(tensor: Tensor) -> Tensor:
    """The numbers of a tensor themselves: conjugates and negatives may be a mere mark."""
    plain = tensor.resolve_conj().resolve_neg()
    return plain.contiguous().reshape(-1).view(torch.uint8)


def sent(run: Tensor, device: torch.device) -> Tensor:
    """A tensor on another device; from the CPU to a GPU nothing waits for it.

    Args:
        run: The tensor.
        device: Where it is to lie.
    """
    if device.type == "cuda" and run.is_cpu:
        with suppress(RuntimeError):  # where no more memory can be pinned, the copy waits
            return run.pin_memory().to(device, non_blocking=True)
    return run.to(device)
