"""The messages to listeners of changes: made and deflated once, and shared by all of them.

A message ends with a flush: its block ends at a whole byte, and refers to nothing before it. So any sequence of
messages is one gzip stream after its header of ten bytes, and a listener needs no compressor (256 KB each) and no CPU
time. Most listeners have the previous change: for them, a short message has a second block, which refers to that one,
with half the bytes. Only the deflated forms are kept; JSON of records is five times as long.

Values in, bytes out; no I/O.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from itertools import count
from typing import Final

import msgspec

from optimizer.errors import ChangesMissing
from optimizer.reader.changes import ChangeLog, HeldChange
from optimizer.reader.results import CachedVersion

__all__ = ["EMPTY_BLOCK", "GZIP_HEADER", "ChangeMessages", "Message"]

# RFC 1952: deflate, no flags, no time, of an unknown system.
GZIP_HEADER: Final = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
# An empty deflate block: it decodes to nothing, so that later blocks may still refer to earlier data.
EMPTY_BLOCK: Final = b"\x00\x00\x00\xff\xff"
# The window of deflate: a longer message gains little from the names of fields in an earlier one.
WINDOW: Final = 32_768
LEVEL: Final = 6
DATA: Final = b"\ndata: "

_encode: Final = msgspec.json.Encoder().encode
_numbers: Final = count()


class Message:
    """One message of a stream of events.

    Attributes:
        block: Its deflated form.
        linked: Its deflated form for a stream whose last message was the one with the number `after`; `None` if there
        is none.
        number: Its number in this process.
    """

    __slots__ = ("after", "block", "linked", "number")

    def __init__(self, plain: bytes, after: Message | None = None) -> None:
        self.number = next(_numbers)
        self.block = _deflate(plain)
        self.after = self.linked = None
        if after is not None and len(plain) <= WINDOW:
            self.after, self.linked = after.number, _deflate(plain, after.plain[-WINDOW:])

    @classmethod
    def of(cls, event: bytes, version: int, data: object, after: Message | None = None) -> Message:
        """Make a message about a version, whose number is its id."""
        return cls(b"event: %b\nid: %d%b%b\n\n" % (event, version, DATA, _encode(data)), after)

    def block_after(self, number: int | None) -> bytes:
        """Return its deflated form for a stream whose last message has this number."""
        return self.linked if self.linked is not None and self.after == number else self.block

    @property
    def plain(self) -> bytes:
        """Its text."""
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(self.block)

    @property
    def data(self) -> bytes:
        """Its JSON."""
        return self.plain.partition(DATA)[2][:-2]


class ChangeMessages:
    """The messages of a source, one for each change in memory."""

    def __init__(self, log: ChangeLog) -> None:
        self.log = log
        self._of_changes: dict[int, Message] = {}
        self._prepared = log.read_to
        self._last: Message | None = None  # the last prepared message

    def prepare(self) -> None:
        """Make the messages of changes since the last call; called by the reader's thread before they are shown."""
        entries = self.log.entries
        held = {entry.version for entry in entries}
        for version in self._of_changes.keys() - held:
            self._of_changes.pop(version, None)
        for entry in entries:
            if entry.version > self._prepared:
                self._last = self._encode(entry, self._last)
        self._prepared = self.log.read_to

    def encoded(self, entries: Iterable[HeldChange]) -> list[Message]:
        """Return the messages of changes. Making one takes about a millisecond if 300 records all change."""
        return [self._of_changes.get(entry.version) or self._encode(entry) for entry in entries]

    def _encode(self, entry: HeldChange, after: Message | None = None) -> Message:
        message = Message.of(b"change", entry.version, entry.stored().change, after)
        self._of_changes[entry.version] = message
        return message

    def since(self, version: int | None, current: CachedVersion) -> list[Message]:
        """Return the messages by which a listener gets from its version, `None` for none, to the current one."""
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
        """Make the message that this is the current version, with the same content as all versions from `since` on."""
        manifest = current.manifest
        since = manifest.version if manifest.content_since is None else manifest.content_since
        data = {"version": current.version, "generated_at": manifest.generated_at, "since": since}
        return Message.of(b"version", current.version, data)

    @staticmethod
    def reset(current: CachedVersion) -> Message:
        """Make the message that the listener has to take the whole snapshot."""
        return Message.of(b"reset", current.version, {"version": current.version})


def _deflate(plain: bytes, before: bytes = b"") -> bytes:
    deflate = zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS, zdict=before)
    return deflate.compress(plain) + deflate.flush(zlib.Z_FULL_FLUSH)
