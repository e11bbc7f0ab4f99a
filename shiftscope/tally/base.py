"""What all tallies share: moving, saving, merging many."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import reduce
from typing import Any, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shiftscope.errors import LoadError, UsageError

__all__ = ["Tally", "merge_all"]


@dataclass(frozen=True, eq=False)
class Tally:
    """A frozen record of tensors and plain numbers that can be merged with its like."""

    def merge(self, other: Self) -> Self:
        """The tally of both streams of rows."""
        raise NotImplementedError

    def to(self, device: torch.device | str) -> Self:
        """The same tally with its tensors on another device.

        Args:
            device: Where the tensors are to lie.

        Returns:
            A tally of the same values; this one if they lie there already.
        """
        wanted = torch.device(device)
        tensors = self.tensors()
        if all(value.device == wanted for value in tensors.values()):
            return self
        return replace(self, **{key: value.to(wanted) for key, value in tensors.items()})

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The fields as numpy arrays, for saving; waits for the device.

        Returns:
            Field name -> array; bfloat16 becomes float32, which holds the same values.
        """
        return {field.name: _array(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """The tally that `to_arrays` wrote.

        Args:
            arrays: Field name -> array; other names are ignored.

        Returns:
            The tally, on the CPU.

        Raises:
            LoadError: A field is missing.
        """
        missing = [field.name for field in fields(cls) if field.name not in arrays]
        if missing:
            raise LoadError(
                f"{cls.__name__} expects the array(s) {', '.join(missing)}, found "
                f"{', '.join(sorted(arrays)) or 'none'}",
                "Save it again; the file was written by another version or is incomplete.",
            )
        values: dict[str, Any] = {}
        for field in fields(cls):
            array = np.asarray(arrays[field.name])
            plain = field.type in ("int", "float")
            values[field.name] = array.item() if plain else torch.from_numpy(array.copy())
        return cls(**values)

    def tensors(self) -> dict[str, Tensor]:
        """The fields that are tensors, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def _check_fits(self, other: Self, mine: Tensor, theirs: Tensor) -> None:
        if mine.shape[-1] != theirs.shape[-1]:
            raise UsageError(
                f"cannot merge {type(self).__name__} of {mine.shape[-1]} and of "
                f"{theirs.shape[-1]} neurons",
                "Merge tallies of one site only.",
            )


T = TypeVar("T", bound=Tally)


def merge_all(tallies: Iterable[T]) -> T:
    """The tally of all streams together, merged from left to right.

    Args:
        tallies: At least one tally; all of one kind and one site.

    Returns:
        Their merger.

    Raises:
        UsageError: There is none.
    """
    items = list(tallies)
    if not items:
        raise UsageError("there is no tally to merge", "Give at least one.")
    return reduce(lambda first, second: first.merge(second), items)


def _array(value: Any) -> NDArray[Any]:
    if not isinstance(value, Tensor):
        return np.asarray(value)
    value = value.detach().cpu()
    return np.asarray((value.float() if value.dtype == torch.bfloat16 else value).numpy())
