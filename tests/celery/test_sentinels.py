"""The stand-alone app over real Sentinels: broker, results and cache work again after a failover."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from celery import Celery

from optimizer import Settings
from optimizer.celery.broker_url import same_broker
from optimizer.celery.config import celery_settings
from optimizer.celery.sender import CelerySender
from optimizer.errors import SettingsInvalid
from tests.support.fleet import Fleet
from tests.support.rolling_files import a_record, write_json
from tests.support.sentinels import SentinelGroup


def test_a_cluster_is_refused_as_the_broker() -> None:
    """A cluster at `ROLLING_REDIS_URL` is refused by that name: it would be the broker, since no other one is set."""
    with pytest.raises(
        SettingsInvalid, match=r"ROLLING_REDIS_URL='redis\+cluster://h': Celery cannot use a cluster as"
    ):
        celery_settings({"ROLLING_INPUT": "in.json", "ROLLING_REDIS_URL": "redis+cluster://h"})


def test_a_sender_to_a_cluster_gets_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sender whose only Redis is a cluster fails with an error that says to set `ROLLING_BROKER_URL`.

    A web process with a cluster as its cache serves requests; only the runs that it would send have no broker.
    """
    monkeypatch.setenv("ROLLING_INPUT", "in.json")
    monkeypatch.setenv("ROLLING_REDIS_URL", "redis+cluster://h")
    with pytest.raises(SettingsInvalid, match="set ROLLING_BROKER_URL"):
        CelerySender().send(force=False, accept=False, source="in")


@pytest.mark.parametrize(
    ("url", "is_same"),
    [
        ("redis+sentinel://h1,h2/mymaster/3", True),
        ("redis+sentinel://u:p@h2:7/other/3", True),
        ("redis+sentinel://h1,h2/mymaster/4", False),
        ("redis+sentinel://h3/mymaster/3", False),
    ],
)
def test_the_broker_of_another_app_is_known_by_any_of_its_sentinels(url: str, is_same: bool) -> None:
    """A URL with any of the Sentinels of another app's broker, and the same database, is that broker.

    The master's name is not compared, since Celery has it in its options and not in the URL.
    """
    app = Celery(broker="sentinel://h1:26379/3;sentinel://h2:7/3", set_as_current=False)
    assert same_broker(app, url.replace("h2/", "h2:7/")) is is_same


@pytest.mark.slow
def test_worker_and_beat_go_on_after_failovers(tmp_path: Path) -> None:
    """Worker and beat continue after a failover, and after a time when the master refused writes for lack of replicas.

    No password is logged.
    """
    (tmp_path / "redis").mkdir()
    with SentinelGroup(tmp_path / "redis", password="data-word", sentinel_password="sentinel-word") as group:
        settings = Settings(
            input=tmp_path / "in.json", output_dir=tmp_path / "out", source="brain", redis_url=group.url
        )
        write_json(settings.input, {"AAPL": a_record()})
        variables = {"ROLLING_SOURCE": "brain", "ROLLING_INTERVAL_S": "1", "ROLLING_STARTUP_DELAY_S": "0.5"}
        with Fleet(tmp_path, settings, **variables) as fleet:
            fleet.start_worker()
            fleet.start_beat()
            fleet.wait_for_runs(1, "success")

            with group.master.client as master:
                master.config_set("min-replicas-to-write", 2)
                fleet.wait_for_line(r"worker\| .*NOREPLICAS")
                before = len(fleet.runs())
                master.config_set("min-replicas-to-write", 0)
            fleet.wait_for_runs(before + 1)
            fleet.check()

            group.fail_over()
            before = len(fleet.lines)
            fleet.wait_for_line(r"worker\| .*unchanged", since=before)
            assert "pong" in fleet.celery("inspect", "ping")
            assert not any("-word" in line for line in fleet.lines)


@pytest.mark.slow
def test_a_connection_leaves_a_master_that_hangs(tmp_path: Path) -> None:
    """A connection to a master that hangs is replaced within 15 s after a failover, and no message is lost.

    Otherwise beat, worker and senders would wait half a minute for each command that they have sent to it.
    """
    (tmp_path / "redis").mkdir()
    with SentinelGroup(tmp_path / "redis") as group:
        app = Celery(set_as_current=False)
        app.conf.update(celery_settings({"ROLLING_INPUT": "in.json", "ROLLING_REDIS_URL": group.url}))
        with app.connection_for_write() as connection, connection.SimpleQueue("queue") as queue:
            queue.put("first")
            with group.master.client as master:  # WAIT waits for what its own connection has written, and all before it
                master.set("last", 1)
                assert master.wait(1, 10_000) == 1
            group.fail_over(hang=True)
            began_s = time.monotonic()
            queue.put("second", retry=True)
            assert time.monotonic() - began_s < 15
            with group.master.client as master:
                assert master.llen("queue") == 2
