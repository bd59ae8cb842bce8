"""The task on real workers, sent by a real beat, and by hand through a real Flower."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import celery
import pytest
import redis

from optimizer import Report, Settings, SnapshotMissing, SnapshotReader, optimize
from optimizer.cache.clocks import seconds_of
from optimizer.cache.keys import Keys
from optimizer.celery.standalone import app
from optimizer.celery.tasks import _decode_outcomes
from optimizer.cli.dev.failure import StackFailed
from optimizer.cli.dev.sample import write_sample
from optimizer.errors import PartFailed
from optimizer.models import Stats
from optimizer.pipeline.distributed import merge_parts
from tests.support.distributed_runs import dispatched, scan_all
from tests.support.fleet import Fleet
from tests.support.ports import free_port
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.rolling_files import a_record, local, write_json

pytestmark = pytest.mark.slow

TASK = "tasks.optimize_rolling_data"
RECEIVED = r"optimize_rolling_data\[{id}\] received"
# Scans that a test has to interrupt use the slow engine: the native one would end in half a second.
SLOW_SCAN = {"ROLLING_ENGINE": "ijson"}
FAST_TICKS = {"ROLLING_INTERVAL_S": "1", "ROLLING_STARTUP_DELAY_S": "0.5"}


@pytest.fixture
def slow_input(settings: Settings) -> Path:
    """A file that takes a second or two to scan."""
    write_sample(local(settings.input), symbols=1_000, points=4_000)
    return local(settings.input)


def test_beat_makes_a_run_each_tick_and_a_changed_input_is_published(tmp_path: Path, settings: Settings) -> None:
    """An input that is written is published by a later tick, without any other action: routers see the new version."""
    write_json(settings.input, {"AAPL": a_record(), "MSFT": a_record(confidence=0.9)})

    with Fleet(tmp_path, settings, **FAST_TICKS) as fleet:
        fleet.start_worker()
        fleet.start_beat()
        fleet.wait_for_runs(1, "success")
        before = fleet.reader.predictions()
        fleet.wait_for_runs(1, "unchanged")
        write_json(settings.input, {"TSLA": a_record()})
        wait_until(lambda: fleet.reader.predictions().version > before.version, what="a new version")
        # Files are written before Redis: between the two a reader takes the version from the files.
        wait_until(lambda: fleet.reader.predictions().origin == "redis", what="the version in Redis")
        after = fleet.reader.predictions()

        line = fleet.wait_for_line("✅ Optimized: ")
    stats = json.loads(line.partition("Optimized: ")[2])
    assert stats["predictions_extracted"] == 2
    assert [record.symbol for record in before.value.predictions] == ["MSFT", "AAPL"]
    assert [record.symbol for record in after.value.predictions] == ["TSLA"]
    assert after.origin == "redis"


def test_a_failing_run_is_one_line_in_the_log_and_the_next_tick_heals(tmp_path: Path, settings: Settings) -> None:
    """A failed run is one line in the log, which says what is wrong and what to do, without a traceback.

    Once the file is there, a later tick publishes it without any other action.
    """
    with Fleet(tmp_path, settings, **FAST_TICKS) as fleet:
        fleet.start_worker()
        fleet.start_beat()
        failed = fleet.wait_for_runs(1, "failed")[0]
        line = fleet.wait_for_line("⚠️ Optimization failed: ")
        write_json(settings.input, [a_record(symbol="AAPL")])
        fleet.wait_for_runs(1, "success")

        said = json.loads(line.partition("failed: ")[2])
        assert said["error"] == failed.error == "SourceMissing"
        assert "rolling_brain.json.gz not found" in said["details"]
        assert "; set ROLLING_INPUT to the prediction engine's file" in said["details"]
        assert not any("Traceback" in line for line in fleet.lines)


def test_ticks_do_not_pile_up_behind_a_worker_that_is_away(
    tmp_path: Path, settings: Settings, redis_server: RedisServer
) -> None:
    """A worker that starts late drops the old ticks in its queue, which have expired, and makes only the fresh one."""
    write_json(settings.input, {"AAPL": a_record()})

    with Fleet(tmp_path, settings, **FAST_TICKS) as fleet, redis_server.client as client:
        fleet.start_beat()
        wait_until(lambda: client.llen("rolling.rolling_brain") >= 4, what="four ticks in the queue")
        fleet.start_worker()
        fleet.wait_for_runs(1)

        fleet.wait_for_line("Discarding revoked task|expired")
        made = [line for line in fleet.lines if "RollingOptimizer" in line]
    assert len(made) <= 3


def test_two_beats_make_one_run_a_tick(tmp_path: Path, settings: Settings) -> None:
    """Two beats make one run for each tick, since a tick is taken once."""
    write_json(settings.input, {"AAPL": a_record()})

    with Fleet(tmp_path, settings, **FAST_TICKS) as fleet:
        fleet.start_worker()
        fleet.start_beat("beat-1")
        fleet.start_beat("beat-2")
        fleet.wait_for_line("skipped: tick_taken")
        ends = [seconds_of(report.timestamp) for report in fleet.wait_for_runs(5, "unchanged")]
    # A run may end in the second after its tick's; if each tick were taken twice, five would end within three seconds.
    assert len(ends) <= int(max(ends)) - int(min(ends)) + 2


def test_flower_triggers_runs_behind_its_password_and_shows_reports_and_failures(
    tmp_path: Path, settings: Settings
) -> None:
    """A run that is sent by Flower's REST API, as on the operations page, gives its report, or the name of its error.

    Without the right password a request is a 401.
    """
    write_json(settings.input, {"AAPL": a_record()})
    trigger = f"/api/task/async-apply/{TASK}"

    with Fleet(tmp_path, settings) as fleet:
        fleet.start_worker()
        fleet.start_flower()
        assert fleet.flower("POST", trigger, {"kwargs": {"force": True}}, login=None)[0] == 401
        assert fleet.flower("POST", trigger, {"kwargs": {"force": True}}, login="ops:wrong")[0] == 401

        good = _triggered(fleet, trigger, {"force": True})
        local(settings.input).unlink()
        bad = _triggered(fleet, trigger, {"force": True})
        wrong = _triggered(fleet, trigger, {"force": "yes"})
        unknown = _triggered(fleet, trigger, {"depth": 1})
        strange = _triggered(fleet, trigger, {"source": ["rolling_brain"]})

    assert good["state"] == "SUCCESS"
    assert "'status': 'success'" in good["result"]
    assert "'predictions_extracted': 1" in good["result"]
    assert bad["state"] == "FAILURE"
    assert bad["exception"].startswith("SourceMissing(")
    assert wrong["exception"].startswith("SettingsInvalid(")
    assert unknown["exception"].startswith("TypeError(")
    assert strange["exception"].startswith("SettingsInvalid(")


def test_a_long_run_reports_its_progress_as_the_tasks_state(
    tmp_path: Path, settings: Settings, redis_server: RedisServer, slow_input: Path
) -> None:
    """The state of the task reports how many of the compressed bytes are read; the result expires after 15 minutes."""
    with Fleet(tmp_path, settings, **SLOW_SCAN) as fleet, redis_server.client as client:
        fleet.start_worker()
        sent = _send(settings, {"force": True})
        states: dict[str, Any] = {}

        def ended() -> bool:
            data = client.get(f"celery-task-meta-{sent}")
            meta = json.loads(data) if data else {"status": "PENDING", "result": None}
            states[str(meta["status"])] = meta["result"]
            return meta["status"] == "SUCCESS"

        wait_until(ended, what="the end of the run")
        lifetime_s = client.ttl(f"celery-task-meta-{sent}")

    assert states["PROGRESS"]["total_bytes"] == slow_input.stat().st_size
    assert 0 < states["PROGRESS"]["percent"] <= 100
    assert 0 < lifetime_s <= 900


def test_a_run_over_its_time_limit_fails_by_name_and_leaves_the_old_snapshots(
    tmp_path: Path, settings: Settings
) -> None:
    """A run over its soft time limit, which ends a scan between two bytecodes, fails with `RunTimedOut`.

    The old version stays current, and no partial file is left.
    """
    write_json(settings.input, {"AAPL": a_record()})
    before = optimize(settings)
    write_sample(local(settings.input), symbols=1_000, points=4_000)

    with Fleet(tmp_path, settings, **SLOW_SCAN) as fleet:
        fleet.start_worker()
        _send(settings, {}, soft_time_limit=1)
        failed = fleet.wait_for_runs(1, "failed")[0]
        version = fleet.reader.predictions().version

    assert failed.error == "RunTimedOut"
    assert version == before.version
    assert not list(local(settings.output_dir).rglob("*.partial"))


def test_a_killed_child_costs_one_tick(tmp_path: Path, settings: Settings, slow_input: Path) -> None:
    """If a worker's child is killed during a run, the run's lock expires, and a later tick publishes the version."""
    assert slow_input.exists()
    with Fleet(tmp_path, settings, **FAST_TICKS, **SLOW_SCAN) as fleet:
        fleet.start_worker()
        fleet.start_beat()
        fleet.wait_for_line(r"received")
        for child in fleet.children():
            os.kill(child, signal.SIGKILL)

        report = fleet.wait_for_runs(1, "success", limit_s=40)[0]
    assert report.cache == "published"


def test_worker_and_beat_survive_a_restart_of_their_broker(tmp_path: Path, own_redis: RedisServer) -> None:
    """After a crash of Redis, which loses its data, worker and beat reconnect, and the next runs are published."""
    own_redis.start()
    settings = Settings(
        input=tmp_path / "rolling_brain.json.gz", output_dir=tmp_path / "snapshots", redis_url=own_redis.url
    )
    write_json(settings.input, {"AAPL": a_record()})

    with Fleet(tmp_path, settings, **FAST_TICKS) as fleet:
        fleet.start_worker()
        fleet.start_beat()
        fleet.wait_for_runs(2)
        own_redis.kill(lose_data=True)
        wait_until(lambda: any("connection" in line.lower() for line in fleet.lines), what="the loss to be noticed")
        own_redis.start()

        fleet.wait_for_runs(2, limit_s=60)
        wait_until(lambda: fleet.reader.predictions().origin == "redis", what="the version in Redis")


def test_a_broker_that_is_away_is_asked_every_two_seconds() -> None:
    """A broker that is away is tried again at least every two seconds, without end.

    Otherwise a worker that has waited long would reconnect late, or never.
    """

    class EnoughSeenError(Exception):
        pass

    waits_s: list[float] = []

    def away(_error: Exception, wait_s: float) -> None:
        waits_s.append(wait_s)
        if len(waits_s) == 5:
            raise EnoughSeenError

    with app.connection_for_read(f"redis://127.0.0.1:{free_port()}/0") as connection, pytest.raises(EnoughSeenError):
        connection.ensure_connection(away, app.conf.broker_connection_max_retries)

    assert waits_s == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert app.conf.broker_connection_max_retries is None


@pytest.mark.no_fork
def test_a_workers_child_stays_under_90_mb(tmp_path: Path, settings: Settings, slow_input: Path) -> None:
    """A worker's child needs less than 90 MB, whatever the size of the file: this one has 450 MB of JSON."""
    assert slow_input.exists()
    with Fleet(tmp_path, settings) as fleet:
        fleet.start_worker()
        _send(settings, {"force": True})
        stats = fleet.wait_for_runs(1, "success")[0].stats
    assert stats is not None
    assert stats.json_bytes > 400e6
    assert stats.peak_rss_mb < 90


