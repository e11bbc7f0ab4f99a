"""The compiled reader against storing everything in float64, and against moments.py."""

from __future__ import annotations

import subprocess
import sys
import threading
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shiftscope.errors import UsageError
from shiftscope.tally import Moments
from shiftscope.tally.native import Reader, Record, built

pytestmark = pytest.mark.skipif(
    not built(), reason="the compiled reader was not built: no C compiler at installation"
)
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPES = [
    (1, 1), (1, 7), (2, 3), (3, 16), (4, 17), (7, 513), (128, 256), (131, 5), (4096, 40),
    (3, 4, 5), (32, 4, 9), (300, 2, 63), (16, 5, 64), (16, 5, 70), (1, 3, 4000), (9, 600, 2),
]  # fmt: skip


def read(x: Tensor, image: Tensor | None = None) -> Record:
    record = Record(x.shape[1])
    record.read(x, 0, x.shape[0], x.shape[1], image)
    return record


def rows_of(x: Tensor) -> npt.NDArray[np.float64]:
    return x.double().movedim(1, -1).reshape(-1, x.shape[1]).numpy()


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_moments_of_every_layout(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = (torch.randn(shape) * 2 + 3).to(dtype)
    rows = rows_of(x)
    for wanted in (False, True):
        image = torch.empty(x[0].numel(), dtype=torch.float64) if wanted else None
        count, mean, m2 = read(x, image).data.numpy()
        assert (count == len(rows)).all()
        np.testing.assert_allclose(mean, rows.mean(axis=0), rtol=2e-7, atol=1e-7)
        np.testing.assert_allclose(m2 / len(rows), rows.var(axis=0), rtol=2e-6, atol=1e-30)
        if image is not None:
            each = x.double().mean(dim=0).flatten()
            np.testing.assert_allclose(image, each, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(4000, 300), (64, 32, 400), (600, 3, 200)])
def test_threads_share_the_work_of_large_tensors(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape)
    before, found = torch.get_num_threads(), []
    for number in (1, 2, 5, 2):
        torch.set_num_threads(number)
        found.append(read(x).data.clone())
    torch.set_num_threads(before)
    assert torch.equal(found[1], found[3])
    for data in found[1:]:
        torch.testing.assert_close(data, found[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(64, 20), (8, 20, 30), (8, 20, 90)])
