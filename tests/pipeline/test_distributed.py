"""Runs over several workers: one lock until the publish, workers that die, and messages that are delivered twice."""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Barrier
from typing import Any, Final

import pytest
from redis import Redis

from optimizer import Settings, optimize
from optimizer.cache.keys import Keys
from optimizer.cli.dev.sample import write_sample
from optimizer.errors import CacheUnavailable, PartFailed, PublishRefused, RunTimedOut
from optimizer.models import Report
from optimizer.pipeline.assignment import dispatch_lock_ttl_s
from optimizer.pipeline.distributed import merge_parts, revoke, scan_one_part
from optimizer.pipeline.parts import Input, open_input
from optimizer.pipeline.publish import publish
from tests.support.distributed_runs import dispatched, lock_of, lose_the_lock, run_here, scan_all
from tests.support.published_state import (
    assert_redis_holds_the_files,
    assert_tidy,
    files_of,
    no_scan,
    once,
    runs_of,
    symbols_shown,
    version_of,
)
from tests.support.redis_servers import RedisServer
from tests.support.rolling_files import a_record, local, write_json


def test_a_distributed_run_keeps_its_lock_until_it_is_published(parted: Settings, redis_server: RedisServer) -> None:
    """A distributed run holds its lock until it is published, so another run meanwhile is skipped.

    At the end its lock, its assignment and its staged keys are gone from Redis, and the next run is `unchanged`.
    """
    optimize(parted)
    write_json(local(parted.input).parent / "b.json", {"TSLA": a_record(confidence=0.9)})
    assignment = dispatched(parted)
    with lock_of(redis_server, parted) as (client, key):
        assert 10_000 < client.pttl(key) <= dispatch_lock_ttl_s(parted) * 1_000
        assert client.get(key).decode() == assignment.token
    assert run_here(parted).reason == "already_running"

    report = merge_parts(parted, assignment.token, scan_all(parted, assignment))

    assert (report.status, report.cache) == ("success", "published")
    assert symbols_shown(parted) == ["TSLA", "AAPL"]
    assert_tidy(parted, redis_server)
    with redis_server.client as client:
        assert client.exists(Keys(parted.source).handed) == 0
    assert run_here(parted).status == "unchanged"


def test_redis_that_dies_while_a_single_file_is_scanned_costs_the_publish_alone(
    settings: Settings, own_redis: RedisServer
) -> None:
    """If Redis is killed while a single file is scanned, the run writes the files and lacks only the publish."""
    own_redis.start()
    away = replace(settings, redis_url=own_redis.url)
    write_json(away.input, {"TSLA": a_record()})
    report = run_here(away, "first", progress=once(own_redis.kill))
    assert (report.status, report.cache) == ("success", "down")
    assert symbols_shown(away) == ["TSLA"]


@pytest.mark.parametrize("force", [False, True])
def test_a_message_that_is_delivered_twice_publishes_once(
    parted: Settings, redis_server: RedisServer, force: bool
) -> None:
    """The second of two deliveries of a merge is skipped as superseded.

    The version that it was to replace has been replaced by the first. A scan of a part that is delivered after the
    merge is superseded too.
    """
    assignment = dispatched(parted, force=force)
    outcomes = scan_all(parted, assignment)
    first, second = (merge_parts(parted, assignment.token, outcomes) for _ in range(2))
    late = scan_one_part(parted, assignment.token, assignment.parts[0].location)
    assert (first.status, second.status, second.reason) == ("success", "skipped", "superseded")
    assert late.error == "Superseded"
    assert_tidy(parted, redis_server)


