from array import array
from collections.abc import Callable
from typing import Any

from torch import Tensor

class Columns:
    slot: int
    number: int
    width: int
    rows: int
    offset: int
    parts: int
    dtype: int
    image: Tensor | None

class Parts(Columns): ...

class Launch:
    def __init__(
        self,
        driver: int,
        function: int,
        grid: tuple[int, int, int],
        threads: int,
        shared: int,
        codes: str,
        values: tuple[int, ...],
        shape: tuple[int, ...],
        form: tuple[int, int, int],
        residue: int,
        extent: tuple[int, int, int, int],
        owner: Any,
        /,
    ) -> None: ...

class Reader:
    readings: list[Columns]
    pages: list[Any]
    used: int
    def __init__(
        self,
        dtypes: tuple[Any, ...],
        layout: Any,
        types: tuple[type, type],
        table: Any,
        page_of: Callable[[int], Any],
        image_of: Callable[[int, int], Tensor],
        threads_of: Callable[[], int],
        device: tuple[int, Any, Any, Any, Any] = ...,
        /,
    ) -> None: ...
    def look(self, tensor: Tensor, slot: int, kind: int, image: bool, /) -> Columns | None: ...
    def read(self, tensor: Tensor, slot: int, kind: int, image: bool, /) -> Columns | None: ...
    def reserve(
        self, slot: int, width: int, rows: int, parts: int, dtype: int, /
    ) -> tuple[Columns, Any]: ...
    def done(self) -> None: ...
    def take(self) -> tuple[list[Columns], list[Any], bool]: ...

def read(
    data: int,
    dtype: int,
    rows: int,
    width: int,
    run: int,
    record: int,
    capacity: int,
    offset: int,
    image: int,
    threads: int,
    /,
) -> None: ...
def merge(
    record: int,
    capacity: int,
    other: int,
    other_capacity: int,
    columns: int,
    drift: bool,
    /,
) -> None: ...
def only_type(writes: list[tuple[int, Any]], /) -> type | None: ...
def all_within(writes: list[tuple[int, Any]], slots: set[int], /) -> bool: ...
def form_of(writes: list[tuple[int, Any]], readings: list[Any], /) -> bytes | None: ...
def add_rows(readings: list[Any], rows: array[int], /) -> None: ...
def short_of(readings: list[Any], pages: list[tuple[int, int]], /) -> list[int]: ...
def count(events: list[tuple[Any, str, Any]], table: dict[str, int], /) -> bool: ...
