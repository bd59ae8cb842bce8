"""`rolling-optimizer watch`, started as users start it, with real files, broker and worker, and with faults in each."""

from __future__ import annotations

import gzip
import json
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from optimizer import Settings
from optimizer.cache.client import CacheClient
from optimizer.cache.lock import SourceLock
from tests.support.command import rolling_optimizer
from tests.support.fleet import Fleet
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.rolling_files import a_record, local, write_json
from tests.support.s3_server import S3Server

pytestmark = pytest.mark.slow

QUEUE = "rolling.rolling_brain"
SENT = "the input has landed: sent run"
TRIES_AGAIN = "no run can be sent yet, the watch tries again"


@contextmanager
def fleet_of(directory: Path, settings: Settings, **variables: str) -> Iterator[Fleet]:
    """Yield a fleet without processes; at the end, check that no process has printed a traceback."""
    with Fleet(directory, settings, **variables) as fleet:
        yield fleet
        text = "\n".join(fleet.lines)
        assert "Traceback" not in text, text


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, shared_redis: RedisServer) -> Iterator[Fleet]:
    """A fleet of a worker with one child and a watch, with a Redis of its own; at first there is no input."""
    assert shared_redis  # skips where no Redis is installed
    directory = tmp_path_factory.mktemp("fleet")
    server = RedisServer(directory / "redis")
    server.start()
    settings = Settings(input=directory / "rolling_brain.json.gz", output_dir=directory / "out", redis_url=server.url)
    with fleet_of(directory, settings) as running:
        running.start_worker("-c", "1")
        running.start_watch()
        yield running
    server.kill()


_confidences = count(500)


def write(fleet: Fleet) -> float:
    """Replace the input by one whose record has a new confidence; return that confidence."""
    confidence = next(_confidences) / 1_000
    write_json(fleet.settings.input, {"AAPL": a_record(confidence=confidence)})
    return confidence


def wait_until_shown(fleet: Fleet, confidence: float) -> None:
    """Wait until readers show the record with this confidence, and the report of its run, which is stored later."""

    def is_shown() -> bool:
        fleet.check()
        if not (reports := fleet.runs("success")):
            return False
        shown = fleet.reader.predictions()
        return shown.version == reports[0].version and shown.value.predictions[0].confidence == confidence

    wait_until(is_shown, what=f"the version with {confidence}")


def sent(fleet: Fleet) -> int:
    """Return how many runs the fleet's watches have sent."""
    return sum(SENT in line for line in fleet.lines)


def test_a_burst_of_renames_makes_one_run_and_one_more(fleet: Fleet) -> None:
    """Ten renames in a row make one run, which begins at once, and at most one more, for what landed meanwhile."""
    for _ in range(3):
        before = sent(fleet)
        confidence = [write(fleet) for _ in range(10)][-1]
        wait_until_shown(fleet, confidence)
        assert 1 <= sent(fleet) - before <= 2
    assert {report.status for report in fleet.runs()} <= {"success", "unchanged"}


def test_a_file_that_is_written_in_place_is_not_scanned_before_it_rests(fleet: Fleet) -> None:
    """A file that is written in place is scanned once, after it has rested, and no run finds it torn.

    The engine writes for a second and a half and then rests, three times.
    """
    path = local(fleet.settings.input)
    before = len(fleet.runs("success"))
    for number in range(1, 4):
        data = gzip.compress(json.dumps({f"S{symbol}": a_record(note=number) for symbol in range(300)}).encode())
        size = len(data) // 14 + 1
        with path.open("wb") as file:
            for at in range(0, len(data), size):
                file.write(data[at : at + size])
                file.flush()
                time.sleep(0.1)  # the pace of the engine
        fleet.wait_for_runs(before + number, "success")
    assert len(fleet.runs("success")) == before + 3
    assert fleet.runs("failed") == []


