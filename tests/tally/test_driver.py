"""Kernels launched by the driver itself; one that computes on the CPU stands in for it."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tally_support import interpret_triton
from torch import Tensor

from shiftscope.tally import driver, launches, native
from shiftscope.tally.device import DeviceReader
from shiftscope.tally.device_record import DeviceRecord
from shiftscope.tally.launches import Launches

CPU = torch.device("cpu")
POINTERS, NUMBERS = "*fp32", "i32"
_CALL = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_void_p,
    *[ctypes.c_uint] * 7,
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.c_void_p,
)

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered")


class Driver:
    """Launches by reading the arguments from where they lie, as the driver of a GPU does."""

    def __init__(self) -> None:
        self.launches: list[tuple[int, ...]] = []
        self.error = 0
        self.sizes: list[int] = []
        self._call = _CALL(self._launch)
        address = ctypes.cast(self._call, ctypes.c_void_p).value
        assert address is not None
        self.address = address

    def info(self, function: Any, index: int, offset: Any, size: Any) -> int:
        """The size of an argument, or an error behind the last one."""
        if index >= len(self.sizes):
            return 1
        size._obj.value = self.sizes[index]
        return 0

    def _launch(self, function: int, *rest: Any) -> int:
        *geometry, stream, arguments, extra = rest
        self.launches.append((function, *geometry, stream))
        if self.error:
            return self.error
        assert extra is None
        values = [_at(arguments[k], size) for k, size in enumerate(self.sizes)]
        if function == 1:
            self._columns(*values)
        else:
            self._images(*values)
        return 0

    def _columns(
        self, x: int, page: int, capacity: int, offset: int, rows: int, width: int, parts: int,
        *scratch: int,
    ) -> None:  # fmt: skip
        assert not any(scratch)
        seen = _floats(x, rows * width).reshape(rows, width).astype(np.float64)
        self._write(page, capacity, offset, seen, parts)

    def _images(
        self, x: int, page: int, image: int, capacity: int, offset: int,
        samples: int, width: int, run: int, parts: int,
    ) -> None:  # fmt: skip
        seen = _floats(x, samples * width * run).reshape(samples, width, run).astype(np.float64)
        (ctypes.c_double * (width * run)).from_address(image)[:] = seen.mean(0).ravel().tolist()
        self._write(page, capacity, offset, seen.swapaxes(1, 2).reshape(-1, width), parts)

    @staticmethod
    def _write(page: int, capacity: int, offset: int, seen: np.ndarray, parts: int) -> None:
        width = seen.shape[1]
        whole = np.ctypeslib.as_array((ctypes.c_double * (3 * capacity)).from_address(page))
        place = whole.reshape(3, capacity)[:, offset : offset + parts * width]
        place[:] = 0.0
        count = np.full(width, len(seen))
        place[:, :width] = np.stack([count, seen.mean(0), seen.var(0) * len(seen)])


def _at(place: int, size: int) -> int:
    kind = ctypes.c_uint64 if size == 8 else ctypes.c_int32
    return kind.from_address(place).value


def _floats(address: int, number: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_float * number).from_address(address))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Driver:
    interpret_triton()
    if not native.built():
        pytest.skip("the compiled part was not built: no C compiler at installation")
    made = Driver()
    monkeypatch.setattr(driver, "_driver", lambda: (made.address, made.info))
    monkeypatch.setattr(native, "stream_of", lambda index: 4711)
    return made


def metadata(**odd: Any) -> Any:
    usual = {"num_ctas": 1, "num_warps": 2, "shared": 1024, "launch_cooperative_grid": False}
    return SimpleNamespace(**usual | odd)


def signature(images: bool = False, more: tuple[str, ...] = ()) -> dict[str, str]:
    names = ["x", "page", *(["image"] if images else []), "capacity", "offset"]
    names += ["samples", "width", "run", "parts"] if images else ["rows", "width", "parts"]
    kinds = {name: POINTERS if name in ("x", "page", "image") else NUMBERS for name in names}
    more = more if images else ()
    return kinds | dict.fromkeys((*more, "ROWS", "WIDTH", "UNROLL", "DOUBLE"), "constexpr")


def compiled(gpu: Driver, images: bool = False, hidden: int = 0, **odd: Any) -> Any:
    """What Triton would have made of a kernel, and what the driver says of it."""
    kinds = signature(images)
    gpu.sizes = [{POINTERS: 8, NUMBERS: 4}[k] for k in kinds.values() if k != "constexpr"]
    gpu.sizes += [8] * hidden
    source = SimpleNamespace(signature=kinds)
    return SimpleNamespace(src=source, function=2 if images else 1, metadata=metadata(**odd))


def warmed(x: Tensor, gpu: Driver, image: bool = False, hidden: int = 0) -> DeviceReader:
    """A reader in whose first step the kernel for such tensors was compiled."""
    reader = DeviceReader(CPU)
    by_row = x.dim() == 2
    assert reader.look(x, 3, 0 if by_row else 1, image) is None
    reader.read(x, 3, by_row, image)
    for launch in reader._launches._known.values():
        launch._made = compiled(gpu, not by_row, hidden)
    assert reader.look(x, 3, 0 if by_row else 1, image) is None  # not within the first step
    reader.clear()
    return reader


def record_of(reader: DeviceReader) -> tuple[Tensor, list[Any]]:
    readings, (page,) = reader.take()
    record = DeviceRecord(sum(r.width for r in readings), CPU)
    record.merge(page, [(r.offset, r.width, r.parts, r.rows) for r in page.readings])
    reader.give_back([page])
    return record.data, readings


@pytest.mark.parametrize("hidden", [0, 1, 2])
def test_the_driver_reads_what_triton_reads(gpu: Driver, hidden: int) -> None:
    torch.manual_seed(0)
    x, others = torch.randn(700, 5) + 3.0, torch.randn(9, 2)
    reader = warmed(x, gpu, hidden=hidden)
    for _ in range(3):
        got = reader.look(x, 3, 0, False)
        assert (got.slot, got.number, got.width, got.rows) == (3, 0, 5, 700)
        reader.read(others, 4, True, False)  # of a form that only Triton knows yet
        data, readings = record_of(reader)
        assert [r.slot for r in readings] == [3, 4]
        both = torch.cat([x.double().mean(0), others.double().mean(0)])
        torch.testing.assert_close(data[1], both, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(data[2, :5] / 700, x.double().var(0, unbiased=False))
    assert len(gpu.launches) == 3
    function, *grid, threads, _, _, shared, stream = gpu.launches[0]
    assert (function, threads, shared, stream) == (1, 64, 1024, 4711)
    assert grid == [1, got.parts, 1]


def test_images_with_their_means(gpu: Driver) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 3, 4, 5)
    reader = warmed(x, gpu, image=True)
    got = reader.look(x, 3, 1, True)
    torch.testing.assert_close(got.image, x.double().mean(0).flatten(1), rtol=1e-6, atol=1e-7)
    data, _ = record_of(reader)
    assert data[0].tolist() == [120.0] * 3
    torch.testing.assert_close(
        data[2] / 120, x.double().transpose(0, 1).flatten(1).var(1, unbiased=False)
    )
    assert reader.look(x, 3, 1, False) is None  # without the image it is another kernel


def test_a_tensor_is_read_once_until_it_changes(gpu: Driver) -> None:
    x = torch.randn(8, 4)
    reader = warmed(x, gpu)
    one = reader.look(x, 3, 0, False)
    assert reader.look(x, 5, 0, False) is one
    x.add_(1.0)
    other = reader.look(x, 5, 0, False)
    assert other is not one
    assert reader.look(x.view(2, 4, 4), 6, 0, False) is None  # another shape is another kernel
    assert reader.look(x.view(8, 4), 6, 0, False) not in (one, other)
    record_of(reader)
    assert reader.look(x, 3, 0, False) not in (one, other)  # in the next step everything is


@pytest.mark.parametrize(
    "other",
    [
        torch.randn(8, 5), torch.randn(9, 4), torch.randn(8, 4).half(), torch.randn(8, 4).double(),
        torch.randn(4, 8).T, torch.randn(33)[1:].view(8, 4), torch.ones(8, 4, dtype=torch.int32),
        torch.randn(8, 4, 1), torch.empty(0, 4), torch.empty(8, 4, device="meta"),
    ],
    ids=[
        *("width", "rows", "half", "double", "transposed"),
        *("address", "int", "dims", "empty", "meta"),
    ],
)  # fmt: skip
def test_tensors_of_another_form_are_left_to_triton(gpu: Driver, other: Tensor) -> None:
    reader = warmed(torch.randn(8, 4), gpu)
    assert reader.look(other, 3, 0, False) is None
    assert not gpu.launches
    assert reader.take() == ([], [])


def test_a_driver_that_refuses_is_asked_no_more(gpu: Driver) -> None:
    x = torch.randn(8, 4)
    reader = warmed(x, gpu)
    gpu.error = 700
    assert reader.look(x, 3, 0, False) is None
    assert reader.look(x, 3, 0, False) is None
    assert len(gpu.launches) == 1
    got = reader.read(x, 3, True, False)  # through Triton
    data, readings = record_of(reader)
    assert readings[-1] is got
    assert data[0].tolist() == [0.0] * 4 + [8.0] * 4  # nobody wrote the first ones down
    torch.testing.assert_close(data[1, 4:], x.double().mean(0), rtol=1e-6, atol=1e-7)


def test_another_gpu_may_be_the_current_one(gpu: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    x, current = torch.randn(8, 4), [-1]
    make = native.on_device
    monkeypatch.setattr(native, "on_device", lambda *args: make(*args[:-1], True))
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: current[0], raising=False)
    reader = warmed(x, gpu)
    current[0] = 1
    assert reader.look(x, 3, 0, False) is None
    current[0] = -1
    assert reader.look(x, 3, 0, False) is not None


@pytest.mark.parametrize("constants", [True, False], ids=["Triton 3.3", "Triton 3.2"])
@pytest.mark.parametrize("shape", [(8, 4), (8, 4, 3)])
def test_triton_gets_the_arguments_that_its_launcher_takes(
    gpu: Driver, shape: tuple[int, ...], constants: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launcher of Triton 3.2 takes no constants, and its signature names none."""
    x, calls = torch.randn(shape), list[tuple[Any, ...]]()
    launch = Launches().of(x, len(shape) == 2, False)
    assert launch is not None
    kinds = {
        name: kind
        for name, kind in signature(len(shape) == 3, ("IMAGE",)).items()
        if constants or kind != "constexpr"
    }

    class Made:
        src = SimpleNamespace(signature=kinds)

        def __getitem__(self, grid: Any) -> Any:
            return lambda *args, stream: calls.append(args)

    class Kernel:
        arg_names = launch._kernel.arg_names

        def __getitem__(self, grid: Any) -> Any:
            return lambda *args, **options: Made()

    monkeypatch.setattr(launches, "stream_of", lambda index: 0)
    assert set(kinds) <= set(Kernel.arg_names)
    launch._kernel = Kernel()
    page: Any = SimpleNamespace(data=x, address=512, capacity=64)
    for _ in range(2):
        launch(x, x.data_ptr(), page, 0)
    assert [len(args) for args in calls] == [len(kinds)]


