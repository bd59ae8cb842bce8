"""Structural pruning: JSON bytes in, the few relevant bytes out, before anything is parsed.

95 % of a rolling file are curves and debug data, nested deeper than a record's own fields. The pruner follows strings
and brackets only. It cuts the stream into **fragments**:

- a **unit** is one object at the level of records (or bots), complete, with every container below its kept levels
  emptied: `{"curve": [1, 2], "meta": {"a": 1}}` becomes `{"curve": [], "meta": {}}`;
- **text** is everything around the units: the root's brackets, keys, commas and plain values, in whole tokens.

So the decoder gets a small, ordinary JSON text, and a unit can be decoded alone. A container is emptied instead of
replaced by `null`, which keeps its type (a list in place of a number is still a list) and never lengthens the text.

Guarantees: memory is bounded by `max_unit_bytes` for any input; discarded text is checked only for closed strings,
balanced brackets of each kind and the depth limit; the fragments that contain a given byte do not depend on
where the input was cut; `NaN` and `Infinity` outside strings are `null` in every fragment.

Errors: `SourceMalformed` with the byte offset in the JSON; `SourceTorn` if the JSON ends early.
"""

from __future__ import annotations

import json
import re
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from optimizer.errors import RollingError, SourceMalformed, SourceTorn
from optimizer.models.field_map import MAX_NAME_CHARACTERS
from optimizer.scan.discarded import DiscardedContainer
from optimizer.scan.fragment import (
    MAX_DEPTH,
    Fragment,
    FragmentBuilder,
    FragmentKind,
    malformed,
    never_opened,
    null_for,
    too_deep,
    torn,
)
from optimizer.scan.layout import DEFAULT_NAMES, Layout, Objects, RecordNames
from optimizer.scan.patterns import FLAT, GAP, SPACE, STRING, compiled

__all__ = ["Pruner"]

_FLAT = compiled(FLAT)
_STRING_TOKEN = compiled(STRING)
_LAST_STRING = compiled(rb"(?:[^\"]*+(" + STRING + rb"))*+")
_STRING_TAIL = compiled(rb'[^"\\]*+(?:\\.[^"\\]*+)*+')
_FLAT_TOKENS = re.compile(rb'[^"{}\[\]]++')
# Atoms are numbers and literals, valid or not: any bytes between white space, commas, colons, quotes and brackets.
_SEPARATORS = (b" ", b"\t", b"\n", b"\r", b",", b":")
_ATOM = re.compile(rb"[^ \t\n\r,:]++")
_REST = re.compile(rb"[^ \t\n\r,:\"{}\[\]]*+")  # of an atom
_CONSTANTS = (b"NaN", b"Infinity", b"-Infinity")
_CONSTANT_BEGINNINGS = frozenset(constant[:size] for constant in _CONSTANTS for size in range(1, len(constant) + 1))
_NOT_A_NUMBER = re.compile(rb"(?<![^ \t\n\r,:])(?:-?Infinity|NaN)(?![^ \t\n\r,:])")

_QUOTE: Final = b'"'[0]
_COLON, _COMMA = b":,"
_BEFORE_ITEMS: Final = b",[{"  # of a container
_OPENING: Final = b"{["
_CURLY: Final = b"{}"

# The longest string inside units that is compared with names: each character an escape, and two quotes.
MAX_KEY_BYTES: Final = 6 * MAX_NAME_CHARACTERS + 2
# An object that is kept in a root which is a record: it becomes a unit, which the decoder puts back into the record.
_IN_RECORD: Final = Layout(unit_level=2, kept_levels=1)


def _unescaped(key: bytes) -> bytes:
    """Return a key without needless escapes; an invalid string stays as it is, and the decoder refuses it."""
    if b"\\" not in key:
        return key
    try:
        return json.dumps(json.loads(key), ensure_ascii=False).encode()
    except ValueError:
        return key


class _Kept(NamedTuple):
    """Which objects inside a container are kept: if the unit is a record, and if the root is one."""

    in_unit: Objects | None
    in_root: Objects | None

    @property
    def is_kept(self) -> bool:
        """Whether the container is an object that is kept."""
        return self.in_unit is not None or self.in_root is not None

    def inside(self, name: str) -> _Kept:
        """Return what is kept inside an object of this name."""
        in_unit, in_root = (None if objects is None else objects.get(name) for objects in self)
        return _Kept(in_unit, in_root)


