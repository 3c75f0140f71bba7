from collections.abc import Iterable
from typing import final

from _typeshed import ReadableBuffer

class ElementFault(ValueError):
    offset: int
    def __init__(self, offset: int, text: str) -> None: ...

@final
class ElementWalker:
    def __init__(
        self,
        explicit: bool | None = None,
        *,
        big_endian: bool = False,
        capture: Iterable[int] = (),
        capture_limit: int = 1024,
        stop_below: int = 0,
        stop_above: int = 0xFFFFFFFF,
        depth_max: int = 64,
        elements_max: int = 0,
        record: bool = False,
    ) -> None: ...
    @property
    def captured(self) -> dict[int, bytes]: ...
    @property
    def vrs(self) -> dict[int, str | None]: ...
    @property
    def elements(self) -> list[tuple[int, str | None, int]]: ...
    @property
    def position(self) -> int: ...
    @property
    def skip(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def explicit(self) -> bool | None: ...
    @property
    def stopped(self) -> bool: ...
    def feed(self, data: ReadableBuffer) -> None: ...
    def jump(self, count: int) -> None: ...
    def finish(self) -> None: ...

def probe(
    data: bytes | bytearray | memoryview,
) -> tuple[str, bool, int, str, str, str, str] | None: ...
