"""Moments read by Triton kernels: each element once, in any shape; in Triton's interpreter here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tally_support import interpret_triton, naive
from torch import Tensor

from shiftscope.tally import device, launches, native
from shiftscope.tally.device import DeviceReader
from shiftscope.tally.device_record import DeviceRecord
from shiftscope.tally.launches import Launch

CPU = torch.device("cpu")


pytestmark = [  # the interpreter computes with numpy
    pytest.mark.filterwarnings("ignore:invalid value encountered"),
    pytest.mark.filterwarnings("ignore:overflow encountered"),
]


@pytest.fixture(autouse=True)
def interpreter() -> None:
    interpret_triton()


@pytest.fixture(params=["compiled", "python"])
def books(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the compiled part and without."""
    if request.param == "python":
        monkeypatch.setattr(native, "built", lambda: False)
    elif not native.built():
        pytest.skip("the compiled part was not built: no C compiler at installation")


def record_of(reader: DeviceReader, **options: Any) -> tuple[Tensor, list[Any]]:
    """Everything read since the last call, merged."""
    readings, pages = reader.take()
    record = DeviceRecord(sum(r.width for r in readings), CPU)
    start = first = 0
    for page in pages:
        gradient = options.get("gradient", [False] * len(readings))
        facts = [(r.offset, r.width, r.parts, r.rows) for r in page.readings]
        flags = gradient[first : first + len(facts)]
        record.merge(page, facts, start, gradient=flags, inverse=options.get("inverse"))
        start += sum(r.width for r in page.readings)
        first += len(page.readings)
    reader.give_back(pages)
    return record.data, readings


def rows_of(x: Tensor, by_row: bool) -> np.ndarray:
    dim = -1 if by_row else 1
    return x.double().movedim(dim, -1).reshape(-1, x.shape[dim]).numpy()


SHAPES = [
    ((1, 3), True), ((7, 1), True), ((300, 17), True), ((700, 48), True), ((5, 70, 9), True),
    ((4, 3, 5, 5), False), ((300, 2, 3), False), ((2, 5, 70), False), ((3, 4, 1, 1), False),
    ((2, 2, 1100), False),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("shape", "by_row"), SHAPES)
