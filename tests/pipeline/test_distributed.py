"""Runs that are handed out: one lock from the beginning to the publish, whoever works, dies, or comes twice."""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any, Final

import pytest
from redis import Redis

from optimizer import Settings, optimize
from optimizer.cache.keys import Keys
from optimizer.cli.dev.sample import write_sample
from optimizer.errors import CacheUnavailable, PartFailed, PublishRefused, RunLost, RunTimedOut
from optimizer.models import Report
from optimizer.pipeline.distributed import Assignment, begin, handover_s, merge_parts, revoke, scan_file, scan_one_part
from optimizer.pipeline.session import Publisher
from tests.support.published_state import (
    assert_redis_holds_the_files,
    assert_tidy,
    files_of,
    no_scan,
    once,
    run_old,
    runs_of,
    symbols_shown,
    version_of,
)
from tests.support.redis_servers import RedisServer
from tests.support.rolling_files import a_record, local, write_json


@pytest.fixture
def parted(settings: Settings) -> Settings:
    """Settings of a source with two parts."""
    directory = local(settings.input).parent / "parts"
    write_json(directory / "a.json", {"AAPL": a_record()})
    write_json(directory / "b.json", {"MSFT": a_record(confidence=0.9)})
    return replace(settings, input=directory / "*.json", source="parted")


def handed_out(settings: Settings, *, force: bool = False) -> Assignment:
    """Begin a run that has something to scan."""
    handed: list[Assignment] = []
    assert begin(settings, handed.append, force=force) is None
    return handed[0]


def begun(settings: Settings) -> Report:
    """Begin a run that has to end at once."""
    report = begin(settings, _must_not)
    assert report is not None
    return report


def _must_not(assignment: Assignment) -> None:
    raise AssertionError(f"{assignment} was handed out")


@contextmanager
def lock_of(server: RedisServer, settings: Settings) -> Iterator[tuple[Any, str]]:
    """A client, and the key of the lock."""
    with server.client as client:
        yield client, Keys(settings.source).lock


def lose_the_lock(server: RedisServer, settings: Settings) -> None:
    """As when it has expired."""
    with lock_of(server, settings) as (client, key):
        client.delete(key)


def test_a_run_that_is_handed_out_keeps_its_lock_until_it_is_published(
    settings: Settings, redis_server: RedisServer
) -> None:
    """Nobody else begins meanwhile; at the end nothing of it is left."""
    run_old(settings)
    write_json(settings.input, {"TSLA": a_record()})
    assignment = handed_out(settings)
    with lock_of(redis_server, settings) as (client, key):
        assert 10_000 < client.pttl(key) <= handover_s(settings) * 1_000
        assert client.get(key).decode() == assignment.token
    assert begun(settings).reason == "already_running"

    report = scan_file(settings, assignment.token)

    assert (report.status, report.cache) == ("success", "published")
    assert symbols_shown(settings) == ["TSLA"]
    assert_tidy(settings, redis_server)
    with redis_server.client as client:
        assert client.exists(Keys(settings.source).handed) == 0
    assert begun(settings).status == "unchanged"


@pytest.mark.parametrize("force", [False, True])
def test_an_assignment_that_is_delivered_twice_publishes_once(
    settings: Settings, parted: Settings, redis_server: RedisServer, force: bool
) -> None:
    """The second finds that its version has been replaced."""
    write_json(settings.input, {"TSLA": a_record()})
    assignment = handed_out(settings, force=force)
    first, second = scan_file(settings, assignment.token), scan_file(settings, assignment.token)
    assert (first.status, second.status, second.reason) == ("success", "skipped", "superseded")

    assignment = handed_out(parted, force=force)
    outcomes = [scan_one_part(parted, assignment.token, part.location) for part in assignment.parts]
    first, second = (merge_parts(parted, assignment.token, outcomes) for _ in range(2))
    late = scan_one_part(parted, assignment.token, assignment.parts[0].location)
    assert (first.status, second.status, second.reason) == ("success", "skipped", "superseded")
    assert late.error == "Superseded"
    assert_tidy(parted, redis_server)


def test_a_lost_assignment_is_told_and_replaced_by_the_next_tick(settings: Settings, redis_server: RedisServer) -> None:
    """Its worker was killed, or there was none; when it comes back after all, it does nothing."""
    write_json(settings.input, {"TSLA": a_record()})
    lost = handed_out(settings)
    lose_the_lock(redis_server, settings)

    found = handed_out(settings)

    assert [(one.status, one.error) for one in runs_of(redis_server, settings.source)] == [("failed", "RunLost")]
    assert scan_file(settings, lost.token).reason == "superseded"
    assert scan_file(settings, found.token).status == "success"
    assert scan_file(settings, lost.token).reason == "superseded"
    write_json(settings.input, {"AMD": a_record()})
    handed_out(settings)  # and of that which has ended nobody says that it is lost
    assert [one.error for one in runs_of(redis_server, settings.source) if one.error] == ["RunLost"]


