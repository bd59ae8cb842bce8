"""Random rolling files, some of them broken: inputs that no strategy for well-formed JSON generates."""

from __future__ import annotations

import random

__all__ = ["BrokenDocuments"]

_KEYS = [
    *(b'"symbol"', b'"prediction"', b'"confidence"', b'"last_price"', b'"last"', b'"price"', b'"sentiment"'),
    *(b'"predictions"', b'"symbols"', b'"bots"', b'"_bots"', b'"_meta"', b'"A"', b'"B"', b'"x"', b'"timestamp"'),
    *(b'"\\u0073ymbol"', b'"\\u0062ots"', b'"positions"', b'"qty"', b'"last_updated"'),
    *(b'"\xff"', b'"A\\ud83d"', b'"_\xc3"', b'"\\x"'),
]
_PLAIN = [
    *(b"1", b"0.5", b"0.9", b"3", b"NaN", b"-Infinity", b"null", b"true", b'"t"', b'"}]\\""', b"-2.5e3", b"1e999"),
    *(b'"\xc3\xa9"', b'"\xff"', b'"\\ud800"', b'"\\\\"'),
]
_BAD_TEXTS = [b'"\xff"', b'"\\ud83d"', b'"\\udc00\xc3"']
_JUNK = [
    *(*_KEYS, *_PLAIN, b"{", b"}", b"[", b"]", b'"', b",", b":", b" ", b"\\", b"{}", b"[]"),
    *(b"\x1e", b"\x00", b"N", b"-", b"xNaN", b"Infinity"),
]


class BrokenDocuments:
    """A generator of files from one seed."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def file(self) -> bytes:
        """Return the next file, of any shape, intact or damaged at up to four places."""
        data = bytearray(self._sound_file())
        for _ in range(self._rng.choice([0, 0, 0, 1, 1, 2, 4])):
            place = self._rng.randrange(len(data) + 1)
            done = self._rng.random()
            if done < 0.4:
                del data[place : place + self._rng.choice([1, 1, 2, 9])]
            elif done < 0.7:
                data[place:place] = self._rng.choice(_JUNK)
            elif place < len(data):
                data[place] = self._rng.choice(b'{}[]",:\\ 0N-I\x00\xff')
        return bytes(data)

    def cuts(self, data: bytes) -> list[bytes]:
        """Return the same bytes in pieces, cut at up to four random places."""
        places = sorted(self._rng.randrange(len(data) + 1) for _ in range(self._rng.randrange(5)))
        return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]

    def _sound_file(self) -> bytes:
        kind = self._rng.random()
        bad = self._rng.choice([b"", b"", b"\xff", b"\\ud83d"])
        names = [b"S%d" % self._rng.randrange(40) for _ in range(self._rng.randrange(30))]
        names = [name + bad if self._rng.random() < 0.1 else name for name in names]
        keyed = [b'"%s": %s' % (name, self._record()) for name in names]
        listed = [self._record(name) for name in names]
        bots = b'"bots":{"b":%s}' % self._object(3)
        if kind < 0.3:
            meta = [b'"_meta":' + self._value(2)] * self._rng.randrange(2)
            return b"{%s}" % self._joined([*meta, *keyed, *[bots] * self._rng.randrange(2)])
        if kind < 0.45:
            sections = (self._joined(keyed), self._joined(listed), bots)
            return b'{"predictions":{%s},"symbols":[%s],%s}' % sections
        if kind < 0.6:
            return b"[%s]" % self._joined(listed)
        if kind < 0.8:
            return self._rng.choice([b"\n", b"", b" \r\n"]).join(listed)
        return b"\n".join(self._value(4) for _ in range(self._rng.randrange(1, 4)))

    def _record(self, symbol: bytes | None = None) -> bytes:
        rng = self._rng
        fields = [b'"prediction":1', b'"confidence":0.%d' % rng.randrange(10), b'"last_price":%d' % rng.randrange(1, 9)]
        if rng.random() < 0.1:
            fields[2] = b'"price":2'
        if rng.random() < 0.05:
            fields[rng.randrange(3)] = b'"confidence":' + self._value(1)
        for chance, field in ((0.3, b'"x":' + self._value(2)), (0.2, b'"sentiment":"b"'), (0.1, b'"target_price":NaN')):
            if rng.random() < chance:
                fields.append(field)
        if rng.random() < 0.05:
            fields.append(rng.choice(_KEYS) + b":" + rng.choice(_BAD_TEXTS))
        if symbol is not None:
            fields.insert(0 if rng.random() < 0.9 else len(fields), b'"symbol":"%s"' % symbol)
        else:
            rng.shuffle(fields)
        return b"{%s}" % self._joined(fields)

    def _value(self, depth: int) -> bytes:
        kind = self._rng.random()
        if depth and kind < 0.3:
            return self._object(depth - 1)
        if depth and kind < 0.45:
            return b"[%s]" % self._joined([self._value(depth - 1) for _ in range(self._rng.randrange(4))])
        if kind < 0.5:
            return b'"%s"' % (b"y" * self._rng.randrange(70))
        return self._rng.choice(_PLAIN)

    def _object(self, depth: int) -> bytes:
        members = [
            self._rng.choice(_KEYS) + self._rng.choice([b":", b": "]) + self._value(depth)
            for _ in range(self._rng.randrange(6))
        ]
        return b"{%s}" % self._joined(members)

    def _joined(self, parts: list[bytes]) -> bytes:
        return self._rng.choice([b",", b", ", b",\n  "]).join(parts)
