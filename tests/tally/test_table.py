"""What the compiled reader sees by torch's table of functions, and by attributes: the same."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from shiftscope.tally import native

pytestmark = [
    pytest.mark.skipif(not native.built(), reason="the compiled part was not built"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
needs_table = pytest.mark.skipif(native.table is None, reason="no such table before torch 2.10")
CPU, CUDA, PINNED, METAL, ROCM = 1, 2, 3, 8, 10


class Own(Tensor):
    pass


def conjugated(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.complex64).conj()


def inference(make: Callable[[], Tensor]) -> Tensor:
    with torch.inference_mode():
        return make()


def fake() -> Tensor:
    with FakeTensorMode():
        return torch.randn(3, 4)


def freed() -> Tensor:
    x = torch.randn(3, 4)
    x.untyped_storage().resize_(0)
    return x


KINDS: dict[str, Callable[[], Tensor]] = {
    "rows": lambda: torch.randn(3, 4),
    "requires grad": lambda: torch.randn(3, 4, requires_grad=True),
    "with a graph": lambda: torch.randn(3, 4, requires_grad=True) * 2,
    "parameter": lambda: torch.nn.Parameter(torch.randn(3, 4)),
    "frozen": lambda: torch.nn.Parameter(torch.randn(3, 4), requires_grad=False),
    "no dimension": lambda: torch.tensor(1.5),
    "one dimension": lambda: torch.randn(4),
    "no rows": lambda: torch.empty(0, 4),
    "no columns": lambda: torch.empty(4, 0),
    "no positions": lambda: torch.empty(2, 4, 0),
    "one element": lambda: torch.randn(1, 1),
    "images": lambda: torch.randn(3, 4, 5, 6),
    "channels last": lambda: torch.randn(3, 4, 5, 6).to(memory_format=torch.channels_last),
    "channels last of one": lambda: torch.randn(3, 1, 5, 6).to(memory_format=torch.channels_last),
    "nine dimensions": lambda: torch.randn(2, 3, 1, 1, 2, 1, 1, 1, 2),
    "large": lambda: torch.randn(2**11, 2**9),
    "view": lambda: torch.randn(6, 4)[2:5],
    "view of a view": lambda: torch.randn(6, 8)[2:5].view(-1, 4),
    "view with a graph": lambda: (torch.randn(6, 4, requires_grad=True) * 2)[1:],
    "other dtype": lambda: torch.randn(6, 4).view(torch.float16),
    "transposed": lambda: torch.randn(4, 3).t(),
    "every second": lambda: torch.randn(6, 4)[::2],
    "column": lambda: torch.randn(6, 4)[:, :1],
    "row of a column": lambda: torch.randn(6, 4)[:1, :1],
    "odd strides of one": lambda: torch.empty_strided((3, 1, 4, 1), (4, 7, 1, 0)).normal_(),
    "strides of none": lambda: torch.empty_strided((3, 0, 4), (1, 5, 2)),
    "expanded": lambda: torch.randn(1, 4).expand(3, 4),
    "expanded once": lambda: torch.randn(1, 4).expand(1, 4),
    "negated": lambda: torch._neg_view(torch.randn(3, 4)),
    "negated, detached": lambda: torch._neg_view(torch.randn(3, 4)).detach(),
    "negated data": lambda: torch._neg_view(torch.randn(3, 4)).data,
    "negated parameter": lambda: torch.nn.Parameter(torch._neg_view(torch.randn(3, 4))),
    "negated in inference": lambda: inference(lambda: torch._neg_view(torch.randn(3, 4))),
    "conjugated": lambda: conjugated(3, 4),
    "imaginary": lambda: conjugated(3, 4).imag,
    "imaginary, dense": lambda: conjugated(1, 1).imag,
    "inference": lambda: inference(lambda: torch.randn(3, 4)),
    "view in inference": lambda: inference(lambda: torch.randn(3, 4)[1:]),
    "sparse": lambda: torch.eye(4).to_sparse(),
    "compressed": lambda: torch.eye(4).to_sparse_csr(),
    "nested": lambda: torch.nested.nested_tensor([torch.randn(3, 4)]),
    "jagged": lambda: torch.nested.nested_tensor([torch.randn(3, 4)], layout=torch.jagged),
    "meta": lambda: torch.empty(3, 4, device="meta"),
    "fake": fake,
    "subclass": lambda: torch.randn(3, 4).as_subclass(Own),
    "quantised": lambda: torch.quantize_per_tensor(torch.randn(3, 4), 0.1, 0, torch.quint8),
    "zeros": lambda: torch._efficientzerotensor((3, 4)),
    "without memory": freed,
    "copied when written": lambda: torch._lazy_clone(torch.randn(3, 4)),
    "functional": lambda: torch._to_functional_tensor(torch.randn(3, 4)),
}
if torch.backends.mkldnn.is_available():
    KINDS["opaque"] = lambda: torch.randn(3, 4).to_mkldnn()
for _name in (
    *("float64", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "complex32", "complex64"),
    *("complex128", "bool", "uint8", "int8", "int16", "int32", "int64", "uint16"),
):
    KINDS[_name] = partial(torch.ones, 3, 4, dtype=getattr(torch, _name))


def outcome(reader: Any, act: Callable[..., Any], x: Tensor, kind: int, image: bool) -> Any:
    """What is read of a tensor, where it stands and in what numbers; or why it is not."""
    try:
        found = act(x, 5, kind, image)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        return type(error), str(error).splitlines()[0]
    if found is None:
        return None
    page, used = reader.pages()[-1]
    numbers = page.data[:, used - found.width : used].tolist()
    facts = (found.slot, found.number, found.width, found.rows, found.offset, found.parts)
    return (*facts, found.dtype, numbers, None if found.image is None else found.image.tolist())


def outcomes(x: Tensor) -> list[Any]:
    reader = native.Reader()
    calls = [(kind, image) for kind in (0, 1) for image in (False, True)]
    got: list[Any] = [outcome(reader, reader.read, x, *call) for call in calls]
    got += [outcome(reader, reader.look, x, *call) for call in calls]
    return [*got, len(reader.readings), reader.used]


@pytest.mark.parametrize("name", KINDS)
def test_all_kinds_of_tensors_are_seen_alike(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x = KINDS[name]()
    before = sys.getrefcount(x)
    by_table = outcomes(x)
    with monkeypatch.context() as patch:
        patch.setattr(native, "table", None)
        by_attributes = outcomes(x)
    assert repr(by_table) == repr(by_attributes)  # NaN is like NaN
    assert sys.getrefcount(x) == before


def test_tensors_within_a_transform_are_seen_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[Any] = []

    def seen(x: Tensor) -> Tensor:
        got.append(outcomes(x))
        return (x * 1.0).sum()

    for table in (native.table, None):
        monkeypatch.setattr(native, "table", table)
        x = torch.ones(3, 4)
        for transform in (torch.func.vmap, torch.func.grad, torch.func.functionalize):
            transform(seen)(x)
    assert repr(got[:3]) == repr(got[3:])


@pytest.mark.parametrize("table", [native.table, None], ids=["table", "attributes"])
def test_tensors_are_known_again_alike(table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "table", table)
    reader, x = native.Reader(), torch.randn(4, 3, 2, 2)
    looks = [
        *(lambda: x, lambda: x.view(4, 12), lambda: x.view(4, 12), lambda: x.view(12, 4)),
        *(lambda: x[1:], lambda: x[1:3], lambda: x[2:], lambda: x[1:, :], lambda: x[:, :, :1, :1]),
        *(lambda: x.detach(), lambda: torch._neg_view(x), lambda: x),
        *(lambda: x.add_(1), lambda: x, lambda: x[1:], lambda: torch._neg_view(x)[1:]),
    ]
    got = [
        None if found is None else found.number
        for kind in (0, 1)
        for found in (reader.look(make(), 0, kind, False) for make in looks)
    ]
    assert got == [
        *(0, 1, 1, 2, 3, 4, 5, 3, None, 6, None, 7, 8, 8, 9, None),
        *(10, 11, 11, 12, 13, 14, 15, 13, None, 16, None, 17, 18, 18, 19, None),
    ]


class Asked(TorchFunctionMode):
    """Records what tensors are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.__name__ if func.__name__ != "__get__" else func.__self__.__name__
        self.names.append(name)
        return func(*args, **kwargs or {})


