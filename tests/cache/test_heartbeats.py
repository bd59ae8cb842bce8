"""The heartbeats of a source: which processes are alive by Redis' clock, and which entries are removed."""

from __future__ import annotations

import msgspec
import pytest

from optimizer.cache.client import CacheClient
from optimizer.cache.clocks import text_of
from optimizer.cache.heartbeats import OVERDUE_PERIODS, OVERDUE_S, Heartbeat, Heartbeats, decode_processes
from optimizer.models import Process

NOW_S = 1_800_000_000.0
WORKER = Heartbeat("worker", "celery@host", 5.0, ["rolling.brain"], 1_000)
BEAT = Heartbeat("beat", "host 1", 30.0)
ONE = b'{"kind":"worker","name":"one","period_s":5}'


def entry(heartbeat: Heartbeat, ago_s: float) -> bytes:
    """Return the entry in Redis of a process that sent its last heartbeat so many seconds ago."""
    return b"%d %b" % (round(1000 * (NOW_S - ago_s)), msgspec.json.encode(heartbeat))


@pytest.mark.parametrize("heartbeat", [WORKER, BEAT], ids=lambda each: each.kind)
def test_a_process_is_overdue_after_three_of_its_periods_and_a_little(heartbeat: Heartbeat) -> None:
    """A process is overdue three periods and 2 s after its heartbeat, by Redis' clock alone, which dates the entry."""
    limit_s = OVERDUE_PERIODS * heartbeat.period_s + OVERDUE_S

    (there,) = decode_processes({b"a": entry(heartbeat, limit_s)}, NOW_S)
    (gone,) = decode_processes({b"a": entry(heartbeat, limit_s + 0.001)}, NOW_S)
    seen_at = text_of(NOW_S - limit_s)
    queues, limit = heartbeat.queues, heartbeat.memory_limit_bytes
    assert there == Process(
        heartbeat.kind, heartbeat.name, seen_at, is_alive=True, queues=queues, memory_limit_bytes=limit
    )
    assert not gone.is_alive


def test_the_last_to_tell_comes_first_and_what_cannot_be_read_is_left_out() -> None:
    """Processes are listed by heartbeat, newest first; entries that are damaged or of another release are left out."""
    entries = {
        b"old": entry(WORKER, 9),
        b"new": entry(BEAT, 1),
        b"no time": msgspec.json.encode(BEAT),
        b"no JSON": b"1800000000000 {",
        b"another kind": b'1800000000000 {"kind":"watch","name":"a","period_s":1}',
    }
    assert [each.name for each in decode_processes(entries, NOW_S)] == ["host 1", "celery@host"]


@pytest.mark.parametrize("told", [b"9" * 400, b"-5", b"0", b"", b"nan", b"\xff"])
def test_an_entry_without_a_time_is_left_out(told: bytes) -> None:
    """An entry whose time is no usable number is left out, and the other entries are still read.

    A number of 400 digits cannot be divided: one such entry would make `/status` and `/metrics` fail.
    """
    entries = {b"worker one": told + b" " + ONE, b"worker two": b"1799999999000 " + ONE}

    assert [process.is_alive for process in decode_processes(entries, NOW_S)] == [True]


@pytest.mark.parametrize(("told_ms", "is_alive"), [(1_800_000_004_000, True), (1_800_000_010_000, False)])
def test_a_heartbeat_from_the_future_is_no_sign_of_life(told_ms: int, *, is_alive: bool) -> None:
    """A process whose heartbeat is 10 s in the future does not count as alive; 4 s are tolerated.

    Otherwise, if the clock of Redis steps back by an hour, a dead process would look alive for that hour.
    """
    (process,) = decode_processes({b"worker one": b"%d " % told_ms + ONE}, NOW_S)

    assert process.is_alive is is_alive


def test_old_entries_go(cache: CacheClient) -> None:
    """A heartbeat removes entries that are over a day old, far in the future or unreadable.

    A process that leaves removes its own entry, and the key expires a day after the last heartbeat.
    """
    key, client = cache.keys.processes, cache.connection
    heartbeats = Heartbeats(cache)
    heartbeats.tell(WORKER)
    data = client.hget(key, "worker celery@host")
    assert isinstance(data, bytes)
    told_ms, _, rest = data.partition(b" ")
    client.hset(key, "worker celery@host", b"%d %b" % (int(told_ms) - 86_400_001, rest))
    client.hset(key, "worker of the year 9999", b"253402300799000 " + rest)
    client.hset(key, "damaged", b"\xff")
    heartbeats.tell(BEAT)
    assert set(client.hkeys(key)) == {b"beat host 1"}
    assert 0 < client.ttl(key) <= 86_400
    heartbeats.leave(BEAT)
    assert not client.exists(key)