def test_many_sources_and_parts_over_two_workers(tmp_path: Path, settings: Settings, redis_server: RedisServer) -> None:
    """Each source has its own schedule and snapshots, and scans of parts can have a worker of their own.

    Only a part that has changed is scanned again, and a part that fails is named in the report.
    """
    write_json(tmp_path / "rolling_brain.json.gz", {"AAPL": a_record()})
    for number in range(6):
        write_json(tmp_path / "parts" / f"{number}.json.gz", {f"S{number}": a_record(confidence=number / 10)})
    environ = {
        "ROLLING_INPUT": "",
        "ROLLING_SOURCES": f"brain={tmp_path}/rolling_brain.json.gz; intraday={tmp_path}/parts/*.json.gz",
        "ROLLING_MIN_CONFIDENCE": "0",
        **FAST_TICKS,
    }
    brain, intraday = Settings.every_from_env(
        {**environ, "ROLLING_OUTPUT_DIR": str(settings.output_dir), "ROLLING_REDIS_URL": settings.redis_url}
    )

    with Fleet(tmp_path, settings, **environ) as fleet, redis_server.client as client:
        fleet.start_worker("-Q", "rolling.brain,rolling.intraday", "-n", "light@%h")
        fleet.start_worker("-Q", "rolling.scan", "-n", "scans@%h", name="scans")
        fleet.start_beat()
        wait_until(lambda: len(_shown(brain)) == 1, what="the first source")
        wait_until(lambda: len(_shown(intraday)) == 6, what="the second source")
        first = _stats(intraday)
        write_json(tmp_path / "parts" / "3.json.gz", {"S3": a_record(confidence=1.0)})
        wait_until(lambda: _shown(intraday)[0] == "S3", what="a change of one part")
        wait_until(lambda: _stats(intraday) != first, what="its report")
        second = _stats(intraday)
        (tmp_path / "parts" / "5.json.gz").write_bytes(b"no gzip, no JSON")
        wait_until(lambda: _newest(intraday).status == "failed", what="a part to fail")
        failed = _newest(intraday)
        fleet.wait_for_line(r"scans\| .*scan_rolling_part")
        assert not any(line.startswith("worker|") and "tasks.scan_rolling_part[" in line for line in fleet.lines)
        (tmp_path / "parts" / "5.json.gz").unlink()
        wait_until(lambda: _newest(intraday).status in ("success", "unchanged"), what="the next tick to heal it")
        sent = _send(intraday, {"force": True, "source": "intraday"})
        meta = f"celery-task-meta-{sent}"
        wait_until(lambda: b'"success"' in (client.get(meta) or b""), what="a run by hand")
        report = json.loads(client.get(meta) or b"")["result"]

    assert first.parts == first.parts_scanned == 6
    assert (second.parts, second.parts_scanned) == (6, 1)
    assert failed.error == "PartFailed"
    assert failed.details is not None
    assert "1 of 6 parts failed" in failed.details
    assert "5.json.gz" in failed.details
    assert (report["stats"]["parts"], report["stats"]["parts_scanned"]) == (5, 5)