def test_parts_that_were_overtaken_in_the_files_are_not_merged(parted: Settings, redis_server: RedisServer) -> None:
    """A merge is skipped if, during an outage of Redis, another run has written newer parts to the files.

    Redis does not know of that run. The files stay as they are, and the next run publishes them to Redis without a
    scan.
    """
    assignment = dispatched(parted)
    outcomes = scan_all(parted, assignment)
    write_json(local(parted.input).parent / "b.json", {"TSLA": a_record(confidence=0.99)})
    newer = optimize(parted, use_cache=False)
    files = files_of(local(parted.output_dir))

    assert merge_parts(parted, assignment.token, outcomes).reason == "superseded"

    assert files_of(local(parted.output_dir)) == files
    report = optimize(parted, progress=no_scan)
    assert (report.cache, report.version) == ("republished", newer.version)
    assert_redis_holds_the_files(redis_server, parted)


def test_a_lost_chord_is_replaced_and_what_it_had_scanned_is_not_read_again(
    parted: Settings, redis_server: RedisServer
) -> None:
    """The run after a lost one scans only the parts that the lost run had not scanned.

    A scan and a merge of the lost run that are delivered later are superseded.
    """
    lost = dispatched(parted)
    first = scan_one_part(parted, lost.token, lost.parts[0].location)
    assert first.scanned is not None
    lose_the_lock(redis_server, parted)

    next_run = dispatched(parted)

    assert next_run.to_scan == [1]
    assert scan_one_part(parted, lost.token, lost.parts[1].location).error == "Superseded"
    second = scan_one_part(parted, next_run.token, next_run.parts[1].location)
    assert merge_parts(parted, next_run.token, [second]).status == "success"
    assert merge_parts(parted, lost.token, [first, second]).reason == "superseded"
    assert symbols_shown(parted) == ["MSFT", "AAPL"]


def test_parts_that_waited_longer_than_their_lock_go_on_if_no_other_run_has_taken_their_place(
    parted: Settings, redis_server: RedisServer
) -> None:
    """Scans and a merge whose lock has expired still succeed if no other run has begun.

    So a fleet that is too small is slow, and still makes snapshots.
    """
    assignment = dispatched(parted)
    lose_the_lock(redis_server, parted)
    outcomes = scan_all(parted, assignment)
    lose_the_lock(redis_server, parted)
    assert merge_parts(parted, assignment.token, outcomes).status == "success"


def test_scans_of_one_run_hold_its_lock_together(parted: Settings, redis_server: RedisServer) -> None:
    """Scans of one run neither release nor shorten its lock; they extend it, and take it again if it has expired.

    A scan that is delivered after the merge leaves no lock behind.
    """
    assignment = dispatched(parted)
    with lock_of(redis_server, parted) as (client, key):
        client.pexpire(key, 60_000)
        scan_one_part(parted, assignment.token, assignment.parts[0].location)
        assert client.pttl(key) > 50_000
        client.pexpire(key, 500)
        scan_one_part(parted, assignment.token, assignment.parts[1].location)
        assert client.pttl(key) > 10_000
        client.delete(key)
        outcomes = scan_all(parted, assignment)
        assert client.pttl(key) > 10_000
        assert merge_parts(parted, assignment.token, outcomes).status == "success"
        assert scan_one_part(parted, assignment.token, assignment.parts[1].location).error == "Superseded"
        assert not client.exists(key)


def test_a_part_that_is_gone_from_redis_fails_the_merge_by_name(parted: Settings, redis_server: RedisServer) -> None:
    """A merge fails and names the part whose result is gone from Redis; the next run scans that part again."""
    assignment = dispatched(parted)
    outcomes = scan_all(parted, assignment)
    with redis_server.client as client:
        client.delete(Keys(parted.source).part(assignment.parts[1].digest))
    with pytest.raises(PartFailed, match=r"b\.json: what was found in it is gone from Redis"):
        merge_parts(parted, assignment.token, outcomes)
    assert dispatched(parted).to_scan == [1]


def test_a_part_that_is_replaced_after_it_was_sent_counts_as_it_was_scanned(parted: Settings) -> None:
    """A part that is replaced after its message was sent is published as it was scanned.

    The version has the fingerprint of what was read, so the next run finds nothing to do.
    """
    assignment = dispatched(parted)
    write_json(Path(assignment.parts[0].location), {"NVDA": a_record(confidence=1.0)})
    outcomes = scan_all(parted, assignment)
    merge_parts(parted, assignment.token, outcomes)
    assert symbols_shown(parted) == ["NVDA", "MSFT"]
    assert run_here(parted).status == "unchanged"


