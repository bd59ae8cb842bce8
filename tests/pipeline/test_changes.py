"""The changes that runs record lead from any version to the current one, or are reported as missing.

This law is tested with real runs over random histories: inputs, a Redis that is away for some of them, other output
directories, values that Redis has evicted, entries of an older release.
"""

from __future__ import annotations

import base64
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import redis
from hypothesis import HealthCheck, given, note
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from optimizer import Record, Report, Settings, optimize
from optimizer.cache.keys import CHANGES_BYTES, CHANGES_KEPT, PAYLOAD_KINDS, Keys
from optimizer.cache.lock import SourceLock
from optimizer.cache.writer import VersionWriter
from optimizer.models import ChangeCounts, KindCounts, Manifest, Pin, VersionContent
from optimizer.pipeline.process import user_at_host
from optimizer.snapshots.format import FILE_NAMES, KINDS, SnapshotSet, encode_manifest
from optimizer.snapshots.store import snapshot_store
from tests.support.cache_writers import KEYS, a_cache, a_set
from tests.support.changes import held, kinds_of, lead, shown
from tests.support.examples import examples
from tests.support.published_state import (
    NEW,
    OLD,
    assert_redis_holds_the_files,
    no_scan,
    run_next,
    run_old,
    version_of,
)
from tests.support.redis_servers import RedisServer
from tests.support.rolling_files import a_record, local, write_json

# ---- the law

SYMBOLS = st.sampled_from("ABCDE")
# 1, 1.0 and True are equal in Python, and so are 0.0 and -0.0.
EXTRA = st.sampled_from([1, 1.0, True, "1", None, 0.0, -0.0])
RECORDS = st.dictionaries(
    SYMBOLS,
    st.builds(
        lambda confidence, prediction, time, sector: a_record(
            confidence=confidence, prediction=prediction, timestamp=time, sector=sector
        ),
        # Two of them are below `min_confidence`, and so in the index alone.
        st.sampled_from([0.1, 0.2, 0.6, 0.9]),
        st.sampled_from([0.0, -0.0, 2.0]),
        st.sampled_from([1, 1.0, "1"]),
        EXTRA,
    ),
    min_size=1,
)
BOTS = st.dictionaries(
    st.sampled_from(["alpha", "beta"]),
    st.builds(
        lambda equity, symbol, quantity: {"equity": equity, "positions": [{"symbol": symbol, "qty": quantity}]},
        st.sampled_from([0.0, 1.0]),
        SYMBOLS,
        st.sampled_from([-1, 1, 2]),
    ),
)
INPUTS = st.builds(lambda records, bots: records | {"bots": bots}, RECORDS, BOTS)
WHERE = st.sampled_from(["with Redis"] * 4 + ["elsewhere", "without Redis"])