def test_moments_of_every_shape(shape: tuple[int, ...], by_row: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = (torch.randn(shape) + 100).to(dtype)
    x.view(-1)[0] = torch.nan
    x.view(-1)[-1] = torch.inf
    for image in (False, True):
        reader = DeviceReader(CPU)
        got = reader.read(x, 5, by_row, image)
        assert got is not None
        data, readings = record_of(reader)
        assert readings == [got]
        assert (got.slot, got.width) == (5, x.shape[-1 if by_row else 1])
        want = naive(rows_of(x, by_row))
        np.testing.assert_array_equal(data[0], want["count"])
        seen = want["count"] > 0
        np.testing.assert_allclose(data[1][seen], want["mean"][seen], rtol=1e-9)
        variance = (data[2] / data[0])[seen]
        np.testing.assert_allclose(variance, want["var"][seen], rtol=2e-6, atol=1e-9)
        if got.image is not None:
            places = torch.where(x.isfinite(), x, torch.nan).double().nanmean(0).flatten(1)
            known = places.isfinite()
            torch.testing.assert_close(got.image[known], places[known], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [1e-44, 1e-38, 1e-30, 1e-26, 1e-25, 1e-12, 1.0, 1e9, 1e18, 1e37])
def test_any_size_keeps_its_variance(size: float) -> None:
    torch.manual_seed(0)
    x = (torch.randn(200, 6).double() * size).float()
    reader = DeviceReader(CPU)
    reader.read(x, 0, True, False)
    data, _ = record_of(reader)
    np.testing.assert_allclose(data[2] / 200, x.double().var(0, unbiased=False), rtol=1e-6)


@pytest.mark.parametrize("ratio", [1e1, 1e3, 1e5])
def test_a_spread_far_below_the_mean_and_an_outlier_in_front(ratio: float) -> None:
    torch.manual_seed(0)
    x = 1.0 + torch.randn(500, 4) / ratio
    x[0, 1] = 1e6
    reader = DeviceReader(CPU)
    reader.read(x, 0, True, False)
    data, _ = record_of(reader)
    np.testing.assert_allclose(data[2] / 500, x.double().var(0, unbiased=False), rtol=2e-6)


def outliers(pattern: str, size: float) -> Tensor:
    """512 rows, some of them far from the others; among them the first."""
    x = torch.randn(512, 8, dtype=torch.float64)
    if pattern.endswith("rest constant"):
        x[:] = 0.0
    far = {"once": [0], "at the start of turns": range(0, 512, 64), "in all blocks": range(64)}
    x[list(far[pattern.split(",")[0]])] = size * (1 + torch.rand(8).double())
    return x.float()


@pytest.mark.parametrize("size", [10.0, 1e3, 1e6])
@pytest.mark.parametrize("pattern", [
    "once", "at the start of turns", "in all blocks",
    "once, rest constant", "at the start of turns, rest constant", "in all blocks, rest constant",
])  # fmt: skip
def test_outliers_do_no_harm(pattern: str, size: float) -> None:
    torch.manual_seed(0)
    x = outliers(pattern, size)
    reader = DeviceReader(CPU)
    reader.read(x, 0, True, False)
    data, _ = record_of(reader)
    want, sd = x.double().mean(0), x.double().std(0, unbiased=False)
    assert ((data[1] - want).abs() < 5e-7 * sd).all()
    np.testing.assert_allclose(data[2] / 512, sd**2, rtol=1e-6)


def test_most_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each element is looked at in double only where float32 does not do, or in the last rows."""
    torch.manual_seed(0)
    from shiftscope.tally import triton_kernels

    exactly, again = triton_kernels._exactly, []

    def watched(*given: Any) -> Any:
        again.append(given)
        return exactly(*given)

    monkeypatch.setattr(triton_kernels, "_exactly", watched)
    x = torch.randn(256, 8)
    dead = x * (torch.arange(8) % 2)
    signs = torch.where(x > 0, 0.0, -0.0)
    once = [x, x.bfloat16(), x * 1e-20, x * 1e8, x * 0.0 + 7.0, dead, signs, x.where(x > 2, 0.0)]
    mixed = torch.where(torch.arange(256)[:, None] % 3 > 0, x * 1e-40, x)
    twice = [x * 1e-30, x * 1e-44, x * 1e12, dead * 1e-44, x.where(x != x[9, 3], torch.nan)]
    lone = torch.zeros(256, 8)
    lone[3], lone[67] = 1e-45, -1e-45
    for number, tensors in enumerate(([*once, mixed], [*twice, lone, torch.randn(257, 8)])):
        for x in tensors:
            reader = DeviceReader(CPU)
            reader.read(x, 0, True, False)
            assert len(again) == number
            again.clear()
            data, _ = record_of(reader)
            want = naive(rows_of(x, True))
            np.testing.assert_array_equal(data[0], want["count"])
            np.testing.assert_allclose(data[2] / data[0], want["var"], rtol=1e-6)
            assert (np.abs(data[1].numpy() - want["mean"]) <= 5e-7 * np.sqrt(want["var"])).all()


@pytest.mark.parametrize("image", [False, True])
def test_images_of_any_size(image: bool) -> None:
    torch.manual_seed(0)
    for samples, size in ((8, 1.0), (8, 1e-44), (12, 1e-30), (7, 1e12), (1, 1.0)):
        x = (torch.randn(samples, 3, 40).double() * size).float()
        x[0] = 1e3 * size
        x[:, 1] = 0.0
        reader = DeviceReader(CPU)
        got = reader.read(x, 0, False, image)
        data, _ = record_of(reader)
        want = naive(rows_of(x, False))
        np.testing.assert_allclose(data[2] / data[0], want["var"], rtol=1e-6)
        np.testing.assert_allclose(data[1], want["mean"], rtol=1e-6)
        if image:
            assert got is not None
            torch.testing.assert_close(got.image, x.double().mean(0), rtol=1e-6, atol=0.0)


@pytest.mark.usefixtures("books")
def test_many_tensors_pages_and_steps() -> None:
    torch.manual_seed(0)
    reader = DeviceReader(CPU)
    shapes = [((130, 3000), True), ((3, 7), True), ((4, 30000), True), ((2, 3, 5), False)]
    pages = []
    for _ in range(4):
        tensors = [torch.randn(shape) for shape, _ in shapes]
        for slot, (x, (_, by_row)) in enumerate(zip(tensors, shapes, strict=True)):
            reader.read(x, slot, by_row, False)
        assert reader.used == 33010
        pages.append([page.data for page in reader._books.pages])
        data, readings = record_of(reader)
        assert [r.slot for r in readings] == [0, 1, 2, 3]
        assert reader.used == 0
        want = [naive(rows_of(x, by)) for x, (_, by) in zip(tensors, shapes, strict=True)]
        np.testing.assert_allclose(data[1], np.concatenate([w["mean"] for w in want]), atol=4e-7)
        np.testing.assert_allclose(
            data[2] / data[0], np.concatenate([w["var"] for w in want]), rtol=2e-6
        )
    assert len(pages[0]) == 2  # grown in the first step, one page from then on
    assert all(len(held) == 1 and held[0] is pages[1][0] for held in pages[1:])


def test_gradients_are_divided_by_the_loss_scale() -> None:
    torch.manual_seed(0)
    x = torch.randn(40, 3)
    reader = DeviceReader(CPU)
    reader.read(x, 0, True, False)
    reader.read(x, 1, True, False)
    inverse = torch.tensor(0.25, dtype=torch.float64)
    data, _ = record_of(reader, gradient=[False, True], inverse=inverse)
    torch.testing.assert_close(data[1, 3:], data[1, :3] / 4)
    torch.testing.assert_close(data[2, 3:], data[2, :3] / 16)


def test_steps_are_averaged_and_the_first_loss_is_kept() -> None:
    """Parts of one step are merged; how far means move between steps is no deviation."""
    torch.manual_seed(0)
    reader, record = DeviceReader(CPU), DeviceRecord(3, CPU)
    steps = [torch.randn(6000, 3) + 100.0 * k for k in range(4)]
    steps[2][5, 1] = torch.inf
    steps[3][:, 1] = torch.nan
    for turn, x in enumerate(steps, start=7):
        part = reader.read(x, 0, True, False)
        assert part is not None
        assert part.parts > 16  # more than are merged at once
        (_, (page,)) = reader.take()
        facts = [(part.offset, part.width, part.parts, part.rows)]
        record.merge(page, facts, drift=False, turn=turn)
        reader.give_back([page])
    finite = [np.ma.masked_invalid(x.double().numpy()) for x in steps]
    number = np.stack([x.count(0) for x in finite])
    mean = np.average([x.mean(0).filled(0) for x in finite], axis=0, weights=number)
    spread = sum((x.var(0) * n).filled(0) for x, n in zip(finite, number, strict=True))
    np.testing.assert_array_equal(record.data[0], number.sum(0))
    np.testing.assert_allclose(record.data[1], mean, rtol=1e-7)
    np.testing.assert_allclose(record.data[2], spread, rtol=2e-6)
    assert record.data[3].tolist() == [-1.0, 9.0, -1.0]


@pytest.mark.usefixtures("books")
def test_a_failed_read_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(40, 3)
    reader = DeviceReader(CPU)
    reader.read(x, 0, True, False)

    def fail(*_: Any) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(Launch, "_run", fail)
    with pytest.raises(RuntimeError, match="no compiler"):
        reader.read(torch.randn(9, 5), 1, True, False)
    monkeypatch.undo()
    data, _ = record_of(reader)
    assert data[0].tolist() == [40.0] * 3 + [0.0] * 5
    torch.testing.assert_close(data[1, :3], x.double().mean(0))
    assert not data[2, 3:].any()


@pytest.mark.usefixtures("books")
def test_what_is_not_read() -> None:
    reader = DeviceReader(CPU)
    assert reader.read(torch.ones(3, 2, dtype=torch.int32), 0, True, False) is None
    assert reader.read(torch.empty(1, 2, 2**20 + 1), 0, False, False) is None
    assert reader.take() == ([], [])
    assert not device.usable(CPU)
    assert not device.usable(torch.device("meta"))


@pytest.mark.usefixtures("books")
def test_shapes_are_forgotten_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launches, "_KNOWN", 3)
    reader = DeviceReader(CPU)
    for rows in range(2, 9):
        reader.read(torch.full((rows, 2), 3.0), 0, True, False)
        assert len(reader._launches._known) <= 3
    data, _ = record_of(reader)
    assert data[1].unique().tolist() == [3.0]


def test_parts_stay_few() -> None:
    for shape in ((100_000, 3), (4096, 4096), (128, 256), (10, 100_000)):
        x = torch.empty(shape, device="meta")
        launch = Launch(x, True, False)
        assert launch.parts <= max(1, shape[0] // 128)
        assert launch.parts <= 256
