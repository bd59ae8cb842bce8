"""The thirteen positions in a rolling file where a value may be, and small valid or broken documents to put there.

As in the JSONTestSuite, these are all sequences of a few tokens and near-tokens, balanced or not, at each position.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Final

__all__ = ["FIELDS", "PLACES", "RECORD", "documents", "sequences"]

FIELDS: Final = b'"prediction":1,"confidence":0.5,"last_price":2'
RECORD: Final = b"{%s}" % FIELDS

# The text before and after each position.
PLACES: Final = {
    "whole": (b"", b""),
    "root member": (b'{"A":%s,"x":' % RECORD, b',"B":%s}' % RECORD),
    "root key": (b'{"A":%s,' % RECORD, b':1,"B":%s}' % RECORD),
    "after a member": (b'{"A":%s' % RECORD, b',"B":%s}' % RECORD),
    "element": (b'[{"symbol":"A",%s},' % FIELDS, b',{"symbol":"B",%s}]' % FIELDS),
    "section": (b'{"predictions":', b',"B":%s}' % RECORD),
    "section's member": (b'{"predictions":{"A":%s,"x":' % RECORD, b'},"B":%s}' % RECORD),
    "section's element": (b'{"symbols":[{},', b"]%s}" % b',"B":{}'),
    "bots": (b'{"bots":{"b":', b'},"B":%s}' % RECORD),
    "bot's positions": (b'{"bots":{"b":{"positions":[', b']}},"B":%s}' % RECORD),
    "kept": (b'{"A":{%s,"sentiment":' % FIELDS, b'},"B":%s}' % RECORD),
    "discarded": (b'{"A":{"x":[', b'],%s},"B":%s}' % (FIELDS, RECORD)),
    "line": (b'{"symbol":"A",%s}\n' % FIELDS, b'\n{"symbol":"B",%s}' % FIELDS),
}

TOKENS: Final = [
    *(b"{", b"}", b"[", b"]", b",", b":", b" ", b'"', b"\\", b"1", b"-", b"tru", b"null", b"NaN", b"-Infinity"),
    *(b'"a"', b'"a":', b'"symbol":"s"', b'"\\ud800"', b'"\xff"', b"{}", b"[]", b"[1]", b'{"x":[]}', b"\x00"),
]


def sequences(length: int) -> Iterator[bytes]:
    """Yield every sequence of this many tokens."""
    return map(b"".join, itertools.product(TOKENS, repeat=length))


def documents(place: str, length: int) -> Iterator[bytes]:
    """Yield, for each sequence, a document with it at this position, and the same document cut off after it."""
    before, after = PLACES[place]
    for inside in sequences(length):
        yield before + inside + after
        yield before + inside