@dataclass
class History:
    """A source, and the versions that it has shown."""

    settings: Settings
    client: redis.Redis
    seen: list[VersionContent] = field(default_factory=list)  # each version that Redis has shown
    gap_at: int = 0  # changes need not lead on from this version and from older ones
    is_broken: bool = False  # the next change cannot be recorded
    last: SnapshotSet | None = None

    @property
    def keys(self) -> Keys:
        """The names of its keys."""
        return Keys(self.settings.source)

    def run(self, content: dict[str, Any], where: str) -> None:
        """Do a run and check what it did."""
        note(f"{where}: {content}")
        write_json(self.settings.input, content)
        if where == "elsewhere":
            other = local(self.settings.output_dir).parent / "elsewhere"
            self.check(optimize(replace(self.settings, output_dir=other)))
        elif where == "without Redis":
            optimize(self.settings, use_cache=False)
            self.is_broken = True  # the next change spans several versions with a time each, and has one time
        else:
            self.check(optimize(self.settings))

    def check(self, report: Report) -> None:
        """Check the law for the version that is shown now."""
        assert report.cache in ("published", "republished", "current")
        new = shown(self.client, self.keys)
        assert new is not None
        assert new.is_whole
        manifest, last = new.manifest, self.last
        assert manifest.version >= (last.manifest.version if last else 0)
        stored = held(self.client, self.keys)
        content = new.content()
        if last is not None and not self.is_broken:
            before, after = last.manifest, manifest
            is_same = {kind: kinds_of(last.content())[kind] == kinds_of(content)[kind] for kind in PAYLOAD_KINDS}
            for kind in PAYLOAD_KINDS:  # equal content has equal bytes, though its index may differ
                assert is_same[kind] == (before.snapshots[kind] == after.snapshots[kind])
            has_entry = bool(stored) and stored[-1].change.version == after.version > before.version
            assert has_entry == (not all(is_same.values()))
            if before.version < after.version:
                assert (after.content_since == before.content_since) == (not has_entry)
                if not has_entry:
                    assert before.snapshots["index"] != after.snapshots["index"]
        if self.is_broken:
            self.gap_at = self.seen[-1].version if self.seen else 0
            self.is_broken = False
        if not self.seen or self.seen[-1].version != content.version:
            self.seen.append(content)
        for old in self.seen:
            assert lead(stored, old, new) or old.version <= self.gap_at
        self.last = new

    def evict(self) -> None:
        """Delete a value of the newest version, as Redis does when it needs memory."""
        if self.seen:
            self.client.delete(self.keys.payload(self.seen[-1].version, "bots"))
            self.is_broken = True

    def downgrade(self) -> None:
        """Replace the changes by an entry of an older release, as if that had published the newest version."""
        entries = cast("list[tuple[bytes, Any]]", self.client.xrevrange(self.keys.deltas, count=1))
        if entries and self.seen:
            name = entries[0][0]
            self.client.delete(self.keys.deltas)
            self.client.xadd(self.keys.deltas, {"delta": b"{}"}, id=name)
            self.gap_at = max(self.gap_at, *(c.version for c in self.seen if c.version < int(name.split(b"-")[0])), 0)

    def lose_pointer(self) -> None:
        """Delete the pointer, as if Redis had evicted it: the next version then has nothing to start from."""
        self.client.delete(self.keys.current)
        self.is_broken = True


STEPS = st.one_of(
    st.builds(lambda content, where: lambda history: history.run(content, where), INPUTS, WHERE),
    st.builds(lambda content, where: lambda history: history.run(content, where), INPUTS, WHERE),
    st.sampled_from([History.evict, History.downgrade, History.lose_pointer]),
)


@pytest.mark.slow
@hypothesis_settings(
    max_examples=examples(60),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=st.lists(STEPS, min_size=2, max_size=8))
def test_changes_lead_from_any_version_to_the_current_one(
    redis_server: RedisServer, steps: list[Callable[[History], None]]
) -> None:
    """From any version that was shown, the changes give the current one, record for record and in order.

    This holds for structs and for JSON, and for the way back by the inverses of the changes; otherwise the changes are
    reported as missing.
    """
    with tempfile.TemporaryDirectory() as directory, redis_server.client as client:
        client.flushall()
        settings = Settings(
            input=Path(directory) / "rolling_brain.json.gz",
            output_dir=Path(directory) / "snapshots",
            redis_url=redis_server.url,
            fields="+sector",
            min_confidence=0.5,
            top_symbols_limit=3,
        )
        history = History(settings, client)
        for step in steps:
            step(history)
        if history.seen:
            history.run({"F": a_record(confidence=0.7)}, "with Redis")


def shown_set(settings: Settings) -> SnapshotSet:
    """The version that Redis shows."""
    with redis.Redis.from_url(settings.redis_url) as client:
        snapshots = shown(client, Keys(settings.source))
    assert snapshots is not None
    return snapshots


