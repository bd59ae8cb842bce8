"""The stand-alone app over real Sentinels: broker, results and cache go on after a failover."""

from __future__ import annotations

from pathlib import Path

import pytest
from celery import Celery

from optimizer import Settings
from optimizer.celery.config import celery_settings
from optimizer.errors import SettingsInvalid
from tests.support.fleet import Fleet
from tests.support.rolling_files import a_record, write_json
from tests.support.sentinels import SentinelGroup


def test_a_cluster_is_refused_as_the_broker() -> None:
    """By the variable that is missing: the broker is the cache unless another is named."""
    with pytest.raises(SettingsInvalid, match=r"redis\+cluster://h: Celery cannot use a cluster as its broker"):
        celery_settings({"ROLLING_INPUT": "in.json", "ROLLING_REDIS_URL": "redis+cluster://h"})


def test_celery_gets_the_sentinels_in_its_own_spelling() -> None:
    """Broker and results ask the same Sentinels, with their login and TLS, for the same database of the same master."""
    url = "rediss+sentinel://u:p@h1,h2:7/mymaster/3?sentinel_password=s&ssl_check_hostname=false"
    app = Celery(set_as_current=False)
    app.config_from_object(celery_settings({"ROLLING_INPUT": "in.json", "ROLLING_REDIS_URL": url}))

    pools = [app.connection_for_write().default_channel.pool, app.backend.client.connection_pool]
    for pool in pools:
        assert pool.service_name == "mymaster"
        options = pool.connection_kwargs
        assert (options["username"], options["password"], options["db"]) == ("u", "p", 3)
        assert options["ssl_check_hostname"] is False
        asked = [one.connection_pool.connection_kwargs for one in pool.sentinel_manager.sentinels]
        assert [(one["host"], one["port"], one["password"]) for one in asked] == [("h1", 26379, "s"), ("h2", 7, "s")]
        assert all(one["socket_timeout"] == 2 and one["ssl_check_hostname"] is False for one in asked)


@pytest.mark.slow
def test_worker_and_beat_go_on_after_a_failover(tmp_path: Path) -> None:
    """Ticks are sent and taken over the new master, and a run that is triggered is followed to its end."""
    (tmp_path / "redis").mkdir()
    with SentinelGroup(tmp_path / "redis") as group:
        settings = Settings(
            input=tmp_path / "in.json", output_dir=tmp_path / "out", source="brain", redis_url=group.url
        )
        write_json(settings.input, {"AAPL": a_record()})
        variables = {"ROLLING_SOURCE": "brain", "ROLLING_INTERVAL_S": "1", "ROLLING_STARTUP_DELAY_S": "0.5"}
        with Fleet(tmp_path, settings, **variables) as fleet:
            fleet.start_worker()
            fleet.start_beat()
            fleet.wait_for_runs(1, "success")
            group.fail_over()
            fleet.wait_for_runs(2, "unchanged")
