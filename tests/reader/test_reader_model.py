"""The readers' rule: a reader shows the newest version that it can see, and never an older one than before.

A state machine of real runs, a real Redis and both readers. After each step every method of every reader is called.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

import pytest
import redis
from hypothesis import Phase
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

import optimizer.cache.client
import optimizer.cache.clocks
import optimizer.cache.writer
import optimizer.reader.file_store
import optimizer.reader.redis_store
from optimizer import Report, Settings, SnapshotMissing, SnapshotReader, optimize
from optimizer.cache.keys import VERSION_KINDS, Keys
from optimizer.cache.pointer import Pointer
from optimizer.errors import PublishRefused
from optimizer.snapshots.store import snapshot_store
from tests.support.examples import examples
from tests.support.published_state import once, version_of
from tests.support.readers import KINDS, Open
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.rolling_files import a_record, write_json

pytestmark = pytest.mark.slow

READERS: Final = 4
DAY_S: Final = 86_400.0

# What each method shows: its version, and the generations of all values in it.
READS: Final[dict[str, Callable[[SnapshotReader], tuple[int, set[float]]]]] = {
    "predictions": lambda reader: _seen(reader.predictions(), lambda value: [r.last_price for r in value.predictions]),
    "bots": lambda reader: _seen(reader.bots(), lambda value: [bot.equity for bot in value.bots.values()]),
    "portfolio": lambda reader: _seen(reader.portfolio(), lambda value: [holding.qty for holding in value.holdings]),
    "manifest": lambda reader: (reader.manifest().version, set()),
    "symbol, held": lambda reader: _seen(reader.symbol("A"), lambda value: [value.last_price]),
    "top, held": lambda reader: _seen(reader.top(2), lambda value: [record.last_price for record in value]),
}
# These need the index of the version, which is not in memory.
LOOKUPS: Final[dict[str, Callable[[SnapshotReader], tuple[int, set[float]]]]] = {
    "symbol": lambda reader: _seen(reader.symbol("LOW"), lambda value: [value.last_price]),
    "no symbol": lambda reader: (reader.symbol("MISSING").version, set()),
    "top": lambda reader: _seen(reader.top(99), lambda value: [record.last_price for record in value]),
}


def _seen(answer: Any, generations: Callable[[Any], list[float]]) -> tuple[int, set[float]]:
    return answer.version, set(generations(answer.value))


def held_version(reader: SnapshotReader) -> int:
    """The version that a reader shows, or 0 if it has none."""
    with suppress(SnapshotMissing):
        return reader.manifest().version
    return 0


def write_generation(settings: Settings, generation: int) -> None:
    """Write an input in which every value is the number of its generation."""
    records = {symbol: a_record(last_price=generation, confidence=0.9) for symbol in "ABC"}
    records["LOW"] = a_record(last_price=generation, confidence=0.1)
    bot = {"equity": generation, "positions": {"A": {"qty": generation, "avg": 1}}}
    write_json(settings.input, records | {"bots": {"alpha": bot}})


class Law(RuleBasedStateMachine):
    """One source with its worker and its Redis, and readers that are opened and closed.

    The readers see the files through a link, which may lead to an older copy of them.
    """

    def __init__(self, server: RedisServer, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self._server = server
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        self._directory = directory
        self._settings = Settings(
            input=directory / "rolling_brain.json.gz", output_dir=directory / "out", redis_url=server.url
        )
        self._view = directory / "view"
        self._view.symlink_to(directory / "out")
        self._keys = Keys(self._settings.source)
        self._redis = "well"
        self._glimpsed = 0  # the version in Redis when it was last up for a moment, which a reader may have seen
        self.redis_is("well")
        with server.client as client:
            client.flushall()
        self._generation = 0
        self._generations: dict[int, int] = {}  # by version
        self._backup: dict[bytes, bytes] = {}
        self._readers: list[tuple[ExitStack, SnapshotReader, bool, dict[str, int]]] = []
        self._ahead_s = 0.0
        clock = SimpleNamespace(time=lambda: time.time() + self._ahead_s, monotonic=time.monotonic)
        monkeypatch.setattr(optimizer.reader.redis_store, "time", clock)
        monkeypatch.setattr(optimizer.reader.file_store, "time", clock)
        self.run(new=True, force=False)
        for kind, without_files in ((KINDS[0], False), (KINDS[1], False), (KINDS[0], True)):
            self.open_reader(kind, without_files=without_files)

    def teardown(self) -> None:
        """Close the readers."""
        self._bring_back()  # so that closing need not wait for Redis
        for stack, *_ in self._readers:
            stack.close()

    # ---- the service

    @rule(new=st.booleans(), force=st.booleans())
    def run(self, new: bool, force: bool) -> None:
        """Make a scheduled run or a run by hand, with a new input or the old one."""
        if new or not self._generation:
            self._write()
        report = self._optimize(self._generation, force=force)
        assert report.status in ("success", "unchanged")
        if self._redis == "well":
            # A busy machine may take longer than the short timeout here; then the next tick publishes the set to Redis.
            wait_until(lambda: report.cache != "down" or self._optimize(self._generation).cache != "down", what="Redis")
            pointer, manifest = self._pointer(), snapshot_store(self._directory / "out").read_manifest()
            assert pointer is not None
            assert manifest is not None
            assert pointer.version == manifest.version
            self._check_that_all_are_fresh()

    @rule()
    def run_without_cache(self) -> None:
        """Make a run by hand that does not use Redis."""
        self._write()
        self._optimize(self._generation, use_cache=False)

    @rule(state=st.sampled_from(["away", "hangs", "well"]))
    def overlap(self, state: str) -> None:
        """Make a run that is overtaken during its scan by a run over a newer input; Redis may recover in between."""
        self._write()
        older = self._generation
        self.redis_is(state)

        def overtake() -> None:
            self.redis_is("well")
            self._write()
            self._optimize(self._generation)

        with suppress(PublishRefused):
            self._optimize(older, force=True, progress=once(overtake))

    def _write(self) -> None:
        self._generation += 1
        write_generation(self._settings, self._generation)

    def _optimize(self, generation: int, **options: Any) -> Report:
        report = optimize(self._settings, **options)
        if report.status == "success":
            self._generations[version_of(report)] = generation
        return report

    # ---- Redis

    @rule(state=st.sampled_from(["away", "hangs", "lost its replicas", "full", "well"]))
    def redis_is(self, state: str) -> None:
        """Kill Redis, make it hang or refuse writes, or make it well again."""
        self._bring_back()
        with self._server.client as client:
            client.config_set("min-replicas-to-write", int(state == "lost its replicas"))
            client.config_set("maxmemory", int(state == "full"))
        if state == "away":
            self._server.kill()
        if state == "hangs":
            self._server.pause()
        self._redis = state

    @rule(state=st.sampled_from(["away", "hangs", "lost its replicas", "full"]), new=st.booleans())
    def outage(self, state: str, new: bool) -> None:
        """Let Redis fail and a run continue without it; at the first tick after that the input is unchanged."""
        self.redis_is(state)
        self.run(new=new, force=not new)
        self.every_method_shows_the_newest()
        self.redis_is("well")
        self.run(new=False, force=False)

    def _bring_back(self) -> None:
        """Start or resume Redis, and delete the locks of runs that have given up.

        A Redis that hung executes what it was sent meanwhile, and would hold such a lock for 10 s.
        """
        if self._redis == "away":
            self._server.start()
        self._server.resume()
        with self._server.client as client:
            wait_until(client.ping, what="Redis")
            pointer = Pointer.from_hash(cast("dict[bytes, bytes]", client.hgetall(self._keys.current)))
            self._glimpsed = pointer.version if pointer is not None else 0
            with suppress(redis.ResponseError):  # it refuses writes, so it has refused the lock too
                client.delete(self._keys.lock, self._keys.publishing)

    @precondition(lambda self: self._redis == "well")
    @rule()
    def fall_behind(self) -> None:
        """Let a replica lose the connection to its master: its data stay as they are now."""
        with self._server.client as client:
            names = cast("list[bytes]", client.keys(self._keys.every))
            self._backup = {name: cast("bytes", client.dump(name)) for name in names}

    @precondition(lambda self: self._redis == "well")
    @rule()
    def fail_over(self) -> None:
        """Make that replica the master; it is empty if it was never connected."""
        with self._server.client as client:
            client.flushall()
            for name, dumped in self._backup.items():
                client.restore(name, 0, cast("Any", dumped))

    @precondition(lambda self: self._redis == "well")
    @rule(ahead_s=st.sampled_from([-DAY_S, -60.0, 60.0, DAY_S]))
    def forge_the_time(self, ahead_s: float) -> None:
        """Confirm the version by a wrong clock, as a worker of an earlier release may do."""
        with self._server.client as client:
            if client.exists(self._keys.current):
                client.hset(self._keys.current, "checked_at", optimizer.cache.clocks.text_of(time.time() + ahead_s))

    # ---- files

    @rule(lag=st.booleans())
    def files_lag(self, lag: bool) -> None:
        """Let the readers see a copy of the files as they are now, or the real files again."""
        target = self._directory / "out"
        if lag:
            target = self._directory / f"copy-{time.monotonic_ns()}"
            shutil.copytree(self._directory / "out", target, symlinks=True)
        partial = self._directory / "view.partial"
        partial.symlink_to(target)
        partial.rename(self._view)

    # ---- readers

    @rule(kind=st.sampled_from(KINDS), without_files=st.booleans())
    def open_reader(self, kind: str, without_files: bool) -> None:
        """Open a reader; close the oldest one if there are more than `READERS`."""
        stack = ExitStack()
        settings = replace(self._settings, output_dir=self._view)
        reader = Open(stack, kind)(settings, "redis" if without_files else None)
        self._readers.append((stack, reader, not without_files, {}))
        if len(self._readers) > READERS:
            self._readers.pop(0)[0].close()

    @rule(ahead_s=st.sampled_from([-DAY_S, -120.0, 0.0, 120.0, DAY_S]))
    def shift_clock(self, ahead_s: float) -> None:
        """Set the readers' clock ahead or back."""
        self._ahead_s = ahead_s

    # ---- what has to hold after each step

    @invariant()
    def every_method_shows_the_newest(self) -> None:
        """Check that each method shows the newest version of those in memory, in Redis and in the files.

        None may show an older version or generation than before.
        """
        pointer = self._pointer()
        for _, reader, has_files, shown in self._readers:
            manifest = snapshot_store(self._view).read_manifest() if has_files else None
            visible = [one.version for one in (pointer, manifest) if one is not None]
            expected = max([*visible, *shown.values()], default=0)
            reader.refresh()
            if expected < self._glimpsed == held_version(reader):
                expected = self._glimpsed

            def shows_it(reader: SnapshotReader = reader, expected: int = expected) -> bool:
                reader.refresh()
                return held_version(reader) == expected

            # It does at once, unless the machine is so busy that the short timeout here is too short.
            wait_until(shows_it, what=f"version {expected}")
            if not expected:
                with pytest.raises(SnapshotMissing):
                    reader.predictions()
                continue
            for name, read in READS.items():
                self._check(name, read(reader), expected, shown)
            has_index = expected in visible
            for name, read in LOOKUPS.items():
                with suppress(SnapshotMissing):
                    self._check(name, read(reader), expected, shown)
                    continue
                assert not has_index or self._finds(reader, read), f"{name}: the index of {expected} is there"

    def _finds(self, reader: SnapshotReader, read: Callable[[SnapshotReader], Any]) -> bool:
        for _ in range(10):
            reader.refresh()
            with suppress(SnapshotMissing):
                read(reader)
                return True
        return False

    def _check(self, name: str, seen: tuple[int, set[float]], expected: int, shown: dict[str, int]) -> None:
        version, generations = seen
        assert version == expected, f"{name} shows {version}, and not {expected}"
        assert version >= max(shown.values(), default=0), f"{name} shows {version} after {shown}"
        assert generations <= {self._generations[version]}, f"{name}: {generations} in {version}"
        shown[name] = version

    @invariant()
    def generations_rise_with_versions(self) -> None:
        """Check that no run has published an older input under a newer version."""
        generations = [self._generations[version] for version in sorted(self._generations)]
        assert generations == sorted(generations)

    def _check_that_all_are_fresh(self) -> None:
        """Check that no reader calls the version old that a run has just confirmed in Redis, whatever clocks say."""
        for _, reader, *_ in self._readers:
            reader.refresh()
            state = reader.manifest()
            assert not state.stale, state
            assert state.age_s < 30

    def _pointer(self) -> Pointer | None:
        if self._redis in ("away", "hangs"):
            return None
        with self._server.client as client:
            pointer = Pointer.from_hash(cast("dict[bytes, bytes]", client.hgetall(self._keys.current)))
            if pointer is not None:
                names = [self._keys.payload(pointer.version, kind) for kind in VERSION_KINDS]
                assert client.exists(*names) == len(names)
            return pointer


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let requests to a Redis that hangs time out after 0.06 or 0.12 s; readers refresh only when a rule calls them."""
    for module in (optimizer.reader.redis_store, optimizer.cache.writer):
        monkeypatch.setattr(module, "READER_TIMEOUT_S", 0.06)
    monkeypatch.setattr(optimizer.cache.client, "WRITER_TIMEOUT_S", 0.12)
    monkeypatch.setattr(optimizer.reader.redis_store, "POLL_S", 60.0)


@pytest.fixture
def server(own_redis: RedisServer) -> Iterator[RedisServer]:
    """A Redis that is up and that the test may pause."""
    own_redis.start()
    yield own_redis
    own_redis.resume()


@pytest.mark.usefixtures("quick")
def test_readers_never_go_back_and_never_stand_still(
    server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers show the newest version, and never an older one again, whatever happens to Redis, files and clocks.

    It does not matter when a reader is opened.
    """
    run_state_machine_as_test(
        cast("Any", lambda: Law(server, tmp_path / "source", monkeypatch)),  # its documentation allows a factory
        # Not shrunk: an example takes a second, so that the time of the test would end before a failure was shown.
        settings=hypothesis_settings(
            max_examples=examples(15), stateful_step_count=15, deadline=None, phases=[Phase.reuse, Phase.generate]
        ),
    )
