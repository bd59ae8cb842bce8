from typing_extensions import Buffer

VARIANT: str

_Layout = tuple[int, int, bool]
_Output = tuple[bytes, list[tuple[int, int, int, int, int]], bytes, int, int]

class Pruner:
    def __new__(
        cls,
        fallback: _Layout,
        members: dict[bytes, _Layout],
        record_key: bytes | None,
        max_key_bytes: int,
        max_depth: int,
        objects: tuple[tuple[bytes, int, int], ...] = (),
        /,
    ) -> Pruner: ...
    def feed(self, chunk: Buffer, /) -> _Output: ...
    def finish(self) -> _Output: ...
    @property
    def error(self) -> tuple[str, int] | None: ...
    @property
    def consumed(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def in_string(self) -> bool: ...