def test_parts_that_were_overtaken_in_the_files_are_not_merged(parted: Settings, redis_server: RedisServer) -> None:
    """By a run that found Redis away: it has read newer parts, and Redis knows nothing of it."""
    assignment = handed_out(parted)
    outcomes = [scan_one_part(parted, assignment.token, part.location) for part in assignment.parts]
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
    """The parts that were done are done."""
    lost = handed_out(parted)
    first = scan_one_part(parted, lost.token, lost.parts[0].location)
    assert first.scanned is not None
    lose_the_lock(redis_server, parted)

    found = handed_out(parted)

    assert found.to_scan == [1]
    assert scan_one_part(parted, lost.token, lost.parts[1].location).error == "Superseded"
    second = scan_one_part(parted, found.token, found.parts[1].location)
    assert merge_parts(parted, found.token, [second]).status == "success"
    assert merge_parts(parted, lost.token, [first, second]).reason == "superseded"
    assert symbols_shown(parted) == ["MSFT", "AAPL"]


def test_an_assignment_that_waited_longer_than_its_lock_goes_on_if_nobody_has_taken_its_place(
    settings: Settings, redis_server: RedisServer
) -> None:
    """A fleet that is too small is slow, and still makes snapshots."""
    write_json(settings.input, {"TSLA": a_record()})
    assignment = handed_out(settings)
    lose_the_lock(redis_server, settings)
    assert scan_file(settings, assignment.token).status == "success"


def test_scans_of_one_run_hold_its_lock_together(parted: Settings, redis_server: RedisServer) -> None:
    """None of them releases it, or shortens it; one that comes when all is over does not leave it behind."""
    assignment = handed_out(parted)
    with lock_of(redis_server, parted) as (client, key):
        client.pexpire(key, 60_000)
        scan_one_part(parted, assignment.token, assignment.parts[0].location)
        assert client.pttl(key) > 50_000
        client.pexpire(key, 500)
        scan_one_part(parted, assignment.token, assignment.parts[1].location)
        assert client.pttl(key) > 10_000
        client.delete(key)
        outcomes = [scan_one_part(parted, assignment.token, part.location) for part in assignment.parts]
        assert client.pttl(key) > 10_000
        assert merge_parts(parted, assignment.token, outcomes).status == "success"
        assert scan_one_part(parted, assignment.token, assignment.parts[1].location).error == "Superseded"
        assert not client.exists(key)


def test_a_run_that_cannot_be_sent_fails_and_leaves_nothing(settings: Settings, redis_server: RedisServer) -> None:
    """The broker may be another Redis than the cache, and away."""
    write_json(settings.input, {"TSLA": a_record()})

    def fail(_assignment: Assignment) -> None:
        raise CacheUnavailable("the broker cannot be reached")

    with pytest.raises(CacheUnavailable):
        begin(settings, fail)

    assert [one.error for one in runs_of(redis_server, settings.source)] == ["CacheUnavailable"]
    assert_tidy(settings, redis_server)
    with redis_server.client as client:
        assert client.exists(Keys(settings.source).handed) == 0


def test_a_part_that_is_gone_from_redis_fails_the_merge_by_name(parted: Settings, redis_server: RedisServer) -> None:
    """The next tick scans it again."""
    assignment = handed_out(parted)
    outcomes = [scan_one_part(parted, assignment.token, part.location) for part in assignment.parts]
    with redis_server.client as client:
        client.delete(Keys(parted.source).part(assignment.parts[1].digest))
    with pytest.raises(PartFailed, match=r"b\.json: what was found in it is gone from Redis"):
        merge_parts(parted, assignment.token, outcomes)
    assert handed_out(parted).to_scan == [1]


def test_a_part_that_is_replaced_after_it_was_handed_out_counts_as_it_was_scanned(parted: Settings) -> None:
    """The fingerprint of the version is that of what was read, so that the next run finds nothing to do."""
    assignment = handed_out(parted)
    write_json(Path(assignment.parts[0].location), {"NVDA": a_record(confidence=1.0)})
    outcomes = [scan_one_part(parted, assignment.token, part.location) for part in assignment.parts]
    merge_parts(parted, assignment.token, outcomes)
    assert symbols_shown(parted) == ["NVDA", "MSFT"]
    assert begun(parted).status == "unchanged"


