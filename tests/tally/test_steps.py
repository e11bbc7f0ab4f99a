"""What is asked about the readings of a step: compiled, and in Python, against each other."""

from __future__ import annotations

import sys
from array import array
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shiftscope.tally import native, steps
from shiftscope.tally.native import Columns, Reader, Record, short_of

pytestmark = pytest.mark.skipif(
    not native.built(), reason="the compiled part was not built: no C compiler at installation"
)
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
TENSORS = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(0, 2)), max_size=5)
"""Rows, columns and dtype of each tensor of a step."""
SLOTS = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 4)), max_size=7)
"""Slots, and which of the readings is written under each."""


class Both(pytest.MonkeyPatch):
    """The compiled answer and the one in Python."""

    def __call__(self, ask: Any, *args: Any) -> tuple[Any, Any]:
        compiled = ask(*args)
        with self.context() as patch:
            patch.setattr(native, "built", lambda: False)
            return compiled, ask(*args)


both = Both()


def step_of(
    tensors: list[tuple[int, int, int]], slots: list[tuple[int, int]]
) -> tuple[list[steps.Write], list[Any]]:
    reader = Reader()
    for rows, width, dtype in tensors:
        reader.look(torch.ones(rows, width, dtype=DTYPES[dtype]), 0, 0, False)
    readings, _ = reader.take()
    known = [(slot, readings[number]) for slot, number in slots if number < len(readings)]
    return known, readings


@given(st.lists(st.tuples(TENSORS, SLOTS), min_size=2, max_size=4))
def test_steps_of_one_structure_are_told_alike(given_steps: Any) -> None:
    forms = [both(steps.form_of, *step_of(*one)) for one in (*given_steps, given_steps[0])]
    for compiled, plain in forms:
        assert [compiled == other for other, _ in forms] == [plain == own for _, own in forms]
    assert forms[0] == forms[-1]


def test_the_form_is_of_slots_order_widths_and_dtypes_but_not_of_rows() -> None:
    tensors, slots = [(2, 3, 0), (2, 4, 1)], [(7, 0), (300, 1), (8, 0)]
    form = steps.form_of(*step_of(tensors, slots))
    assert steps.form_of(*step_of([(5, 3, 0), (1, 4, 1)], slots)) == form
    for other in (
        ([(2, 3, 0), (2, 4, 2)], slots),
        ([(2, 3, 0), (2, 5, 1)], slots),
        ([*tensors, (1, 1, 0)], slots),
        (tensors, slots[::-1]),
        (tensors, slots[:2]),
        (tensors, [(7, 0), (301, 1), (8, 0)]),
        (tensors, [(7, 0), (300, 1), (8, 1)]),
    ):
        assert steps.form_of(*step_of(*other)) != form


def test_what_another_step_read_is_told() -> None:
    writes, readings = step_of([(2, 3, 0)] * 3, [(1, 0), (2, 2)])
    foreign, others = step_of([(2, 3, 0)] * 2, [(1, 1)])
    assert both(steps.form_of, writes + foreign, readings) == (None, None)
    assert both(steps.form_of, writes, others) == (None, None)
    assert both(steps.form_of, writes, []) == (None, None)
    assert None not in both(steps.form_of, [], [])


def test_readings_of_a_gpu_are_asked_in_the_same_way() -> None:
    reader = native.on_device(0, Record, None, None, None, False)
    for width in (3, 4):
        reader.reserve(5, width, 7, 2, 0)
        reader.done()
    readings, _, _ = reader.take()
    writes, rows = [(5, readings[0]), (6, readings[1])], array("q", [1, 2])
    assert both(steps.only_type, writes) == (native.Parts, native.Parts)
    assert both(steps.form_of, writes, readings)[1] == (((5, 0), (6, 1)), ((3, 0), (4, 0)))
    both(steps.add_rows, readings, rows)
    assert rows.tolist() == [15, 16]
    other = step_of([(2, 3, 0)], [(1, 0)])[0]
    assert steps.only_type(writes + other) is None


@given(TENSORS, SLOTS, st.sets(st.integers(0, 400)))
def test_types_slots_and_rows(tensors: Any, slots: Any, known: set[int]) -> None:
    writes, readings = step_of(tensors, slots)
    within = {slot for slot, _ in writes}
    assert both(steps.only_type, writes) == ((Columns if writes else None),) * 2
    assert both(steps.only_type, [*writes, (1, "other"), (2, 3.0)]) == (None, None)
    assert both(steps.all_within, writes, known) == (within <= known,) * 2
    assert both(steps.all_within, writes, known | within) == (True, True)
    rows = array("q", [2**40] * len(readings))
    both(steps.add_rows, readings, rows)
    assert rows.tolist() == [2**40 + 2 * reading.rows for reading in readings]


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 9)), min_size=1, max_size=12),
    st.sets(st.integers(0, 11)),
    st.integers(1, 12),
)
def test_readings_that_lost_elements_are_named(
    shapes: list[tuple[int, int]], lossy: set[int], room: int
) -> None:
    reader, random = Reader(), np.random.default_rng(len(shapes))
    reader._size[0] = room  # so that there are several pages
    for number, shape in enumerate(shapes):
        x = torch.ones(shape)
        if number in lossy:
            x[random.integers(shape[0]), random.integers(shape[1])] = torch.nan
        reader.look(x, 0, 0, False)
    readings, pages = reader.take()
    assert short_of(readings, pages) == sorted(lossy & set(range(len(shapes))))


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("only_type", (3,)),
        ("only_type", ([3],)),
        ("all_within", ([(1, 2, 3)], {1})),
        ("all_within", ([(1, 2)], [1])),
        ("form_of", ([], [3])),
        ("form_of", ((), [])),
        ("add_rows", ([3], array("q", [0]))),
        ("add_rows", ([], 3)),
        ("short_of", ([], ())),
        ("short_of", ([], [3])),
        ("count", ((), {})),
    ],
)
def test_what_is_no_step_is_refused(name: str, args: Any) -> None:
    with pytest.raises((TypeError, BufferError)):
        getattr(native._native, name)(*args)


def test_writes_that_are_none_are_refused() -> None:
    writes, readings = step_of([(2, 3, 0)], [(1, 0)])
    for wrong in (3, (1,), (1, "other"), ("slot", readings[0])):
        with pytest.raises(TypeError):
            steps.form_of([*writes, wrong], readings)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="as many integers"):
        steps.add_rows(readings, array("q", [0, 0]))


def test_no_reference_is_kept_or_lost() -> None:
    writes, readings = step_of([(2, 3, 0)] * 3, [(1000, 0), (1001, 2)])
    rows = array("q", [0] * 3)
    held = (*readings, *writes, writes[0][0], rows, Columns)
    before = list(map(sys.getrefcount, held))
    for _ in range(50):
        steps.only_type(writes)
        steps.all_within(writes, {1000})
        steps.form_of(writes, readings)
        steps.form_of(writes, readings[:1])
        steps.add_rows(readings, rows)
    assert list(map(sys.getrefcount, held)) == before
