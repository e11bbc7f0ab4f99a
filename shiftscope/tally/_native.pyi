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
def merge(record: int, capacity: int, other: int, other_capacity: int, columns: int, /) -> None: ...