def test_whatever_goes_wrong_with_a_part_is_its_outcome(parted: Settings, own_redis: RedisServer) -> None:
    """It never raises: the merge would not be called."""
    assignment = handed_out(parted)
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
    lost = scan_one_part(away, handed_out(away).token, location, progress=once(own_redis.kill))
    assert lost.error == "CacheUnavailable"
    assert location in lost.details


def test_a_message_cannot_make_a_worker_read_other_files(parted: Settings, tmp_path: Path) -> None:
    """A part is what the pattern names, and nothing beside it."""
    assignment = handed_out(parted)
    secret = write_json(tmp_path / "secret.json", {"AAPL": a_record()})
    for location in (str(secret), str(parted.input).replace("*", "../secret"), str(parted.input)[:-5]):
        outcome = scan_one_part(parted, assignment.token, location)
        assert (outcome.error, outcome.scanned) == ("SourceMissing", None)


def test_without_redis_a_file_is_scanned_at_once(settings: Settings) -> None:
    """The tick does it all."""
    away = replace(settings, redis_url="redis://127.0.0.1:1/0")
    write_json(settings.input, {"TSLA": a_record()})
    report = begun(away)
    assert (report.status, report.cache) == ("success", "down")


def test_a_run_in_one_process_waits_for_one_that_was_handed_out(settings: Settings) -> None:
    """The command line and the fleet have one lock."""
    before = run_old(settings)
    write_json(settings.input, {"TSLA": a_record()})
    assignment = handed_out(settings)
    assert optimize(settings).reason == "already_running"
    assert version_of(scan_file(settings, assignment.token)) > version_of(before)


@pytest.mark.parametrize("force", [False, True])
def test_an_assignment_that_is_delivered_twice_at_once_publishes_once(
    settings: Settings, redis_server: RedisServer, force: bool
) -> None:
    """Two workers with one message, both amid the scan: one is refused the lock, and files and Redis agree."""
    for number in range(5):
        write_json(settings.input, {"TSLA": a_record(confidence=0.5 + number / 10)})
        token = handed_out(settings, force=force).token
        both = Barrier(2)
        with ThreadPoolExecutor(2) as pool:
            reports = list(pool.map(_together, [both] * 2, [settings] * 2, [token] * 2))
        assert sorted(report.status for report in reports) == ["skipped", "success"]
        assert_redis_holds_the_files(redis_server, settings)
        assert_tidy(settings, redis_server)


def _together(both: Barrier, settings: Settings, token: str) -> Report:
    both.wait()
    return scan_file(settings, token, progress=lambda *_: time.sleep(0.05))


def test_a_lock_that_is_about_to_expire_is_extended_by_whoever_goes_on(
    settings: Settings, parted: Settings, redis_server: RedisServer
) -> None:
    """A message may have waited for nearly as long as the lock of its run lives."""
    write_json(settings.input, {"TSLA": a_record()})
    token = handed_out(settings).token
    with lock_of(redis_server, settings) as (client, key):
        client.pexpire(key, 300)
        assert scan_file(settings, token, progress=lambda *_: time.sleep(0.5)).status == "success"
    assignment = handed_out(parted)
    with lock_of(redis_server, parted) as (client, key):
        client.pexpire(key, 300)
        location = assignment.parts[0].location
        assert scan_one_part(parted, assignment.token, location, progress=lambda *_: time.sleep(0.5)).scanned
        assert begun(parted).reason == "already_running"


def test_who_waits_for_a_lost_run_is_told(settings: Settings, redis_server: RedisServer) -> None:
    """By the id that its sender knows it by."""
    write_json(settings.input, {"TSLA": a_record()})
    told: list[tuple[str, str]] = []

    def on_lost(run_id: str, error: RunLost) -> None:
        told.append((run_id, str(error)))

    for run_id in ("first", "second"):
        begin(settings, lambda _: None, run_id=run_id, on_lost=on_lost)
        lose_the_lock(redis_server, settings)
    assert [run_id for run_id, _ in told] == ["first"]
    assert "has not come back" in told[0][1]


def test_a_merge_of_other_parts_than_were_handed_out_publishes_nothing(parted: Settings) -> None:
    """One twice and another not at all is not the whole."""
    assignment = handed_out(parted)
    first, second = (scan_one_part(parted, assignment.token, part.location) for part in assignment.parts)
    for outcomes in ([first, first], [second, first], [first]):
        with pytest.raises(PartFailed, match="other parts"):
            merge_parts(parted, assignment.token, outcomes)
        assignment = handed_out(parted, force=True)