def test_whatever_goes_wrong_with_a_part_is_its_outcome(parted: Settings, own_redis: RedisServer) -> None:
    """The scan of a part never raises, since the merge would then not be called: each error is its outcome.

    Tried are a bug, a timeout, a missing part, and a Redis that is killed during the scan.
    """
    assignment = dispatched(parted)
    location = assignment.parts[0].location

    def bug(_done: int, _total: int) -> None:
        raise ZeroDivisionError("a bug")

    def late(_done: int, _total: int) -> None:
        raise TimeoutError

    assert scan_one_part(parted, assignment.token, location, progress=bug).error == "ZeroDivisionError"
    assert scan_one_part(parted, assignment.token, location, progress=late).error == RunTimedOut.__name__
    missing = str(parted.input).replace("*", "nowhere")
    assert scan_one_part(parted, assignment.token, missing).error == "SourceMissing"
    own_redis.start()
    away = replace(parted, redis_url=own_redis.url)
    lost = scan_one_part(away, dispatched(away).token, location, progress=once(own_redis.kill))
    assert lost.error == "CacheUnavailable"
    assert location in lost.details
    assert lost.details.endswith("; the next tick scans it again")


def test_a_message_cannot_make_a_worker_read_other_files(parted: Settings, tmp_path: Path) -> None:
    """A location in a message that the input's pattern does not match is `SourceMissing`: no other file is read."""
    assignment = dispatched(parted)
    secret = write_json(tmp_path / "secret.json", {"AAPL": a_record()})
    for location in (str(secret), str(parted.input).replace("*", "../secret"), str(parted.input)[:-5]):
        outcome = scan_one_part(parted, assignment.token, location)
        assert (outcome.error, outcome.scanned) == ("SourceMissing", None)


def test_without_redis_everything_is_scanned_at_once(settings: Settings, parted: Settings) -> None:
    """Without Redis a run scans its file, or all its parts, in its own process and succeeds."""
    write_json(settings.input, {"TSLA": a_record()})
    for one in (settings, parted):
        report = run_here(replace(one, redis_url="redis://127.0.0.1:1/0"))
        assert (report.status, report.cache) == ("success", "down")


def test_a_run_in_one_process_is_skipped_during_a_distributed_one(parted: Settings) -> None:
    """A run in one process is skipped during a distributed run: the command line and the fleet have one lock.

    The distributed run then publishes a newer version.
    """
    before = optimize(parted)
    write_json(local(parted.input).parent / "a.json", {"AAPL": a_record(confidence=0.6)})
    assignment = dispatched(parted, force=True)
    assert optimize(parted).reason == "already_running"
    assert version_of(merge_parts(parted, assignment.token, scan_all(parted, assignment))) > version_of(before)


@pytest.mark.parametrize("force", [False, True])
def test_a_message_that_is_delivered_twice_at_once_publishes_once(
    settings: Settings, redis_server: RedisServer, force: bool
) -> None:
    """Of two workers that scan for the same message at once, one publishes; the other is refused the lock and skipped.

    Files and Redis agree afterwards.
    """
    for number in range(5):
        write_json(settings.input, {"TSLA": a_record(confidence=0.5 + number / 10)})
        scan = partial(run_here, settings, "first", force=force, progress=lambda *_: time.sleep(0.05))
        assert sorted(report.status for report in _twice(scan)) == ["skipped", "success"]
        assert_redis_holds_the_files(redis_server, settings)
        assert_tidy(settings, redis_server)


