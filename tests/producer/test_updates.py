"""Updates through real workers: sent by `publish`, by Flower and by any Celery client, and with killed workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from optimizer import Settings, SnapshotReader, optimize
from optimizer.cache.keys import Keys
from optimizer.cache.update_queue import DRAINING_TTL_S
from optimizer.errors import CacheUnavailable, SettingsInvalid, UpdatesPending, UpdatesRefused
from optimizer.producer import Accepted, publish
from tests.support.fleet import Fleet
from tests.support.foreign_app import ForeignApp
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.rolling_files import a_record, write_json

TASK = "tasks.update_predictions"
QUEUE = "rolling.updates"


def shown(reader: SnapshotReader) -> dict[str, float]:
    """Refresh a reader, and return the confidence of each symbol that it shows."""
    reader.refresh()
    return {record.symbol: record.confidence for record in reader.predictions().value.predictions}


def record(symbol: str = "TSLA", **fields: Any) -> dict[str, Any]:
    return a_record(symbol=symbol, **fields)


@pytest.fixture
def scanned(settings: Settings) -> Settings:
    """The settings of a source of two symbols, of which a scan has published a version."""
    write_json(settings.input, {"AAPL": a_record(), "MSFT": a_record()})
    optimize(settings)
    return settings


@contextmanager
def fleet_of(directory: Path, settings: Settings, **variables: str) -> Iterator[Fleet]:
    """Start a worker that consumes only the queue of updates."""
    with Fleet(directory, settings, **variables) as fleet:
        fleet.start_worker("-Q", QUEUE, "-c", "1")
        yield fleet


@contextmanager
def client_of(settings: Settings) -> Iterator[Celery]:
    """A Celery client that knows the name of the task, and nothing else of this package."""
    with Celery(broker=settings.broker_url, backend=settings.broker_url, set_as_current=False) as client:
        yield client


def kill_child(fleet: Fleet) -> None:
    """Kill the worker's child that executes the tasks; the worker starts another one."""
    (child,) = fleet.children()
    os.kill(child, signal.SIGKILL)


# ---- through a worker


@pytest.mark.slow
def test_records_are_shown_symbols_are_removed_and_rejects_are_named(tmp_path: Path, scanned: Settings) -> None:
    """One call adds and removes symbols in one version, which it waits for, and names the rejected records.

    Any Celery client and Flower can send the same. An update that is redelivered is not applied twice, and wrong
    arguments fail with a clear error.
    """
    with fleet_of(tmp_path, scanned) as fleet, client_of(scanned) as client:
        before = fleet.reader.predictions().version
        accepted = publish(
            [record(confidence=0.97), record("BAD", confidence=2)], remove=["MSFT"], settings=scanned, wait_s=20
        )
        assert (accepted.records, accepted.removals) == (1, 1)
        assert [(reject.reason.value, reject.name, reject.where) for reject in accepted.rejected] == [
            ("ConfidenceInvalid", "BAD", "record 2")
        ]
        assert accepted.version is not None
        assert accepted.version > before
        fleet.reader.refresh()
        assert fleet.reader.predictions().version == accepted.version
        assert list(shown(fleet.reader)) == ["TSLA", "AAPL"]
        assert fleet.reader.symbol("MSFT").value is None

        def send(*arguments: Any, **keywords: Any) -> dict[str, Any]:
            sent = client.send_task(TASK, arguments, keywords, queue=QUEUE)
            result: dict[str, Any] = sent.get(timeout=20, propagate=True)
            return result

        report = send({"NVDA": a_record(confidence=0.99), "X": 5}, ["TSLA", "NONE"], "rolling_brain")
        assert (report["status"], report["updated"]["changed"], report["updated"]["removed"]) == ("success", 1, 2)
        (tally,) = report["rejects"]
        assert (tally["reason"], tally["count"], tally["first"][0]["name"]) == ("RecordNotObject", 1, "X")
        assert list(shown(fleet.reader)) == ["NVDA", "AAPL"]
        fleet.reader.refresh()
        assert fleet.reader.predictions().version == report["version"]
        assert (send()["status"], send(source="rolling_brain")["reason"]) == ("skipped", "no_updates")

        twice = [record("TWICE", confidence=0.5, timestamp=None)]
        client.send_task(TASK, [twice], queue=QUEUE, task_id="its worker was killed before it acknowledged it")
        send([record("TWICE", confidence=0.8, timestamp=None)])
        client.send_task(TASK, [twice], queue=QUEUE, task_id="its worker was killed before it acknowledged it")
        send([], ["NONE"])
        assert shown(fleet.reader)["TWICE"] == 0.8
        send([], ["TWICE"])

        for arguments, error, message in (
            (([record()], ["TSLA"]), "SettingsInvalid", "'TSLA' is in records and in remove"),
            ((5,), "SettingsInvalid", "records=5 is neither"),
            (([], "TSLA"), "SettingsInvalid", "remove='TSLA' is not a list"),
            (([], [], "other"), "SettingsInvalid", "source='other'"),
            (([], [], {"a": 1}), "SettingsInvalid", "source={'a': 1}"),
            (([record(f"S{number}") for number in range(1_001)],), "UpdatesRefused", "more than 1,000"),
            (("[nonsense]",), "SourceMalformed", "malformed JSON at byte 1"),
            (([], [], None, "more"), "TypeError", "positional arguments"),
            (([], ["NVDA", "AAPL"]), "GuardRefused", "of NVDA, AAPL was dropped: updates would remove the last"),
        ):
            with pytest.raises(Exception, match=r".") as caught:
                send(*arguments)
            assert (type(caught.value).__name__, message in str(caught.value)) == (error, True), caught.value
        assert list(shown(fleet.reader)) == ["NVDA", "AAPL"]
        fleet.wait_for_line("rolling_brain: ⚠️ an update failed: UpdatesRefused: more than 1,000 records")
        fleet.wait_for_line(r"rolling_brain: an update has records that are rejected: 1 x RecordNotObject, first 'X'")

        fleet.start_flower()
        kwargs = {"records": [record("FLOW")], "remove": ["AAPL"]}
        status, sent = fleet.flower("POST", f"/api/task/async-apply/{TASK}", {"kwargs": kwargs})
        assert status == 200
        wait_until(lambda: list(shown(fleet.reader)) == ["NVDA", "FLOW"], what="the update by Flower")
        info = f"/api/task/info/{sent['task-id']}"
        wait_until(lambda: fleet.flower("GET", info)[1].get("state") == "SUCCESS", what="its result")


