"""The compiled reader of a GPU, and what the code that it calls may do: raise, look, take."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from shiftscope.tally import native
from shiftscope.tally.device_pages import Page

pytestmark = pytest.mark.skipif(not native.built(), reason="the compiled part was not built")
CPU = torch.device("cpu")
WIDTH, CAPACITY = 4, 40
NAMES = ("page_of", "image_of", "launch_of", "stream_of", "device_of", "failed")
_CALL = ctypes.CFUNCTYPE(
    *(ctypes.c_int, ctypes.c_void_p, *[ctypes.c_uint] * 7, ctypes.c_void_p),
    *(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p),
)


class Gpu:
    """A reader, what it calls, and a driver that writes the first number of a tensor as counts."""

    def __init__(self) -> None:
        self.error, self.within = 0, lambda: None
        self._call = _CALL(self._launch)
        address = ctypes.cast(self._call, ctypes.c_void_p).value
        self.launches = [
            native.Launch(
                *(address, 1, (1, 1, 1), 64, 0, "xpco", (0, 0, 0, 0), shape, (0, kind, kind), 0),
                *((WIDTH, 8, 1, 2), object()),
            )
            for kind, shape in enumerate([(8, WIDTH), (4, WIDTH, 2)])
        ]
        self.calls: dict[str, Callable[..., Any]] = {
            "page_of": lambda width: Page(max(width, CAPACITY), CPU),
            "image_of": lambda width, run: torch.zeros(width, run, dtype=torch.float64),
            "launch_of": lambda x, dtype, kind, image: self.launches[kind],
            "stream_of": lambda index: 7,
            "device_of": lambda: -1,
            "failed": lambda page, first, columns, code: None,
        }
        page_of, image_of, *others = map(self._caller, NAMES)
        self.reader = native._native.Reader(
            *(native._DTYPES, torch.strided, (Tensor, torch.nn.Parameter), native.table),
            *(page_of, image_of, int),
            (-1, *others),
        )

    def _caller(self, name: str) -> Callable[..., Any]:
        return lambda *args: self.calls[name](*args)

    def _launch(self, function: int, *rest: Any) -> int:
        x, page, capacity, offset = [_whole(rest[8][k]) for k in range(4)]
        self.within()
        if not self.error:
            value = ctypes.c_float.from_address(x).value
            counts = (ctypes.c_double * capacity).from_address(page)
            counts[offset : offset + WIDTH] = [value] * WIDTH
        return self.error

    def look(self, x: Tensor, kind: int = 0) -> Any:
        return self.reader.look(x, kind, kind, bool(kind))

    def checked(self) -> list[Any]:
        """All readings; their columns fill the pages, one behind another."""
        readings, pages, busy = self.reader.take()
        assert not busy
        assert [r.number for r in readings] == list(range(len(readings)))
        places = iter([(page, at) for page in pages for at in range(0, page.used, WIDTH)])
        for reading in readings:
            page, at = next(places)
            assert (reading.offset, reading.width, reading.parts) == (at, WIDTH, 1)
            reading.image = page.data[0, at : at + WIDTH]
        assert not [*places]
        return readings  # type: ignore[no-any-return]


def _whole(place: int) -> int:
    return ctypes.c_uint64.from_address(place).value


def tensor(kind: int = 0) -> Tensor:
    x = torch.ones((4, WIDTH, 2) if kind else (8, WIDTH))
    assert x.data_ptr() % 16 == 0
    return x


def raises(*_: Any) -> Any:
    raise ZeroDivisionError


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("returned", [raises, lambda *_: "x", lambda *_: None, lambda *_: 3])
def test_a_call_that_goes_wrong_leaves_the_books_in_order(
    name: str, returned: Callable[..., Any]
) -> None:
    gpu, x = Gpu(), tensor(1)
    assert gpu.look(tensor(1), 1) is not None
    usual, gpu.calls[name] = gpu.calls[name], returned
    gpu.error = 700 if name == "failed" else 0
    gpu.launches[0], launches = gpu.launches[1], gpu.launches[:]  # does not fit
    before = sys.getrefcount(x)
    number = len(gpu.reader.readings)
    for kind in (1, 0) * 50:
        try:
            found = gpu.look(tensor() if kind == 0 else x.add_(1), kind)
        except (ZeroDivisionError, TypeError, AttributeError, ValueError):
            found = None
        number += found is not None or (gpu.error == 700 and kind == 1)
        gpu.error = 0
        assert len(gpu.reader.readings) == number
    assert sys.getrefcount(x) == before
    gpu.calls[name], gpu.launches = usual, launches
    if name != "failed":
        assert gpu.look(tensor()) is not None
    gpu.checked()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("act", ["look", "take"])
def test_what_is_called_may_read_and_take(name: str, act: str) -> None:
    gpu, depth, taken = Gpu(), [0], []
    usual = gpu.calls[name]

    def acting(*args: Any) -> Any:
        if not depth[0]:
            depth[0] = 1
            for kind in (0, 1):
                gpu.look(tensor(kind), kind)
            if act == "take":
                taken.append(gpu.reader.take())
            depth[0] = 0
        return usual(*args)

    gpu.calls[name] = acting
    for number in range(100):
        kind, gpu.error = number % 2, 0
        if name == "failed" and number == 50:
            gpu.error = 1
        gpu.look(tensor(kind), kind)
    gpu.checked()
    for readings, pages, _ in taken:
        assert sum(r.width for r in readings) == sum(page.used for page in pages)


def test_what_was_read_for_a_step_that_ended_meanwhile_is_read_again() -> None:
    gpu, x = Gpu(), tensor()
    gpu.within = gpu.reader.take  # as another thread may while the driver waits
    before = gpu.look(x)
    gpu.within = lambda: None
    after = gpu.look(x)
    assert after is not before
    assert gpu.look(x) is after
    assert gpu.checked() == [after]


def test_a_thread_that_has_not_used_the_gpu_is_no_reason_to_give_up() -> None:
    gpu, x = Gpu(), tensor()
    gpu.error = 201  # no context in this thread
    assert gpu.look(x) is None
    gpu.error = 0  # once something has made one
    assert gpu.look(x) is not None
    gpu.error = 700
    assert gpu.look(tensor()) is None
    gpu.error = 0
    assert gpu.look(tensor()) is None


def test_threads_read_and_take_at_the_same_time() -> None:
    gpu, end, wrong, total = Gpu(), time.monotonic() + 1.0, list[BaseException](), [0]
    interval = sys.getswitchinterval()

    def reading(first: int) -> None:
        x = tensor()
        try:
            while time.monotonic() < end:
                x.fill_(first)
                if gpu.look(x) is None:
                    raise AssertionError
                made, page = gpu.reader.reserve(9, WIDTH, 8, 1, 0)
                page.data[0, made.offset : made.offset + WIDTH] = first
                gpu.reader.done()
        except BaseException as error:
            wrong.append(error)

    def taking() -> None:
        kept = []
        try:
            while time.monotonic() < end:
                time.sleep(0.001)
                kept.append(gpu.reader.take())
            for thread in threads[1:]:
                thread.join()
            for readings, pages, _ in [*kept, gpu.reader.take()]:
                places = [(page, at) for page in pages for at in range(0, page.used, WIDTH)]
                assert [r.offset for r in readings] == [at for _, at in places]
                assert [r.number for r in readings] == list(range(len(readings)))
                seen = [page.data[0, at : at + WIDTH].tolist() for page, at in places]
                assert all(min(s) == max(s) >= 1 for s in seen)
                total[0] += len(seen)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=taking)]
    threads += [threading.Thread(target=reading, args=(k,)) for k in range(1, 5)]
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong
    assert total[0] > 100