def test_without_redis_nobody_goes_on(parted: Settings) -> None:
    """Nobody can say whether it is still the run that it was; it says so, and not that another took its place."""
    away = replace(parted, redis_url="redis://127.0.0.1:1/0")
    location = str(parted.input).replace("*", "a")
    assert scan_one_part(away, "token", location).error == "CacheUnavailable"
    with pytest.raises(CacheUnavailable):
        merge_parts(away, "token", [])


def test_what_was_found_does_not_pile_up_while_runs_fail(parted: Settings, redis_server: RedisServer) -> None:
    """A part that is broken for long keeps nothing of the others but what they are now."""
    broken, other = (Path(str(parted.input).replace("*", name)) for name in "ab")
    broken.write_text("{")
    for number in range(5):
        write_json(other, {"MSFT": a_record(confidence=number / 10)})
        assignment = handed_out(parted)
        outcomes = [scan_one_part(parted, assignment.token, assignment.parts[n].location) for n in assignment.to_scan]
        with pytest.raises(PartFailed, match="1 of 2 parts failed"):
            merge_parts(parted, assignment.token, outcomes)
    with redis_server.client as client:
        assert len(client.keys(f"{Keys(parted.source).part('')}*")) <= 2


@pytest.mark.parametrize("pattern", ["**/*.json", "**/a.json", "../parts/*.json", "[ab].json", "a.json*"])
def test_whatever_the_pattern_names_may_be_scanned(parted: Settings, pattern: str) -> None:
    """The check of a message follows the same rules as the look."""
    directory = Path(str(parted.input)).parent
    settings = replace(parted, input=directory / pattern)
    assignment = handed_out(settings)
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
    """What is there and cannot be read fails one merge at most, and not each one after it."""
    first = handed_out(parted)
    outcomes = [scan_one_part(parted, first.token, part.location) for part in first.parts]
    merge_parts(parted, first.token, outcomes)
    key = Keys(parted.source).part(first.parts[0].digest)
    write_json(local(parted.input).parent / "b.json", {"MSFT": a_record(confidence=0.8)})
    with redis_server.client as client:
        client.delete(key)
        client.rpush(key, b"x") if damage is None else client.set(key, damage, ex=100)

    def tick() -> Report:
        run = handed_out(parted)
        outcomes = [scan_one_part(parted, run.token, run.parts[number].location) for number in run.to_scan]
        return merge_parts(parted, run.token, outcomes)

    if damage is not None:
        with pytest.raises(PartFailed, match="damaged"):
            tick()
    assert tick().cache == "published"


@pytest.mark.parametrize(
    "damage", [b"{", b"\xff", b"[]", b'{"x": ' + b"[" * 100_000], ids=["cut", "bytes", "list", "nested"]
)
def test_a_run_whose_note_is_damaged_is_superseded(
    settings: Settings, redis_server: RedisServer, damage: bytes
) -> None:
    """Nobody can say what there was to do: the next tick makes it again."""
    write_json(settings.input, {"AAPL": a_record()})
    run = handed_out(settings)
    with redis_server.client as client:
        client.hset(Keys(settings.source).handed, "assignment", damage)

        assert scan_file(settings, run.token).reason == "superseded"

        assert not client.exists(Keys(settings.source).handed)
        run = handed_out(settings)
        client.hset(Keys(settings.source).handed, "assignment", damage)
        client.delete(Keys(settings.source).lock)
    assert scan_file(settings, handed_out(settings).token).status == "success"
    assert [report.error for report in runs_of(redis_server, settings.source)][1] == "RunLost"


# ---- runs that are revoked by the id that their sender knows


def handed_out_as(run_id: str, settings: Settings) -> Assignment:
    """Begin a run of this id that has something to scan."""
    handed: list[Assignment] = []
    assert begin(settings, handed.append, run_id=run_id) is None
    return handed[0]


def assert_the_next_run_begins(server: RedisServer, settings: Settings) -> None:
    """At once, and without a word of one that is lost."""
    assert handed_out_as("next", settings).run_id == "next"
    assert not [report for report in runs_of(server, settings.source) if report.error == "RunLost"]


