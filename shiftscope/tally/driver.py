"""Kernels that Triton compiled, launched by the driver of the GPU without Triton's own launcher.

Triton's launcher passes through some Python and parses every argument anew. The compiled reader
(``_launch.c``) calls ``cuLaunchKernel`` itself, but only where all arguments of the kernel are
accounted for, by number and size: anything unusual is left to Triton.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch

from shiftscope.tally.native import Launch

__all__ = ["by_driver"]

Form = tuple[tuple[int, ...], tuple[int, int, int], int, tuple[int, int, int, int]]
"""Shape; dtype, kind and image; rest of the address by 16; neurons, rows, parts and places."""

_CODES = {"x": "x", "page": "p", "image": "m", "capacity": "c", "offset": "o"}
"""Arguments that change from call to call, as ``_launch.c`` knows them."""
_SIZES = {"i32": 4, "i64": 8}
_HIDDEN = 2
"""Pointers to scratch memory that Triton may add, unused by kernels that need none."""


def by_driver(made: Any, grid: tuple[int, int, int], known: Mapping[str, Any], form: Form) -> Any:
    """What the compiled reader launches a kernel by.

    Args:
        made: Triton's compiled kernel.
        grid: Its programs.
        known: The arguments that stay the same.
        form: The tensors it reads.

    Returns:
        The launch, or None where only Triton's launcher can be trusted with it.
    """
    try:
        found = _arguments(made, known)
        driver = _driver()
        if found is None or driver is None or not _plain(made.metadata):
            return None
        codes, values, sizes = found
        hidden = _hidden(driver[1], made.function, sizes)
        if hidden is None:
            return None
        shape, kinds, residue, extent = form
        return Launch(
            *(driver[0], made.function, grid, 32 * made.metadata.num_warps, made.metadata.shared),
            *(codes + "0" * hidden, (*values, *[0] * hidden), shape, kinds, residue, extent, made),
        )
    except (
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ):  # another Triton than those that are known
        return None


def _arguments(made: Any, known: Mapping[str, Any]) -> tuple[str, list[int], list[int]] | None:
    """Code, value and size of each argument; constants were compiled in."""
    codes, values, sizes = "", [], []
    for name, kind in made.src.signature.items():
        if kind == "constexpr":
            continue
        pointer = kind.startswith("*")
        if not pointer and kind not in _SIZES:
            return None
        codes += _CODES.get(name, "0")
        values.append(0 if name in _CODES else int(known[name]))
        sizes.append(8 if pointer else _SIZES[kind])
    return codes, values, sizes


def _plain(metadata: Any) -> bool:
    """Whether a launch needs nothing but grid, block and shared memory."""
    odd = ("launch_cooperative_grid", "launch_pdl", "global_scratch_size", "profile_scratch_size")
    return metadata.num_ctas == 1 and not any(getattr(metadata, name, 0) for name in odd)


def _hidden(info: Any, function: int, sizes: list[int]) -> int | None:
    """Pointers behind the arguments; None where these are not what they are taken for."""
    found: list[int] = []
    offset, size = ctypes.c_size_t(), ctypes.c_size_t()
    places = (ctypes.byref(offset), ctypes.byref(size))
    while info(ctypes.c_void_p(function), len(found), *places) == 0:
        found.append(size.value)
    hidden = found[len(sizes) :]
    fits = found[: len(sizes)] == sizes and len(hidden) <= _HIDDEN and set(hidden) <= {8}
    return len(hidden) if fits else None


@cache
def _driver() -> tuple[int, Any] | None:
    """Address of cuLaunchKernel, and cuFuncGetParamInfo; None without, or with another vendor's."""
    if Launch is None or torch.version.hip is not None or sys.byteorder != "little":
        return None
    try:
        library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        info = library.cuFuncGetParamInfo
        info.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p]
        address = ctypes.cast(library.cuLaunchKernel, ctypes.c_void_p).value
    except (OSError, AttributeError):  # a driver before CUDA 12.4
        return None
    return None if address is None else (address, info)
