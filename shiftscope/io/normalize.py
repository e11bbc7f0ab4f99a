"""Input normalisation by name: which mean and standard deviation a model was trained with.

A wrong normalisation ruins accuracy and shifts every activation without any error message, so it is
always explicit: a preset, or the two lists of numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from shiftscope.errors import DataError, UsageError

__all__ = ["PRESETS", "Normalization", "parse_normalization"]

PRESETS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.49139968, 0.48215841, 0.44653091), (0.24703223, 0.24348513, 0.26158784)),
    "cifar100": ((0.50707516, 0.48654887, 0.44091784), (0.26733429, 0.25643846, 0.27615047)),
    "mnist": ((0.1307,), (0.3081,)),
    "half": ((0.5,), (0.5,)),
}
"""Per-channel means and standard deviations of inputs in [0, 1].

imagenet: torchvision's pretrained models. cifar10, cifar100, mnist: moments of the training images.
half: maps [0, 1] to [-1, 1].
"""


@dataclass(frozen=True)
class Normalization:
    """``(x - mean) / std`` per channel.

    Attributes:
        mean: One number, or one a channel.
        std: One number, or one a channel.
        name: As the user wrote it.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    name: str

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise a batch.

        Args:
            x: Inputs, ``[rows, channels, ...]`` (or ``[rows, features]`` for a single number).

        Returns:
            The same shape.

        Raises:
            DataError: The number of channels is another one.
        """
        if len(self.mean) == len(self.std) == 1:
            return (x - self.mean[0]) / self.std[0]
        channels = max(len(self.mean), len(self.std))
        if x.ndim < 3 or x.shape[1] != channels:
            raise DataError(
                f"normalisation {self.name!r} is for {channels} channels, "
                f"the inputs have shape {list(x.shape)}",
                "choose a normalisation that fits the data, or none",
            )
        shape = (1, -1, *(1,) * (x.ndim - 2))
        mean, std = (torch.tensor(v, dtype=x.dtype).view(shape) for v in (self.mean, self.std))
        return (x - mean) / std


def parse_normalization(spec: str | None) -> Normalization | None:
    """Read a normalisation SPEC.

    Args:
        spec: A preset (``imagenet``), ``MEAN/STD`` with one number or one a channel separated by
            commas (``0.5/0.5``, ``0.485,0.456,0.406/0.229,0.224,0.225``), ``none`` or None.

    Returns:
        The normalisation; None for none.

    Raises:
        UsageError: The SPEC cannot be read.
    """
    if spec is None or spec.strip().lower() in {"", "none"}:
        return None
    if spec.lower() in PRESETS:
        return Normalization(*PRESETS[spec.lower()], name=spec.lower())
    mean_text, slash, std_text = spec.partition("/")
    mean, std = _numbers(mean_text), _numbers(std_text)
    if not slash or not mean or not std or not all(value > 0 for value in std):
        raise UsageError(
            f"{spec!r} is no normalisation",
            f"use one of {', '.join(PRESETS)}, none, or MEAN/STD such as 0.5/0.5 (std above 0)",
        )
    if len({len(mean), len(std)} - {1}) > 1:
        raise UsageError(
            f"{spec!r} has {len(mean)} means and {len(std)} standard deviations",
            "give one number or one a channel",
        )
    return Normalization(mean, std, spec)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        return ()
    return values if all(math.isfinite(value) for value in values) else ()
