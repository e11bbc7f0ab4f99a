"""Triton kernels: moments of the columns of a tensor on a GPU, each element read once.

Imported by :mod:`shiftscope.tally.launches` alone, and only where a tensor on a GPU is to be read.
A few elements of a column that are loaded at once make a block. Blocks are summed in float32, as
differences to the mean of their first two elements and their squares, and added up in double, as
differences to one element of the column (the pivot). Float32 rounds on the scale of the spread in
a block: a spread far below the mean keeps its digits, and an outlier does no harm, at the pivot or
elsewhere. Where something is not finite, or squares are too large or too small for float32, the
program reads again, each element in double; so are rows read that do not fill a turn. Parts are
merged as Chan, Golub and LeVeque (1983) do.

Triton reads annotations as types of its own; ``x`` is a pointer, other arguments are whole numbers.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["merge_parts", "read_columns", "read_images"]

_INFINITE = tl.constexpr(float("inf"))
_BLOCK = tl.constexpr(8)
"""Elements of a block: the sum of more would lose digits in float32."""
_SCALE = tl.constexpr(2.0**32)
"""Differences are multiplied by it: from 1e-25 to 1e9 they have squares in float32."""
_TINY = tl.constexpr(2.0**-166)
"""A variance below it comes of squares below 2**-102 (scaled), so near to the least of float32
(2**-126) that what is lost there could be seen."""
_MOVED = tl.constexpr(2.0**-150)
"""Added to the (scaled) squares of a column that is not constant: they may all have vanished."""


@triton.jit
def _pivot(at, inside):
    """The elements there in double, 0 where they are not finite."""
    value = tl.load(at, mask=inside, other=0.0).to(tl.float64)
    return tl.where(tl.abs(value) < _INFINITE, value, 0.0)


@triton.jit
def _tile(x, place, inside):
    """Elements in float32; anything where not inside."""
    return tl.load(x + place, mask=inside).to(tl.float32)


@triton.jit
def _swiftly(
    x, place, inside, pivot, stride, first, turns, step,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Sums of ``x - pivot`` and of its squares over full turns, ``[1, WIDTH]`` in double.

    Squares are not finite where an element is not; they are 0 for a constant column alone.
    """
    BLOCK: tl.constexpr = UNROLL if UNROLL < _BLOCK else _BLOCK
    one = tl.zeros([ROWS, WIDTH], tl.float64)
    two = tl.zeros([ROWS, WIDTH], tl.float64)
    moved = tl.zeros([ROWS, WIDTH], tl.int32)
    place += tl.arange(0, ROWS)[:, None].to(tl.int64) * stride
    pivot *= _SCALE
    further = tl.cast(stride, tl.int64) * ROWS
    for turn in range(first, turns, step):
        at = x + turn * (further * UNROLL)
        for start in tl.static_range(0, UNROLL, BLOCK):
            value = _tile(at + start * further, place, inside)
            following = _tile(at + (start + 1) * further, place, inside)
            middle = (value + following) * (0.5 * _SCALE)
            away = value * _SCALE - middle
            ones, twos = away, away * away
            moved |= away.to(tl.int32, bitcast=True)
            for k in tl.static_range(1, BLOCK):
                if k > 1:
                    following = _tile(at + (start + k) * further, place, inside)
                away = following * _SCALE - middle
                ones += away
                twos += away * away
                moved |= away.to(tl.int32, bitcast=True)
            ones = ones.to(tl.float64)
            shift = middle.to(tl.float64) - pivot
            total = ones + shift * BLOCK
            one += total
            two += twos.to(tl.float64) + shift * (total + ones)
    two += tl.where((moved & 0x7FFFFFFF) != 0, _MOVED, 0.0)  # -0.0 is 0.0
    one = tl.sum(one, axis=0, keep_dims=True) * (1.0 / _SCALE)
    two = tl.sum(two, axis=0, keep_dims=True) * (1.0 / (_SCALE * _SCALE))
    return tl.where(inside, one, 0.0), tl.where(inside, two, 0.0)


