"""Triton kernels: moments of the columns of a tensor on a GPU, each element read once.

Imported by :mod:`shiftscope.tally.launches` alone, and only where a tensor on a GPU is to be read.
A program sums differences to one element of each of its columns (the pivot) and their squares in
double: a spread far below the mean keeps its digits, squares of 1e-44 do not vanish, and an outlier
at the pivot does no harm. Its parts are merged as Chan, Golub and LeVeque (1983) do.

Triton reads annotations as types of its own; ``x`` is a pointer, other arguments are whole numbers.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["merge_parts", "read_columns", "read_images"]

_INFINITE = tl.constexpr(float("inf"))


@triton.jit
def _pivot(at, inside, DOUBLE: tl.constexpr):
    """The elements there, 0 where they are not finite."""
    value = tl.load(at, mask=inside, other=0.0)
    value = value.to(tl.float64) if DOUBLE else value.to(tl.float32)
    return tl.where(tl.abs(value) < _INFINITE, value, 0.0)


@triton.jit
def _sums(
    x, column, inside, pivot, rows, stride, first, step, CHECKED: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, UNROLL: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """Number, sum and sum of squares of ``x - pivot`` over rows, ``[1, WIDTH]`` in double.

    Tiles of rows are taken in turns of ``step``; UNROLL of them are on their way at once.
    Elements that are not finite are left out if CHECKED, else they make the squares not finite.
    """
    number = 0
    count = tl.zeros([ROWS, WIDTH], tl.int32)
    one = tl.zeros([ROWS, WIDTH], tl.float64)
    two = tl.zeros([ROWS, WIDTH], tl.float64)
    nothing = pivot.to(x.dtype.element_ty)  # an element, or 0: exact
    lane = tl.arange(0, ROWS)[:, None]
    place = lane.to(tl.int64) * stride + column
    for start in range(first * ROWS * UNROLL, rows, step * ROWS * UNROLL):
        number += tl.minimum(rows - start, ROWS * UNROLL)
        for k in tl.static_range(UNROLL):
            row = start + k * ROWS
            keep = (row + lane < rows) & inside
            here = tl.cast(row, tl.int64) * stride
            value = tl.load(x + here + place, mask=keep, other=nothing)
            away = (value.to(tl.float64) if DOUBLE else value.to(tl.float32)) - pivot
            if CHECKED:
                finite = keep & (tl.abs(away) < _INFINITE)  # not a NaN either
                away = tl.where(finite, away, 0.0)
                count += finite.to(tl.int32)
            away = away.to(tl.float64)
            one += away
            two += away * away
    counted = tl.sum(count, axis=0, keep_dims=True) if CHECKED else tl.where(inside, number, 0)
    counted = counted.to(tl.float64)
    return counted, tl.sum(one, axis=0, keep_dims=True), tl.sum(two, axis=0, keep_dims=True)


@triton.jit
def _store(at, capacity, inside, count, one, two, pivot):
    """Write count, mean and m2 of some columns to a page of ``[3, capacity]``."""
    share = 1.0 / tl.maximum(count, 1.0)
    m2 = tl.maximum(two - one * one * share, 0.0)
    tl.store(at, count, mask=inside)
    tl.store(at + capacity, pivot.to(tl.float64) + one * share, mask=inside)
    tl.store(at + 2 * tl.cast(capacity, tl.int64), m2, mask=inside)


@triton.jit
def _some_lost(two, WIDTH: tl.constexpr):
    """1 where some squares are not finite, else 0.

    It is the number of turns of a loop: carrying tensors through an ``if`` breaks Triton 3.6.
    """
    return (tl.sum((two < _INFINITE).to(tl.int32)) < WIDTH).to(tl.int32)


@triton.jit(do_not_specialize=["capacity", "offset", "rows", "parts"])
def read_columns(
    x, page, capacity, offset, rows, width, parts,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, UNROLL: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """Moments of the columns of ``[rows, width]``, the rows dealt out to ``parts`` programs."""
    column = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)[None, :]
    part = tl.program_id(1)
    inside = column < width
    begin = (part * ROWS * UNROLL).to(tl.int64) * width
    pivot = _pivot(x + begin + column, inside, DOUBLE)
    at = page + offset + part.to(tl.int64) * width + column
    count, one, two = _sums(
        x, column, inside, pivot, rows, width, part, parts, False, ROWS, WIDTH, UNROLL, DOUBLE
    )
    _store(at, capacity, inside, count, one, two, pivot)
    for _ in range(_some_lost(two, WIDTH)):  # then each element is checked
        count, one, two = _sums(
            x, column, inside, pivot, rows, width, part, parts, True, ROWS, WIDTH, UNROLL, DOUBLE
        )
        _store(at, capacity, inside, count, one, two, pivot)


@triton.jit
def _store_image(
    at, capacity, image, inside, count, one, two, pivot, IMAGE: tl.constexpr
):  # fmt: skip
    """Write the moments over all places, and with IMAGE the means at each of them."""
    if IMAGE:
        mean = pivot.to(tl.float64) + one / tl.maximum(count, 1.0)
        tl.store(image, mean, mask=inside)
    _store(at, capacity, True, tl.sum(count), tl.sum(one), tl.sum(two), pivot)


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
    image += channel.to(tl.int64) * run + place
    pivot = _pivot(x + (part * ROWS * UNROLL).to(tl.int64) * stride, True, DOUBLE)
    number = (tl.program_id(1) * parts + part).to(tl.int64)
    at = page + offset + number * width + channel
    count, one, two = _sums(
        x, place, inside, pivot, samples, stride, part, parts, False, ROWS, WIDTH, UNROLL, DOUBLE
    )
    _store_image(at, capacity, image, inside, count, one, two, pivot, IMAGE)
    for _ in range(_some_lost(two, WIDTH)):  # then each element is checked
        count, one, two = _sums(
            x, place, inside, pivot, samples, stride, part, parts, True, ROWS, WIDTH, UNROLL, DOUBLE
        )
        _store_image(at, capacity, image, inside, count, one, two, pivot, IMAGE)


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