def test_a_run_that_was_revoked_before_it_began_does_not_begin(settings: Settings, redis_server: RedisServer) -> None:
    """Its message may have been in a queue, and whoever heard of it gone."""
    write_json(settings.input, {"TSLA": a_record()})
    revoke(settings, "first")
    with pytest.raises(PublishRefused, match="was revoked before it began"):
        begin(settings, _must_not, run_id="first")
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
    """No run comes before it to mend them; else the run would begin as if there had been no order."""
    write_json(settings.input, {"TSLA": a_record()})
    with redis_server.client as client:
        DAMAGE[kind](client, getattr(Keys(settings.source), damaged))
    revoke(settings, "first")
    with pytest.raises(PublishRefused, match="was revoked before it began"):
        begin(settings, _must_not, run_id="first")
    assert_the_next_run_begins(redis_server, settings)


def test_an_order_to_revoke_that_never_expires_is_damage(settings: Settings, redis_server: RedisServer) -> None:
    """It would refuse the runs of this id for ever."""
    write_json(settings.input, {"TSLA": a_record()})
    revoke(settings, "first")
    with redis_server.client as client:
        [key] = client.keys("*:revoked:*")
        client.persist(key)
    assert handed_out_as("first", settings).run_id == "first"


def test_a_run_without_an_id_cannot_be_revoked(settings: Settings) -> None:
    """Runs of the command line have none: an order for an empty id is not for all of them."""
    write_json(settings.input, {"TSLA": a_record()})
    revoke(settings, "")
    assert optimize(settings, progress=once(lambda: revoke(settings, ""))).status == "success"


def test_a_run_that_is_revoked_while_it_is_handed_out_hands_out_nothing(
    settings: Settings, redis_server: RedisServer
) -> None:
    """Its lock is gone by the time that it notes what there is to do."""
    write_json(settings.input, {"TSLA": a_record()})
    with Publisher(settings, use_cache=True) as publisher, publisher.lock(run_id="first"):
        revoke(settings, "first")
        with pytest.raises(PublishRefused, match="revoked"):
            publisher.handing_out(b"{}", 60).__enter__()
    assert_the_next_run_begins(redis_server, settings)


def test_a_run_that_was_revoked_in_a_queue_is_not_gone_on_with(
    settings: Settings, parted: Settings, redis_server: RedisServer
) -> None:
    """Nor are its parts, nor what puts them together; another run of the same source is none of its business."""
    write_json(settings.input, {"TSLA": a_record()})
    for one, go_on in ((settings, scan_file), (parted, _merge_none)):
        token = handed_out_as("first", one).token
        revoke(one, "other")
        with redis_server.client as client:
            assert client.get(Keys(one.source).lock) == token.encode()
        revoke(one, "first")
        assert scan_one_part(one, token, str(one.input).replace("*", "a")).error == "Superseded"
        assert go_on(one, token).reason == "superseded"
        assert_the_next_run_begins(redis_server, one)


def test_a_scan_that_is_revoked_publishes_nothing(
    settings: Settings, parted: Settings, redis_server: RedisServer
) -> None:
    """It finds out at the latest before it shows anything."""
    write_json(settings.input, {"TSLA": a_record()})
    token = handed_out_as("first", settings).token
    with pytest.raises(PublishRefused, match="revoked"):
        scan_file(settings, token, progress=once(lambda: revoke(settings, "first")))
    assert not local(settings.output_dir).joinpath("current").exists()
    assert_the_next_run_begins(redis_server, settings)

    assignment = handed_out_as("first", parted)
    revoking = once(lambda: revoke(parted, "first"))
    outcomes = [scan_one_part(parted, assignment.token, part.location, progress=revoking) for part in assignment.parts]
    assert merge_parts(parted, assignment.token, outcomes).reason == "superseded"
    with redis_server.client as client:
        assert not client.exists(Keys(parted.source).lock)


def test_a_scan_whose_lock_is_gone_ends_amid_its_file(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it goes on with is for nothing; it need not be killed."""
    monkeypatch.setattr("optimizer.cache.lock.LOCK_EXTEND_S", 0.05)
    write_sample(local(settings.input), symbols=100, points=1_000)
    token = handed_out_as("first", settings).token
    left_bytes: list[int] = []

    def slow(done_bytes: int, total_bytes: int) -> None:
        left_bytes.append(total_bytes - done_bytes)
        revoke(settings, "first")
        time.sleep(0.5)  # by then the lock has been asked for

    with pytest.raises(PublishRefused, match="revoked"):
        scan_file(settings, token, progress=slow)
    assert len(left_bytes) == 1
    assert left_bytes[0] > 0


def _merge_none(settings: Settings, token: str) -> Report:
    return merge_parts(settings, token, [])
