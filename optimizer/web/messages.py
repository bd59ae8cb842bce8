"""The messages of listeners that get changes: made once, deflated once, shared by all of them.

A message ends with a full flush: a block of it refers to nothing before it and ends at a whole byte. So any messages,
in any order, are one gzip stream after its header of ten bytes, and a listener costs no compressor (256 KB each) and no
time. Only the deflated form is held; JSON of records is five times as long.

Values in, bytes out; no I/O.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Final

import msgspec

from optimizer.errors import ChangesMissing
from optimizer.reader.changes import ChangeLog, HeldChange
from optimizer.reader.results import CachedVersion

__all__ = ["GZIP_HEADER", "ChangeMessages", "Message"]

# RFC 1952: deflate, no flags, no time, of an unknown system.
GZIP_HEADER: Final = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
LEVEL: Final = 6
DATA: Final = b"\ndata: "

_encode: Final = msgspec.json.Encoder().encode


class Message:
    """One message of a stream of events; `block` is its deflated form."""

    __slots__ = ("block",)

    def __init__(self, plain: bytes) -> None:
        deflate = zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
        self.block = deflate.compress(plain) + deflate.flush(zlib.Z_FULL_FLUSH)

    @classmethod
    def of(cls, event: bytes, version: int, data: object) -> Message:
        """A message about a version, whose number is its id."""
        return cls(b"event: %b\nid: %d%b%b\n\n" % (event, version, DATA, _encode(data)))

    @property
    def plain(self) -> bytes:
        """Its text."""
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(self.block)

    @property
    def data(self) -> bytes:
        """Its JSON."""
        return self.plain.partition(DATA)[2][:-2]


class ChangeMessages:
    """The messages of a source; of each change that is held, one."""

    def __init__(self, log: ChangeLog) -> None:
        self.log = log
        self._of_changes: dict[int, Message] = {}
        self._prepared = log.read_to

    def prepare(self) -> None:
        """Make those of changes that have come since the last call; for the reader's thread, before they show."""
        entries = self.log.entries
        held = {entry.version for entry in entries}
        for version in self._of_changes.keys() - held:
            self._of_changes.pop(version, None)
        self.encoded(entry for entry in entries if entry.version > self._prepared)
        self._prepared = self.log.read_to

    def encoded(self, entries: Iterable[HeldChange]) -> list[Message]:
        """The messages of changes. To make one takes about a millisecond for 300 records that all change."""
        messages = []
        for entry in entries:
            message = self._of_changes.get(entry.version)
            if message is None:
                message = self._of_changes[entry.version] = Message.of(b"change", entry.version, entry.stored().change)
            messages.append(message)
        return messages

    def since(self, version: int | None, current: CachedVersion) -> list[Message]:
        """What a listener that has a version needs to have the current one; none may have nothing yet."""
        if version is not None and version >= current.version:
            return []
        if version is None:
            return [self.shown(current)]
        try:
            held = self.log.since(version, current)
        except ChangesMissing:
            return [self.reset(current)]
        messages = self.encoded(held)
        is_there = bool(held) and held[-1].version == current.version
        return messages if is_there else [*messages, self.shown(current)]

    @staticmethod
    def shown(current: CachedVersion) -> Message:
        """That this is the current version, with the content that versions from `since` on have."""
        manifest = current.manifest
        since = manifest.version if manifest.content_since is None else manifest.content_since
        data = {"version": current.version, "generated_at": manifest.generated_at, "since": since}
        return Message.of(b"version", current.version, data)

    @staticmethod
    def reset(current: CachedVersion) -> Message:
        """That it has to be taken whole."""
        return Message.of(b"reset", current.version, {"version": current.version})
