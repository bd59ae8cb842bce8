"""Failovers by real Sentinels: runs publish and readers read as before, and no reader shows an older version again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from redis.client import Pipeline

from optimizer import Settings, SnapshotReader, optimize
from optimizer.cache.client import connect, is_away
from optimizer.cache.failover import SentinelMasters
from optimizer.cache.keys import Keys
from optimizer.cache.server_checks import check_broker, check_cache
from optimizer.cache.writer import STAGE_BATCH
from optimizer.errors import CacheUnavailable, PublishRefused, SnapshotMissing
from optimizer.storage.redis_url import RedisUrl
from tests.support.redis_servers import wait_until
from tests.support.rolling_files import a_record, write_json
from tests.support.sentinels import MASTER, SentinelGroup

pytestmark = pytest.mark.slow


@pytest.fixture
def group(tmp_path: Path) -> Iterator[SentinelGroup]:
    """A master, its replica and three Sentinels."""
    (tmp_path / "redis").mkdir()
    with SentinelGroup(tmp_path / "redis") as group:
        yield group


@pytest.fixture
def settings(tmp_path: Path, group: SentinelGroup) -> Settings:
    """Settings with the group as the cache."""
    return Settings(
        input=tmp_path / "brain.json", output_dir=tmp_path / "out", source="brain", redis_url=group.url, interval_s=1.0
    )


def reader_of(settings: Settings) -> SnapshotReader:
    """A reader that sees Redis, and no files."""
    return SnapshotReader(settings.redis_url, settings.source, None, interval_s=settings.interval_s)


def publish(settings: Settings, confidence: float) -> int:
    """Publish a version with a record of this confidence; return its number."""
    write_json(settings.input, {"AAPL": a_record(confidence=confidence)})
    report = optimize(settings)
    assert report.version is not None
    assert report.cache == "published"
    return report.version


def test_runs_and_readers_go_on_after_failovers(settings: Settings, group: SentinelGroup) -> None:
    """After a failover with one Sentinel down, the new master has the version of the old one.

    The next version is published to the new master, and readers show it.
    """
    first = publish(settings, 0.6)
    with closing(reader_of(settings)) as reader:
        assert reader.wait(10).version == first
        with group.master.client as client:
            client.set("after", "the version")
            assert client.wait(1, 4_000) == 1  # the replica has this, and so all that was written before it
        group.kill_sentinel(group.ports[0])
        group.fail_over()
        with closing(reader_of(settings)) as late:  # it has seen nothing yet
            assert (late.manifest().version, late.symbol("AAPL").origin) == (first, "redis")
        second = publish(settings, 0.7)
        assert second > first
        wait_until(lambda: reader.manifest().version == second, what="the second version")
        assert reader.manifest().origin == "redis"
        assert reader.symbol("AAPL").origin == "redis"


def test_a_replica_that_lost_the_last_flip_takes_no_reader_back(settings: Settings, group: SentinelGroup) -> None:
    """If a new master lacks the last version, a reader that has shown it keeps it.

    The next run publishes it to the new master again, and then newer ones follow.
    """
    first = publish(settings, 0.6)
    with closing(reader_of(settings)) as reader, closing(reader_of(settings)) as late:
        seen: list[int] = []
        reader.on_version(lambda state: seen.append(state.version))
        assert reader.wait(10).version == first
        group.cut_off_replica(Keys("brain").current)
        second = publish(settings, 0.7)
        wait_until(lambda: reader.manifest().version == second, what="the second version")
        group.fail_over()

        assert late.manifest().version == first  # a process that has seen nothing yet
        reader.refresh()
        assert reader.manifest().version == second
        assert reader.snapshot().predictions.predictions[0].confidence == 0.7

        assert optimize(settings).cache == "republished"  # the content of the files, under its version
        wait_until(lambda: late.manifest().version == second, what="the version again")
        third = publish(settings, 0.8)
        wait_until(lambda: (reader.manifest().version, late.manifest().version) == (third, third), what="the third")
        assert seen == sorted(set(seen))


def test_a_flip_shows_nothing_that_was_lost_in_part(
    settings: Settings, group: SentinelGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failover between two staged batches of a run, the new master has half an index and shows no version.

    The run ends with `PublishRefused`, and the next run publishes the whole version.
    """
    write_json(settings.input, {f"S{number:04}": a_record() for number in range(2 * STAGE_BATCH)})
    batches = 0
    execute = Pipeline.execute

    def execute_and_fail_over(self: Pipeline, **options: Any) -> list[Any]:
        nonlocal batches
        staging = any("ZADD" in command[0] for command in self.command_stack)
        if staging:
            batches += 1
            if batches == 2:
                group.cut_off_replica("*:staged:*:symbols")
        if "EVAL" in str(self.command_stack[0][0]) and batches == 2:
            batches += 1
            group.fail_over()
        return execute(self, **options)

    monkeypatch.setattr(Pipeline, "execute", execute_and_fail_over)
    with pytest.raises(PublishRefused, match="lost when Redis was started again or failed over"):
        optimize(settings)
    monkeypatch.undo()

    with closing(reader_of(settings)) as reader:
        with pytest.raises(SnapshotMissing):
            reader.manifest()
        assert optimize(settings).cache == "republished"
        assert len(reader.top(3 * STAGE_BATCH).value) == 2 * STAGE_BATCH


