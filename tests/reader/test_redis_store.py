"""Reading Redis: damaged values, keys of another type, and a user of Redis who may only read."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from optimizer import Settings, SnapshotMissing, SnapshotReader
from optimizer.cache.keys import Keys
from tests.support.published_state import run_next, run_old, version_of
from tests.support.readers import READS, Open, every_read, shows
from tests.support.redis_servers import RedisServer, wait_until

pytestmark = pytest.mark.slow  # seconds of waiting for threads, Redis and event loops

DAMAGED_PAYLOADS: dict[str, bytes | None] = {
    "evicted": None,
    "no gzip": b"junk",
    "empty": b"",
    "torn": gzip.compress(b'{"predictions": []}')[:-9],
    "bad checksum": gzip.compress(b"{}")[:-8] + bytes(8),
    "no JSON": gzip.compress(b"{"),
    "another shape": gzip.compress(b"[]"),
    "no UTF-8": gzip.compress(b'{"predictions": [], "timestamp": "\xff", "count": 0}'),
}


@pytest.mark.parametrize("payload", DAMAGED_PAYLOADS.values(), ids=DAMAGED_PAYLOADS.keys())
def test_files_answer_where_a_payload_cannot_be_read(
    settings: Settings, redis_server: RedisServer, open_reader: Open, payload: bytes | None
) -> None:
    """A payload that is missing or damaged in Redis is read from the files.

    Without files it is `SnapshotMissing`, and no other error.
    """
    version = version_of(run_old(settings))
    key = Keys(settings.source).payload(version, "predictions")
    with redis_server.client as client:
        client.delete(key)
        if payload is not None:
            client.set(key, payload)

    assert open_reader(settings).predictions().origin == "files"
    with pytest.raises(SnapshotMissing):
        open_reader(settings, "redis").predictions()
    assert open_reader(settings).bots().origin == "redis"


@every_read
@pytest.mark.parametrize(
    "damage",
    [
        {"version": "newest"},
        {"version": "1"},
        {"checked_at": "yesterday"},
        {"checked_at": "2026-11-01T10:00:00"},
        {"manifest": "\xff"},
    ],
    ids=["version", "another version", "time", "time without zone", "manifest"],
)
def test_files_answer_where_the_pointer_is_damaged(
    settings: Settings,
    redis_server: RedisServer,
    open_reader: Open,
    read: Callable[[SnapshotReader], Any],
    damage: dict[str, str],
) -> None:
    """If the pointer in Redis is damaged, every read uses the files."""
    run_old(settings)
    with redis_server.client as client:
        client.hset(Keys(settings.source).current, mapping=damage)

    assert read(open_reader(settings)).origin == "files"


@every_read
@pytest.mark.parametrize("key", ["current", "all but current"])
def test_files_answer_where_keys_have_another_type(
    settings: Settings, redis_server: RedisServer, open_reader: Open, read: Callable[[SnapshotReader], Any], key: str
) -> None:
    """If the pointer has another type, as the key of another program may have, every read uses the files.

    So does every read if all other keys have another type.
    """
    version = version_of(run_old(settings))
    keys = Keys(settings.source)
    with redis_server.client as client:
        kinds = ("predictions", "bots", "portfolio", "symbols", "ranking")
        for name in [keys.current] if key == "current" else [keys.payload(version, kind) for kind in kinds]:
            client.delete(name)
            client.rpush(name, "x")

    answer = read(open_reader(settings))

    assert (answer.version, answer.origin) == (version, "files")


def test_a_reader_needs_no_more_than_to_read(settings: Settings, redis_server: RedisServer, open_reader: Open) -> None:
    """A reader needs a user of Redis who may read the keys and listen to the channel, and no more.

    Without the channel new versions are shown all the same, only later.
    """
    run_old(settings)
    url = settings.redis_url.replace("://", "://web:made-up@")
    for channels in ("&rolling:*", "resetchannels"):
        with redis_server.client as client:
            client.execute_command(
                *("ACL", "SETUSER", "web", "reset", "on", ">made-up", "%R~rolling:*", channels, "-@all", "+@read"),
                *("+@pubsub", "+ping", "+hello", "+select"),
            )
        reader = open_reader(replace(settings, redis_url=url), "redis")
        assert {read(reader).origin for read in READS.values()} == {"redis"}
        version = version_of(run_next(settings))
        wait_until(partial(shows, reader, version), limit_s=5, what="the new version")
    with redis_server.client as client:
        client.execute_command("ACL", "DELUSER", "web")