def test_a_killed_scan_of_a_part_costs_one_tick(tmp_path: Path, settings: Settings) -> None:
    """If the scan of a part is killed, its chord is lost; the tick that finds the lock expired reports `RunLost`.

    The run of that tick scans only the part that had not been scanned.
    """
    write_json(tmp_path / "parts" / "a.json.gz", {"AAPL": a_record()})
    slow = tmp_path / "parts" / "b.json.gz"
    write_sample(slow, symbols=1_000, points=4_000)
    parted = replace(settings, input=tmp_path / "parts" / "*.json.gz", source="parted")
    with Fleet(tmp_path, parted, ROLLING_SOURCE="parted", **FAST_TICKS, **SLOW_SCAN) as fleet:
        fleet.start_worker()
        fleet.start_beat()
        fleet.wait_for_line(r"scan_rolling_part\[.*received")
        # During its scan, however busy the machine is: neither before it begins nor after its end.
        wait_until(lambda: any(_stop_reader(child, slow) for child in fleet.children()), what="the slow part's scan")
        fleet.wait_for_line(r"scan_rolling_part\[.*succeeded")
        for child in fleet.children():
            os.kill(child, signal.SIGKILL)
        report = fleet.wait_for_runs(1, "success", limit_s=60)[0]
        lost = fleet.runs("failed")

    assert [one.error for one in lost] == ["RunLost"]
    assert report.stats is not None
    assert (report.stats.parts, report.stats.parts_scanned) == (2, 1)