def test_no_change_leads_from_one_of_two_sets_of_one_number(
    settings: Settings, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If two sets have the same version number, no change leads on from the set that Redis has not shown.

    Two workers with their own directories made them, one while Redis was away, so a client may have either.
    """
    elsewhere = replace(settings, output_dir=local(settings.output_dir).parent / "elsewhere")
    monkeypatch.setattr("optimizer.pipeline.session.time.time_ns", lambda: 0)  # so that each number is the next one
    run_old(settings)
    optimize(elsewhere, use_cache=False)
    run_next(elsewhere, use_cache=False)
    in_files = snapshot_store(elsewhere.output_dir).read_set()
    run_next(settings)
    assert in_files is not None
    assert in_files.manifest.version == shown_set(settings).manifest.version
    assert in_files.payloads["bots"] != shown_set(settings).payloads["bots"]

    report = run_next(elsewhere)

    assert report.cache == "published"
    with redis_server.client as client:
        assert not lead(held(client, Keys(settings.source)), in_files.content(), shown_set(settings))


def test_content_is_not_said_to_be_old_if_another_version_may_have_come_between(settings: Settings) -> None:
    """`content_since` does not name an older version if another version may have been published in between.

    Here a worker with its own directory has published one, while this worker did not use Redis.
    """
    settings = replace(settings, min_confidence=0.5)
    elsewhere = replace(settings, output_dir=local(settings.output_dir).parent / "elsewhere")
    run_old(settings)
    run_next(elsewhere)
    between = shown_set(settings).content()
    write_json(settings.input, OLD | {"LOW": a_record(confidence=0.1)})
    optimize(settings, use_cache=False)

    report = optimize(settings)

    assert (report.status, report.cache) == ("unchanged", "republished")
    new = shown_set(settings)
    assert new.manifest.version > between.version
    with redis.Redis.from_url(settings.redis_url) as client:
        lead(held(client, Keys(settings.source)), between, new)  # checks what the changes result in, if none is missing
    assert new.manifest.content_since == new.manifest.version


# ---- equal content


def assert_same_but_the_manifest(before: SnapshotSet, after: SnapshotSet | None) -> None:
    """Check that two sets differ only in the members of the manifest that describe the input."""
    assert after is not None
    assert after.payloads == before.payloads
    assert after.manifest.fingerprint != before.manifest.fingerprint
    of_input = {"fingerprint": "", "input_at": None, "rejected": None}
    old, new = (msgspec.structs.replace(one.manifest, **of_input) for one in (before, after))
    assert new == old


def test_an_input_with_the_same_content_keeps_the_version(settings: Settings, redis_server: RedisServer) -> None:
    """An input with the same content keeps the version; the manifest gets the input's fingerprint and rejects.

    Files and Redis both have that manifest, and ticks after it find the input unchanged.
    """
    first = run_old(settings)
    store = snapshot_store(settings.output_dir)
    before = store.read_set()
    assert before is not None
    write_json(settings.input, OLD | {"BAD": a_record(confidence=7)})

    report = optimize(replace(settings, max_rejected_percent=50))

    assert (report.status, report.cache, report.version) == ("success", "published", first.version)
    assert report.changes == ChangeCounts()
    assert report.details == "the input has the same content as before, so the version stays"
    assert report.rejected is not None
    assert report.rejected.records.rejected == 1
    assert_same_but_the_manifest(before, store.read_set())
    manifest = store.read_manifest()
    assert manifest is not None
    assert manifest.rejected == report.rejected
    assert_redis_holds_the_files(redis_server, settings)
    with redis_server.client as client:
        assert held(client, Keys(settings.source)) == []
        checked = client.hget(Keys(settings.source).current, "checked_at")
    again = optimize(settings, progress=no_scan)
    assert (again.status, again.cache, again.version) == ("unchanged", "current", first.version)
    with redis_server.client as client:
        assert client.hget(Keys(settings.source).current, "checked_at") != checked


def test_equal_content_replaces_the_manifest_alone(settings: Settings, redis_server: RedisServer) -> None:
    """With equal content no symbol is staged again, neither by the run nor by one that repairs a pointer."""
    run_old(settings)
    write_json(settings.input, OLD | {"unread": 1})
    with redis_server.client as client:
        client.config_resetstat()
        assert optimize(settings).cache == "published"
        key = Keys(settings.source).current
        manifest = msgspec.json.decode(cast("bytes", client.hget(key, "manifest")), type=Manifest)
        client.hset(key, "manifest", encode_manifest(msgspec.structs.replace(manifest, fingerprint="another")))
        assert optimize(settings, progress=no_scan).cache == "republished"
        assert "cmdstat_zadd" not in client.info("commandstats")
    assert_redis_holds_the_files(redis_server, settings)


@pytest.mark.parametrize("kind", [*PAYLOAD_KINDS, "symbols", "ranking"])
@pytest.mark.parametrize("damage", ["evicted", "another value"])
def test_equal_content_repairs_what_redis_has_of_it(
    settings: Settings, redis_server: RedisServer, kind: str, damage: str
) -> None:
    """A run with equal content repairs each value of the version that is lost or damaged in Redis.

    An engine that writes equal content at each tick leaves no tick that finds the input unchanged and repairs it.
    """
    name = Keys(settings.source).payload(version_of(run_old(settings)), kind)
    with redis_server.client as client:
        if damage == "evicted":
            client.delete(name)
        elif kind == "symbols":
            client.hset(name, "AAPL", "{}")
        elif kind == "ranking":
            client.zadd(name, {"AAPL": 0.125})
        else:
            client.set(name, b"damaged")
    write_json(settings.input, OLD | {"unread": 1})

    assert optimize(settings).cache == "published"

    assert_redis_holds_the_files(redis_server, settings)


DYING = (
    "import os, signal, sys; from pathlib import Path; from optimizer import Settings, optimize\n"
    "from optimizer.cache.writer import VersionWriter\n"
    "VersionWriter.replace_manifest = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
    "optimize(Settings(input=Path(sys.argv[1]), output_dir=Path(sys.argv[2]), redis_url=sys.argv[3]))\n"
)


@pytest.mark.slow
def test_a_worker_killed_between_files_and_redis_costs_neither_scan_nor_version(
    settings: Settings, redis_server: RedisServer
) -> None:
    """After a worker is killed between files and Redis, the next tick gives Redis the manifest in the files.

    It needs neither a scan nor a new version, though the two manifests are of two inputs.
    """
    first = run_old(settings)
    before = snapshot_store(settings.output_dir).read_set()
    assert before is not None
    write_json(settings.input, OLD | {"unread": 1})
    arguments = [str(settings.input), str(settings.output_dir), settings.redis_url]

    died = subprocess.run([sys.executable, "-c", DYING, *arguments], check=False)

    assert died.returncode == -9
    assert_same_but_the_manifest(before, snapshot_store(settings.output_dir).read_set())
    with redis_server.client as client:
        of_redis = shown(client, Keys(settings.source))
        assert of_redis is not None
        assert of_redis.manifest == before.manifest
        client.delete(Keys(settings.source).lock, Keys(settings.source).publishing)  # they expire only later
    report = optimize(settings, progress=no_scan)
    assert (report.status, report.cache, report.version) == ("unchanged", "republished", first.version)
    assert_redis_holds_the_files(redis_server, settings)
    assert optimize(settings, progress=no_scan).cache == "current"


@pytest.mark.parametrize("where", ["fingerprint", "rejected", "pinned"])
def test_a_pointer_with_another_manifest_of_the_same_files_is_given_theirs(
    settings: Settings, redis_server: RedisServer, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    """A pointer with another manifest of the same files gets the files' manifest, without a scan.

    It is not damage, so nothing is logged.
    """
    first = run_old(settings)
    other: dict[str, Any] = {"fingerprint": "another", "rejected": None, "pinned": Pin("2026-11-01T10:00:00Z", "a@b")}
    with redis_server.client as client:
        key = Keys(settings.source).current
        manifest = msgspec.json.decode(cast("bytes", client.hget(key, "manifest")), type=Manifest)
        client.hset(key, "manifest", encode_manifest(msgspec.structs.replace(manifest, **{where: other[where]})))

    report = optimize(settings, progress=no_scan)

    assert (report.status, report.cache, report.version) == ("unchanged", "republished", first.version)
    assert_redis_holds_the_files(redis_server, settings)
    assert caplog.records == []


def test_a_version_that_changes_the_index_alone_keeps_the_etags(settings: Settings, redis_server: RedisServer) -> None:
    """A change of the index alone makes a new version, which lookups need, and keeps the ETags of the other files.

    So pages have nothing to fetch.
    """
    settings = replace(settings, min_confidence=0.5)
    first = run_old(settings)
    old = snapshot_store(settings.output_dir).read_manifest()
    write_json(settings.input, OLD | {"LOW": a_record(confidence=0.1)})

    report = optimize(settings)

    new = snapshot_store(settings.output_dir).read_manifest()
    assert old is not None
    assert new is not None
    assert version_of(report) == new.version > version_of(first)
    assert report.changes == new.changes == ChangeCounts()
    assert (new.content_since, new.made_by) == (first.version, user_at_host())
    assert {kind for kind in KINDS if new.snapshots[kind] != old.snapshots[kind]} == {"index"}
    assert_redis_holds_the_files(redis_server, settings)
    with redis_server.client as client:
        assert held(client, Keys(settings.source)) == []


def test_what_changed_is_counted(settings: Settings) -> None:
    """Manifest and report count what changed; the first version has no counts, since there is none to compare it to."""
    first = run_old(settings)
    assert first.changes is None
    assert run_next(settings).changes == ChangeCounts(
        KindCounts(changed=2), KindCounts(changed=1), KindCounts(changed=1)
    )
    write_json(settings.input, NEW)

    report = optimize(settings)

    expected = ChangeCounts(KindCounts(1, 1, 1), KindCounts(1, 0, 1), KindCounts(0, 0, 1))
    manifest = snapshot_store(settings.output_dir).read_manifest()
    assert manifest is not None
    assert report.changes == manifest.changes == expected
    assert manifest.content_since == report.version


def test_a_damaged_set_is_made_again_though_the_content_is_the_same(
    settings: Settings, redis_server: RedisServer
) -> None:
    """A set with a damaged file is made again as a new version with the bytes that Redis still has.

    Only the index is new, since Redis does not have it as a file.
    """
    first = run_old(settings)
    old = snapshot_store(settings.output_dir).read_manifest()
    (local(settings.output_dir) / FILE_NAMES["bots"]).write_bytes(b"")

    report = optimize(settings)

    new = snapshot_store(settings.output_dir).read_manifest()
    assert old is not None
    assert new is not None
    assert version_of(report) == new.version > version_of(first)
    assert {kind for kind in KINDS if new.snapshots[kind] != old.snapshots[kind]} == {"index"}
    assert new.content_since == first.version
    assert_redis_holds_the_files(redis_server, settings)


# ---- the limits of the stream


def text_of_1_kb(seed: int) -> str:
    """Text that does not get smaller by compression."""
    return base64.b64encode(random.Random(seed).randbytes(768)).decode()


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["number", "bytes"])
def test_the_oldest_changes_go_and_the_others_still_lead_on(redis_server: RedisServer, limit: str) -> None:
    """The oldest changes are removed after 120 versions or 8 MiB, and the others still lead to the current version.

    From older versions no change leads on: clients have to take the whole snapshot again.
    """
    count = 3 if limit == "number" else 300
    contents = {}
    with a_cache(redis_server.url) as cache, SourceLock(cache).acquire() as lock, redis_server.client as client:
        client.delete(KEYS.deltas)
        writer = VersionWriter(cache)
        for version in range(1, 131 if limit == "number" else 41):
            records = [
                Record(f"S{n}", 1.0, 0.5, 1.0, text_of_1_kb(version * count + n) if limit == "bytes" else str(version))
                for n in range(count)
            ]
            new = a_set(version, records)
            contents[version] = new.content()
            writer.publish(new, lock=lock, before=writer.pointer())
        stored = held(client, KEYS)
        entries = cast("list[tuple[bytes, dict[bytes, bytes]]]", client.xrange(KEYS.deltas))
        size = sum(len(fields[b"change"]) for _, fields in entries)
        leading = [version for version, content in contents.items() if lead(stored, content, new)]
        assert leading == list(range(stored[0].change.before, len(contents) + 1))
        if limit == "number":
            assert len(stored) == CHANGES_KEPT == 120
        else:
            assert 2 < len(stored) < 39
            assert CHANGES_BYTES - size < max(len(fields[b"change"]) for _, fields in entries)
            assert size <= CHANGES_BYTES == 8 * 1024 * 1024