def test_two_watches_and_one_that_was_killed(fleet: Fleet) -> None:
    """Two watches together cause as many successful runs as one does.

    Input that lands while no watch runs is published by the run that the next watch sends at its start.
    """
    fleet.start_watch(name="second")
    before = len(fleet.runs("success"))
    wait_until_shown(fleet, write(fleet))
    assert len(fleet.runs("success")) == before + 1

    assert fleet.end("second", signal.SIGKILL) == -signal.SIGKILL
    assert fleet.end("watch", signal.SIGKILL) == -signal.SIGKILL
    confidence = write(fleet)
    fleet.start_watch()
    wait_until_shown(fleet, confidence)


def test_a_run_on_demand_that_is_on(fleet: Fleet) -> None:
    """Input that lands while a run sent by hand is in the queue, or is being made, is published all the same."""
    for _ in range(2):
        fleet.celery("call", "tasks.optimize_rolling_data", "--kwargs", '{"force": true}', "--queue", QUEUE)
        wait_until_shown(fleet, write(fleet))


def test_a_tick_that_holds_the_lock(fleet: Fleet) -> None:
    """If another run holds the lock, the watch's run is skipped, and sent again until the input is published."""
    settings, before = fleet.settings, len(fleet.runs("skipped"))
    with (
        closing(CacheClient(settings.redis_url, settings.source, settings.interval_s)) as cache,
        SourceLock(cache).acquire(),
    ):
        confidence = write(fleet)
        fleet.wait_for_runs(before + 2, "skipped")
    wait_until_shown(fleet, confidence)


def test_parts_and_a_directory_that_appears_later(tmp_path: Path, settings: Settings) -> None:
    """Eight parts in a directory that did not exist at the watch's start are published by at most three runs.

    A part that is added later, and one that is deleted, are each published by a later run.
    """
    settings = replace(settings, input=tmp_path / "later" / "parts" / "*.json.gz", source="parts")
    with fleet_of(tmp_path, settings, ROLLING_SOURCE="parts") as fleet:
        fleet.start_worker("-c", "1")
        fleet.start_watch()
        for number in range(8):
            write_json(tmp_path / "later" / "parts" / f"{number}.json.gz", {f"S{number}": a_record()})
        wait_until(lambda: fleet.runs("success") and fleet.reader.predictions().value.count == 8, what="all parts")
        assert sent(fleet) <= 3

        write_json(tmp_path / "later" / "parts" / "8.json.gz", {"S8": a_record()})
        wait_until(lambda: fleet.reader.predictions().value.count == 9, what="the part that came")
        (tmp_path / "later" / "parts" / "0.json.gz").unlink()
        wait_until(lambda: fleet.reader.predictions().value.count == 8, what="the part that went")


def test_a_broker_that_is_away(tmp_path: Path, settings: Settings, own_redis: RedisServer) -> None:
    """While the broker is away, a watch logs one warning; once it is back, the watch sends one run for what has landed.

    This holds at the watch's start and for later failures.
    """
    settings = replace(settings, redis_url=own_redis.url, broker_url=own_redis.url)
    with fleet_of(tmp_path, settings) as fleet:
        fleet.start_watch()
        for number in range(1, 4):
            write(fleet)
            wait_until(lambda: warnings(fleet) == number, what="a warning")  # noqa: B023
            write(fleet)
            own_redis.start()
            with own_redis.client as broker:
                wait_until(lambda: broker.llen(QUEUE) == 1, what="a message")
                # Celery prints a traceback if Redis is killed while a run is being sent, so wait until the watch has
                # logged it.
                wait_until(lambda: sent(fleet) == number, what="its line")  # noqa: B023
                assert warnings(fleet) == number
                assert sum("the watch goes on" in line for line in fleet.lines) == number
            own_redis.kill(lose_data=True)
        assert all("watch|" in line for line in fleet.lines)


def warnings(fleet: Fleet) -> int:
    """Return how often the watch has warned that it cannot send a run."""
    return sum(TRIES_AGAIN in line for line in fleet.lines)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_ends_it_at_once(
    tmp_path: Path, settings: Settings, own_redis: RedisServer, number: signal.Signals
) -> None:
    """SIGTERM and SIGINT end a watch within 3 s with exit status 0, whether it is idle or waits for a broker.

    The broker accepts connections and does not respond.
    """
    own_redis.start()
    own_redis.pause()
    write_json(settings.input, {"AAPL": a_record()})
    with fleet_of(tmp_path, replace(settings, redis_url=own_redis.url, broker_url=own_redis.url)) as fleet:
        fleet.start_watch()
        fleet.start_watch(name="idle", ROLLING_INPUT=str(tmp_path / "none"))
        for name in ("watch", "idle"):
            began_s = time.monotonic()
            assert fleet.end(name, number) == 0
            assert time.monotonic() - began_s < 3
    own_redis.resume()


