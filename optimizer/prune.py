"""Structural pruning: JSON bytes in, the few bytes that matter out, before anything is parsed.

A rolling file is 95 % curves and debug data, nested deeper than a record's own fields. The pruner follows strings and
brackets only. It cuts the stream into **pieces**:

- a **unit** is one object that stands where records (or bots) stand, whole, with every container nested deeper than
  its kept levels emptied: `{"curve": [1, 2], "meta": {"a": 1}}` comes out as `{"curve": [], "meta": {}}`;
- **text** is everything around the units: the root's brackets, keys, commas and plain values, in whole tokens.

So whoever decodes sees a small, ordinary JSON text, and a unit can be decoded alone. Emptying a container, instead of
putting `null` for it, keeps its type (a list where a number belongs is still a list) and never makes the text longer.

Guarantees: memory is bounded by `max_unit_bytes`, whatever comes in; what is discarded is checked for closed strings,
balanced brackets of each kind and the depth limit, no more; the pieces that touch a given byte do not depend on where
the input was cut; `NaN` and `Infinity` outside strings are `null` in every piece.

Errors: `SourceMalformed` with the byte offset in the JSON; `SourceTorn` where the JSON ends early.
"""

from __future__ import annotations

import json
import re
from array import array
from codecs import BOM_UTF8
from collections.abc import Callable, Mapping
from enum import Enum, auto

from optimizer.errors import SourceMalformed
from optimizer.pieces import (
    MAX_DEPTH,
    NO_SEAMS,
    RECORD_KEY,
    SPACE,
    STRING,
    Layout,
    Piece,
    PieceKind,
    malformed,
    never_opened,
    null_for,
    too_deep,
    torn,
    unbalanced,
)

__all__ = ["UNIT", "Pruner"]

# Flat text: anything without brackets, and whole strings.
_FLAT = rb'[^"{}\[\]]*+(?:' + STRING + rb'[^"{}\[\]]*+)*+'
_LEAF = rb"(?:\{" + _FLAT + rb"\}|\[" + _FLAT + rb"\])"
_BRANCH_BODY = _FLAT + rb"(?:" + _LEAF + _FLAT + rb")*+"
_BRANCH = rb"(?:\{" + _BRANCH_BODY + rb"\}|\[" + _BRANCH_BODY + rb"\])"
# Skipping takes whole containers of up to two levels in one match: most of a rolling file is lists of flat objects.
_SKIP = re.compile(_FLAT + rb"(?:" + _BRANCH + _FLAT + rb")*+", re.DOTALL)
# A record as it comes out, as bytes of a regular expression: its containers are empty.
UNIT = rb"\{" + _BRANCH_BODY + rb"\}"
_SKIP_FLAT = re.compile(_FLAT, re.DOTALL)
_SKIP_LEVELS = 2
_STRING_TOKEN = re.compile(STRING, re.DOTALL)
_STRING_TAIL = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_RUN = re.compile(rb'[^"{}\[\]]++')
# Atoms are numbers and literals, and what should be: whatever stands between these, quotes and brackets.
_SEPARATORS = (b" ", b"\t", b"\n", b"\r", b",", b":")
_ATOM = re.compile(rb"[^ \t\n\r,:]++")
_REST = re.compile(rb"[^ \t\n\r,:\"{}\[\]]*+")  # of an atom
_CONSTANTS = (b"NaN", b"Infinity", b"-Infinity")
_CONSTANT_BEGINNINGS = frozenset(constant[:size] for constant in _CONSTANTS for size in range(1, len(constant) + 1))
_NOT_A_NUMBER = re.compile(rb"(?<![^ \t\n\r,:])(?:-?Infinity|NaN)(?![^ \t\n\r,:])")

_QUOTE, _BACKSLASH = b'"'[0], b"\\"[0]
_COLON = b":"[0]
_OPENING = b"{["
_RECORD_KEY = f'"{RECORD_KEY}"'.encode()
_CURLY = b"{}"