@pytest.mark.parametrize("force", [False, True])
def test_a_merge_that_is_delivered_twice_at_once_publishes_once(
    parted: Settings, redis_server: RedisServer, force: bool
) -> None:
    """Of two merges of one run at once, only one takes over the run's lock and publishes; the other is skipped."""
    for number in range(5):
        write_json(local(parted.input).parent / "b.json", {"TSLA": a_record(confidence=0.5 + number / 10)})
        assignment = dispatched(parted, force=force)
        merge = partial(merge_parts, parted, assignment.token, scan_all(parted, assignment))
        assert sorted(report.status for report in _twice(merge)) == ["skipped", "success"]
        assert_redis_holds_the_files(redis_server, parted)
        assert_tidy(parted, redis_server)


def _twice(work: Callable[[], Report]) -> list[Report]:
    """Do the work in two threads that start at the same time; return both reports."""
    both = Barrier(2)

    def together() -> Report:
        both.wait()
        return work()

    with ThreadPoolExecutor(2) as pool:
        return [future.result() for future in [pool.submit(together), pool.submit(together)]]


def test_a_lock_that_is_about_to_expire_is_extended_by_the_worker_that_goes_on(
    parted: Settings, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scan and a merge extend the lock of their run when it has only 0.3 s left.

    A message may have waited for nearly as long as the lock lives.
    """
    assignment = dispatched(parted)
    with lock_of(redis_server, parted) as (client, key):
        outcomes = []
        for part in assignment.parts:
            client.pexpire(key, 300)
            outcomes.append(scan_one_part(parted, assignment.token, part.location, progress=lambda *_: time.sleep(0.5)))
        assert all(outcome.scanned for outcome in outcomes)
        assert run_here(parted).reason == "already_running"
        left_ms: list[int] = []

        def publish_late(*arguments: Any, **options: Any) -> Report:
            left_ms.append(client.pttl(key))
            return publish(*arguments, **options)

        monkeypatch.setattr("optimizer.pipeline.distributed.publish", publish_late)
        client.pexpire(key, 300)
        assert merge_parts(parted, assignment.token, outcomes).status == "success"
        assert left_ms[0] > 5_000


def test_a_merge_of_other_parts_than_were_sent_publishes_nothing(parted: Settings, redis_server: RedisServer) -> None:
    """A merge fails if its outcomes are not the parts that were sent, each once and in their order.

    One part twice and another not at all is not the whole input. Files and Redis keep the old version.
    """
    optimize(parted)
    files = files_of(local(parted.output_dir))
    assignment = dispatched(parted, force=True)
    first, second = (scan_one_part(parted, assignment.token, part.location) for part in assignment.parts)
    for outcomes in ([first, first], [second, first], [first]):
        with pytest.raises(PartFailed, match="other parts"):
            merge_parts(parted, assignment.token, outcomes)
        assert files_of(local(parted.output_dir)) == files
        assert_redis_holds_the_files(redis_server, parted)
        assignment = dispatched(parted, force=True)


def test_without_redis_no_worker_goes_on(parted: Settings) -> None:
    """Without Redis a scan of a part and a merge fail with `CacheUnavailable`, not as superseded.

    It is not known whether their run is still the current one.
    """
    away = replace(parted, redis_url="redis://127.0.0.1:1/0")
    location = str(parted.input).replace("*", "a")
    assert scan_one_part(away, "token", location).error == "CacheUnavailable"
    with pytest.raises(CacheUnavailable):
        merge_parts(away, "token", [])


def test_results_of_parts_do_not_pile_up_while_runs_fail(parted: Settings, redis_server: RedisServer) -> None:
    """While one part is broken, only the newest results of the others are stored."""
    broken, other = (Path(str(parted.input).replace("*", name)) for name in "ab")
    broken.write_text("{")
    for number in range(5):
        write_json(other, {"MSFT": a_record(confidence=number / 10)})
        assignment = dispatched(parted)
        with pytest.raises(PartFailed, match="1 of 2 parts failed"):
            merge_parts(parted, assignment.token, scan_all(parted, assignment))
    with redis_server.client as client:
        assert len(client.keys(f"{Keys(parted.source).part('')}*")) <= 2


@pytest.mark.parametrize("pattern", ["**/*.json", "**/a.json", "../parts/*.json", "[ab].json", "a.json*"])
def test_every_file_that_the_pattern_names_may_be_scanned(parted: Settings, pattern: str) -> None:
    """Each part that a pattern lists may be scanned: messages are checked by the same rules as the listing."""
    directory = Path(str(parted.input)).parent
    settings = replace(parted, input=directory / pattern)
    assignment = dispatched(settings)
    assert assignment.parts
    for part in assignment.parts:
        assert scan_one_part(settings, assignment.token, part.location).scanned is not None


@pytest.mark.parametrize(
    "damage",
    [b"junk", b"", gzip.compress(b'{"x": ' + b"[" * 100_000), None],
    ids=["no gzip", "empty", "nested", "another type"],
)
def test_a_part_that_is_damaged_in_redis_is_scanned_again(
    parted: Settings, redis_server: RedisServer, damage: bytes | None
) -> None:
    """A damaged stored result fails at most one merge; the next run scans that part again and publishes."""
    first = dispatched(parted)
    merge_parts(parted, first.token, scan_all(parted, first))
    key = Keys(parted.source).part(first.parts[0].digest)
    write_json(local(parted.input).parent / "b.json", {"MSFT": a_record(confidence=0.8)})
    with redis_server.client as client:
        client.delete(key)
        client.rpush(key, b"x") if damage is None else client.set(key, damage, ex=100)

    def tick() -> Report:
        assignment = dispatched(parted)
        return merge_parts(parted, assignment.token, scan_all(parted, assignment))

    if damage is not None:
        with pytest.raises(PartFailed, match="damaged"):
            tick()
    assert tick().cache == "published"


# ---- runs that are revoked by the id that their sender knows


def assert_the_next_run_begins(server: RedisServer, settings: Settings, parted: Settings | None = None) -> None:
    """Check that the next run begins at once, and that no run was reported as lost."""
    if parted is not None:
        assert dispatched(parted, "next", force=True).run_id == "next"
    else:
        assert run_here(settings, "next", force=True).status == "success"
    for one in (settings, parted or settings):
        assert not [report for report in runs_of(server, one.source) if report.error == "RunLost"]


def test_a_run_that_was_revoked_before_it_began_does_not_begin(settings: Settings, redis_server: RedisServer) -> None:
    """A run that was revoked before it began is refused when it begins; the next run is not.

    Its message may have been in a queue, and the worker that received the order may be gone.
    """
    write_json(settings.input, {"TSLA": a_record()})
    revoke(settings, "first")
    with pytest.raises(PublishRefused, match="was revoked before it began"):
        run_here(settings, "first")
    assert_the_next_run_begins(redis_server, settings)


DAMAGE: Final[dict[str, Callable[[Redis, str], object]]] = {
    "string": lambda client, key: client.set(key, b"\xff"),
    "list": lambda client, key: client.rpush(key, b"\xff"),
    "hash": lambda client, key: client.hset(key, "token", b"\xff"),
    "stream": lambda client, key: client.xadd(key, {"token": b"\xff"}),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("damaged", ["lock", "handed"])
def test_an_order_to_revoke_is_not_lost_where_keys_are_damaged(
    settings: Settings, redis_server: RedisServer, damaged: str, kind: str
) -> None:
    """A run is revoked although the key of the lock or of the assignment is damaged.

    No run has repaired the keys before the order; if the order failed, the run would begin.
    """
    write_json(settings.input, {"TSLA": a_record()})
    with redis_server.client as client:
        DAMAGE[kind](client, getattr(Keys(settings.source), damaged))
    revoke(settings, "first")
    with pytest.raises(PublishRefused, match="was revoked before it began"):
        run_here(settings, "first")
    assert_the_next_run_begins(redis_server, settings)


def test_an_order_to_revoke_that_never_expires_is_damage(settings: Settings, redis_server: RedisServer) -> None:
    """An order to revoke that has no expiry is damage and is ignored; it would refuse runs with this id for ever."""
    write_json(settings.input, {"TSLA": a_record()})
    revoke(settings, "first")
    with redis_server.client as client:
        [key] = client.keys("*:revoked:*")
        client.persist(key)
    assert run_here(settings, "first").status == "success"


def test_a_run_without_an_id_cannot_be_revoked(settings: Settings) -> None:
    """An order to revoke the empty id does not stop a run of the command line, which has no id."""
    write_json(settings.input, {"TSLA": a_record()})
    revoke(settings, "")
    assert optimize(settings, progress=once(lambda: revoke(settings, ""))).status == "success"


def test_a_run_that_is_revoked_before_it_sends_its_parts_sends_nothing(
    settings: Settings, parted: Settings, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is revoked while it opens its input sends no parts, and does not scan a single file either.

    Its lock is gone when it stores its assignment, so it is refused and leaves neither of the two in Redis.
    """
    write_json(settings.input, {"TSLA": a_record()})

    def open_revoked(one: Settings) -> Input:
        revoke(one, "first")
        return open_input(one)

    for one in (settings, parted):
        with monkeypatch.context() as patched:
            patched.setattr("optimizer.pipeline.run.open_input", open_revoked)
            with pytest.raises(PublishRefused, match="revoked"):
                run_here(one, "first", progress=no_scan)
        with redis_server.client as client:
            assert not client.exists(Keys(one.source).lock, Keys(one.source).handed)
    assert_the_next_run_begins(redis_server, settings)
    assert_the_next_run_begins(redis_server, parted, parted)


def test_a_run_that_was_revoked_while_its_messages_waited_does_not_go_on(
    parted: Settings, redis_server: RedisServer
) -> None:
    """Scans and the merge of a run that was revoked while their messages waited are superseded.

    An order for another run of the source changes nothing.
    """
    assignment = dispatched(parted, "first")
    revoke(parted, "other")
    with redis_server.client as client:
        assert client.get(Keys(parted.source).lock) == assignment.token.encode()
    revoke(parted, "first")
    assert scan_one_part(parted, assignment.token, assignment.parts[0].location).error == "Superseded"
    assert merge_parts(parted, assignment.token, []).reason == "superseded"
    assert_the_next_run_begins(redis_server, parted, parted)


def test_a_scan_that_is_revoked_publishes_nothing(
    settings: Settings, parted: Settings, redis_server: RedisServer
) -> None:
    """A run that is revoked during its scan publishes nothing and leaves no lock, with a single file and with parts.

    It notices the order before it publishes at the latest.
    """
    write_json(settings.input, {"TSLA": a_record()})
    with pytest.raises(PublishRefused, match="revoked"):
        run_here(settings, "first", progress=once(lambda: revoke(settings, "first")))
    assert not local(settings.output_dir).joinpath("current").exists()
    with redis_server.client as client:
        assert not client.exists(Keys(settings.source).lock, Keys(settings.source).handed)
    assert_the_next_run_begins(redis_server, settings)

    assignment = dispatched(parted, "first")
    revoking = once(lambda: revoke(parted, "first"))
    outcomes = [scan_one_part(parted, assignment.token, part.location, progress=revoking) for part in assignment.parts]
    assert merge_parts(parted, assignment.token, outcomes).reason == "superseded"
    with redis_server.client as client:
        assert not client.exists(Keys(parted.source).lock)


def test_a_scan_whose_lock_is_gone_ends_amid_its_file(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan whose lock is gone ends in the middle of its file.

    It could publish nothing, so it ends without being killed.
    """
    monkeypatch.setattr("optimizer.cache.lock.LOCK_EXTEND_S", 0.05)
    write_sample(local(settings.input), symbols=100, points=1_000)
    left_bytes: list[int] = []

    def slow(done_bytes: int, total_bytes: int) -> None:
        left_bytes.append(total_bytes - done_bytes)
        revoke(settings, "first")
        time.sleep(0.5)  # by then the lock has been checked

    with pytest.raises(PublishRefused, match="revoked"):
        run_here(settings, "first", progress=slow)
    assert len(left_bytes) == 1
    assert left_bytes[0] > 0