def test_an_old_master_that_is_back_refuses_writes_and_the_next_try_reaches_the_new_one(group: SentinelGroup) -> None:
    """With `min-replicas-to-write`, an old master that is back refuses writes, and the next try reaches the new one.

    For ten seconds no Sentinel makes the old master a replica.
    """
    old = group.master
    with old.client as direct, connect(group.url, timeout_s=5.0) as kept:
        direct.config_set("min-replicas-to-write", 1)
        kept.set("key", "1")
        group.fail_over(hang=True)
        old.resume()
        wait_until(lambda: direct.info("replication")["connected_slaves"] == 0, what="the loss of the replica")
        kept.set("key", "2")
        assert direct.role()[0] == b"master"
        with group.master.client as new:
            assert new.get("key") == b"2"
            new.config_set("min-replicas-to-write", 1)
        with pytest.raises(CacheUnavailable, match="fewer replicas than its min-replicas-to-write") as refused:
            check_cache(group.url, "brain")
        assert not is_away(refused.value)


def test_what_sentinels_cannot_answer_has_a_sentence(group: SentinelGroup) -> None:
    """A wrong master name is refused at once; a master or Sentinels that are down are away, and are waited for.

    A Sentinel that hangs delays only the first request.
    """
    check_cache(group.url, "brain")
    check_broker(group.url, "brain")

    with pytest.raises(CacheUnavailable, match="its Sentinels know no master 'other', but mymaster") as wrong:
        check_cache(group.url.replace(MASTER, "other"), "brain")
    assert not is_away(wrong.value)

    group.suspend_sentinel(group.ports[0])
    with connect(group.url, timeout_s=0.25) as client:
        assert client.ping()  # the next Sentinel has responded
    masters = SentinelMasters(RedisUrl.parse(group.url), {"socket_timeout": 1.0})
    for _ in range(2):  # the second time, the Sentinel that has responded gets the first request
        began_s = time.monotonic()
        masters.discover_master(MASTER)
    assert time.monotonic() - began_s < 1.0
    for port in group.ports[:2]:
        group.kill_sentinel(port)
    group.servers[0].kill()  # one Sentinel alone elects no other master

    def said() -> str:
        with pytest.raises(CacheUnavailable) as down:
            check_cache(group.url, "brain")
        assert is_away(down.value)
        return str(down.value)

    wait_until(
        lambda: "no master 'mymaster' that is up; they may be electing one" in said(), what="the Sentinel to see it"
    )
    group.kill_sentinel(group.ports[2])
    with pytest.raises(CacheUnavailable, match=f"no Sentinel answers .*{group.ports[1]}: .*refused;") as gone:
        check_cache(group.url, "brain")
    assert is_away(gone.value)


def test_sentinels_with_a_login_of_their_own_name_the_option_for_it(tmp_path: Path) -> None:
    """If the Sentinels need a login that the URL lacks, the error names its options.

    The password of the URL is for the data servers.
    """
    with SentinelGroup(tmp_path, sentinel_password="sentinel-word") as group:
        check_cache(group.url, "brain")
        with pytest.raises(CacheUnavailable, match="a Sentinel's own login is sentinel_username and sentinel_password"):
            check_cache(group.url.partition("?")[0], "brain")