@pytest.mark.slow
def test_killed_workers_lose_no_update(tmp_path: Path, scanned: Settings) -> None:
    """If a worker and a child of the next one are killed during updates, each symbol ends as it was last sent."""
    wanted: dict[str, float] = {"AAPL": 0.75, "MSFT": 0.75}
    with Fleet(tmp_path, scanned) as fleet:
        for life in range(2):
            fleet.start_worker("-Q", QUEUE, "-c", "1")
            for number in range(60):
                symbol, confidence = f"S{number % 7}", 0.8 + (life * 60 + number) / 1_000
                if number % 5 == 4:
                    publish(remove=[symbol], settings=scanned)
                    wanted.pop(symbol, None)
                else:
                    publish([record(symbol, confidence=confidence, timestamp=None)], settings=scanned)
                    wanted[symbol] = confidence
                if number == 30 and life == 0:
                    fleet.end("worker", signal.SIGKILL)
                elif number == 30:
                    kill_child(fleet)
        last = publish([record("LAST")], settings=scanned, wait_s=20)
        fleet.reader.refresh()
        assert fleet.reader.predictions().version == last.version
        assert shown(fleet.reader) == {**wanted, "LAST": 0.75}


@pytest.mark.slow
def test_updates_wait_for_a_worker_with_one_message_a_second(
    tmp_path: Path, scanned: Settings, redis_server: RedisServer
) -> None:
    """Without a worker, calls send at most one message a second, and a call that waits ends with `UpdatesPending`.

    That error names the queue and its Redis. A worker that starts later applies all updates.
    """
    began_s = time.monotonic()
    for number in range(20):
        publish([record(confidence=0.9 + number / 1_000)], settings=scanned)
    with redis_server.client as client:
        assert 1 <= client.llen(QUEUE) <= 1 + (time.monotonic() - began_s) / DRAINING_TTL_S
    with pytest.raises(UpdatesPending, match=rf"after 1\.7 s: no worker .* takes the queue {QUEUE} of redis://"):
        publish([record("LATE")], settings=scanned, wait_s=1.7)
    with fleet_of(tmp_path, scanned) as fleet:
        wait_until(lambda: "LATE" in shown(fleet.reader), what="the updates")
        assert shown(fleet.reader)["TSLA"] == 0.919


@pytest.mark.slow
def test_the_app_of_another_team_takes_and_sends_updates(tmp_path: Path, scanned: Settings) -> None:
    """Another team's app sends and takes updates in the queue that it was registered with, over its own broker."""
    config = f'broker_url = "{scanned.redis_url}"\ntask_default_queue = "proj"'
    with ForeignApp(tmp_path / "proj", scanned, config, ', queue="theirs"') as app:
        app.start_worker("-Q", "theirs", "-c", "1")
        printed = app.printed(f"""
import json
from proj import app
from optimizer.producer import publish
accepted = publish([{record(confidence=0.97)!r}], app=app, wait_s=20)
print(json.dumps(accepted.to_dict()))
""")
        assert list(shown(app.reader)) == ["TSLA", "AAPL", "MSFT"]
        assert json.loads(printed)["version"] == app.reader.predictions().version


