"""A cache that is a real Redis Cluster: runs, updates and readers, a slot that migrates, and a failover."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from optimizer import Settings, SnapshotReader, optimize
from optimizer.cache.client import connect, is_away
from optimizer.cache.server_checks import check_broker, check_cache
from optimizer.errors import CacheUnavailable
from optimizer.models import Record
from optimizer.pipeline.drain import apply_updates
from optimizer.pipeline.updates import enqueue
from tests.support.redis_cluster import RedisCluster
from tests.support.redis_servers import wait_until
from tests.support.rolling_files import a_record, write_json

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """Three masters, and a replica of the one with the keys of `brain`; they need two seconds to start."""
    with RedisCluster(tmp_path_factory.mktemp("redis"), "brain") as cluster:
        yield cluster


@pytest.fixture
def settings(tmp_path: Path, cluster: RedisCluster) -> Settings:
    """Settings with the cluster as the cache."""
    return Settings(
        input=tmp_path / "brain.json",
        output_dir=tmp_path / "out",
        source="brain",
        redis_url=cluster.url,
        interval_s=1.0,
    )


def test_runs_and_readers_go_on_while_a_slot_moves_and_after_a_failover(
    settings: Settings, cluster: RedisCluster
) -> None:
    """Runs and readers continue after a failover and while a slot migrates.

    One reader sees each step, and no older version after a newer one.
    """
    target = cluster.nodes[1]
    first = publish(settings, 0.6)
    with closing(SnapshotReader(settings.redis_url, settings.source, None, interval_s=1.0)) as reader:
        seen: list[int] = []
        reader.on_version(lambda state: seen.append(state.version))
        assert reader.wait(10).version == first

        # The replica becomes the master with the data that it has; the run finds it by the nodes that are left.
        wait_until(lambda: cluster.has_replicated(str(first)), what="the first version in the replica")
        cluster.fail_over()
        second = publish(settings, 0.65)
        wait_until(lambda: reader.manifest().version == second, what="the second version")

        # Keys are on both nodes: the reader keeps its version, and a run writes the files alone.
        cluster.begin_migration(target)
        assert cluster.move_keys(target, 4) == 4
        reader.refresh()
        assert reader.manifest().version == second
        write_json(settings.input, {"AAPL": a_record(confidence=0.7)})
        during = optimize(settings)
        assert (during.status, during.cache) == ("success", "down")

        # All keys are on the other node: a client that connects now finds the node that still has the slot.
        cluster.move_keys(target, 100)
        with connect(cluster.url, timeout_s=1.0, source="brain") as client:
            assert client.ping()

        # MOVED: clients with connections to the old node find the new one.
        cluster.end_migration(target)
        assert optimize(settings).cache == "republished"
        wait_until(lambda: reader.manifest().version == during.version, what="the third version")
        assert reader.manifest().origin == "redis"
        assert reader.symbol("AAPL").origin == "redis"

        enqueue(settings, [Record("ZETA", 1.0, 0.95, 2.0)], [])
        assert apply_updates(settings)
        wait_until(lambda: reader.manifest().version > (during.version or 0), what="the version of the update")
        assert reader.symbol("ZETA").value is not None
        assert seen == sorted(set(seen))


def publish(settings: Settings, confidence: float) -> int:
    """Publish a version with a record of this confidence; return its number."""
    write_json(settings.input, {"AAPL": a_record(confidence=confidence)})
    report = optimize(settings)
    assert report.version is not None
    assert report.cache == "published"
    return report.version


def test_what_a_cluster_cannot_do_has_a_sentence(settings: Settings, cluster: RedisCluster) -> None:
    """A cluster is accepted as the cache, and refused as the broker.

    If its nodes are down, or the URL is of a single node, the message names the problem and what to do.
    """
    assert check_cache(settings.redis_url, "brain") == []
    with pytest.raises(CacheUnavailable, match="Celery cannot use a cluster as its broker; set ROLLING_BROKER_URL"):
        check_broker(settings.broker_url, "brain")

    with pytest.raises(
        CacheUnavailable, match=r"no cluster, or write its URL as redis\+cluster://host:6379,host2:6379"
    ):
        check_cache(cluster.nodes[2].url, "brain")
    (note,) = check_cache(cluster.owner.url, "brain")
    assert "works as long as this node has all keys of brain; write its URL as redis+cluster://" in note

    for node in cluster.nodes:
        node.kill()
    with pytest.raises(
        CacheUnavailable, match=f"cluster that has the keys does not answer .*{cluster.owner.port}: "
    ) as gone:
        check_cache(settings.redis_url, "brain")
    assert is_away(gone.value)