def test_a_source_whose_place_fails_delays_no_other(
    tmp_path: Path, settings: Settings, redis_server: RedisServer, s3: S3Server
) -> None:
    """A source whose place cannot be read gives one warning with its name, and the other sources are watched.

    One source is on a web server that refuses connections, one has a file name that is too long. A source whose
    directory is a file gives neither a warning nor a run.
    """
    (tmp_path / "file").touch()
    s3.put(s3.bucket / "a.json", b"{}")
    sources = (
        f"refused=http://127.0.0.1:1/a.json; none={tmp_path}/file/a.json; long={tmp_path}/{'a' * 300}.json; "
        f"store={s3.bucket}/*.json; good={tmp_path}/good.json.gz"
    )
    with Fleet(tmp_path, replace(settings, source="good")) as fleet:
        fleet._stack.environ |= {"ROLLING_SOURCES": sources, **s3.environ}
        del fleet._stack.environ["ROLLING_INPUT"]
        fleet.start_watch("--poll", "0.2")
        write_json(tmp_path / "good.json.gz", {"AAPL": a_record()})
        with redis_server.client as broker:
            for name in ("good", "store"):
                wait_until(lambda: broker.llen(f"rolling.{name}") == 1, what=name)  # noqa: B023
            fleet.wait_for_line(rf"refused: \S+ {TRIES_AGAIN}: SourceUnreadable: http://127.0.0.1:1/a.json: .*refused")
            fleet.wait_for_line(rf"long: \S+ {TRIES_AGAIN}: SourceUnreadable: .*File name too long")
            assert warnings(fleet) == 2
            assert broker.llen("rolling.none") == 0


def test_the_file_that_says_it_is_alive(tmp_path: Path, settings: Settings, own_redis: RedisServer) -> None:
    """`--alive-file` is touched while runs can be sent, and not while the broker is away.

    If its directory is missing, the watch logs that and continues; once the directory is back, the file is touched
    again.
    """
    alive = tmp_path / "health" / "alive"
    alive.parent.mkdir()
    with fleet_of(tmp_path, replace(settings, redis_url=own_redis.url, broker_url=own_redis.url)) as fleet:
        write(fleet)
        fleet.start_watch("--alive-file", str(alive))
        fleet.wait_for_line(TRIES_AGAIN)
        alive.unlink(missing_ok=True)  # it may have been touched before the input had landed
        time.sleep(1.5)  # longer than the time between two touches
        assert not alive.exists()
        alive.parent.rmdir()
        own_redis.start()
        fleet.wait_for_line(r"--alive-file cannot be touched, and the watch goes on: FileNotFoundError: .*alive")
        alive.parent.mkdir()
        wait_until(alive.exists, what="the file")
        before = alive.stat().st_mtime_ns
        wait_until(lambda: alive.stat().st_mtime_ns > before, what="the next touch")


@pytest.mark.parametrize(
    ("arguments", "variables", "said"),
    [
        (["--rest", "0"], {}, "0.0 is not in the range"),
        (["--poll", "x"], {}, "'x' is not a valid float"),
        (["--source", "x"], {}, "source='x' is not one of those that are configured: rolling_brain"),
        ([], {"ROLLING_INTERVAL_S": "0"}, "ROLLING_INTERVAL_S=0.0 is not between"),
        ([], {"ROLLING_INTERVALS": "30"}, "ROLLING_INTERVALS"),
    ],
)
def test_wrong_usage(tmp_path: Path, arguments: list[str], variables: dict[str, str], said: str) -> None:
    """A bad option or variable ends the command with exit status 2 and its reason, before anything is watched."""
    done = rolling_optimizer(tmp_path, "watch", *arguments, **variables)
    assert done.returncode == 2
    assert said in done.stderr
    assert "watching" not in done.stderr
