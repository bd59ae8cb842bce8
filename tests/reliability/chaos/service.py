"""The service under test, and how each fault is made."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, cast

import celery
import msgspec
from msgspec import UNSET

from optimizer import Settings
from optimizer.cache.keys import ORIGINS, PAYLOAD_KINDS, Keys
from optimizer.models import Report
from optimizer.snapshots.format import SnapshotSet, decode_manifest
from optimizer.snapshots.store import snapshot_store
from tests.reliability.chaos.figures import Figures
from tests.reliability.chaos.generations import Engine
from tests.reliability.chaos.pollers import WAYS
from tests.reliability.chaos.updates import UPDATED, Updater, number_in
from tests.support.changes import held, lead, shown
from tests.support.command import command_line
from tests.support.fleet import Fleet
from tests.support.fork_server import run
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.rolling_files import local

__all__ = ["LOCK_TTL_S", "POLL_S", "TASK", "Service", "Start"]

TASK: Final = "tasks.optimize_rolling_data"
PROJECT: Final = Path(__file__).parents[3]
LOCK_TTL_S: Final = 10.0
RESEND_S: Final = 2.0  # for a message whose child was killed; after less time, a slow start would cause a second run
POLL_S: Final = 0.001  # a run takes some 50 ms; without a pause the polls would take a core from it


class Service:
    """Redis, a fleet, an engine that writes all the time, and pollers; all of them end with the `with` block.

    Args:
        directory: The directory for all its files.
        redis: A server that is not started yet.
        rng: Decides when and how faults are made; the same seed makes the same decisions.
        figures: Where the measurements are added.
        interval_s: Seconds between ticks.
        write_every_s: Seconds between generations.
        padding_bytes: Size of the other text in each record, which makes a scan longer.
        output_dir: Where the files go, if not into `directory`.
        keep_versions: How many versions stay in the files; with more than two, a test goes back to older ones.
        with_updates: Whether the engine also publishes updates all the time.
        worker_variables: Environment variables of the worker alone.
        variables: More environment variables of all processes of the fleet.
    """

    def __init__(
        self,
        directory: Path,
        redis: RedisServer,
        rng: random.Random,
        figures: Figures,
        *,
        interval_s: float = 0.3,
        write_every_s: float = 0.2,
        padding_bytes: int = 2_000,
        output_dir: Path | None = None,
        keep_versions: int = 2,
        with_updates: bool = False,
        worker_variables: dict[str, str] | None = None,
        **variables: str,
    ) -> None:
        self.redis = redis
        self.rng = rng
        self._figures = figures
        self.settings = Settings(
            input=directory / "rolling_brain.json.gz",
            output_dir=output_dir or directory / "snapshots",
            redis_url=redis.url,
            interval_s=interval_s,
            keep_versions=keep_versions,
        )
        self.keys = Keys(self.settings.source)
        variables = {
            "ROLLING_INTERVAL_S": str(interval_s),
            "ROLLING_STARTUP_DELAY_S": "0.1",
            "ROLLING_KEEP_VERSIONS": str(keep_versions),
            **variables,
        }
        self.engine = Engine(local(self.settings.input), rng, every_s=write_every_s, padding_bytes=padding_bytes)
        self.fleet = Fleet(directory, self.settings, **variables)
        self.fleet.worker_variables |= worker_variables or {}
        self.updater = Updater(self.settings, rng) if with_updates else None
        self.pollers = Pollers(self.settings)
        self._has_beats = False
        self._next_tick = 0.0

    def __enter__(self) -> Service:
        self.redis.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.stop()
        if self.updater is not None:
            self.updater.stop()
        self.pollers.stop()
        self.fleet.__exit__()

    def start(self, *, beats: int = 2) -> None:
        """Start everything; return once every way of reading has shown a new generation."""
        self.fleet.start_worker()
        for number in range(beats):
            self.fleet.start_beat(f"beat-{number + 1}")
        self._has_beats = beats > 0
        self._tick_by_hand()
        self.fleet.wait_for_runs(1, "success")
        self.engine.start()
        if self.updater is not None:
            self.updater.start()
        self.pollers.start()
        self.wait_for_news()

    def send(self, **kwargs: bool) -> str:
        """Send a run by hand, as any Celery client would; it never expires."""
        with celery.Celery(broker=self.settings.broker_url, set_as_current=False) as client:
            return str(client.send_task(TASK, kwargs=kwargs, queue=f"rolling.{self.settings.source}").id)

    def command(self, *arguments: object, kill_after_s: float | None = None) -> int:
        """Run `rolling-optimizer` on this service, and kill it after `kill_after_s`; return its exit status."""
        settings = self.settings
        variables = {
            "ROLLING_INPUT": str(settings.input),
            "ROLLING_OUTPUT_DIR": str(settings.output_dir),
            "ROLLING_REDIS_URL": settings.redis_url,
            "ROLLING_INTERVAL_S": str(settings.interval_s),
        }
        try:
            command = command_line(*arguments)
            return run(command, os.environ | variables, PROJECT, kill_after_s or 60.0).returncode
        except subprocess.TimeoutExpired:
            return -signal.SIGKILL

    # ---- what readers see

    def wait_for_news(self, *, limit_s: float = 40.0) -> None:
        """Wait until every way of reading shows a generation that is written from now on."""
        self._wait_for(self.engine.generation + 1, limit_s)

    def _wait_for(self, generation: int, limit_s: float) -> None:
        deadline = time.monotonic() + limit_s
        while late := {way: shown for way in WAYS if (shown := self.pollers.shown(way)) < generation}:
            if time.monotonic() > deadline:
                # Without the lines of beat, which logs each tick, also while no worker takes it.
                log = "\n".join([line for line in self.fleet.lines if "Sending due task" not in line][-60:])
                raise AssertionError(f"no generation {generation} within {limit_s:g} s: {late}\n{log}")
            self._tick_by_hand()
            time.sleep(0.1)

    def _tick_by_hand(self) -> None:
        """Send a run once an interval if there are no beats that do it."""
        if not self._has_beats and time.monotonic() > self._next_tick:
            self.send()
            self._next_tick = time.monotonic() + self.settings.interval_s

    def runs(self, status: str | None = None) -> list[Report]:
        """The reports so far, newest first."""
        return [report for _, report in reversed(self.timed_runs()) if status in (None, report.status)]

    def timed_runs(self) -> list[tuple[float, Report]]:
        """The reports so far, oldest first, each with the time when Redis stored it, in seconds since the epoch."""
        with self.redis.client as client:
            entries = cast("list[tuple[bytes, dict[bytes, bytes]]]", client.xrange(self.keys.runs))
        return [
            (int(key.partition(b"-")[0]) / 1000, msgspec.json.decode(fields[b"report"], type=Report))
            for key, fields in entries
        ]

    @contextmanager
    def fault(self, kind: str, times: int = 1) -> Iterator[None]:
        """Measure a fault, which is made within the block and is over when every way shows something new."""
        began = time.monotonic()
        yield
        ended = time.monotonic()
        self.wait_for_news()
        recovered = time.monotonic()
        self._figures.add_fault(
            kind, times, gap_s=self.pollers.longest_gap_s(began, recovered), recovery_s=recovered - ended
        )

    def check(self) -> None:
        """Stop the engine, wait until readers show its last generation, and stop all; then check what was left behind.

        The pollers may not have complained, and files, keys and changes may contain nothing unexpected.
        """
        self.engine.stop()
        self._wait_for(self.engine.generation, 2 * LOCK_TTL_S + 10)
        if self.updater is not None:
            self._check_updates(self.updater)
        self.pollers.stop()
        self._figures.reads.update(self.pollers.reads)
        self._figures.unanswered.update(self.pollers.unanswered)
        self._figures.complaints += len(self.pollers.complaints)
        assert not self.pollers.complaints, self.pollers.complaints[:10]
        assert set(self.pollers.reads) == set(WAYS)
        self.fleet.stop()
        self._check_files()
        self._check_keys()
        self._check_changes()

    def _check_updates(self, updater: Updater) -> None:
        """Check that Redis and files show the last accepted update, and that a later file supersedes all updates."""
        updater.come_to_rest()
        self._wait_for_update(updater.last)
        self.engine.write()
        self._wait_for(self.engine.generation, 2 * LOCK_TTL_S + 10)
        self._wait_for_update(None)
        with self.redis.client as client:
            assert not client.exists(self.keys.queue, self.keys.updates)

    def _wait_for_update(self, number: float | None) -> None:
        def is_shown() -> bool:
            self._tick_by_hand()
            with self.redis.client as client:
                in_redis = shown(client, self.keys)
                waiting = client.llen(self.keys.queue)
            in_files = snapshot_store(self.settings.output_dir).read_set()
            if in_redis is None or in_files is None or waiting:
                return False
            contents = (in_redis.content(), in_files.content())
            return {number_in(msgspec.to_builtins(each.predictions.predictions)) for each in contents} == {number}

        wait_until(is_shown, what=f"the last update, {number}", limit_s=20)

    def _check_files(self) -> None:
        directory = local(self.settings.output_dir)
        names = {"current", "versions", "manifest.json", ".lock", ".output-id"} | {
            path.name for path in directory.glob("*.json.gz")
        }
        there = {path.name for path in directory.iterdir()}
        assert there == names, there
        assert len(names) == 9, names
        sets = [path.name for path in (directory / "versions").iterdir()]
        assert len(sets) <= self.settings.keep_versions, sets
        assert all(name.isdecimal() for name in sets), sets

    def _check_changes(self) -> None:
        """Check that the stream leads from each version in the files to the current one, or has a gap.

        An input with equal content may not have made a change.
        """
        with self.redis.client as client:
            current, stored = shown(client, self.keys), held(client, self.keys)
        assert current is not None
        versions = local(self.settings.output_dir) / "versions"
        for directory in versions.iterdir():
            manifest = decode_manifest((directory / "manifest.json").read_bytes())
            assert manifest is not None
            payloads = {kind: (directory / manifest.snapshots[kind].file).read_bytes() for kind in PAYLOAD_KINDS}
            lead(stored, SnapshotSet(manifest, payloads).content(), current)
        generations = [
            next(record.prediction for record in change.changed if record.symbol not in UPDATED)
            for change in (one.change.predictions for one in stored)
            if change is not UNSET and any(record.symbol not in UPDATED for record in change.changed)
        ]
        if self.settings.keep_versions == 2:  # else rollbacks publish older generations again
            assert generations == sorted(set(generations)), "an input with the same content has made a change"

    def _check_keys(self) -> None:
        with self.redis.client as client:
            assert client.get(self.keys.lock) is None
            left = set()
            for key in cast("list[bytes]", list(client.scan_iter(count=1_000))):
                name, expires_s = key.decode(), client.ttl(key)
                if expires_s == -1:
                    left.add(name)
                elif ":staged:" in name:
                    assert expires_s <= 180
                elif ":tick:" in name:
                    assert expires_s <= max(1.0, 2 * self.settings.interval_s)
            # Messages that a killed worker had just taken: Celery redelivers them after its visibility timeout.
            assert cast("int", client.hlen("unacked")) <= 10
            left -= {"unacked", "unacked_index"}
            # Ticks that were sent while the worker ended; each message expires by itself.
            left -= {name for name in left if name.startswith("rolling.")}
            version = int(cast("bytes", client.hget(self.keys.current, "version")))
        kinds = ("predictions", "bots", "portfolio", "symbols", "ranking")
        lasting = (name for name, key_type in self.keys.fixed.items() if not key_type.expires)
        expected = {*lasting} - {self.keys.parts}
        expected |= {self.keys.payload(version, kind) for kind in kinds}
        left -= {name for name in left if name.startswith("_kombu.binding")}  # one for each queue, which stays
        assert left <= expected, left - expected
        by_chance = {self.keys.deltas, self.keys.queue, self.keys.queued, self.keys.updates}
        assert left >= expected - by_chance - {self.keys.reads(origin) for origin in ORIGINS}

    # ---- faults

    def wait_for_a_run(self, client: Any, *, limit_s: float = 15.0, **sent: bool) -> bytes:
        """Poll often until a run holds the lock, and return its token.

        Without beats, runs are sent by hand while it waits, since a message that is given to a dead child is lost.
        """
        deadline = time.monotonic() + limit_s
        next_send = 0.0
        while time.monotonic() < deadline:
            if not self._has_beats and time.monotonic() > next_send:
                self.send(**sent)
                next_send = time.monotonic() + RESEND_S
            token = client.get(self.keys.lock)
            if token:
                return cast("bytes", token)
            time.sleep(POLL_S)
        raise AssertionError("no run took the lock")

    def wait_for_a_report(self, client: Any, *, limit_s: float = 15.0) -> None:
        """Wait until another run has appended its report."""
        before = client.xinfo_stream(self.keys.runs)["last-generated-id"]
        deadline = time.monotonic() + limit_s
        while client.xinfo_stream(self.keys.runs)["last-generated-id"] == before:
            assert time.monotonic() < deadline, "no run has left a report"
            self._tick_by_hand()
            time.sleep(0.01)

    def is_scanning(self, client: Any) -> bool:
        """Whether a run scans: its assignment is stored under the token of the lock."""
        token = client.hget(self.keys.handed, "token")
        return token is not None and client.get(self.keys.lock) == token

    def runs_in(self, pid: int) -> bool:
        """Whether a process executes a run: then it has the lock file of the output directory open."""
        links = []
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                links.append(path.readlink())
        return local(self.settings.output_dir).resolve() / ".lock" in links

    def kill_children(self) -> list[int]:
        """SIGKILL every child of the worker at once, since any of them may be in a run; return their process ids."""
        killed = self.fleet.children()
        for child in killed:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        return killed

    def wait_for_new_children(self, killed: list[int]) -> None:
        """Wait until the worker has replaced these children: a message that it gives to a dead child is lost."""
        wait_until(
            lambda: len(now := self.fleet.children()) >= len(killed) and not set(killed) & set(now),
            what="the worker to replace its children",
        )

    def restart_worker(self, *signals: int) -> int:
        """End the worker by signals, and start another, as a supervisor does; return the exit status of the first."""
        status = self.fleet.end("worker", *signals)
        self.fleet.start_worker()
        return status

    def restart_beat(self, name: str, *signals: int) -> None:
        """End a beat by signals, and start it again."""
        self.fleet.end(name, *signals)
        self.fleet.start_beat(name)

    def restart_redis(self, *, lose_data: bool, away_s: float) -> None:
        """SIGKILL Redis, and start it again after `away_s`."""
        self.redis.kill(lose_data=lose_data)
        time.sleep(away_s)
        self.redis.start()


Start = Callable[..., Service]


class Pollers:
    """The process of `pollers.py`, and what it has reported so far."""

    def __init__(self, settings: Settings) -> None:
        self.complaints: list[str] = []
        self.reads: dict[str, int] = {}
        self.unanswered: dict[str, int] = {}
        self.versions: dict[int, float] = {}
        self._settings = settings
        self._news: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
        self._process: subprocess.Popen[str] | None = None
        self._listener = threading.Thread(target=self._listen, name="pollers")

    def start(self) -> None:
        """Start the process."""
        order = "versions" if self._settings.keep_versions > 2 else "generations"
        arguments = (self._settings.input, self._settings.output_dir, self._settings.redis_url, order)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.reliability.chaos.pollers", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # the readers' warnings that Redis is away
            text=True,
            cwd=PROJECT,
        )
        self._listener.start()

    def stop(self) -> None:
        """End the process, and read the rest of its output."""
        if self._process is None:
            return
        process, self._process = self._process, None
        assert process.stdin is not None
        process.stdin.close()
        self._listener.join()
        assert process.stdout is not None
        process.stdout.close()
        process.wait()

    def shown(self, way: str) -> float:
        """The newest generation that this way has shown."""
        news = self._news[way]
        return news[-1][1] if news else 0.0

    def longest_gap_s(self, began: float, ended: float) -> float:
        """The longest time in which some way showed nothing new, of those that ended between `began` and `ended`."""
        longest = 0.0
        for news in self._news.values():
            times = [at for at, _ in news]
            gaps = [after - before for before, after in pairwise(times) if began < after <= ended]
            longest = max(longest, *gaps, 0.0)
        return longest

    def _listen(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for text in self._process.stdout:
            line = json.loads(text)
            if "complaint" in line:
                self.complaints.append(f"{line['way']}: {line['complaint']}")
            elif "generation" in line:
                self._news[line["way"]].append((line["at"], line["generation"]))
                if line["version"] is not None:
                    self.versions[line["version"]] = line["generation"]
            else:
                self.reads, self.unanswered = line["reads"], line["unanswered"]