def _unescaped(key: bytes) -> bytes:
    """A key without escapes for letters that need none; what is no string is left for the decoder to refuse."""
    if b"\\" not in key:
        return key
    try:
        return json.dumps(json.loads(key), ensure_ascii=False).encode()
    except ValueError:
        return key


class _Mode(Enum):
    TEXT = auto()
    UNIT = auto()
    SKIP = auto()


class Pruner:
    """Cut a stream of JSON texts into pieces; feed it bytes in any chunking, then close it.

    Args:
        default: Where units stand in an array, and in an object under names that `members` does not list.
        members: Where units stand in named members of a root object; a section that only may be an object (bots) is
            still followed when it is an array, and its elements are units all the same.
        max_unit_bytes: The longest unit, and the longest string or number outside units, that is kept.
        locate: Where in the source a byte of the input stood, for errors; where the input is the source, that byte.
    """

    def __init__(
        self,
        *,
        default: Layout,
        members: Mapping[bytes, Layout],
        max_unit_bytes: int,
        locate: Callable[[int], int] = int,
    ) -> None:
        self._default = default
        self._members = members
        self._limit = max_unit_bytes
        self._locate = locate
        self._mode = _Mode.TEXT
        self._consumed = 0  # bytes of JSON before the current buffer
        self._begun = False  # past the place where a byte order mark may stand
        self._carry = b""  # a token that the last chunk cut in two
        self._containers = bytearray()  # opening brackets of the text's containers, root first: at most two
        self._depth = 0
        self._layout = default
        self._key: bytes | None = b""  # last string of the text; None where it was too long to keep
        self._after_colon = False  # the last byte of the text that is no white space was a colon
        self._root_is_plain = False  # the root object has shown no container but arrays that were emptied
        self._root_is_record = False
        self._in_string = False  # inside a string of which nothing is kept
        self._cut_token = False  # the last bytes belong to a number or literal that was too long to hold
        self._pieces: list[Piece] = []
        self._unit = bytearray()
        self._unit_seams: array[int] = array("Q")
        self._unit_offset = 0
        self._unit_size = 0
        self._skip_depth = 0  # depth outside the container that is being skipped
        self._skip_mode = _Mode.TEXT  # mode to return to
        self._skip_is_curly = False  # whether a curly bracket opens it
        self._skip_curly = 0  # curly brackets open in it; the rest of its depth is square
        self._tokens_until = 0  # place in the buffer before which a unit is taken token by token
        self._refusal: SourceMalformed | None = None

    def feed(self, chunk: bytes) -> list[Piece]:
        """Take the next bytes; return the pieces that they complete.

        Raises:
            SourceMalformed: Here or at the next call: pieces from before the error come out first, since whoever
                decodes them may find an earlier one. So the first error is told, wherever the input was cut.
        """
        if self._refusal is not None:
            raise self._refusal
        buffer = self._carry + chunk if self._carry else chunk
        self._carry = b""
        position = self._tokens_until = 0
        end = len(buffer)
        if not self._begun:
            if end < len(BOM_UTF8) and BOM_UTF8.startswith(buffer):
                self._carry = buffer
                return []
            self._begun = True
            position = len(BOM_UTF8) if buffer.startswith(BOM_UTF8) else 0
        try:
            while position < end:
                if self._in_string:
                    position = self._pass_string(buffer, position)
                elif self._mode is _Mode.SKIP:
                    position = self._skip(buffer, position)
                else:
                    position = self._keep(buffer, position)
        except SourceMalformed as error:
            self._refusal = error
        self._consumed += end - len(self._carry)
        pieces, self._pieces = self._pieces, []
        return pieces

    def close(self) -> list[Piece]:
        """End the input: return the last pieces.

        Raises:
            SourceMalformed: An error in what was fed that has not been raised yet.
            SourceTorn: A string or a container is still open.
        """
        if self._refusal is not None:
            raise self._refusal
        in_string = self._in_string or self._carry.startswith(b'"')
        if in_string or self._depth:
            raise torn(self._consumed + len(self._carry), in_string=in_string, depth=self._depth)
        return self.end_token()

    # ---- for whoever has pruned before, and hands on only what needs a closer look

    def end_token(self) -> list[Piece]:
        """Take the number or literal that the input ended in as whole; return the pieces that this completes.

        Raises:
            SourceMalformed: An error in what was fed that has not been raised yet.
        """
        if self._refusal is not None:
            raise self._refusal
        tail, self._carry = self._carry, b""
        self._add_run(self._consumed, tail)
        self._consumed += len(tail)
        pieces, self._pieces = self._pieces, []
        return pieces

    @property
    def between_tokens(self) -> bool:
        """Whether all that was fed is out, and stands outside units."""
        return self._mode is _Mode.TEXT and not (self._carry or self._in_string or self._refusal)

    @property
    def open_unit(self) -> int | None:
        """Where the unit at hand begins."""
        inside = _Mode.UNIT in (self._mode, self._skip_mode if self._mode is _Mode.SKIP else None)
        return self._unit_offset if inside else None

    @property
    def kept_since(self) -> int:
        """The first byte fed that may still come out, but for the beginning of a unit that is too long already."""
        unit = self.open_unit
        return self._consumed if unit is None or self._unit_size > self._limit else unit

    def pass_over(self, size: int) -> None:
        """Take so many bytes, whole units and what stands between them, as read."""
        self._consumed += size
        self._begun = True
        self._root_is_plain = False
        self._key = b""

    # ---- kept levels

    def _keep(self, buffer: bytes, position: int) -> int:
        """Take one token at a kept level, or a stretch of them; return where the next begins."""
        if self._mode is _Mode.UNIT and position >= self._tokens_until:
            stop = self._take_stretch(buffer, position)
            if stop > position:
                return stop
        byte = buffer[position]
        if byte in b'"{}[]':
            self._cut_token = False
        if byte == _QUOTE:
            return self._take_string(buffer, position)
        if byte in b"{}[]":
            if byte in _OPENING:
                self._open(byte, position)
            else:
                self._close(byte, position)
            return position + 1
        return self._take_run(buffer, position)

    def _take_stretch(self, buffer: bytes, position: int) -> int:
        """Take all of a unit up to the next bracket or open end at once, where nothing in it needs a closer look.

        Files of small records are scanned half as fast again by this.
        """
        stop = _SKIP_FLAT.match(buffer, position).end()  # type: ignore[union-attr]  # it matches nothing too
        stretch = buffer[position:stop]
        if stop == len(buffer) or len(stretch) > self._room() or b"NaN" in stretch or b"Infinity" in stretch:
            self._tokens_until = stop  # not to look at it again at each of its tokens
            return position
        self._add_to_unit(stretch)
        return stop

    def _take_string(self, buffer: bytes, position: int) -> int:
        found = _STRING_TOKEN.match(buffer, position)
        stop = found.end() if found else len(buffer)
        if self._after_colon and self._root_is_plain and self._depth == 1 and self._mode is _Mode.TEXT:
            self._root_is_record |= self._key is not None and _unescaped(self._key) == _RECORD_KEY
        if self._room() < stop - position:
            # Too long to keep, whether or not its end is in this buffer: the outcome must not depend on the cut.
            if self._mode is _Mode.TEXT:
                self._key, self._after_colon = None, False
                self._pieces.append(Piece(PieceKind.TEXT, self._consumed + position, 0, b'""', NO_SEAMS))
            self._count(1)
            self._in_string = True
            return position + 1
        if found is None:
            self._carry = buffer[position:]
        elif self._mode is _Mode.TEXT:
            self._key, self._after_colon = found.group(), False
            self._add_text(self._consumed + position, self._key)
        else:
            self._add_to_unit(buffer[position:stop])
        return stop

    def _take_run(self, buffer: bytes, position: int) -> int:
        """Take white space, commas, colons, numbers and literals up to the next quote or bracket."""
        stop = _RUN.match(buffer, position).end()  # type: ignore[union-attr]  # it has one byte at least
        rest = _REST.match(buffer, position).end() if self._cut_token else position  # type: ignore[union-attr]
        self._add(self._consumed + position, buffer[position:rest])
        self._cut_token = self._cut_token and rest == len(buffer)
        if stop == len(buffer) and not self._cut_token:
            # The last number or literal may go on in the next chunk; where there is no room, only its size counts.
            stop = max(rest, *(buffer.rfind(separator, rest) + 1 for separator in _SEPARATORS))
            tail = buffer[stop:]
            if not tail or len(tail) <= self._room() or tail in _CONSTANT_BEGINNINGS:
                self._carry = tail
            else:
                stop, self._cut_token = len(buffer), True
        self._add_run(self._consumed + rest, buffer[rest:stop])
        return stop + len(self._carry)

    def _add_run(self, offset: int, run: bytes) -> None:
        significant = run.rstrip(SPACE)
        if significant:
            self._after_colon = significant[-1] == _COLON
        done = 0
        if b"N" in run or b"I" in run:
            for found in _NOT_A_NUMBER.finditer(run):
                self._add(offset + done, run[done : found.start()])
                done = found.end()
                self._add(offset + found.start(), null_for(done - found.start()))
                if self._mode is _Mode.UNIT:
                    self._unit_seams.extend((len(self._unit), offset + done))
        self._add(offset + done, run[done:])

    def _open(self, byte: int, position: int) -> None:
        level = self._depth + 1
        if level > MAX_DEPTH:
            raise too_deep(self._consumed + position)
        offset = self._consumed + position
        if self._mode is _Mode.UNIT:
            self._add_to_unit(bytes((byte,)))
            if level >= self._layout.unit_level + self._layout.kept_levels:
                self._start_skipping(byte)
                return
        else:
            self._after_colon = False
            if level == 1:
                self._root_is_plain, self._root_is_record = byte == _CURLY[0], False
            elif level == 2:
                named = self._key if self._containers[0] == _CURLY[0] else None
                self._layout = self._members.get(_unescaped(named), self._default) if named else self._default
            emptied = self._root_is_record or (level >= self._layout.unit_level and byte != _CURLY[0])
            if level > 1 and not emptied:
                self._root_is_plain = False
            if emptied:
                self._add_text(offset, bytes((byte,)))
                self._start_skipping(byte)
                return
            if level < self._layout.unit_level:
                self._containers.append(byte)
                self._add_text(offset, bytes((byte,)))
            else:
                self._start_unit(offset)
        self._depth = level

    def _close(self, byte: int, position: int) -> None:
        if self._depth == 0:
            raise never_opened(self._consumed + position, byte)
        self._depth -= 1
        if self._mode is _Mode.TEXT:
            self._containers.pop()
            self._after_colon = False
            self._add_text(self._consumed + position, bytes((byte,)))
        else:
            self._add_to_unit(bytes((byte,)))
            if self._depth < self._layout.unit_level:
                self._finish_unit()

    # ---- discarded levels

    def _start_skipping(self, byte: int) -> None:
        self._skip_depth = self._depth
        self._skip_mode = self._mode
        self._skip_is_curly = byte in _CURLY
        self._skip_curly = int(self._skip_is_curly)
        self._depth += 1
        self._mode = _Mode.SKIP

    def _skip(self, buffer: bytes, position: int) -> int:
        """Skip on, to the end of the discarded container or of the buffer."""
        end = len(buffer)
        while True:
            deep = self._depth > MAX_DEPTH - _SKIP_LEVELS
            position = (_SKIP_FLAT if deep else _SKIP).match(buffer, position).end()  # type: ignore[union-attr]
            if position == end:
                return end
            byte = buffer[position]
            if byte == _QUOTE:
                self._in_string = True
                return position + 1
            if byte in _OPENING:
                if self._depth == MAX_DEPTH:
                    raise too_deep(self._consumed + position)
                self._depth += 1
                self._skip_curly += byte in _CURLY
            else:
                self._depth -= 1
                self._skip_curly -= byte in _CURLY
                if self._depth == self._skip_depth:
                    self._stop_skipping(byte, position)
                    return position + 1
            position += 1

    def _stop_skipping(self, byte: int, position: int) -> None:
        if self._skip_curly or (byte in _CURLY) != self._skip_is_curly:
            raise unbalanced(self._consumed + position)
        self._mode = self._skip_mode
        offset = self._consumed + position
        if self._mode is _Mode.TEXT:
            self._add_text(offset, bytes((byte,)))
        else:
            self._unit_seams.extend((len(self._unit), offset))
            self._add_to_unit(bytes((byte,)))

    def _pass_string(self, buffer: bytes, position: int) -> int:
        """Pass over a string of which nothing is kept, to its end or the buffer's."""
        stop = _STRING_TAIL.match(buffer, position).end()  # type: ignore[union-attr]  # it matches the empty string
        if stop == len(buffer):
            self._count(stop - position)
        elif buffer[stop] == _BACKSLASH:  # the last byte: what it escapes comes with the next chunk
            self._count(stop - position)
            self._carry = buffer[stop:]
            stop = len(buffer)
        else:
            stop += 1
            self._count(stop - position)
            self._in_string = False
        return stop

    # ---- pieces

    def _room(self) -> int:
        """Bytes that a token may still have here without being too long to keep."""
        return self._limit - (self._unit_size if self._mode is _Mode.UNIT else 0)

    def _count(self, size: int) -> None:
        """Count bytes that belong to a piece and are not kept in it."""
        if self._mode is _Mode.UNIT:
            self._unit_size += size
            self._unit.clear()
        elif self._mode is _Mode.TEXT:
            self._pieces.append(Piece(PieceKind.TEXT, self._consumed, size, b"", NO_SEAMS))

    def _add(self, offset: int, data: bytes) -> None:
        if self._mode is _Mode.UNIT:
            self._add_to_unit(data)
        else:
            if len(data) > self._limit:
                self._check_atoms(offset, data)
            self._add_text(offset, data)

    def _add_text(self, offset: int, data: bytes) -> None:
        if data:
            self._pieces.append(Piece(PieceKind.TEXT, offset, len(data), data, NO_SEAMS))

    def _start_unit(self, offset: int) -> None:
        self._mode = _Mode.UNIT
        self._unit_offset = offset
        self._unit_seams = array("Q")
        self._unit_size = 0
        if self._key is None and self._containers[-1:] == b"{":
            self._unit_size = self._limit  # its name alone is too long: what follows only counts
        self._add_to_unit(b"{")

    def _add_to_unit(self, data: bytes) -> None:
        self._unit_size += len(data)
        if self._unit_size > self._limit:
            self._unit.clear()
            del self._unit_seams[:]
        else:
            self._unit += data

    def _finish_unit(self) -> None:
        data = bytes(self._unit)
        self._pieces.append(Piece(PieceKind.UNIT, self._unit_offset, self._unit_size, data, self._unit_seams))
        self._unit.clear()
        self._mode = _Mode.TEXT

    # ---- refusals

    def _check_atoms(self, offset: int, run: bytes) -> None:
        for found in _ATOM.finditer(run):
            if found.end() - found.start() > self._limit:
                self._add_text(offset, run[: found.start()])
                raise malformed(
                    self._locate(offset + found.start()), f"a number or literal of more than {self._limit:,} bytes"
                )