@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e-21, 1e-16, 1e-12, 1.0, 1e14, 1e18, 1e30])
def test_squares_neither_underflow_nor_overflow(
    size: float, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    x = (torch.randn(shape, dtype=torch.float64) * size).to(dtype)
    x[:, 3] *= 1e-4
    x[:, 5] = 0.0
    rows = rows_of(x)
    _, mean, m2 = read(x).data.numpy()
    np.testing.assert_allclose(mean, rows.mean(axis=0), rtol=1e-6, atol=1e-6 * size)
    np.testing.assert_allclose(m2 / len(rows), rows.var(axis=0), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("shape", [(100_000, 2), (10, 2, 10_000), (500, 2, 200)])
def test_an_outlier_among_the_first_takes_no_digits(shape: tuple[int, ...]) -> None:
    x = torch.zeros(shape)
    x.view(shape[0], 2, -1)[0, :, 0] = 1.0
    x[1:, 1] += 1e-3 * torch.randn_like(x[1:, 1])
    rows = rows_of(x)
    _, mean, m2 = read(x).data.numpy()
    np.testing.assert_allclose(mean, rows.mean(axis=0), rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(m2 / len(rows), rows.var(axis=0), rtol=2e-6)


def test_an_overflow_of_double_precision_is_no_constant() -> None:
    x = torch.tensor([[1e200], [-1e200], [-2e200]], dtype=torch.float64)
    assert not read(x).data[2].isfinite().any()


def test_records_lie_on_the_cpu_whatever_the_default() -> None:
    x = torch.randn(4, 3)
    with torch.device("meta"):
        reader = Reader()
        found = reader.look(x, 0, 0, False)
    torch.testing.assert_close(columns_of(reader, found)[1].float(), x.mean(dim=0))


@pytest.mark.parametrize("shape", [(64, 6), (5000, 6), (8, 6, 40), (8, 6, 200)])
@pytest.mark.parametrize("ratio", [1e1, 1e3, 1e5, 1e6])
def test_a_large_mean_takes_no_digits(ratio: float, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = 1.0 + torch.randn(shape) / ratio
    rows = rows_of(x)
    _, mean, m2 = read(x).data.numpy()
    np.testing.assert_allclose(mean, rows.mean(axis=0), rtol=0.0, atol=2e-7 / ratio)
    np.testing.assert_allclose(m2 / len(rows), rows.var(axis=0), rtol=2e-6)


def test_equal_rows_have_no_spread() -> None:
    for dtype in DTYPES:
        x = torch.randn(1, 33).to(dtype).expand(77, 33).contiguous()
        assert not read(x).data[2].any()
        run = torch.randn(1, 33, 1).to(dtype).expand(5, 33, 70).contiguous()
        assert not read(run).data[2].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(9, 5), (3, 5, 4), (2, 5, 100)])
def test_what_is_not_finite_is_left_out(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape).to(dtype)
    x[0, 0], x[1, 1], x[:, 2] = torch.nan, torch.inf, -torch.inf
    x[(1, 3, *(2 for _ in shape[2:]))] = torch.nan
    want, (count, mean, m2) = Moments.of(x, 1), read(x).data
    assert count.tolist() == want.count.tolist()
    torch.testing.assert_close(mean, want.mean, rtol=1e-6, atol=1e-7, equal_nan=True)
    torch.testing.assert_close(m2, want.m2, rtol=1e-6, atol=1e-9)


@given(
    parts=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    mean=st.floats(-1e4, 1e4),
    seed=st.integers(0, 2**16),
)
def test_merging_is_reading_all_at_once(parts: list[int], mean: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    pieces = [torch.randn(n, 3, generator=generator).double() + mean for n in parts]
    merged, whole = Record(5), torch.cat(pieces)
    merged.data[1] = torch.nan
    for piece in pieces:
        other = Record(3)
        if len(piece):
            other.read(piece, 0, len(piece), 3)
        merged.merge(other, 3, offset=1)
    count, means, m2 = merged.data
    assert count.tolist() == [0.0, *[float(len(whole))] * 3, 0.0]
    assert means[[0, 4]].isnan().all()
    if len(whole):
        want = Moments.of(whole)
        np.testing.assert_allclose(means[1:4], want.mean, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(m2[1:4], want.m2, rtol=1e-9, atol=1e-9 * (1 + abs(mean)))


def test_only_the_columns_asked_for_are_written() -> None:
    record = Record(40)
    record.data.fill_(7.0)
    record.read(torch.randn(6, 11), 13, 6, 11)
    outside = torch.ones(40, dtype=torch.bool)
    outside[13:24] = False
    assert (record.data[:, outside] == 7.0).all()
    assert not (record.data[:, ~outside] == 7.0).all()


def test_what_does_not_fit_is_refused() -> None:
    record, x = Record(4), torch.randn(6, 4)
    for offset in (1, -1, 2**62):
        with pytest.raises(ValueError, match="outside"):
            record.read(x, offset, 6, 4)
    for arguments in ((x, 0, 5, 4), (x, 0, 7, 4), (torch.randn(4, 6).t(), 0, 6, 4)):
        with pytest.raises(UsageError):
            record.read(*arguments)
    for image in (torch.empty(5, dtype=torch.float64), torch.empty(4)):
        with pytest.raises(UsageError):
            record.read(x, 0, 6, 4, image)
    for columns, offset in ((5, 0), (4, 1), (-1, 0)):
        with pytest.raises(UsageError):
            record.merge(Record(9), columns, offset)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_tensors_it_cannot_read() -> None:
    x, reader = torch.randn(3, 4), Reader()

    class Own(Tensor):
        pass

    assert reader.look(x, 0, 0, False) is not None
    assert reader.look(torch.nn.Parameter(x), 0, 0, False) is not None
    others = [
        x.long(), x.to(torch.complex64), x.to_sparse(), x.to("meta"), x.as_subclass(Own), x.t(),
        torch.nested.nested_tensor([x]), torch.randn(3, dtype=torch.complex64).conj().imag,
        torch.empty(0, 4), torch.empty(4, 0),
    ]  # fmt: skip
    for other in others:
        assert reader.look(other, 0, 0, False) is None
        assert reader.read(other, 0, 0, False) is None
    assert len(reader.readings) == 2


def columns_of(reader: Reader, found: Any) -> Tensor:
    start = sum(r.width for r in reader.readings[: found.number])
    pages = torch.cat([page.data[:, :used] for page, used in reader.pages()], dim=1)
    return pages[:, start : start + found.width]


@pytest.mark.parametrize("widths", [[3, 5, 4], [9000, 9000, 3, 40000]])
def test_a_reader_keeps_the_columns_of_a_step_apart(widths: list[int]) -> None:
    reader = Reader()
    for _ in range(3):  # with pages of several sizes, and one that is used again
        tensors = [torch.randn(6, width) for width in widths]
        found = [reader.look(x, 7, 0, False) for x in tensors]
        assert [(f.slot, f.number, f.width, f.rows) for f in found] == [
            (7, k, width, 6) for k, width in enumerate(widths)
        ]
        for x, f in zip(tensors, found, strict=True):
            torch.testing.assert_close(
                columns_of(reader, f)[1].float(), x.mean(dim=0), rtol=1e-4, atol=1e-6
            )
        assert reader.used == sum(widths)
        reader.clear()
        assert reader.used == 0
        assert reader.pages() == []


def test_a_tensor_is_read_once() -> None:
    reader, x = Reader(), torch.randn(8, 3, 4)
    first = reader.look(x, 0, 0, False)
    assert reader.look(x, 1, 0, False) is first
    assert reader.look(x, 1, 1, False) is not first  # other neurons
    flat = x.view(-1, 4)
    seen = reader.look(flat, 2, 0, False)
    assert reader.look(x.view(-1, 4), 2, 0, False) is seen  # another view of the same rows
    assert reader.look(x.view(-1, 2), 2, 0, False) is not seen
    assert reader.look(flat[1:], 2, 0, False) is not seen
    x.add_(1)  # changed: the numbers are others now
    assert reader.look(x, 0, 0, False) is not first
    base = torch.randn(8, 4)
    every = reader.look(base[:4], 0, 0, False)
    assert reader.look(base[::2], 0, 0, False) is not every  # other rows of one base
    assert reader.look(base[::2], 0, 0, False) is None
    again = reader.look(x, 0, 0, False)
    others: list[Any] = []
    thread = threading.Thread(target=lambda: others.append(reader.look(x, 0, 0, False)))
    thread.start()
    thread.join()
    assert others[0] is not again  # threads do not share what they read
    reader.clear()
    assert reader.look(x, 0, 0, False) is not again
    assert len(reader.readings) == 1


def test_inference_tensors_and_images_are_read() -> None:
    reader = Reader()
    with torch.inference_mode():
        made = torch.randn(5, 3, 2, 2)
    assert reader.look(made, 0, 1, False) is not reader.look(made, 0, 1, False)
    x = made.clone()
    image = reader.look(x, 0, 1, True).image
    torch.testing.assert_close(image.float(), x.mean(dim=0).flatten(1), rtol=1e-5, atol=1e-6)
    assert reader.look(x.clone(), 0, 1, False).image is None


def test_a_reader_keeps_nothing_alive() -> None:
    reader, x = Reader(), torch.randn(4, 3)
    tensor, own = weakref.ref(x), weakref.ref(reader)
    image = weakref.ref(reader.look(torch.randn(4, 3, 2), 0, 1, True).image)
    reader.look(x, 0, 0, False)
    before = sys.getrefcount(x)
    for _ in range(100):
        reader.look(x, 0, 0, False)
        reader.read(x, 0, 0, False)
    assert sys.getrefcount(x) == before
    del x
    assert tensor() is None
    assert image() is not None
    reader.clear()
    assert image() is None
    del reader
    assert own() is None  # without the collector of cycles


def test_arguments_of_another_kind_are_refused() -> None:
    reader, x = Reader(), torch.randn(4, 3)
    for arguments in ((), (x,), (x, 0, 0), (x, "0", 0, False), (x, 0, None, False)):
        with pytest.raises(TypeError):
            reader.look(*arguments)
        with pytest.raises(TypeError):
            reader.read(*arguments)
    with pytest.raises(AttributeError):
        reader.look(object(), 0, 0, False)


def test_threads_read_at_the_same_time() -> None:
    reader, tensors = Reader(), [torch.randn(300, 500) for _ in range(24)]
    found: list[Any] = [None] * len(tensors)

    def work(first: int) -> None:
        for k in range(first, len(tensors), 4):
            found[k] = reader.look(tensors[k], k, 0, False)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(f.number for f in found) == list(range(len(tensors)))
    for x, f in zip(tensors, found, strict=True):
        torch.testing.assert_close(
            columns_of(reader, f)[1].float(), x.mean(dim=0), rtol=1e-4, atol=1e-6
        )


GUARDED = """
import ctypes, mmap, torch
from shiftscope.tally.native import Record

page = mmap.PAGESIZE
memory = mmap.mmap(-1, 9 * page)
whole = torch.frombuffer(memory, dtype=torch.uint8)
libc = ctypes.CDLL(None)
for place in (0, 8):
    address = ctypes.c_void_p(whole.data_ptr() + place * page)
    assert libc.mprotect(address, ctypes.c_size_t(page), 0) == 0
for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
    for rows, width, run in ((1, 1, 1), (3, 5, 1), (4, 17, 1), (9, 33, 1), (2, 3, 7), (2, 3, 65)):
        size = rows * width * run
        for start in (page, 8 * page - size * dtype.itemsize):
            x = torch.frombuffer(memory, dtype=dtype, count=size, offset=start)
            x.fill_(1.5)
            for image in (None, torch.empty(width * run, dtype=torch.float64)):
                record = Record(width)
                record.read(x, 0, rows, width, image)
                assert (record.data[1] == 1.5).all()
print("read within bounds")
import os, sys
sys.stdout.flush(); os._exit(0)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="uses mprotect")
def test_nothing_beyond_the_tensor_is_read() -> None:
    """Tensors between two pages that must not be touched: one element too far ends the process."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", GUARDED], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert done.stdout == b"read within bounds\n"