@triton.jit
def _exactly(
    x, place, inside, pivot, rows, stride, first, turns, step,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Number, sum and sum of squares of ``x - pivot`` where it is finite, each in double."""
    count = tl.zeros([ROWS, WIDTH], tl.int32)
    one = tl.zeros([ROWS, WIDTH], tl.float64)
    two = tl.zeros([ROWS, WIDTH], tl.float64)
    lane = tl.arange(0, ROWS)[:, None]
    place += lane.to(tl.int64) * stride
    further = tl.cast(stride, tl.int64) * ROWS
    for turn in range(first, turns, step):
        at = x + turn * (further * UNROLL)
        for k in tl.static_range(UNROLL):
            keep = ((turn * UNROLL + k) * ROWS + lane < rows) & inside
            value = tl.load(at + k * further + place, mask=keep, other=0.0)
            away = value.to(tl.float64) - pivot
            finite = keep & (tl.abs(away) < _INFINITE)  # not a NaN either
            away = tl.where(finite, away, 0.0)
            count += finite.to(tl.int32)
            one += away
            two += away * away
    number = tl.sum(count, axis=0, keep_dims=True).to(tl.float64)
    return number, tl.sum(one, axis=0, keep_dims=True), tl.sum(two, axis=0, keep_dims=True)


@triton.jit
def _doubtful(number, one, two):
    """1 where squares were not finite, or so small that float32 may have lost some, else 0."""
    m2 = two - one * one / tl.maximum(number, 1.0)
    large = (two < _INFINITE) & (m2 >= _TINY * number)
    return tl.where(large | (two == 0.0), 0, 1)


@triton.jit
def _read(
    x, place, inside, pivot, rows, stride, part, parts, TOGETHER: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, UNROLL: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """Number, sum and sum of squares of ``x - pivot`` over the rows of a part, ``[1, WIDTH]``.

    The rows are taken in turns, by the parts one after another. If TOGETHER, all places belong to
    one neuron.
    """
    FULL: tl.constexpr = ROWS * UNROLL
    turns = tl.cdiv(rows, FULL)
    if DOUBLE or UNROLL == 1:
        count, one, two = _exactly(
            x, place, inside, pivot, rows, stride, part, turns, parts, ROWS, WIDTH, UNROLL
        )
    else:
        full = rows // FULL
        one, two = _swiftly(x, place, inside, pivot, stride, part, full, parts, ROWS, WIDTH, UNROLL)
        count = tl.where(inside, tl.cdiv(full - part, parts) * FULL, 0).to(tl.float64)
        if TOGETHER:
            doubt = _doubtful(tl.sum(count), tl.sum(one), tl.sum(two))
        else:
            doubt = tl.max(_doubtful(count, one, two))
        mine = (full < turns) & (full % parts == part)
        # A loop of one turn at most: carrying tensors through an ``if`` breaks Triton 3.6.
        for _ in range(tl.where(mine, 1, doubt)):
            first = tl.where(doubt > 0, part, full)
            number, ones, twos = _exactly(
                x, place, inside, pivot, rows, stride, first, turns, parts, ROWS, WIDTH, UNROLL
            )
            count = number + tl.where(doubt > 0, 0.0, count)
            one = ones + tl.where(doubt > 0, 0.0, one)
            two = twos + tl.where(doubt > 0, 0.0, two)
    return count, one, two


@triton.jit
def _store(at, capacity, inside, count, one, two, pivot):
    """Write count, mean and m2 of some columns to a page of ``[3, capacity]``."""
    share = 1.0 / tl.maximum(count, 1.0)
    m2 = tl.maximum(two - one * one * share, 0.0)
    tl.store(at, count, mask=inside)
    tl.store(at + capacity, pivot + one * share, mask=inside)
    tl.store(at + 2 * tl.cast(capacity, tl.int64), m2, mask=inside)


@triton.jit(do_not_specialize=["capacity", "offset", "rows", "parts"])
def read_columns(
    x, page, capacity, offset, rows, width, parts,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, UNROLL: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """Moments of the columns of ``[rows, width]``, the rows dealt out to ``parts`` programs."""
    column = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)[None, :]
    part = tl.program_id(1)
    inside = column < width
    pivot = _pivot(x + (part * ROWS * UNROLL).to(tl.int64) * width + column, inside)
    count, one, two = _read(
        x, column, inside, pivot, rows, width, part, parts, False, ROWS, WIDTH, UNROLL, DOUBLE
    )
    at = page + offset + part.to(tl.int64) * width + column
    _store(at, capacity, inside, count, one, two, pivot)


@triton.jit(do_not_specialize=["capacity", "offset", "samples", "width", "parts"])
def read_images(
    x, page, image, capacity, offset, samples, width, run, parts,
    IMAGE: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, UNROLL: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """Moments of the channels of ``[samples, width, run]``; with IMAGE also means at each place.

    A program takes WIDTH places of one channel and a share of the samples.
    """
    channel = tl.program_id(0)
    part = tl.program_id(2)
    place = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)[None, :]
    inside = place < run
    stride = width.to(tl.int64) * run
    x += channel.to(tl.int64) * run
    pivot = _pivot(x + (part * ROWS * UNROLL).to(tl.int64) * stride, True)
    count, one, two = _read(
        x, place, inside, pivot, samples, stride, part, parts, True, ROWS, WIDTH, UNROLL, DOUBLE
    )
    if IMAGE:
        mean = pivot + one / tl.maximum(count, 1.0)
        tl.store(image + channel.to(tl.int64) * run + place, mean, mask=inside)
    number = (tl.program_id(1) * parts + part).to(tl.int64)
    at = page + offset + number * width + channel
    _store(at, capacity, True, tl.sum(count), tl.sum(one), tl.sum(two), pivot)


@triton.jit(do_not_specialize=["total", "start", "capacity", "columns", "turn"])
def merge_parts(
    record, total, start, page, capacity, table, columns, inverse, turn,
    SCALED: tl.constexpr, DRIFT: tl.constexpr, PARTS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Merge the parts of a page, and put them into the columns of a record, from ``start`` on.

    ``table`` ``[5, columns]``: where the first part of a column stands, how far the next one lies
    behind it, how many there are, whether its numbers are divided by the loss scale, and how many
    rows were read; where fewer were finite for the first time, ``turn`` is written to the record.
    Without DRIFT, how far the means of page and record lie apart does not count as deviation.
    """
    column = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)[None, :]
    inside = column < columns
    base = tl.load(table + column, mask=inside, other=0)
    behind = tl.load(table + columns + column, mask=inside, other=0)
    parts = tl.load(table + 2 * columns + column, mask=inside, other=0)
    squares = 2 * tl.cast(capacity, tl.int64)
    more = tl.zeros([1, WIDTH], tl.float64)
    middle = tl.zeros([1, WIDTH], tl.float64)
    spread = tl.zeros([1, WIDTH], tl.float64)
    for first in range(0, tl.max(parts), PARTS):
        part = first + tl.arange(0, PARTS)[:, None]
        here = inside & (part < parts)
        at = page + base + part * behind
        number = tl.load(at, mask=here, other=0.0)
        its_mean = tl.load(at + capacity, mask=here, other=0.0)
        its_m2 = tl.load(at + squares, mask=here, other=0.0)
        count = tl.sum(number, axis=0, keep_dims=True)
        mean = tl.sum(number * its_mean, axis=0, keep_dims=True) / tl.maximum(count, 1.0)
        away = its_mean - mean
        spread += tl.sum(its_m2 + number * away * away, axis=0, keep_dims=True)
        together = more + count
        share = count / tl.maximum(together, 1.0)
        step = mean - middle
        spread += step * step * more * share
        middle += step * share
        more = together
    if SCALED:
        scaled = tl.load(table + 3 * columns + column, mask=inside, other=0)
        factor = tl.where(scaled > 0, tl.load(inverse), tl.full([1, WIDTH], 1.0, tl.float64))
        middle *= factor
        spread *= factor * factor
    to = record + start + column
    count = tl.load(to, mask=inside, other=0.0)
    mean = tl.load(to + total, mask=inside, other=0.0)
    m2 = tl.load(to + 2 * tl.cast(total, tl.int64), mask=inside, other=0.0) + spread
    together = count + more
    share = more / tl.maximum(together, 1.0)
    step = middle - mean
    if DRIFT:
        m2 += step * step * count * share
    tl.store(to, together, mask=inside)
    tl.store(to + total, mean + step * share, mask=inside)
    tl.store(to + 2 * tl.cast(total, tl.int64), m2, mask=inside)
    rows = tl.load(table + 4 * columns + column, mask=inside, other=0)
    since = to + 3 * tl.cast(total, tl.int64)
    new = inside & (more < rows) & (tl.load(since, mask=inside, other=0.0) < 0)
    tl.store(since, tl.zeros([1, WIDTH], tl.float64) + turn, mask=new)