# ---- without a worker


def test_a_broker_that_is_away_costs_no_update(
    scanned: Settings, own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """If the broker is down, an update is accepted and waits until the next tick applies it, which the log says."""
    settings = replace(scanned, broker_url=own_redis.url)
    accepted = publish([record(confidence=0.97)], settings=settings)
    assert accepted == Accepted(1, 0, [])
    assert (
        "updates are accepted, and wait until the next call or tick has them applied: CacheUnavailable" in caplog.text
    )
    assert optimize(settings).status == "unchanged"
    with closing(SnapshotReader.from_settings(settings)) as reader:
        assert list(shown(reader)) == ["TSLA", "AAPL", "MSFT"]


def test_a_broker_that_was_restarted_gets_the_next_message(scanned: Settings, own_redis: RedisServer) -> None:
    """After a restart of the broker the next call sends its message, though this process' connection is broken."""
    settings = replace(scanned, broker_url=own_redis.url)
    for life in range(2):
        own_redis.start()
        wait_until(lambda: optimize(settings).status == "unchanged", what="what waits to be applied")
        with own_redis.client as client:
            before = client.llen(QUEUE)
            publish([record(f"S{life}")], settings=settings)
            assert client.llen(QUEUE) == before + 1
        own_redis.kill()


def test_without_the_cache_nothing_is_taken(scanned: Settings, own_redis: RedisServer) -> None:
    """If Redis is down, a call fails with an error that names this Redis; a call with only rejects needs none."""
    settings = replace(scanned, redis_url=own_redis.url)
    with pytest.raises(CacheUnavailable, match=f"{own_redis.port}.*send them again"):
        publish([record()], settings=settings)
    accepted = publish([record(confidence=7)], settings=settings)
    assert (accepted.records, [reject.name for reject in accepted.rejected]) == (0, ["TSLA"])


def test_too_much_is_refused_as_a_whole(scanned: Settings) -> None:
    """A call over the limit of one call, or that makes the waiting updates exceed their limit, is refused as a whole.

    The error names the setting of the limit.
    """
    settings = replace(scanned, update_records_limit=3, update_queue_limit=5)
    records = [record(f"S{number}") for number in range(4)]
    with pytest.raises(UpdatesRefused, match="ROLLING_UPDATE_RECORDS_LIMIT"):
        publish(records, settings=settings)
    publish(records[:3], settings=settings)
    with pytest.raises(UpdatesRefused, match="ROLLING_UPDATE_QUEUE_LIMIT=5"):
        publish(records[1:], settings=settings)
    publish(records[3:], remove=["MSFT"], settings=settings)
    optimize(settings)
    with closing(SnapshotReader.from_settings(settings)) as reader:
        assert set(shown(reader)) == {"AAPL", "S0", "S1", "S2", "S3"}


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, scanned: Settings) -> None:
    """Without `settings` a call uses the `ROLLING_*` variables.

    It must name one of several sources, and an unknown name is refused.
    """
    monkeypatch.setenv("ROLLING_SOURCES", f"a={scanned.input}; b={scanned.input}")
    monkeypatch.setenv("ROLLING_REDIS_URL", scanned.redis_url)
    with pytest.raises(SettingsInvalid, match="say which is meant: a, b"):
        publish([record()])
    with pytest.raises(SettingsInvalid, match="source='c' is not one of"):
        publish([record()], source="c")
    assert publish([record()], source="b").records == 1
    with pytest.raises(SettingsInvalid, match="source='b' is not one of those that are configured: rolling_brain"):
        publish([record()], settings=scanned, source="b")


@pytest.mark.parametrize("wait_s", [-1, float("nan"), float("inf"), None, "5"])
def test_a_time_to_wait_that_is_none_is_refused(scanned: Settings, redis_server: RedisServer, wait_s: Any) -> None:
    """A `wait_s` that is not a finite number, 0 or more, is refused with an error that names it; no record is taken."""
    with pytest.raises(SettingsInvalid, match="wait_s="):
        publish([record()], settings=scanned, wait_s=wait_s)
    with redis_server.client as client:
        assert client.llen(Keys(scanned.source).queue) == 0


def test_importing_it_imports_no_celery_and_rejects_alone_need_none() -> None:
    """Importing `optimizer.producer`, and a call whose only record is rejected, import neither Celery nor kombu."""
    code = """
import sys
import optimizer.producer
from optimizer.producer import Accepted, publish
assert publish([5]).rejected[0].where == "record 1"
print([name for name in sys.modules if name.split(".")[0] in ("celery", "kombu")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")