@needs_table
def test_few_attributes_are_asked_for() -> None:
    reader, x = native.Reader(), torch.randn(4, 3)
    reader.look(torch.randn(4, 3), 0, 0, False)  # makes the first page
    every = ["_version", "_base", "is_neg"]
    for tensor, names in [(x, every), (x, ["_version"]), (x[1:], every), (x.t(), []), (x > 0, [])]:
        with Asked() as asked:
            reader.look(tensor, 0, 0, False)
        assert asked.names == names


# -- other tables --------------------------------------------------------------------------------


class DLTensor(ctypes.Structure):
    _fields_ = (
        *(("data", ctypes.c_void_p), ("type", ctypes.c_int32), ("id", ctypes.c_int32)),
        *(("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8)),
        *(("lanes", ctypes.c_uint16), ("shape", ctypes.c_void_p), ("strides", ctypes.c_void_p)),
        ("byte_offset", ctypes.c_uint64),
    )


class Table(ctypes.Structure):
    _fields_ = (
        *(("major", ctypes.c_uint32), ("minor", ctypes.c_uint32), ("previous", ctypes.c_void_p)),
        *((name, ctypes.c_void_p) for name in ("allocate", "give", "take", "describe", "stream")),
    )


_DESCRIBE = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.POINTER(DLTensor))
_NAME = b"dlpack_exchange_api"


def capsule(table: Table, name: bytes = _NAME) -> Any:
    new = ctypes.pythonapi.PyCapsule_New
    new.restype = ctypes.py_object
    new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return new(ctypes.addressof(table), name, None)


class Tables:
    """Tables that tell what torch's tells, but for some of it.

    Args:
        returned: What the function returns.
        changed: Fields of the tensor that it tells otherwise.
    """

    def __init__(self, returned: int = 0, **changed: Any) -> None:
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        own = Table.from_address(pointer(native.table, _NAME))
        assert own.major == 1
        self._describe, self.returned, self.changed = _DESCRIBE(own.describe), returned, changed
        self._call = _DESCRIBE(self._told)
        self.calls = 0
        self.table = Table(1, 3, describe=ctypes.cast(self._call, ctypes.c_void_p))

    def _told(self, x: Any, to: Any) -> int:
        self.calls += 1
        self._describe(x, to)
        for name, value in self.changed.items():
            setattr(to.contents, name, value)
        return self.returned


def numbers(x: Tensor) -> Any:
    reader = native.Reader()
    return outcome(reader, reader.look, x, 0, False)


@needs_table
@pytest.mark.parametrize(
    "tables",
    [
        Tables(), Tables(-1), Tables(type=PINNED), Tables(type=METAL), Tables(type=77),
        Tables(strides=None), Tables(byte_offset=16),
    ] if native.table is not None else [],
    ids=lambda tables: f"{tables.returned} {tables.changed}",
)  # fmt: skip
def test_what_the_table_does_not_tell_is_asked_for(
    tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = torch.randn(5, 4)
    x, shifted = whole[:4], "byte_offset" in tables.changed
    want = numbers(whole[1:] if shifted else x)
    monkeypatch.setattr(native, "table", capsule(tables.table))
    assert numbers(x) == want
    assert tables.calls == 1
    for other in (x.long(), x.t(), torch.nn.Parameter(x).t()):
        assert numbers(other) is None
    tables.calls = 0
    assert numbers(x.as_subclass(Own)) is None
    assert tables.calls == 0


@needs_table
@pytest.mark.parametrize(
    "changed", [{"type": CUDA}, {"type": ROCM}, {"lanes": 2}, {"code": 0}, {"bits": 8}]
)
def test_what_the_table_tells_is_believed(
    changed: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = Tables(**changed)
    monkeypatch.setattr(native, "table", capsule(tables.table))
    assert numbers(torch.randn(3, 4)) is None
    assert tables.calls == 1


@needs_table
def test_only_tables_of_a_known_version_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3, 4)
    want, tables = numbers(x), Tables()
    newest, newer, older = Table(2, 1), Table(2, 0), Table(0, 9)
    newer.previous = ctypes.addressof(tables.table)
    empty, misnamed = Table(1, 3), Tables()
    unused = [*map(capsule, (newest, older, empty)), capsule(misnamed.table, b"other"), None, 0]
    for table in unused:
        monkeypatch.setattr(native, "table", table)
        assert numbers(x) == want
    assert misnamed.calls == 0
    monkeypatch.setattr(native, "table", capsule(newer))
    assert numbers(x) == want
    assert tables.calls == 1


# -- the reader of a GPU -------------------------------------------------------------------------


def asked_of(index: int, x: Tensor) -> tuple[Any, list[Any]]:
    """What a reader of a GPU asks to be launched for a tensor, in both ways of looking."""
    asked: list[Any] = []

    def launch_of(tensor: Tensor, *form: int) -> None:
        asked.append((tensor is x, *form))

    make = native.on_device
    reader = make(index, None, None, launch_of, None, False)
    try:
        found = [act(x, 0, kind, True) for act in (reader.look, reader.read) for kind in (0, 1)]
    except (RuntimeError, NotImplementedError) as error:
        found = [type(error)]
    return found, asked


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("index", [-1, 0])
def test_the_reader_of_a_gpu_sees_alike(
    index: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = KINDS[name]()
    by_table = asked_of(index, x)
    monkeypatch.setattr(native, "table", None)
    assert asked_of(index, x) == by_table
    if name == "rows":
        forms = [(True, 0, 0, 0), (True, 0, 1, 1)]
        assert by_table == ([None] * 4, forms * 2 if index == -1 else [])


@needs_table
@pytest.mark.parametrize("kind", [CPU, CUDA, ROCM])
def test_a_gpu_is_known_by_its_number(kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = Tables(type=kind, id=1)
    monkeypatch.setattr(native, "table", capsule(tables.table))
    x = torch.randn(3, 4)
    for index in (-1, 0, 1):
        here = index == (-1 if kind == CPU else 1)
        assert len(asked_of(index, x)[1]) == (4 if here else 0)


@needs_table
def test_a_tensor_that_was_given_other_memory_is_read_anew() -> None:
    reader, x = native.Reader(), torch.zeros(3, 4)
    first = reader.look(x, 0, 0, False)
    assert reader.look(x, 1, 0, False) is first
    x.data = torch.ones(3, 4)  # without a version of its own
    again = reader.look(x, 1, 0, False)
    assert again is not first
    (page, _), *_ = reader.pages()
    assert page.data[1, again.offset : again.offset + 4].tolist() == [1.0] * 4


def test_a_type_that_is_no_tensor_is_refused_by_name() -> None:
    class Odd:
        _base = is_neg = None

    reader: Any = vars(native)["_native"].Reader
    for kind, missing in ((int, "_base"), (Odd, "_version")):
        with pytest.raises(AttributeError, match=missing):
            reader((0, 1, 2, 3), None, (kind, kind), None, None, None, None)