def _stop_reader(pid: int, path: Path) -> bool:
    """Stop a process if it has this file open; return whether it had it open when it was stopped."""

    def reads() -> bool:
        with suppress(FileNotFoundError):  # it has closed a file meanwhile
            return any(file.readlink() == path for file in Path(f"/proc/{pid}/fd").iterdir())
        return False

    if not reads():
        return False
    os.kill(pid, signal.SIGSTOP)
    if not reads():
        os.kill(pid, signal.SIGCONT)
        return False
    return True


def test_a_sender_that_waits_for_a_run_hears_that_its_worker_was_killed(
    tmp_path: Path, settings: Settings, slow_input: Path, redis_server: RedisServer
) -> None:
    """`trigger --wait` exits with 1 and one line with `RunLost` if the worker of its run was killed.

    The log says that the next tick makes the run again.
    """
    assert slow_input.exists()
    with Fleet(tmp_path, settings, **SLOW_SCAN) as fleet:
        fleet.start_worker()
        environ = {"ROLLING_INPUT": str(settings.input), "ROLLING_REDIS_URL": settings.redis_url}
        waiting = subprocess.Popen(
            [sys.executable, "-m", "optimizer.cli", "trigger", "--force", "--wait"],
            env=os.environ | environ,
            stderr=subprocess.PIPE,
        )
        fleet.wait_for_line(r"optimize_rolling_data\[.*received")
        with redis_server.client as client:
            wait_until(
                lambda: any(b"PROGRESS" in (client.get(key) or b"") for key in client.keys("celery-task-meta-*")),
                what="the scan",
            )
        for child in fleet.children():
            os.kill(child, signal.SIGKILL)
        said = waiting.communicate(timeout=30)[1].decode()

    assert waiting.returncode == 1
    sent, lost = said.splitlines()
    assert sent.startswith("sent as ")
    assert lost.startswith("rolling-optimizer: RunLost: its worker was killed")
    assert lost.endswith("; the next tick makes it again")
    assert "Traceback" not in said


