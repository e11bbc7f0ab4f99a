from collections.abc import Callable
from typing import Any

class Books:
    def __init__(
        self,
        pending: list[tuple[int, Any]],
        events: list[Any],
        looks: list[Callable[..., Any]],
        imaged: list[bool],
        /,
    ) -> None: ...

class Hook: ...

class Mode:
    handlers: dict[Any, Any]
    run: Any
    def __init__(self, handlers: dict[Any, Any], run: Any, /) -> None: ...

def entered(hook: Any, attachment: Any, module: Any, /) -> bool: ...
def left(attachment: Any, module: Any, /) -> bool: ...
def when_stale(function: Callable[[], None], /) -> None: ...
def learn(role: str, type: type, /) -> None: ...
def know(
    tensor: type,
    strided: Any,
    transforms: Callable[[], Any],
    out_of_memory: type[BaseException],
    /,
) -> None: ...