FORM = ((8, 4), (0, 0, 0), 0, (4, 8, 1, 1))
KNOWN = {"rows": 8, "width": 4, "parts": 1}


def test_only_kernels_whose_arguments_are_known_are_launched(gpu: Driver) -> None:
    def found(made: Any, known: Any = KNOWN) -> Any:
        return driver.by_driver(made, (1, 1, 1), known, FORM)

    assert found(compiled(gpu)) is not None
    for odd in ("launch_cooperative_grid", "launch_pdl", "global_scratch_size"):
        assert found(compiled(gpu, **{odd: 1})) is None
    assert found(compiled(gpu, num_ctas=2)) is None
    assert found(compiled(gpu, hidden=3)) is None
    assert found(compiled(gpu), {"rows": 8}) is None
    made = compiled(gpu)
    gpu.sizes[2] = 8
    assert found(made) is None  # not the size that the driver tells
    gpu.sizes = gpu.sizes[:-1]
    assert found(made) is None
    made = compiled(gpu)
    made.src.signature["rows"] = "fp32"
    assert found(made) is None
    made = compiled(gpu)
    made.src.signature = {0: POINTERS}
    assert found(made) is None
    del made.src
    assert found(made) is None


@pytest.mark.parametrize(
    "args",
    [
        (0, 1, (1, 1, 1), 64, 0, "x", (0,), (8, 4), (0, 0, 0), 0, (4, 8, 1, 1), None),
        (1, 1, (1, 1, 1), 64, 0, "xp", (0,), (8, 4), (0, 0, 0), 0, (4, 8, 1, 1), None),
        (1, 1, (1, 1, 1), 64, 0, "x" * 25, (0,) * 25, (8, 4), (0, 0, 0), 0, (4, 8, 1, 1), None),
        (1, 1, (1, 1, 1), 64, 0, "x", (0,), (1,) * 9, (0, 0, 0), 0, (4, 8, 1, 1), None),
        (1, 1, (1, 1, 1), 64, 0, "x", (0,), (8, 4), (0, 0, 0), 0, (0, 8, 1, 1), None),
    ],
)
def test_a_launch_checks_what_it_is_made_of(gpu: Driver, args: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - from the compiled part
        native.Launch(*args)


def test_nothing_of_a_step_is_kept_alive(gpu: Driver) -> None:
    import gc
    import weakref

    x = torch.randn(8, 4)
    reader = warmed(x, gpu)
    assert reader.look(x, 3, 0, False) is not None
    tensor, whole = weakref.ref(x), weakref.ref(reader)
    del x
    assert tensor() is None
    gc.disable()
    try:
        del reader
        assert whole() is None  # no cycle
    finally:
        gc.enable()