def test_a_run_may_be_part_of_a_chain(tmp_path: Path, settings: Settings, redis_server: RedisServer) -> None:
    """In a Celery chain, the task that follows a run waits for the end of its scan."""
    write_json(settings.input, {"AAPL": a_record()})
    with Fleet(tmp_path, settings) as fleet, redis_server.client as client:
        fleet.start_worker()
        with celery.Celery(broker=settings.broker_url, set_as_current=False) as sender:
            queue = f"rolling.{settings.source}"
            first = sender.signature(TASK, kwargs={"force": True}, queue=queue)
            after = sender.signature(TASK, immutable=True, queue=queue)
            last = (first | after).apply_async().id
        wait_until(lambda: client.get(f"celery-task-meta-{last}"), what="the second run")
        reports = fleet.wait_for_runs(2)

    assert [report.status for report in reports] == ["unchanged", "success"]


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_every_pool_publishes_and_stops(
    tmp_path: Path, redis_server: RedisServer, settings: Settings, pool: str
) -> None:
    """In each pool a worker publishes, and on SIGTERM ends its run first and exits with 0.

    A pool that knows no time limits says so at the start.
    """
    write_json(settings.input, {"AAPL": a_record()})
    with Fleet(tmp_path, settings) as fleet, redis_server.client as client:
        fleet.start_worker("-P", pool)
        _send(settings, {})
        fleet.wait_for_runs(1, "success")
        write_sample(local(settings.input), symbols=1_000, points=1_000)
        _send(settings, {"force": True})
        # Not until it is received: from then to its beginning a worker may still give it back.
        lock = Keys(settings.source).lock
        wait_until(lambda: client.exists(lock) or len(fleet.runs()) > 1, what="the second run to begin")
        assert fleet.end("worker", signal.SIGTERM) == 0
        assert [report.status for report in fleet.runs()] == ["success", "success"]
        said = [line for line in fleet.lines if "this pool knows no time limits" in line]
    assert len(said) == (0 if pool == "prefork" else 1)
    assert not any("this worker takes" in line for line in fleet.lines)


