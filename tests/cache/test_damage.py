"""The next tick repairs damage in Redis: each key of the schema is damaged in every way that its type allows."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final, cast

import msgspec
import pytest
import redis

from optimizer import Report, Settings, optimize
from optimizer.cache.keys import ORIGINS, VERSION_TYPES, Keys
from tests.support.published_state import assert_redis_holds_the_files, assert_tidy, no_scan, symbols_shown
from tests.support.redis_servers import RedisServer
from tests.support.rolling_files import a_record, local, write_json

pytestmark = pytest.mark.slow

KEYS: Final = Keys("brain")
# The key schema, as patterns of names: type, and whether such a key expires. `V:` is the current version's.
SCHEMA: Final = {
    "current": ("hash", False),
    "flipped": ("hash", False),
    **{f"V:{kind}": (kind_type, False) for kind, kind_type in VERSION_TYPES.items()},
    "deltas": ("stream", False),
    "runs": ("stream", False),
    "scans": ("stream", False),
    "outcomes": ("hash", False),
    "reads:redis": ("string", False),
    "reads:files": ("string", False),
    "lock": ("string", True),
    "handed": ("hash", True),
    "output": ("string", True),
    "part:D": ("string", True),
    "parts": ("set", False),
    "tick:N": ("string", True),
}
JUNK: Final = b"\xff\xfe"
READS: Final = 30_000_000_000_000
Damage = Callable[[redis.Redis, str], object]
MAKE: Final[dict[str, Damage]] = {
    "string": lambda client, key: client.set(key, JUNK),
    "list": lambda client, key: client.rpush(key, JUNK),
    "set": lambda client, key: client.sadd(key, JUNK),
    "hash": lambda client, key: client.hset(key, JUNK, JUNK),
    "zset": lambda client, key: client.zadd(key, {JUNK: 1.0}),
    "stream": lambda client, key: client.xadd(key, {JUNK: JUNK}),
}


class Source:
    """A source of two parts, published twice in Redis, which knows the names of its keys."""

    def __init__(self, settings: Settings, server: RedisServer, *, changes: bool) -> None:
        self.settings = replace(settings, input=local(settings.input).parent / "parts" / "*.json", source="brain")
        self.server = server
        self.changes = changes
        self._tick = 1
        self._write("b.json", {"MSFT": a_record()})
        self.tick()
        with server.client as client:
            first = cast("set[bytes]", client.smembers(KEYS.parts))
            self.report = self.tick()
            [part] = first & cast("set[bytes]", client.smembers(KEYS.parts))
            self.digest = part.decode()  # of the part that does not change
            client.mset(dict.fromkeys((KEYS.reads(origin) for origin in ORIGINS), READS))

    def tick(self) -> Report:
        """Make the run of the next tick, and return its report."""
        self._tick += 1
        if self.changes or self._tick <= 3:
            self._change()
        return optimize(self.settings, tick=self._tick, progress=None if self.changes or self._tick <= 3 else no_scan)

    def name(self, row: str) -> str:
        """Return the key that a row of the schema currently stands for."""
        for word, meant in {"V:": f"{self.report.version}:", ":D": f":{self.digest}", ":N": f":{self._tick}"}.items():
            row = row.replace(word, meant)
        return f"rolling:{{brain}}:{row}"

    def check(self) -> None:
        """Check that Redis and files agree, and that each key has the type and the expiry of the schema."""
        assert_redis_holds_the_files(self.server, self.settings)
        assert_tidy(self.settings, self.server)
        assert sorted(symbols_shown(self.settings)) == ["AAPL", "GOOG", "MSFT"]
        with self.server.client as client:
            [(_, fields)] = cast("list[tuple[bytes, dict[bytes, bytes]]]", client.xrevrange(KEYS.runs, count=1))
            assert msgspec.json.decode(fields[b"report"], type=Report) == self.report
            assert client.hget(KEYS.flipped, "version") == str(self.report.version).encode()
            assert len(cast("set[bytes]", client.smembers(KEYS.parts))) == 2
            counts = cast("list[bytes | None]", client.mget([KEYS.reads(origin) for origin in ORIGINS]))
            assert all(count is None or count.isdigit() for count in counts)
            for name in cast("list[bytes]", client.keys()):
                row = re.sub(r":(tick|part):\w+$", lambda match: f":{match[1]}:{match[1][0].upper()}", name.decode())
                row = row.removeprefix("rolling:{brain}:").replace("tick:T", "tick:N").replace("part:P", "part:D")
                version = row.partition(":")[0]
                if version.isdecimal():
                    assert int(version) == self.report.version or client.ttl(name) != -1, name
                else:
                    assert (cast("bytes", client.type(name)).decode(), client.ttl(name) != -1) == SCHEMA[row], name

    def _change(self) -> None:
        self._write("a.json", {"AAPL": a_record(confidence=0.6 + self._tick % 100 / 1_000), "GOOG": a_record()})

    def _write(self, name: str, value: dict[str, Any]) -> None:
        write_json(local(self.settings.input).parent / name, value)


def damages(row: str, client: redis.Redis, key: str) -> Iterator[tuple[str, Damage]]:
    """Yield every way in which a key can be damaged, with a name for it."""
    kind, expires = SCHEMA[row]
    for other in MAKE.keys() - {kind}:
        yield f"of type {other}", lambda client, key, other=other: (client.delete(key), MAKE[other](client, key))  # type: ignore[misc]
    yield "deleted", lambda client, key: client.delete(key)
    if expires:
        yield "never expires", lambda client, key: client.persist(key) or MAKE[kind](client, key)
    else:
        yield "expires", lambda client, key: client.expire(key, 1_000)
    if kind == "string" and client.exists(key):
        yield "cut short", lambda client, key: client.set(key, cast("bytes", client.get(key))[:-1], keepttl=True)
        yield "other bytes", lambda client, key: client.setrange(key, 12, JUNK)
        yield "empty", lambda client, key: client.set(key, b"", keepttl=True)
    if kind == "hash":
        for name in cast("list[bytes]", client.hkeys(key)):
            yield f"without {name!r}", lambda client, key, name=name: client.hdel(key, name)  # type: ignore[misc]
            for junk in (JUNK, " 1", 10**30, 10**19 - 1, 10**16) if name == b"version" else (JUNK,):
                yield (
                    f"{junk!r} in {name!r}",
                    lambda client, key, name=name, junk=junk: client.hset(key, name, junk),  # type: ignore[misc]
                )
        yield "one field more", lambda client, key: client.hset(key, JUNK, JUNK)
    if kind == "set":
        yield "cut short", lambda client, key: client.spop(key)
        yield "one member more", lambda client, key: client.sadd(key, JUNK, b"", b"x")
        yield "another member", lambda client, key: (client.spop(key), client.sadd(key, JUNK))
    if kind == "zset":
        yield "cut short", lambda client, key: client.zpopmax(key)
        yield "one member more", lambda client, key: client.zadd(key, {JUNK: 0.5})
        yield "another member", lambda client, key: (client.zpopmax(key), client.zadd(key, {JUNK: 0.5}))
        yield "another score", lambda client, key: client.zadd(key, {b"MSFT": 0.1})
    if kind == "stream":
        yield "cut short", lambda client, key: client.xtrim(key, maxlen=1, approximate=False)
        yield "empty", lambda client, key: client.xtrim(key, maxlen=0, approximate=False)
        yield "no text", lambda client, key: client.xadd(key, {JUNK: JUNK}, id=f"{2**52}-0" if row != "deltas" else "*")
        yield "the last id", lambda client, key: client.xadd(key, {JUNK: JUNK}, id=f"{2**64 - 1}-{2**64 - 1}")


@pytest.mark.parametrize("changes", [False, True], ids=["unchanged", "changed"])
@pytest.mark.parametrize("row", SCHEMA)
def test_damage_heals_by_the_next_tick(
    settings: Settings, redis_server: RedisServer, caplog: pytest.LogCaptureFixture, row: str, changes: bool
) -> None:
    """The next tick repairs any damaged key, and old versions expire; a key of a wrong type is logged once."""
    source = Source(settings, redis_server, changes=changes)
    with redis_server.client as client:
        for name, damage in list(damages(row, client, source.name(row))):
            key = source.name(row)
            if row == "part:D" and not client.exists(key):  # an unchanged tick deletes it and does not need it
                optimize(source.settings, force=True)
                key = source.name(row)
            if row.startswith("reads:") and not client.exists(key):  # web processes make it again
                client.set(key, READS)
            damage(client, key)
            caplog.clear()

            source.report = source.tick()

            warnings = [record for record in caplog.records if key in record.getMessage()]
            try:
                assert source.report.status == ("success" if changes else "unchanged")
                assert source.report.cache in ("published", "republished", "current")
                source.check()
                assert len(warnings) <= 1
                if name.startswith("of type ") and not (changes and "V:" in row):  # otherwise it only has to expire
                    assert [record.levelno for record in warnings] == [logging.WARNING]
                assert "cache is down" not in caplog.text
                if not changes:
                    caplog.clear()
                    assert source.tick().cache == "current"
                    assert caplog.messages == []
            except AssertionError as error:
                raise AssertionError(f"{key}: {name}: {error}; {caplog.text}") from error
