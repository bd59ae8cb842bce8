"""The JSON around the units: tokens in, the open containers and their keys out. Pure.

ijson checks the syntax, token by token, so that the byte of an error is known, in constant memory for any number of
members. Units, batches and parts of plain values are replaced by short stand-ins.

Errors: `SourceMalformed` with the byte offset in the input.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final

import ijson

from optimizer.scan.fragment import malformed
from optimizer.scan.patterns import SPACE, compiled
from optimizer.scan.validation import decode_key

__all__ = ["LITERALS", "NUMBER", "Structure"]

NUMBER: Final = rb"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][+-]?[0-9]++)?+"
LITERALS: Final = {b"true": "boolean", b"false": "boolean", b"null": "null"}

_A_NUMBER: Final = compiled(NUMBER)
_KEY: Final = b"a key"


class Structure:
    """The open containers around the units.

    `kinds` are their start events, root first; `keys` the current member of the root and of its section; `last` is the
    last token that is not white space, `b"a key"` for a key.
    """

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self.keys: list[str] = ["", ""]
        self.last = b""
        self.started = False
        self._events: list[tuple[str, Any]] = ijson.sendable_list()
        self._parser = ijson.basic_parse_coro(self._events, multiple_values=True)

    @property
    def in_object(self) -> bool:
        """Whether the innermost container is an object."""
        return self.kinds[-1:] == ["start_map"]

    @property
    def key(self) -> str | None:
        """The current member of the innermost container, if that is an object."""
        return self.keys[len(self.kinds) - 1] if self.in_object else None

    def send(self, token: bytes, offset: int, *, with_keys: bool = True) -> None:
        """Check one token; without `with_keys`, keys are not decoded.

        ijson only needs the types of strings and numbers here: a record's own are checked with the record, and keys are
        decoded here. So it gets short ones: it would fail on a number that is too long for an int, and on text that is
        not valid Unicode.
        """
        sent = token
        is_key = False
        if token[0] in b'"':
            is_key = self.last != b":" and self.in_object
            sent = b'""'
            if is_key:
                self.keys[len(self.kinds) - 1] = _decoded(token, offset) if with_keys else ""
        elif _A_NUMBER.fullmatch(token):
            sent = b"0"
        elif token[0] not in b"{}[],: \t\n\r" and token not in LITERALS:
            raise malformed(offset, "neither a number nor true, false or null", token)
        try:
            # yajl holds a number back until it sees what ends it; the pruner's tokens are complete.
            self._parser.send(sent if sent[0] in b'"{}[],:' else sent + b" ")
        except ijson.JSONError as error:
            raise malformed(offset, _reason(error), token) from error
        self.started = True
        if token[0] not in SPACE:
            self.last = _KEY if is_key else token

    def send_unit(self, offset: int) -> None:
        """Check that a unit is allowed here."""
        self.send(b"{}", offset)
        self._events.clear()

    def send_batch(self, *, members: bool) -> None:
        """Take the members or elements of a batch as one; the caller has checked that they are allowed here."""
        for token in (b'""', b":", b"{}") if members else (b"{}",):
            self.send(token, 0, with_keys=False)
        self._events.clear()

    def send_plain(self, *, members: bool) -> None:
        """Take plain members or elements, up to a comma, that have been checked by a regular expression."""
        self._parser.send(b'"":0,' if members else b"0,")
        self._events.clear()
        self.last = b","

    def events(self) -> Iterator[str]:
        """Yield the events of the last token; a container is open from after its start event until its end event."""
        for event, _ in self._events:
            if event in ("end_map", "end_array"):
                self.kinds.pop()
            if event != "map_key":
                yield event
            if event in ("start_map", "start_array"):
                self.kinds.append(event)
        self._events.clear()

    def close(self) -> None:
        """End the stream. The pruner has checked that all containers are closed."""
        if self.started:
            self._parser.close()


def _decoded(token: bytes, offset: int) -> str:
    try:
        return decode_key(token)
    except json.JSONDecodeError as error:
        raise malformed(offset, error.msg, token) from None


def _reason(error: ijson.JSONError) -> str:
    """Return a parser's message without the drawing that yajl adds under it."""
    match = re.search(r"error: ([^\\\n]+)", str(error))
    return match.group(1) if match else str(error)