_NOTHING_KEPT: Final = _Kept(None, None)


def _plain_items(names: Iterable[bytes]) -> re.Pattern[bytes]:
    """Return a pattern for plain values and empty arrays, each with its comma; in objects, under other names."""
    key = rb"(?!" + b"|".join(map(re.escape, names)) + rb')"[^"\\]*+"' + GAP + rb":" + GAP
    value = rb"(?:" + STRING + rb"|[^ \t\n\r,:\"{}\[\]NI]++|\[\])"
    return compiled(rb"(?:" + GAP + rb"(?:" + key + rb")?+" + value + GAP + rb",)++")


class Pruner:
    """Cut a stream of JSON texts into fragments; feed it bytes in any chunking, then close it.

    Args:
        default: The level of units in an array, and in members of a root object that `members` does not list.
        members: The level of units in named members of a root object; a section that may only be an object (bots) is
            still followed if it is an array, and its elements are units as well.
        max_unit_bytes: The longest unit, and the longest string or number outside units, that is kept.
        names: The names in a record that have a meaning.
        locate: Returns the offset in the input of a byte that was fed, for errors.
    """

    def __init__(
        self,
        *,
        default: Layout,
        members: Mapping[bytes, Layout],
        max_unit_bytes: int,
        names: RecordNames = DEFAULT_NAMES,
        locate: Callable[[int], int] = int,
    ) -> None:
        self._default = default
        self._members = members
        self._limit = max_unit_bytes
        self._locate = locate
        self._record_key = f'"{names.key}"'.encode()
        self._plain_items = _plain_items((self._record_key, *members))
        self._builder = FragmentBuilder(max_unit_bytes)
        self._add = self._builder.add
        self._discarded = DiscardedContainer()
        self._consumed = 0  # bytes of JSON before the current buffer
        self._begun = False  # past the position of a byte order mark
        self._carry = b""  # a few bytes that can only be interpreted together with the next ones
        self._objects = names.objects
        self._kept: list[_Kept] = []  # of each open container, root first; empty if no such objects are named
        self._containers = bytearray()  # opening brackets of the text's containers, root first: at most two
        self._depth = 0  # without the discarded container
        self._layout = default
        # Last string; None if it was too long to keep. In units it is tracked only where keys matter.
        self._key: bytes | None = b""
        self._significant = 0  # last byte of the text that is not white space: see `_add_flat`
        self._root_is_plain = False  # the root object has had no container except arrays that were emptied
        self._root_is_record = False
        self._in_string = False
        self._in_atom = False  # inside a number or literal
        self._token: bytearray | None = None  # of the text: the current string or atom, if chunks cut it
        self._token_offset = 0
        self._tokens_until = 0  # position in the buffer before which a unit is processed token by token
        self._error: RollingError | None = None

    def feed(self, chunk: bytes | memoryview) -> list[Fragment]:
        """Process the next bytes; return the fragments that they complete.

        Raises:
            SourceMalformed: Here or at the next call: fragments before the error come first, since the decoder may find
                an earlier one in them. So the first error is raised, wherever the input was cut.
        """
        if self._error is not None:
            raise self._error
        buffer = self._carry + chunk if self._carry else bytes(chunk)
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
                elif self._discarded.depth:
                    position = self._skip(buffer, position)
                else:
                    position = self._keep(buffer, position)
        except SourceMalformed as error:
            self._end_with(error)
        self._consumed += end - len(self._carry)
        return self._builder.completed(self._consumed)

    def close(self) -> Iterator[Fragment]:
        """End the input: yield the last fragments.

        Raises:
            SourceMalformed: An error in the bytes fed that has not been raised yet.
            SourceTorn: A string or a container is still open.
        """
        size = self._consumed + len(self._carry)
        in_string, depth = self._in_string, self._depth + self._discarded.depth
        yield from self.end(torn(size, in_string=in_string, depth=depth) if in_string or depth else None)

    def end(self, error: RollingError | None) -> Iterator[Fragment]:
        """End the input, with this error if there is one: yield the last fragments, then raise it.

        Raises:
            SourceMalformed: An error in the bytes fed that has not been raised yet.
        """
        if self._error is None:
            if not isinstance(error, SourceTorn):  # an early end may have cut a number
                self._end_atom()
                self._add_flat(self._consumed, self._carry)
            if error is not None and self._error is None:
                self._end_with(error)
            yield from self._builder.completed(self._consumed)
        if self._error is not None:
            raise self._error

    # ---- for the native pruner, which feeds the kernel's output, except batches

    @property
    def between_tokens(self) -> bool:
        """Whether everything fed has been returned, and the position is outside units and tokens."""
        in_container = self._builder.in_unit or self._discarded.depth
        return not (in_container or self._carry or self._in_string or self._in_atom or self._error)

    @property
    def open_unit(self) -> int | None:
        """The offset of the current unit."""
        return self._builder.open_unit

    @property
    def kept_since(self) -> int:
        """The first byte fed that may still be returned, except the beginning of a unit that is already too long."""
        if self._token is not None:
            return self._token_offset
        unit = self.open_unit
        return self._consumed if unit is None or self._builder.size > self._limit else unit

    def pass_over(self, size: int) -> None:
        """Count bytes as read: whole units and the text between them."""
        self._consumed += size
        self._begun = True
        self._root_is_plain = False
        self._significant = _CURLY[1]

    # ---- kept levels

    def _keep(self, buffer: bytes, position: int) -> int:
        """Process one token at a kept level, or several; return the position of the next."""
        stop = position
        if not self._builder.in_unit:
            if self._significant in _BEFORE_ITEMS:
                stop = self._take_items(buffer, position)
        elif position >= self._tokens_until:
            stop = self._take_flat_part(buffer, position)
        if stop > position:
            return stop
        byte = buffer[position]
        if byte not in b'"{}[]':
            return self._take_flat(buffer, position)
        self._end_atom()
        if byte == _QUOTE:
            return self._take_string(buffer, position)
        if byte in _OPENING:
            self._open(byte, position)
        else:
            self._close(byte, position)
        return position + 1

    def _take_items(self, buffer: bytes, position: int) -> int:
        """Process several plain members or elements that have no meaning at once, each with its comma."""
        if not self._depth or self._depth + 1 < (self._default if self._depth == 1 else self._layout).unit_level:
            return position
        items = self._plain_items.match(buffer, position, position + self._limit)
        if items is None:
            return position
        self._add(self._consumed + position, items.group())
        self._significant = _COMMA
        return items.end()

    def _take_flat_part(self, buffer: bytes, position: int) -> int:
        """Process a unit up to the next bracket at once, if there is no constant in between.

        Files of small records are scanned 1.5 times as fast with this.
        """
        stop = _FLAT.match(buffer, position).end()  # type: ignore[union-attr]  # it matches nothing too
        part = buffer[position:stop]
        if self._in_atom or stop == len(buffer) or b"NaN" in part or b"Infinity" in part:
            self._tokens_until = stop  # so that the constant is not searched for again at each token
            return position
        self._add(self._consumed + position, part)
        if self._keys_matter:
            self._note_key(part)
        return stop

    @property
    def _keys_matter(self) -> bool:
        """Whether the innermost container of a unit has objects that may be kept."""
        return bool(self._kept) and any(self._kept[-1])

    def _note_key(self, part: bytes) -> None:
        """Store the last string of whole tokens, and whether only a colon follows it."""
        match = _LAST_STRING.match(part)
        if match[1] is not None:  # type: ignore[index]  # it matches nothing too
            self._key, self._significant = match[1], _QUOTE  # type: ignore[index]
        self._note_flat(part[match.end() :])  # type: ignore[union-attr]

    def _note_flat(self, flat: bytes) -> None:
        """Note the last byte that is not white space.

        A colon counts only after a string, so that the last string is the key of the next value.
        """
        significant = flat.strip(SPACE)
        if significant:
            stray = significant[-1] == _COLON and (len(significant) > 1 or self._significant != _QUOTE)
            self._significant = 0 if stray else significant[-1]

    def _take_string(self, buffer: bytes, position: int) -> int:
        if not self._builder.in_unit:
            if self._significant == _COLON and self._root_is_plain and self._depth == 1:
                self._root_is_record |= self._key is not None and _unescaped(self._key) == self._record_key
            self._token, self._token_offset = bytearray(), self._consumed + position
        elif self._keys_matter:
            self._key = b""
        match = _STRING_TOKEN.match(buffer, position)
        if match:
            self._add_to_string(self._consumed + position, match.group(), ended=True)
            return match.end()
        self._in_string = True
        self._add_to_string(self._consumed + position, buffer[position : position + 1], ended=False)
        return position + 1

    def _take_string_on(self, buffer: bytes, position: int) -> int:
        """Process more of a string that is cut, up to its end or the end of the buffer."""
        stop = _STRING_TAIL.match(buffer, position).end()  # type: ignore[union-attr]  # it matches the empty string
        ended = stop < len(buffer) and buffer[stop] == _QUOTE
        if ended:
            stop += 1
        else:
            self._carry = buffer[stop:]  # a backslash: the byte that it escapes comes with the next chunk
        self._in_string = not ended
        self._add_to_string(self._consumed + position, buffer[position:stop], ended=ended)
        return stop + len(self._carry)

    def _add_to_string(self, offset: int, part: bytes, *, ended: bool) -> None:
        """Add to a string. One that is discarded, or already too long, is only counted."""
        if self._discarded.depth:
            return
        if self._builder.in_unit:
            self._add(offset, part)
            if self._keys_matter:
                # A longer string is no name, and the rest of the unit has its own limit.
                key = None if self._key is None else self._key + part
                self._key = key if key is not None and len(key) <= MAX_KEY_BYTES else None
                self._significant = _QUOTE
            return
        if self._token is None:
            self._builder.size += len(part)
        else:
            self._token += part
            if len(self._token) > self._limit:
                # Whether or not its end is in this buffer: the outcome must not depend on the cut.
                # It becomes a separate fragment, which shows which root is too long.
                self._builder.finish(FragmentKind.TEXT, self._consumed)
                self._key = None
                self._add(self._token_offset, b'""', size=len(self._token))
                self._token = None
            elif ended:
                self._key = bytes(self._token)
                self._add(self._token_offset, self._key)
        if ended:
            if self._key is None:
                self._builder.finish(FragmentKind.TEXT, self._consumed)
            self._token = None
            self._significant = _QUOTE

    def _take_flat(self, buffer: bytes, position: int) -> int:
        """Process white space, commas, colons, numbers and literals up to the next quote or bracket."""
        stop = _FLAT_TOKENS.match(buffer, position).end()  # type: ignore[union-attr]  # it has one byte at least
        if self._in_atom:
            rest = _REST.match(buffer, position).end()  # type: ignore[union-attr]  # it matches nothing too
            self._add_to_atom(self._consumed + position, buffer[position:rest])
            if rest == len(buffer):
                return rest
            self._end_atom()
            position = rest
        tail = b""
        if stop == len(buffer):
            # The last number or literal may continue in the next chunk.
            stop = max(position, *(buffer.rfind(separator, position) + 1 for separator in _SEPARATORS))
            tail = buffer[stop:]
        self._add_flat(self._consumed + position, buffer[position:stop])
        if self._builder.in_unit and tail in _CONSTANT_BEGINNINGS:
            self._carry = tail
        elif tail:
            self._in_atom = True
            if not self._builder.in_unit or self._keys_matter:
                self._significant = 0
            if not self._builder.in_unit:
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
        """End the current number or literal."""
        self._in_atom = False
        if self._token is not None:
            atom, self._token = bytes(self._token), None
            self._add_flat(self._token_offset, atom)

    def _add_flat(self, offset: int, flat: bytes) -> None:
        """Add whole atoms and the bytes between them."""
        if not self._builder.in_unit:
            if len(flat) > self._limit:
                self._check_atoms(offset, flat)
            self._note_flat(flat)
        elif self._keys_matter:
            self._note_flat(flat)
        done = 0
        if b"N" in flat or b"I" in flat:
            for match in _NOT_A_NUMBER.finditer(flat):
                self._add(offset + done, flat[done : match.start()])
                done = match.end()
                self._add(offset + match.start(), null_for(done - match.start()))
        self._add(offset + done, flat[done:])

    def _open(self, byte: int, position: int) -> None:
        level = self._depth + 1
        offset = self._consumed + position
        if level > MAX_DEPTH:
            raise too_deep(offset)
        inside = self._kept_inside(byte, level)
        if not self._builder.in_unit:
            kept = self._open_in_text(byte, offset, inside)
        else:
            is_kept = level < self._layout.unit_level + self._layout.kept_levels or inside.is_kept
            kept = inside if is_kept else None
            if is_kept:
                self._add(offset, bytes((byte,)))
        self._significant = byte
        if kept is None:
            self._add(offset, bytes((byte,)))
            self._discarded.open(byte, self._depth)
            return
        self._depth = level
        if self._objects:
            self._kept.append(kept)

    def _open_in_text(self, byte: int, offset: int, kept: _Kept) -> _Kept | None:
        """Open a container outside units, or a unit; return what is kept inside, or `None` if it will be emptied."""
        level = self._depth + 1
        named = self._significant == _COLON and self._containers[-1:] == b"{"
        if level == 1:
            self._root_is_plain, self._root_is_record = byte == _CURLY[0], False
        elif level == 2:
            key = self._key if named else None
            self._layout = self._members.get(_unescaped(key), self._default) if key else self._default
            if self._root_is_record and kept.is_kept:
                self._layout = _IN_RECORD
        if self._root_is_record and not kept.is_kept:
            return None
        if level >= self._layout.unit_level and byte != _CURLY[0]:
            return None
        if level > 1:
            self._root_is_plain = False
        if level < self._layout.unit_level:
            self._containers.append(byte)
            self._add(offset, bytes((byte,)))
            return kept
        # If its name alone is too long, the rest is only counted.
        self._builder.start_unit(offset, is_too_long=named and self._key is None, consumed=self._consumed)
        is_record = self._layout.kept_levels == self._default.kept_levels and not self._root_is_record
        return _Kept(self._objects if is_record else None, kept.in_root if level > 1 else None)

    def _kept_inside(self, byte: int, level: int) -> _Kept:
        """Return what is kept inside a container that opens with its bracket."""
        if not self._objects or byte != _CURLY[0]:
            return _NOTHING_KEPT
        if level == 1:
            return _Kept(None, self._objects)
        if self._significant != _COLON or self._key is None or not any(self._kept[-1]):
            return _NOTHING_KEPT
        return self._kept[-1].inside(_unescaped(self._key)[1:-1].decode("ascii", "replace"))

    def _close(self, byte: int, position: int) -> None:
        if self._depth == 0:
            raise never_opened(self._consumed + position, byte)
        self._depth -= 1
        if self._objects:
            self._kept.pop()
        self._add(self._consumed + position, bytes((byte,)))
        if not self._builder.in_unit:
            self._containers.pop()
        elif self._depth < self._layout.unit_level:
            self._builder.finish(FragmentKind.UNIT, self._consumed)
        self._significant = byte

    def _skip(self, buffer: bytes, position: int) -> int:
        """Skip to the end of the discarded container or of the buffer."""
        position = self._discarded.skip(buffer, position, self._consumed)
        if position == len(buffer):
            return position
        if self._discarded.depth:
            self._in_string = True
        else:
            self._significant = buffer[position]
            self._add(self._consumed + position, buffer[position : position + 1])
        return position + 1

    # ---- errors

    def _end_with(self, error: RollingError) -> None:
        """End with this error, after those that the decoder may find in the text before it.

        That includes the beginning of an incomplete unit or string, which may itself be a syntax error at that place.
        """
        unit = self.open_unit
        if unit is not None:
            self._builder.add_begun(unit, b"{")
        else:
            self._builder.finish(FragmentKind.TEXT, self._consumed)
            if self._in_string and self._token is not None:
                self._builder.add_begun(self._token_offset, b'""')
        self._error = error

    def _check_atoms(self, offset: int, flat: bytes) -> None:
        for match in _ATOM.finditer(flat):
            if match.end() - match.start() > self._limit:
                self._add(offset, flat[: match.start()])
                self._check_atom(offset + match.start(), match.end() - match.start())

    def _check_atom(self, offset: int, size: int) -> None:
        if size > self._limit:
            raise malformed(self._locate(offset), f"a number or literal of more than {self._limit:,} bytes")
