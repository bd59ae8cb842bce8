"""The metrics, read by the parser of Prometheus's client for Python."""

from __future__ import annotations

import os
import re
import time
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from optimizer import Settings, optimize
from optimizer.cache.client import CacheClient
from optimizer.cache.clocks import text_of
from optimizer.cache.heartbeats import Heartbeat, Heartbeats
from optimizer.cache.keys import Keys
from optimizer.cache.pointer import Pointer, pointer_fields
from optimizer.cache.run_log import RunLog
from optimizer.cli.dev.sample import write_sample
from optimizer.errors import GuardRefused, SourceMissing
from optimizer.models import Pin, Report
from tests.support.ports import free_port
from tests.support.published_state import report_unchanged, run_old
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.rolling_files import a_record, local, write_json
from tests.support.web_apps import WebServer, asking


def metrics(text: str) -> dict[str, float]:
    """Every sample of one source under its name and other labels, without the prefix."""
    return {
        sample.name.removeprefix("rolling_")
        + "".join(f" {value}" for label, value in sample.labels.items() if label != "source"): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_are_the_last_runs_from_redis(settings: Settings) -> None:
    """The metrics have the figures of the last run in Redis, whichever process made it.

    The last scan is still shown after 250 runs that found nothing new.
    """
    write_json(settings.input, {"AAPL": a_record(), "BAD": a_record(confidence=7), "WORSE": a_record(confidence="x")})
    report = optimize(replace(settings, max_rejected_percent=70))
    stats = report.stats
    assert stats is not None
    report_unchanged(settings, 250)
    with asking(settings) as client:
        client.get("/predictions")
        answer = client.get("/metrics")
        values = metrics(answer.text)

    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert values["snapshot_version"] == report.version
    assert 0 <= values["snapshot_age_seconds"] < 60
    assert values["last_run_status unchanged"] == 1
    assert values["last_run_status success"] == 0
    assert values["last_scan_duration_seconds"] == stats.seconds
    assert values["last_scan_input_bytes"] == stats.input_bytes
    assert values["last_scan_json_bytes"] == stats.json_bytes
    assert values["last_scan_json_bytes_per_second"] == pytest.approx(stats.json_mb_per_s * 1e6)
    assert values["last_scan_peak_memory_bytes"] == pytest.approx(stats.peak_rss_mb * 1e6)
    assert values["last_scan_records"] == 3
    assert values["last_scan_rejected ConfidenceInvalid"] == 2
    assert (values["records_seen"], values["records_rejected"]) == (3, 2)
    assert (values["bots_seen"], values["bots_rejected"], values["bots_without_fields"]) == (0, 0, 0)
    assert report.input_age_s is not None
    assert report.input_age_s <= values["input_age_seconds"] < 60
    assert values["publish_latency_seconds"] == report.published_after_s
    assert values["cache_up"] == 1
    assert values["reads_total redis"] == 1
    assert values["snapshot_stale"] == 0
    assert values["last_success_timestamp_seconds"] >= values["snapshot_generated_timestamp_seconds"]


def test_metrics_show_fields_that_are_lost(settings: Settings) -> None:
    """The metrics count bots of which no field is read, and extra fields that cannot be passed on."""
    settings = replace(settings, fields="+sector; +tags")
    record = {**a_record(), "sector": "Technology", "tags": ["a"]}
    write_json(settings.input, {"AAPL": record, "_bots": {"alpha": {"balance": 1.5}, "beta": {"enabled": True}}})
    optimize(settings)
    with asking(settings) as client:
        values = metrics(client.get("/metrics").text)
        status = client.get("/status").json()
    assert (values["bots_seen"], values["bots_without_fields"], values["last_scan_extras_dropped"]) == (2, 1, 1)
    assert status["bots_lack_fields"] is False  # only half of them have no fields


def test_the_age_of_the_input_is_counted_on(settings: Settings) -> None:
    """The input's age grows from scrape to scrape, also after a run that failed.

    Without a time of the input there is no gauge of its age.
    """
    settings = replace(settings, max_input_age_s=7_200)
    for age_s in (3_600, 10_000):
        own = replace(settings, source=f"s{age_s}")
        write_json(settings.input, {"AAPL": a_record(prediction=age_s)})
        os.utime(local(settings.input), (time.time() - age_s,) * 2)
        optimize(own)
        record(own, Report("failed", own.source, text_of(time.time())))
        with asking(own) as client:
            first, second = (metrics(client.get("/metrics").text) for _ in range(2))
        assert age_s <= first["input_age_seconds"] < second["input_age_seconds"] < age_s + 60
        assert first["input_stale"] == (age_s > 7_200)
        assert first["diagnosis input_old"] == 0  # the failed run is the first problem
    with CacheClient(settings.redis_url, own.source, settings.interval_s).commands() as client:
        pointer = Pointer.from_hash(client.hgetall(Keys(own.source).current))  # type: ignore[arg-type]
        assert pointer is not None
        manifest = msgspec.structs.replace(pointer.manifest, input_at=None)
        client.hset(Keys(own.source).current, mapping=pointer_fields(manifest, pointer.checked_at))  # type: ignore[arg-type]
    with asking(replace(own, output_dir=local(settings.output_dir) / "nowhere")) as client:
        assert {"input_age_seconds", "input_stale"}.isdisjoint(metrics(client.get("/metrics").text))


def test_how_soon_an_input_is_published_stays_shown(settings: Settings) -> None:
    """The publish latency is taken from the newest report that has one, also if a later report has none."""
    record(settings, *(Report("success", settings.source, text_of(1e9 + n), published_after_s=n) for n in (1.5, 2.5)))
    record(settings, Report("unchanged", settings.source, text_of(2e9)))
    with asking(settings) as client:
        assert metrics(client.get("/metrics").text)["publish_latency_seconds"] == 2.5


def test_runs_are_counted_by_status_and_error(settings: Settings, redis_server: RedisServer) -> None:
    """Runs are counted by status and error, also those that the stream no longer has.

    A counter in Redis that is not a number starts again at 0.
    """
    report_unchanged(replace(settings, interval_s=864), 250)
    with asking(settings) as client:

        def shown() -> dict[str, float]:
            return {
                name.removeprefix("runs_total "): value
                for name, value in metrics(client.get("/metrics").text).items()
                if name.startswith("runs_total")
            }

        assert shown() == {"success ": 0, "unchanged ": 250, "skipped ": 0, "failed ": 0}
        for error in ("SourceMissing", "SourceMissing", "SourceTorn"):
            record(settings, Report("failed", settings.source, text_of(time.time()), error=error, details="why"))
        assert shown() | {"failed SourceMissing": 2, "failed SourceTorn": 1} == shown()
        in_a_row = {name: value for name, value in metrics(client.get("/metrics").text).items() if "row" in name}
        assert in_a_row == {"runs_failed_in_a_row SourceTorn": 3}
        with redis_server.client as behind:
            behind.hset(Keys(settings.source).outcomes, mapping={"unchanged": "many", "other of": "7 "})
            assert shown()["unchanged "] == 0
            report_unchanged(settings, 2)
            assert behind.hget(Keys(settings.source).outcomes, "unchanged") == b"2"
            assert len(behind.xrange(Keys(settings.source).runs)) > 100
        assert (shown()["unchanged "], shown()["failed SourceTorn"]) == (2, 1)


def test_runs_are_counted_together_with_their_entry(settings: Settings, redis_server: RedisServer) -> None:
    """A run is counted in the transaction that appends its report, so the counters and the stream agree."""
    with redis_server.client as client, client.monitor() as monitor:
        report_unchanged(settings, 1)
        seen = []
        for command in monitor.listen():
            seen.append(str(command["command"]).partition(" ")[0])
            if seen[-1] == "EXEC":
                break
    assert seen[seen.index("MULTI") :] == ["MULTI", "XADD", "HINCRBY", "LLEN", "EXEC"]


@pytest.mark.parametrize("time_of_it", ["soon", "2026-11-01T10:00:00", "9999-12-31T23:00:00-02:00"])
def test_a_report_without_a_time_hides_no_other(settings: Settings, redis_server: RedisServer, time_of_it: str) -> None:
    """A report with an unusable time hides no other report, and does not break the diagnosis, which needs that time."""
    report_unchanged(settings, 1)
    with asking(settings) as client:
        report = Report("failed", settings.source, time_of_it, error="SourceMissing")
        redis_server.client.xadd(Keys(settings.source).runs, {"report": msgspec.json.encode(report)})
        values = metrics(client.get("/metrics").text)
        status = client.get("/status").json()

    assert values["last_run_status unchanged"] == 1
    assert status["diagnosis"]["code"] == "no_worker"


def test_workers_and_beats_are_counted(settings: Settings) -> None:
    """Running workers and beats of the source are counted.

    The memory limit is the smallest that one of these workers has for a run.
    """
    queue = f"rolling.{settings.source}"
    told = [
        Heartbeat("worker", "one", 5.0, [queue], 300_000_000),
        Heartbeat("worker", "two", 5.0, [queue, "other"], 200_000_000),
        Heartbeat("worker", "elsewhere", 5.0, ["other"], 100),
        Heartbeat("beat", "one", 5.0, [queue]),
    ]
    with asking(settings) as client, closing(CacheClient(settings.redis_url, settings.source, 30.0)) as cache:
        before = metrics(client.get("/metrics").text)
        assert (before["workers"], before["beats"]) == (0, 0)
        assert "worker_memory_limit_bytes" not in before
        for heartbeat in told:
            Heartbeats(cache).tell(heartbeat)
        values = metrics(client.get("/metrics").text)
        assert (values["workers"], values["beats"]) == (2, 1)
        assert values["worker_memory_limit_bytes"] == 200_000_000
        for kind in ("worker", "beat"):
            assert time.time() - 60 < values[f"process_seen_timestamp_seconds {kind}"] < time.time() + 60
        assert values["cache_memory_bytes"] > 100_000


def test_the_diagnosis_is_the_one_of_the_page(settings: Settings) -> None:
    """The metrics have the diagnosis of `/status`: only its code has the value 1, and the level says how bad it is."""
    with asking(settings) as client:
        for expected, level in (("no_worker", 2), ("ok", 0), ("runs_fail", 1)):
            if expected == "ok":
                run_old(settings)
            if expected == "runs_fail":
                local(settings.input).unlink()
                with pytest.raises(SourceMissing):
                    optimize(settings)
            values = metrics(client.get("/metrics").text)
            codes = {name for name, value in values.items() if name.startswith("diagnosis ") and value}
            assert codes == {f"diagnosis {expected}"}
            assert values["diagnosis_level"] == level
            assert client.get("/status").json()["diagnosis"]["code"] == expected


@pytest.mark.slow
def test_metrics_are_of_all_sources_wherever_they_are_asked_for(tmp_path: Path, settings: Settings) -> None:
    """`/metrics` at the root and of each source has the metrics of all sources by name, in one family per metric.

    The parser of Prometheus's client for Python reads them.
    """
    variables = {
        "ROLLING_INPUT": "",
        "ROLLING_SOURCES": f"brain={tmp_path}/brain.json; intraday={tmp_path}/intraday.json",
    }
    environ = {"ROLLING_OUTPUT_DIR": str(settings.output_dir), "ROLLING_REDIS_URL": settings.redis_url}
    for number, one in enumerate(Settings.every_from_env(variables | environ), 1):
        write_json(one.input, {f"S{each}": a_record() for each in range(number)})
        optimize(one)
    with WebServer(tmp_path, settings, **variables) as web:
        texts = [web.get(f"{path}/metrics")[2].decode() for path in ("", "/sources/brain", "/sources/intraday")]
    for text in texts:
        seen = {
            sample.labels["source"]: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "rolling_last_scan_records"
        }
        assert seen == {"brain": 1, "intraday": 2}
        assert len(re.findall("^# TYPE rolling_last_scan_records gauge$", text, re.MULTILINE)) == 1
        assert re.search(r'^rolling_build_info\{version="[\w.]+",python="3\.\d+\.\d+"\} 1$', text, re.MULTILINE)


READER = ("%R~rolling:*", "&rolling:*", "-@all", "+@read", "+@pubsub", "+ping", "+hello", "+select")


@pytest.mark.slow
def test_reads_are_those_of_all_processes(tmp_path: Path, settings: Settings, redis_server: RedisServer) -> None:
    """Each process, also a new one, reports the reads of all processes.

    Their user of Redis needs to write nothing but these counters.
    """
    run_old(settings)
    with redis_server.client as client:
        client.execute_command(
            *("ACL", "SETUSER", "web", "reset", "on", ">made-up", *READER, "%RW~rolling:*:reads:*", "+incrby")
        )
    limited = replace(settings, redis_url=settings.redis_url.replace("://", "://web:made-up@"))
    for number in range(3):
        (tmp_path / str(number)).mkdir()
    with WebServer(tmp_path / "0", limited) as one, WebServer(tmp_path / "1", limited) as other:
        for server, times in ((one, 5), (other, 7)):
            for _ in range(times):
                assert server.get("/predictions")[0] == 200

        def shown(server: WebServer) -> float:
            return metrics(server.get("/metrics")[2].decode())["reads_total redis"]

        for server in (one, other):
            wait_until(lambda server=server: shown(server) == 12, limit_s=5, what="the sum")  # type: ignore[misc]
        with WebServer(tmp_path / "2", limited) as late:
            assert shown(late) == 12
    with redis_server.client as client:
        assert client.get(Keys(settings.source).reads("redis")) == b"12"
        client.execute_command("ACL", "DELUSER", "web")


def test_who_may_not_write_counts_for_itself(
    settings: Settings, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A process whose user of Redis may not write counts only its own reads and logs that once; all else works."""
    run_old(settings)
    with redis_server.client as client:
        client.execute_command("ACL", "SETUSER", "web", "reset", "on", ">made-up", *READER)
    limited = replace(settings, redis_url=settings.redis_url.replace("://", "://web:made-up@"))
    with asking(limited) as asked, caplog.at_level("INFO", logger="optimizer"):
        for number in range(1, 4):
            asked.get("/predictions")
            values = metrics(asked.get("/metrics").text)
            assert (values["reads_total redis"], values["cache_up"]) == (number, 1)
    assert [record.levelname for record in caplog.records if "by this process alone" in record.message] == ["INFO"]
    with redis_server.client as client:
        assert not client.exists(Keys(settings.source).reads("redis"))
        client.execute_command("ACL", "DELUSER", "web")


def test_reads_do_not_fall_while_redis_is_away(settings_without_redis: Settings, own_redis: RedisServer) -> None:
    """Counters of reads do not fall while Redis is down, since Prometheus takes a fall for a restart.

    Reads of that time are added when Redis is back.
    """
    own_redis.start()
    settings = replace(settings_without_redis, redis_url=own_redis.url)
    run_old(settings)
    with asking(settings) as client:

        def shown() -> dict[str, float]:
            return metrics(client.get("/metrics").text)

        for _ in range(3):
            client.get("/predictions")
        assert shown()["reads_total redis"] == 3
        with own_redis.client as behind:
            behind.save()
        own_redis.kill()
        wait_until(lambda: client.get("/status").json()["origin"] == "files", limit_s=5, what="the files")
        client.get("/predictions")
        assert (shown()["reads_total redis"], shown()["reads_total files"]) == (3, 1)

        own_redis.start()
        wait_until(lambda: shown()["cache_up"] == 1, limit_s=5, what="that Redis is back")
        wait_until(lambda: (shown()["reads_total redis"], shown()["reads_total files"]) == (3, 1), limit_s=5)
        with own_redis.client as behind:
            assert behind.mget(map(Keys(settings.source).reads, ("redis", "files"))) == [b"3", b"1"]


def test_a_failed_run_shows_and_the_snapshot_grows_old(settings: Settings) -> None:
    """After a failed run the metrics have what an alert needs.

    This is the last status, the age of the snapshot, and whether it is stale.
    """
    write_sample(local(settings.input), symbols=10, points=1)
    fast = replace(settings, interval_s=0.1)
    optimize(fast)
    local(settings.input).unlink()
    with pytest.raises(SourceMissing):
        optimize(fast)
    with asking(fast) as client:
        wait_until(lambda: metrics(client.get("/metrics").text)["snapshot_stale"] == 1, limit_s=5, what="staleness")
        values = metrics(client.get("/metrics").text)
        assert values["last_run_status failed"] == 1
        assert 3 * fast.interval_s < values["snapshot_age_seconds"] < 60


def record(settings: Settings, *reports: Report) -> None:
    """Write reports to the stream of runs, oldest first."""
    with closing(CacheClient(settings.redis_url, settings.source, settings.interval_s)) as cache:
        for report in reports:
            RunLog(cache).add(report)


def test_a_refusal_by_a_guard_shows_until_a_run_is_decided_otherwise(settings: Settings) -> None:
    """`guard_refused` stays 1 through skipped runs and further refusals, until a run is accepted or fails otherwise."""
    settings = replace(settings, max_drop_percent=50)
    write_json(settings.input, {f"S{number}": a_record() for number in range(10)})
    optimize(settings)
    skipped = Report("skipped", settings.source, "2026-11-01T10:00:00.000Z", reason="tick_taken")
    with asking(settings) as client:

        def shown() -> float:
            return metrics(client.get("/metrics").text)["guard_refused"]

        assert shown() == 0
        write_json(settings.input, {"S1": a_record()})
        for _ in range(2):
            with pytest.raises(GuardRefused):
                optimize(settings)
            record(settings, skipped, skipped)
            assert shown() == 1
        optimize(settings, accept=True)
        record(settings, skipped)
        assert shown() == 0
        local(settings.input).unlink()
        with pytest.raises(SourceMissing):
            optimize(settings)
        assert shown() == 0


def test_a_server_that_is_not_ready_names_the_refusal(settings: Settings) -> None:
    """`/readyz` of a stale source names the last refusal by a guard, also if runs were skipped after it."""
    fast = replace(settings, interval_s=0.1, min_records=5)
    write_json(settings.input, {"A": a_record()})
    optimize(fast, accept=True)
    write_json(settings.input, {"B": a_record()})
    with pytest.raises(GuardRefused):
        optimize(fast)
    record(fast, Report("skipped", settings.source, "2026-11-01T10:00:00.000Z", reason="tick_taken"))
    with asking(fast) as client:
        wait_until(lambda: client.get("/readyz").status_code == 503, limit_s=5, what="staleness")
        detail = client.get("/readyz").json()["detail"]
    assert re.match(r"The run at \S+ UTC has failed: GuardRefused, ", detail)


@pytest.mark.parametrize("by", ["ops@host", 'a"b\\c\nd, {x="y"} é@h'])
def test_a_pin_shows_with_its_time_and_its_author(settings: Settings, by: str) -> None:
    """A pin is shown with its time and its author, whatever characters the names of user and host have.

    Without a pin there is no time.
    """
    run_old(settings)
    with asking(settings) as client:
        values = metrics(client.get("/metrics").text)
        assert values["snapshot_pinned"] == 0
        assert not any(name.startswith("snapshot_pinned_timestamp") for name in values)
    with CacheClient(settings.redis_url, settings.source, settings.interval_s).commands() as client:
        pointer = Pointer.from_hash(client.hgetall(Keys(settings.source).current))  # type: ignore[arg-type]
        assert pointer is not None
        manifest = msgspec.structs.replace(pointer.manifest, pinned=Pin("2026-11-01T10:00:00.000Z", by))
        client.hset(Keys(settings.source).current, mapping=pointer_fields(manifest, pointer.checked_at))  # type: ignore[arg-type]
    nowhere = replace(settings, output_dir=local(settings.output_dir) / "nowhere", max_input_age_s=1e-6)
    with asking(nowhere) as client:
        values = metrics(client.get("/metrics").text)
        assert client.get("/readyz").status_code == 200
    assert values["snapshot_pinned"] == 1
    assert values["input_stale"] == 0  # what the engine has written since the pin is not checked
    since = datetime(2026, 11, 1, 10, tzinfo=UTC).timestamp()
    assert values[f"snapshot_pinned_timestamp_seconds {by}"] == since


def test_metrics_without_a_snapshot_are_those_of_the_process(settings: Settings) -> None:
    """Without a snapshot there are only metrics of the process, Redis and an empty fleet; no value is invented."""
    with asking(settings) as client:
        values = metrics(client.get("/metrics").text)
    known = {name: value for name, value in values.items() if not name.startswith(("diagnosis ", "build_info "))}
    assert known.pop("cache_memory_bytes") > 0
    counts = {f"runs_total {status} ": 0 for status in ("success", "unchanged", "skipped", "failed")}
    assert known == counts | {
        "cache_up": 1,
        "reads_total redis": 0,
        "reads_total files": 0,
        "event_listeners": 0,
        "diagnosis_level": 2,
        "snapshot_stale": 1,
        "workers": 0,
        "beats": 0,
    }


def test_nothing_is_said_of_workers_and_beats_while_redis_is_away(settings: Settings) -> None:
    """While Redis is down, there are no metrics of workers, beats and runs.

    A count of 0 would not mean that none is running, so an alert would name the wrong cause.
    """
    with asking(replace(settings, redis_url=f"redis://127.0.0.1:{free_port()}/0")) as client:
        values = metrics(client.get("/metrics").text)
    assert (values["cache_up"], values["diagnosis redis_away"]) == (0, 1)
    assert not [name for name in values if name.startswith(("workers", "beats", "process_seen", "runs_total"))]