@pytest.mark.parametrize("pool", ["gevent", "eventlet", "custom"])
def test_pools_in_which_scans_would_block_are_refused(tmp_path: Path, settings: Settings, pool: str) -> None:
    """A worker with a pool in which scans would block ends at its start with one sentence.

    There it would hang at the first scan, and not even react to SIGTERM.
    """
    if pool != "custom" and importlib.util.find_spec(pool) is None:
        pytest.skip(f"no {pool} here")
    with Fleet(tmp_path, settings) as fleet:
        fleet.worker_variables = {"CELERY_CUSTOM_WORKER_POOL": "celery.concurrency.base:BasePool"}
        with pytest.raises(StackFailed):
            fleet.start_worker("-P", pool)
    assert any("cannot run scans" in line and "start it with -P prefork" in line for line in fleet.lines)


def test_a_worker_that_takes_none_of_our_queues_says_so(tmp_path: Path, settings: Settings) -> None:
    """A worker that takes none of our queues names those to which messages are sent.

    So does one that takes only the queue of parts, if no source has parts.
    """
    with Fleet(tmp_path, settings) as fleet:
        fleet.start_worker("-Q", "celery")
        fleet.wait_for_line(
            r"this worker takes celery, .* sent to rolling\.rolling_brain, rolling\.scan, rolling\.updates;"
        )
        fleet.start_worker("-Q", "rolling.scan", "-n", "scans@%h", name="scans")
        fleet.wait_for_line(r"scans\| .*only the parts of a pattern.* scanned in rolling\.rolling_brain")


# ---- runs that are revoked, as Flower's button does it


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_run_that_is_revoked_never_publishes(
    tmp_path: Path, settings: Settings, redis_server: RedisServer, pool: str
) -> None:
    """A run that is revoked in the queue, at its beginning or in its scan publishes nothing, and frees the lock.

    This holds whether or not the pool can kill it, and the next run may begin.
    """
    write_json(settings.input, {"AAPL": a_record()})
    before = optimize(settings)
    write_sample(local(settings.input), symbols=800, points=4_000)
    with Fleet(tmp_path, settings, **SLOW_SCAN) as fleet, redis_server.client as client:
        fleet.start_worker("-P", pool)
        for phase in ("", RECEIVED, "PROGRESS"):
            run_id = _send(settings, {"force": True})
            if phase == "PROGRESS":
                wait_until(lambda: b"PROGRESS" in _meta(client, run_id), what="the scan")  # noqa: B023
            elif phase:
                fleet.wait_for_line(phase.format(id=run_id))
            _revoke(settings, run_id)
            wait_until(lambda: _has_ended(client, run_id), what=f"the end of the run, revoked at {phase}")  # noqa: B023
            assert not client.exists(Keys(settings.source).lock, Keys(settings.source).handed)
        assert len(fleet.runs("success")) == 1
        assert fleet.reader.predictions().version == before.version
        write_json(settings.input, {"TSLA": a_record()})
        _send(settings, {})
        wait_until(lambda: _shown(settings) == ["TSLA"], what="the next run")
        assert not [report for report in fleet.runs() if report.error == "RunLost"]


def test_a_run_of_many_parts_that_is_revoked_never_publishes(
    tmp_path: Path, settings: Settings, redis_server: RedisServer
) -> None:
    """The parts of a revoked run are not merged, and the next run need not wait for them.

    They may still be scanned to their ends.
    """
    for name, points in (("a", 1_000), ("b", 6_000)):  # the second is scanned long after the first
        write_sample(tmp_path / "parts" / f"{name}.json.gz", symbols=300, points=points)
    parted = replace(settings, input=tmp_path / "parts" / "*.json.gz", source="parted")
    with Fleet(tmp_path, parted, ROLLING_SOURCE="parted", **SLOW_SCAN) as fleet, redis_server.client as client:
        fleet.start_worker()
        run_id = _send(parted, {})
        wait_until(lambda: client.keys(Keys("parted").part("*")), what="the first part")
        _revoke(parted, run_id)
        wait_until(lambda: not client.exists(Keys("parted").lock, Keys("parted").handed), what="a lock that is free")
        fleet.wait_for_line(rf"Discarding revoked task: .*merge_rolling_parts\[{run_id}\]")
        assert _shown(parted) == []
        _send(parted, {})
        fleet.wait_for_runs(1, "success")
        assert not fleet.runs("failed")


