"""The inert reader gives what pickle gives for data, and records instead of acting for the rest."""

from __future__ import annotations

import io
import os
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftscope.io.inert import Call, Name, PickleError, Reference, read_pickle

_PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=4), inner, max_size=4)
        | st.tuples(inner, inner)
        | st.tuples(inner, inner, inner, inner)
    ),
    max_leaves=12,
)


def read(data: bytes) -> Any:
    return read_pickle(io.BytesIO(data)).value


@given(value=_PLAIN, protocol=st.integers(0, 5))
def test_plain_data_come_out_as_they_went_in(value: object, protocol: int) -> None:
    assert read(pickle.dumps(value, protocol=protocol)) == value


@pytest.mark.parametrize("protocol", range(6))
def test_sets_shared_objects_and_text_in_every_protocol(protocol: int) -> None:
    shared = ["a", 1.5, None]
    value = {"x": shared, "y": shared, "t": (1, (2,), ()), "n": -(2**40), "ü": True}
    again = read(pickle.dumps(value, protocol=protocol))
    assert again == value
    assert again["x"] is again["y"]


class Payload:
    """Creates a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(6))
def test_calls_are_recorded_and_not_made(tmp_path: Path, protocol: int) -> None:
    target = tmp_path / "ran"
    reading = read_pickle(io.BytesIO(pickle.dumps([Payload(target)], protocol=protocol)))
    assert not target.exists()
    assert [name.rpartition(".")[2] for name in reading.names] == ["mkdir"]
    (call,) = reading.value
    assert isinstance(call, Call)
    assert call.args == (str(target),)


def test_objects_items_and_state_are_kept_as_records() -> None:
    ordered = read(pickle.dumps(OrderedDict(a=1, b=2)))
    assert ordered.path == "collections.OrderedDict"
    assert ordered.items == {"a": 1, "b": 2}
    error = read(pickle.dumps(ValueError("x")))
    assert (error.path, error.args) == ("builtins.ValueError", ("x",))


def test_persistent_ids_are_references() -> None:
    buffer = io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return ("storage", value.hex()) if isinstance(value, float) else None

    Pickler(buffer, 2).dump([0.5])
    reading = read_pickle(io.BytesIO(buffer.getvalue()))
    (reference,) = reading.value
    assert isinstance(reference, Reference)
    assert reference.key == ("storage", (0.5).hex())
    assert reading.references == [reference]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x02",
        b"\x80\x02]q\x00(K\x01",
        b"\x80\x02.",
        b"\x80\x02h\x05.",
        b"\x80\x02\xff.",
        b"\x80\x02}]K\x01s.",
        b"\x80\x02X" + struct.pack("<I", 2**31) + b"abc",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"abc",
        b"\x80\x02\x8b" + struct.pack("<i", 2**30) + b"\x01",
        b"\x80\x02u.",
    ],
)
def test_malformed_pickles_are_told_as_such(data: bytes) -> None:
    with pytest.raises(PickleError):
        read(data)


def test_a_huge_memo_index_costs_nothing() -> None:
    assert read(b"\x80\x02K\x07r" + struct.pack("<I", 2**32 - 1) + b".") == 7


def test_names_know_their_path() -> None:
    assert Name("os", "system").path == "os.system"
    assert read(b"cos\nsystem\n.") == Name("os", "system")
