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
from collections.abc import Callable, Iterator, Mapping
from enum import Enum, auto

from optimizer.errors import RollingError, SourceMalformed, SourceTorn
from optimizer.scan.fragment import (
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
_COLON, _COMMA = b":,"
_BEFORE_ITEMS = b",[{"  # of a container
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


def _plain_items(members: Mapping[bytes, Layout]) -> re.Pattern[bytes]:
    """Plain values and empty arrays, in an object with plain names that decide nothing, each with its comma."""
    gap = rb"[" + SPACE + rb"]*+"
    key = rb"(?!" + b"|".join(map(re.escape, (_RECORD_KEY, *members))) + rb')"[^"\\]*+"' + gap + rb":" + gap
    value = rb"(?:" + STRING + rb"|[^ \t\n\r,:\"{}\[\]NI]++|\[\])"
    return re.compile(rb"(?:" + gap + rb"(?:" + key + rb")?+" + value + gap + rb",)++", re.DOTALL)


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
        self._plain_items = _plain_items(members)
        self._mode = _Mode.TEXT
        self._consumed = 0  # bytes of JSON before the current buffer
        self._begun = False  # past the place where a byte order mark may stand
        self._carry = b""  # a few bytes that mean something only with what follows
        self._containers = bytearray()  # opening brackets of the text's containers, root first: at most two
        self._depth = 0
        self._layout = default
        self._key: bytes | None = b""  # last string of the text; None where it was too long to keep
        self._significant = 0  # last byte of the text that is no white space: see `_add_run`
        self._root_is_plain = False  # the root object has shown no container but arrays that were emptied
        self._root_is_record = False
        self._in_string = False
        self._in_atom = False  # amid a number or literal
        self._token: bytearray | None = None  # of the text: the string or atom at hand, where chunks cut it
        self._token_offset = 0
        self._pieces: list[Piece] = []
        # The piece at hand, text or unit.
        self._offset: int | None = None  # where it begins
        self._size = 0
        self._data = bytearray()
        self._seams: array[int] = array("Q")
        self._next = 0  # where the next byte comes from if there is no gap
        self._skip_depth = 0  # depth outside the container that is being skipped
        self._skip_mode = _Mode.TEXT  # mode to return to
        self._skip_is_curly = False  # whether a curly bracket opens it
        self._skip_curly = 0  # curly brackets open in it; the rest of its depth is square
        self._tokens_until = 0  # place in the buffer before which a unit is taken token by token
        self._refusal: RollingError | None = None

    def feed(self, chunk: bytes) -> list[Piece]:
        """Take the next bytes; return the pieces that they complete.

        Raises:
            SourceMalformed: Here or at the next call: pieces from before the error come out first, since the decoder
                may find an earlier one in them. So the first error is told, wherever the input was cut.
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
                    position = self._take_string_on(buffer, position)
                elif self._mode is _Mode.SKIP:
                    position = self._skip(buffer, position)
                else:
                    position = self._keep(buffer, position)
        except SourceMalformed as error:
            self._refuse(error)
        self._consumed += end - len(self._carry)
        return self._take_pieces()

    def close(self) -> Iterator[Piece]:
        """End the input: yield the last pieces.

        Raises:
            SourceMalformed: An error in what was fed that has not been raised yet.
            SourceTorn: A string or a container is still open.
        """
        size = self._consumed + len(self._carry)
        in_string, depth = self._in_string, self._depth
        yield from self.end(torn(size, in_string=in_string, depth=depth) if in_string or depth else None)

    def end(self, error: RollingError | None) -> Iterator[Piece]:
        """End the input, with this error if there is one: yield the last pieces, then raise it.

        Raises:
            SourceMalformed: An error in what was fed that has not been raised yet.
        """
        if self._refusal is None:
            if not isinstance(error, SourceTorn):  # which may have cut a number
                self._end_atom()
                self._add_run(self._consumed, self._carry)
            if error is not None and self._refusal is None:
                self._refuse(error)
            yield from self._take_pieces()
        if self._refusal is not None:
            raise self._refusal

    # ---- for a caller that has pruned before, and hands on only what needs a closer look

    @property
    def between_tokens(self) -> bool:
        """Whether all that was fed is out, and stands outside units."""
        return self._mode is _Mode.TEXT and not (self._carry or self._in_string or self._in_atom or self._refusal)

    @property
    def open_unit(self) -> int | None:
        """Where the unit at hand begins."""
        inside = _Mode.UNIT in (self._mode, self._skip_mode if self._mode is _Mode.SKIP else None)
        return self._offset if inside else None

    @property
    def kept_since(self) -> int:
        """The first byte fed that may still come out, but for the beginning of a unit that is too long already."""
        if self._token is not None:
            return self._token_offset
        unit = self.open_unit
        return self._consumed if unit is None or self._size > self._limit else unit

    def pass_over(self, size: int) -> None:
        """Take so many bytes, whole units and what stands between them, as read."""
        self._consumed += size
        self._begun = True
        self._root_is_plain = False
        self._significant = _CURLY[1]

    # ---- kept levels

    def _keep(self, buffer: bytes, position: int) -> int:
        """Take one token at a kept level, or a stretch of them; return where the next begins."""
        stop = position
        if self._mode is _Mode.TEXT:
            if self._significant in _BEFORE_ITEMS:
                stop = self._take_items(buffer, position)
        elif position >= self._tokens_until:
            stop = self._take_stretch(buffer, position)
        if stop > position:
            return stop
        byte = buffer[position]
        if byte not in b'"{}[]':
            return self._take_run(buffer, position)
        self._end_atom()
        if byte == _QUOTE:
            return self._take_string(buffer, position)
        if byte in _OPENING:
            self._open(byte, position)
        else:
            self._close(byte, position)
        return position + 1

    def _take_items(self, buffer: bytes, position: int) -> int:
        """Take plain members or elements at once that decide nothing here, each with its comma."""
        if not self._depth or self._depth + 1 < (self._default if self._depth == 1 else self._layout).unit_level:
            return position
        items = self._plain_items.match(buffer, position, position + self._limit)
        if items is None:
            return position
        self._add(self._consumed + position, items.group())
        self._significant = _COMMA
        return items.end()

    def _take_stretch(self, buffer: bytes, position: int) -> int:
        """Take all of a unit up to the next bracket or open end at once, where nothing in it needs a closer look.

        Files of small records are scanned half as fast again by this.
        """
        stop = _SKIP_FLAT.match(buffer, position).end()  # type: ignore[union-attr]  # it matches nothing too
        stretch = buffer[position:stop]
        if self._in_atom or stop == len(buffer) or b"NaN" in stretch or b"Infinity" in stretch:
            self._tokens_until = stop  # not to look at it again at each of its tokens
            return position
        self._add(self._consumed + position, stretch)
        return stop

    def _take_string(self, buffer: bytes, position: int) -> int:
        if self._mode is _Mode.TEXT:
            if self._significant == _COLON and self._root_is_plain and self._depth == 1:
                self._root_is_record |= self._key is not None and _unescaped(self._key) == _RECORD_KEY
            self._token, self._token_offset = bytearray(), self._consumed + position
        found = _STRING_TOKEN.match(buffer, position)
        if found:
            self._add_to_string(self._consumed + position, found.group(), ended=True)
            return found.end()
        self._in_string = True
        self._add_to_string(self._consumed + position, buffer[position : position + 1], ended=False)
        return position + 1

    def _take_string_on(self, buffer: bytes, position: int) -> int:
        """Take more of a string that is cut, to its end or the buffer's."""
        stop = _STRING_TAIL.match(buffer, position).end()  # type: ignore[union-attr]  # it matches the empty string
        ended = stop < len(buffer) and buffer[stop] == _QUOTE
        if ended:
            stop += 1
        else:
            self._carry = buffer[stop:]  # a backslash: what it escapes comes with the next chunk
        self._in_string = not ended
        self._add_to_string(self._consumed + position, buffer[position:stop], ended=ended)
        return stop + len(self._carry)

    def _add_to_string(self, offset: int, part: bytes, *, ended: bool) -> None:
        """Add to a string. What is nowhere kept, or already too long, is only counted."""
        if self._mode is _Mode.UNIT:
            self._add(offset, part)
        elif self._mode is _Mode.TEXT:
            if self._token is None:
                self._size += len(part)
            else:
                self._token += part
                if len(self._token) > self._limit:
                    # Whether or not its end is in this buffer: the outcome must not depend on the cut.
                    # A piece of its own, so that it is known which root is so long.
                    self._finish(PieceKind.TEXT)
                    self._key = None
                    self._add(self._token_offset, b'""', size=len(self._token))
                    self._token = None
                elif ended:
                    self._key = bytes(self._token)
                    self._add(self._token_offset, self._key)
            if ended:
                if self._key is None:
                    self._finish(PieceKind.TEXT)
                self._token = None
                self._significant = _QUOTE

    def _take_run(self, buffer: bytes, position: int) -> int:
        """Take white space, commas, colons, numbers and literals up to the next quote or bracket."""
        stop = _RUN.match(buffer, position).end()  # type: ignore[union-attr]  # it has one byte at least
        if self._in_atom:
            rest = _REST.match(buffer, position).end()  # type: ignore[union-attr]  # it matches nothing too
            self._add_to_atom(self._consumed + position, buffer[position:rest])
            if rest == len(buffer):
                return rest
            self._end_atom()
            position = rest
        tail = b""
        if stop == len(buffer):
            # The last number or literal may go on in the next chunk.
            stop = max(position, *(buffer.rfind(separator, position) + 1 for separator in _SEPARATORS))
            tail = buffer[stop:]
        self._add_run(self._consumed + position, buffer[position:stop])
        if self._mode is _Mode.UNIT and tail in _CONSTANT_BEGINNINGS:
            self._carry = tail
        elif tail:
            self._in_atom = True
            if self._mode is _Mode.TEXT:
                self._significant = 0
                self._token, self._token_offset = bytearray(), self._consumed + stop
            self._add_to_atom(self._consumed + stop, tail)
        return stop + len(tail)

    def _add_to_atom(self, offset: int, part: bytes) -> None:
        if self._token is None:
            self._add(offset, part)
        else:
            self._token += part
            self._check_atom(self._token_offset, len(self._token))

    def _end_atom(self) -> None:
        """Take the number or literal at hand as whole."""
        self._in_atom = False
        if self._token is not None:
            atom, self._token = bytes(self._token), None
            self._add_run(self._token_offset, atom)

    def _add_run(self, offset: int, run: bytes) -> None:
        """Add whole atoms and what stands between them."""
        if self._mode is _Mode.TEXT:
            if len(run) > self._limit:
                self._check_atoms(offset, run)
            significant = run.strip(SPACE)
            if significant:
                # A colon counts where it follows a string, so that the last string is the key of what comes.
                stray = significant[-1] == _COLON and (len(significant) > 1 or self._significant != _QUOTE)
                self._significant = 0 if stray else significant[-1]
        done = 0
        if b"N" in run or b"I" in run:
            for found in _NOT_A_NUMBER.finditer(run):
                self._add(offset + done, run[done : found.start()])
                done = found.end()
                self._add(offset + found.start(), null_for(done - found.start()))
        self._add(offset + done, run[done:])

    def _open(self, byte: int, position: int) -> None:
        level = self._depth + 1
        offset = self._consumed + position
        if level > MAX_DEPTH:
            raise too_deep(offset)
        if self._mode is _Mode.UNIT:
            self._add(offset, bytes((byte,)))
            if level >= self._layout.unit_level + self._layout.kept_levels:
                self._start_skipping(byte)
                return
        else:
            named = self._significant == _COLON and self._containers[-1:] == b"{"
            self._significant = byte
            if level == 1:
                self._root_is_plain, self._root_is_record = byte == _CURLY[0], False
            elif level == 2:
                key = self._key if named else None
                self._layout = self._members.get(_unescaped(key), self._default) if key else self._default
            emptied = self._root_is_record or (level >= self._layout.unit_level and byte != _CURLY[0])
            if level > 1 and not emptied:
                self._root_is_plain = False
            if emptied:
                self._add(offset, bytes((byte,)))
                self._start_skipping(byte)
                return
            if level < self._layout.unit_level:
                self._containers.append(byte)
                self._add(offset, bytes((byte,)))
            else:
                # Where its name alone is too long, what follows only counts.
                self._start_unit(offset, self._limit if named and self._key is None else 0)
        self._depth = level

    def _close(self, byte: int, position: int) -> None:
        if self._depth == 0:
            raise never_opened(self._consumed + position, byte)
        self._depth -= 1
        self._add(self._consumed + position, bytes((byte,)))
        if self._mode is _Mode.TEXT:
            self._containers.pop()
            self._significant = byte
        elif self._depth < self._layout.unit_level:
            self._finish(PieceKind.UNIT)
            self._mode = _Mode.TEXT
            self._significant = byte

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
        if self._mode is _Mode.TEXT:
            self._significant = byte
        self._add(self._consumed + position, bytes((byte,)))

    # ---- pieces

    def _add(self, offset: int, data: bytes, *, size: int | None = None) -> None:
        """Add bytes to the piece at hand; `size` is how many they were where some have been left out."""
        if not data:
            return
        self._size += len(data) if size is None else size
        if self._offset is None:
            self._offset = offset
        elif self._mode is _Mode.UNIT and self._size > self._limit:
            self._data.clear()
            del self._seams[:]
            return
        elif offset != self._next:
            self._seams.extend((len(self._data), offset))
        self._data += data
        self._next = offset + len(data)

    def _start_unit(self, offset: int, size: int) -> None:
        self._finish(PieceKind.TEXT)
        self._mode = _Mode.UNIT
        self._offset = self._next = offset
        self._size = size
        self._add(offset, b"{")

    def _finish(self, kind: PieceKind) -> None:
        if self._size:
            offset = self._consumed if self._offset is None else self._offset
            self._pieces.append(Piece(kind, offset, self._size, bytes(self._data), self._seams or NO_SEAMS))
        self._offset = None
        self._size = 0
        self._data.clear()
        if self._seams:
            self._seams = array("Q")

    def _take_pieces(self) -> list[Piece]:
        """What is complete: text always is."""
        if self.open_unit is None:
            self._finish(PieceKind.TEXT)
        pieces, self._pieces = self._pieces, []
        return pieces

    # ---- refusals

    def _refuse(self, error: RollingError) -> None:
        """End with this error, after those that the decoder may find in what came before it.

        That includes the beginning of a unit or a string that is not whole: none may stand there at all, perhaps.
        """
        unit = self.open_unit
        if unit is None:
            self._finish(PieceKind.TEXT)
        if unit is not None:
            self._pieces.append(Piece(PieceKind.BEGUN, unit, 1, b"{", NO_SEAMS))
        elif self._in_string and self._token is not None:
            self._pieces.append(Piece(PieceKind.BEGUN, self._token_offset, 1, b'""', NO_SEAMS))
        self._refusal = error

    def _check_atoms(self, offset: int, run: bytes) -> None:
        for found in _ATOM.finditer(run):
            if found.end() - found.start() > self._limit:
                self._add(offset, run[: found.start()])
                self._check_atom(offset + found.start(), found.end() - found.start())

    def _check_atom(self, offset: int, size: int) -> None:
        if size > self._limit:
            raise malformed(self._locate(offset), f"a number or literal of more than {self._limit:,} bytes")