def test_outcomes_of_parts_that_cannot_be_decoded_count_as_none(
    tmp_path: Path, settings: Settings, redis_server: RedisServer
) -> None:
    """Outcomes of parts that cannot be decoded count as no outcomes.

    The run then has got back other parts than were sent, so it fails by name and ends: the next run scans the parts.
    """
    write_json(tmp_path / "parts" / "a.json.gz", {"AAPL": a_record()})
    parted = replace(settings, input=tmp_path / "parts" / "*.json.gz", source="parted")
    forged: list[Any] = [[5], ["x"], [{"location": {}}], "text", 5, None, [{}], [{"location": "a", "scanned": 5}]]
    for outcomes in forged:
        assert _decode_outcomes(outcomes) == []
        assignment = dispatched(parted)
        with pytest.raises(PartFailed, match=r"other parts of .* came back than were sent; they are scanned again"):
            merge_parts(parted, assignment.token, _decode_outcomes(outcomes))
        with redis_server.client as client:
            assert not client.exists(Keys(parted.source).lock, Keys(parted.source).handed)
    assert _shown(parted) == []
    assignment = dispatched(parted)
    merge_parts(parted, assignment.token, scan_all(parted, assignment))
    assert _shown(parted) == ["AAPL"]


def _revoke(settings: Settings, run_id: str) -> None:
    """Revoke a run as Flower's button does."""
    with celery.Celery(broker=settings.broker_url, set_as_current=False) as client:
        client.control.revoke(run_id, terminate=True, signal="SIGTERM")


def _meta(client: redis.Redis, run_id: str) -> bytes:
    meta = client.get(f"celery-task-meta-{run_id}")
    return meta if isinstance(meta, bytes) else b""


def _has_ended(client: redis.Redis, run_id: str) -> bool:
    return any(state in _meta(client, run_id) for state in (b'"REVOKED"', b'"FAILURE"', b'"superseded"'))


def _newest(settings: Settings) -> Report:
    with closing(SnapshotReader.from_settings(settings)) as reader:
        return (reader.runs(1) or [Report("skipped", settings.source, "")])[0]


def _stats(settings: Settings) -> Stats:
    """Return the figures of the run that made the version shown, whose report comes a moment after it."""
    reports: list[Report] = []

    def is_reported() -> bool:
        with closing(SnapshotReader.from_settings(settings)) as reader:
            version = reader.predictions().version
            reports.extend(report for report in reader.runs(100) if report.version == version and report.stats)
        return bool(reports)

    wait_until(is_reported, what="the report of the version shown")
    assert reports[0].stats is not None
    return reports[0].stats


def _shown(settings: Settings) -> list[str]:
    with closing(SnapshotReader.from_settings(settings)) as reader:
        try:
            return [record.symbol for record in reader.predictions().value.predictions]
        except SnapshotMissing:
            return []


def _send(settings: Settings, kwargs: dict[str, object], **options: Any) -> str:
    """Send the task as any Celery client would, without this project's code."""
    with celery.Celery(broker=settings.broker_url, set_as_current=False) as client:
        return str(client.send_task(TASK, kwargs=kwargs, queue=f"rolling.{settings.source}", **options).id)


def _triggered(fleet: Fleet, path: str, kwargs: dict[str, object]) -> dict[str, str]:
    status, sent = fleet.flower("POST", path, {"kwargs": kwargs})
    assert status == 200
    info: dict[str, str] = {}

    def ended() -> bool:
        info.clear()
        info.update(fleet.flower("GET", f"/api/task/info/{sent['task-id']}")[1])
        return info.get("state") in ("SUCCESS", "FAILURE")

    wait_until(ended, what="the task in Flower")
    return info
