"""Updates against a model: any interleaving of updates, drains, scans and faults gives what a simple model gives.

A state machine of real drains and runs over a real Redis. A killed process is one whose connection to Redis fails
before a command and from then on; its locks are deleted as if they had expired.
"""

from __future__ import annotations

import gzip
import math
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import msgspec
import pytest
import redis.connection
from hypothesis import Phase
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

import optimizer.pipeline.drain
import optimizer.pipeline.pace
from optimizer import Settings, optimize
from optimizer.cache.keys import Keys
from optimizer.cache.pointer import Pointer
from optimizer.models import HeldUpdate, PredictionsSnapshot, Record
from optimizer.pipeline.drain import apply_updates
from optimizer.pipeline.updates import enqueue
from optimizer.snapshots.store import snapshot_store
from tests.support.examples import examples
from tests.support.published_state import assert_redis_holds_the_files
from tests.support.redis_servers import RedisServer
from tests.support.rolling_files import local, write_json

pytestmark = pytest.mark.slow

SYMBOLS: Final = "ABCDEF"
# Never removed and always the best, since an empty set never replaces a good one.
ALWAYS: Final = "Z"
INDEX_LIMIT: Final = 4
TOP_LIMIT: Final = 2
MIN_CONFIDENCE: Final = 0.5

records = st.builds(
    lambda symbol, confidence, prediction, timestamp: Record(symbol, prediction, confidence, 1.0, timestamp=timestamp),
    st.sampled_from(SYMBOLS),
    st.sampled_from([0.1, 0.6, 0.7, 0.7000001]),
    st.integers(1, 1000).map(float),
    st.one_of(st.none(), st.integers(1, 4), st.sampled_from(["1970-01-01T00:00:02Z", "not a time"])),
)
contents = st.lists(records, max_size=6).map(lambda each: {record.symbol: record for record in each})
steps = st.integers(1, 40)


class Killed(BaseException):
    """Raised by each command to Redis once the process counts as killed."""


@dataclass
class State:
    """The model's state of Redis or of the files: the records shown, and the updates in force, each with its time."""

    shown: dict[str, Record] = field(default_factory=dict)
    held: dict[str, tuple[float, Record | None]] = field(default_factory=dict)

    def copy(self) -> State:
        """Return another state with the same content."""
        return State(dict(self.shown), dict(self.held))

    def trim(self) -> None:
        """Keep the best `INDEX_LIMIT` records."""
        best = sorted(self.shown.values(), key=lambda record: (-record.confidence, record.symbol))[:INDEX_LIMIT]
        self.shown = {record.symbol: record for record in best}


def seconds(record: Record | None) -> float | None:
    """The time of a record in seconds, by a table of the few texts that the test has."""
    timestamp = None if record is None else record.timestamp
    if isinstance(timestamp, str):
        return {"1970-01-01T00:00:02Z": 2.0}.get(timestamp)
    return timestamp


@contextmanager
def killed_before(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let this thread's commands to Redis fail, from the one with this number on.

    Other threads are left alone: a reader of another test may be running.
    """
    left, killed = step, threading.get_ident()
    sent = redis.connection.AbstractConnection.send_packed_command

    def send(*arguments: Any, **options: Any) -> Any:
        nonlocal left
        if threading.get_ident() != killed:
            return sent(*arguments, **options)  # type: ignore[no-untyped-call]
        left -= 1
        if left <= 0:
            raise Killed
        return sent(*arguments, **options)  # type: ignore[no-untyped-call]

    with monkeypatch.context() as patch:
        patch.setattr(redis.connection.AbstractConnection, "send_packed_command", send)
        with suppress(Killed):
            yield


class Updates(RuleBasedStateMachine):
    """One source, its Redis and its files, and the model of both."""

    def __init__(
        self, server: RedisServer, directory: Path, monkeypatch: pytest.MonkeyPatch, *, files_follow: bool
    ) -> None:
        super().__init__()
        self._files_follow = files_follow
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        self._server, self._patch = server, monkeypatch
        self._settings = Settings(
            input=directory / "rolling_brain.json",
            output_dir=directory / "out",
            redis_url=server.url,
            index_symbols_limit=INDEX_LIMIT,
            top_symbols_limit=TOP_LIMIT,
            min_confidence=MIN_CONFIDENCE,
        )
        self._keys = Keys(self._settings.source)
        with server.client as client:
            client.flushall()
        self._queue: list[tuple[float, list[Record], list[str]]] = []
        self._moments = [time.time() - 1000]
        self._content: dict[str, Record] = {}
        self._modified_s = 0.0
        # The numbers of the input, and of the inputs whose scans the files and Redis have.
        self._input = self._input_of_files = self._input_of_redis = 0
        self._redis, self._files = State(), State()
        self._are_files_newer = False  # a run without Redis has written them
        self._version = 0

    # ---- the model

    def scan(self, *held: dict[str, tuple[float, Record | None]]) -> State:
        """The state after a scan of the input, to which the updates in force are applied."""
        merged: dict[str, tuple[float, Record | None]] = {}
        for each in held:
            for symbol, update in each.items():
                if symbol not in merged or merged[symbol][0] < update[0]:
                    merged[symbol] = update
        state = State(dict(self._content))
        state.trim()
        scanned = dict(state.shown)
        for symbol, (at_s, record) in merged.items():
            if self.outlasts(at_s, record, scanned.get(symbol)):
                state.held[symbol] = (at_s, record)
                state.shown.pop(symbol, None)
                if record is not None:
                    state.shown[symbol] = record
        state.trim()
        return state

    def outlasts(self, at_s: float, record: Record | None, scanned: Record | None) -> bool:
        """Whether an update holds after a scan of the input, in which its symbol has this record."""
        ours, theirs = seconds(record), seconds(scanned)
        if ours is not None and theirs is not None and ours != theirs:
            return ours > theirs
        return at_s >= self._modified_s

    def scan_over_queue(self, *held: dict[str, tuple[float, Record | None]]) -> State:
        """The state of Redis after a scan, which also supersedes waiting updates: applied later, they would undo it."""
        scanned = self.scan().shown
        self._queue = [
            (
                at_s,
                [
                    each
                    for each in changed
                    if at_s >= self._modified_s or self.outlasts(at_s, each, scanned.get(each.symbol))
                ],
                [symbol for symbol in removed if at_s >= self._modified_s],
            )
            for at_s, changed, removed in self._queue
        ]
        return self.scan(*held)

    def drain_model(self) -> None:
        """Apply the waiting updates as one version."""
        state = self._redis
        for at_s, changed, removed in self._queue:
            for record in changed:
                symbol = record.symbol
                before = state.held[symbol][1] if symbol in state.held else state.shown.get(symbol)
                ours, theirs = seconds(record), seconds(before)
                if ours is None or theirs is None or ours >= theirs:
                    state.held[symbol], state.shown[symbol] = (at_s, record), record
            for symbol in removed:
                state.held[symbol] = (at_s, None)
                state.shown.pop(symbol, None)
        state.trim()
        self._queue = []
        if self._files_follow:
            self._files = state.copy()

    def run_model(self, *, force: bool, is_ahead: bool) -> None:
        """Model a run with Redis: a scan, or the steps for an unchanged input; then the drain.

        Args:
            force: Whether the run was forced.
            is_ahead: Whether Redis showed a newer version than the files.
        """
        in_files = self._files.held
        is_beyond = any(
            symbol not in in_files or in_files[symbol][0] < at_s for symbol, (at_s, _) in self._redis.held.items()
        ) or any(at_s < self._modified_s for at_s, *_ in self._queue)
        if force or self._input_of_files != self._input:
            self._redis = self.scan_over_queue(self._redis.held, self._files.held if self._are_files_newer else {})
        elif self._are_files_newer and is_beyond:
            self._redis = self.scan_over_queue(self._redis.held, self._files.held)
        elif self._are_files_newer:
            self._redis = self._files.copy()
        elif self._input_of_redis != self._input and is_ahead:
            self._redis = self.scan_over_queue(self._redis.held)
        self._files, self._are_files_newer = self._redis.copy(), False
        self._input_of_files = self._input_of_redis = self._input
        if self._queue:
            self.drain_model()

    # ---- steps

    def moment(self) -> float:
        """Return a time that is after all updates so far, and before all later ones."""
        time.sleep(0.003)
        self._moments.append(time.time())
        time.sleep(0.003)
        return self._moments[-1]

    def write(self, content: dict[str, Record], modified_s: float) -> None:
        """Replace the input by one with this time of modification."""
        self._content = {**content, ALWAYS: Record(ALWAYS, 1.0, 1.0, 1.0)}
        self._modified_s = modified_s
        path = local(self._settings.input)
        write_json(path, {name: msgspec.to_builtins(record) for name, record in self._content.items()})
        os.utime(path, (modified_s, modified_s))
        self._input += 1

    @initialize(content=contents)
    def first_run(self, content: dict[str, Record]) -> None:
        """Make the first version."""
        self.write(content, self.moment())
        self.run(force=False)

    @rule(content=contents, data=st.data())
    def the_engine_writes(self, content: dict[str, Record], data: st.DataObject) -> None:
        """Write an input that is newer than all updates, or older than some of them."""
        self.moment()
        self.write(content, data.draw(st.just(self._moments[-1]) | st.sampled_from(self._moments)))

    @rule(changed=st.lists(records, max_size=4), removed=st.lists(st.sampled_from(SYMBOLS), max_size=2))
    def publish(self, changed: list[Record], removed: list[str]) -> None:
        """Queue an update by one call, and check the time at which it was accepted."""
        self.moment()
        enqueue(self._settings, changed, removed)
        with self._server.client as client:
            entry = msgspec.json.decode(cast("bytes", client.lindex(self._keys.queue, -1)))
        assert self._moments[-1] - 0.002 < entry["at_ms"] / 1000 < time.time() + 0.002
        self._queue.append((entry["at_ms"] / 1000, changed, removed))
        self.moment()

    @precondition(lambda self: self._queue)
    @rule()
    def publish_again(self) -> None:
        """Queue the last update once more."""
        _, changed, removed = self._queue[-1]
        self.publish(changed, removed)

    @rule()
    def drain(self) -> None:
        """Apply the waiting updates; the drain is skipped if the files are newer than the version in Redis."""
        report = apply_updates(self._settings)
        assert (report is None) == (not self._queue)
        if report is not None:
            assert report.status == ("skipped" if self._are_files_newer else "success")
        if self._queue and not self._are_files_newer:
            self.drain_model()
        self.check()

    @rule(step=steps)
    def drain_is_killed(self, step: int) -> None:
        """Kill a drain before one of its commands: it has applied all of the queue, or nothing."""
        with killed_before(step, self._patch):
            apply_updates(self._settings)
        self.expire_locks()
        with self._server.client as client:
            waiting = client.llen(self._keys.queue)
        assert waiting in (0, len(self._queue))
        if not waiting and self._queue:
            in_files = self._files
            self.drain_model()
            if self.version_in_files() != self.check_version():
                self._files = in_files
        self.check()

    @rule(force=st.booleans())
    def run(self, *, force: bool) -> None:
        """Do a run, forced or not."""
        is_ahead = self.version_in_files() < self._version
        assert optimize(self._settings, force=force).status in ("success", "unchanged")
        self.run_model(force=force, is_ahead=is_ahead)
        self.check()

    @rule(step=steps, force=st.booleans())
    def run_is_killed(self, step: int, *, force: bool) -> None:
        """Kill a run before one of its commands; the next run completes its work."""
        is_ahead = self.version_in_files() < self._version
        with killed_before(step, self._patch):
            optimize(self._settings, force=force)
        self.expire_locks()
        self.check_version()
        assert optimize(self._settings, force=force).status in ("success", "unchanged")
        self.run_model(force=force, is_ahead=is_ahead)
        self.check()

    @rule(force=st.booleans())
    def run_without_redis(self, *, force: bool) -> None:
        """Do a run that does not reach Redis, and writes the files."""
        optimize(self._settings, force=force, use_cache=False)
        if force or self._input_of_files != self._input:
            self._files, self._input_of_files = self.scan(self._files.held), self._input
            self._are_files_newer = self.version_in_files() > self._version  # equal content keeps its version

    @rule()
    def redis_is_emptied(self) -> None:
        """Empty Redis and do a run: the files' version and its updates in force come back, waiting updates are lost."""
        with self._server.client as client:
            client.flushall()
        self._queue, self._version = [], 0
        self._redis = State()
        self._are_files_newer = True
        self.run(force=False)

    # ---- checks

    def expire_locks(self) -> None:
        """Delete the locks of a killed process, as if they had expired."""
        with self._server.client as client:
            client.delete(self._keys.lock, self._keys.publishing, self._keys.draining)

    def version_in_files(self) -> int:
        """The version that the files have, 0 for none."""
        manifest = snapshot_store(self._settings.output_dir).read_manifest()
        return 0 if manifest is None else manifest.version

    def check_version(self) -> int:
        """Check that the version in Redis has not fallen since the last check; return it."""
        with self._server.client as client:
            pointer = Pointer.from_hash(cast("dict[bytes, bytes]", client.hgetall(self._keys.current)))
        assert pointer is not None
        assert pointer.version >= self._version
        self._version = pointer.version
        return pointer.version

    def check(self) -> None:
        """Check that Redis shows the model's state, in one version, and so do the files if they have that version."""
        version, expected = self.check_version(), self._redis
        names = {kind: self._keys.payload(version, kind) for kind in ("predictions", "symbols", "ranking")}
        with self._server.client as client:
            index = cast("dict[bytes, bytes]", client.hgetall(names["symbols"]))
            ranking = cast("list[tuple[bytes, float]]", client.zrange(names["ranking"], 0, -1, withscores=True))
            payload = cast("bytes", client.get(names["predictions"]))
            updates = cast("dict[bytes, bytes]", client.hgetall(self._keys.updates))
            assert client.llen(self._keys.queue) == len(self._queue)
        shown = {name.decode(): msgspec.json.decode(data, type=Record) for name, data in index.items()}
        assert shown == expected.shown
        assert {name.decode(): score for name, score in ranking} == {
            symbol: record.confidence for symbol, record in expected.shown.items()
        }
        best = sorted(expected.shown.values(), key=lambda record: (-record.confidence, record.symbol))
        best = [record for record in best if record.confidence >= MIN_CONFIDENCE][:TOP_LIMIT]
        predictions = msgspec.json.decode(gzip.decompress(payload), type=PredictionsSnapshot)
        assert predictions.predictions == best
        held = {name.decode(): msgspec.json.decode(data, type=HeldUpdate) for name, data in updates.items()}
        assert {name: (update.at_ms / 1000, update.record) for name, update in held.items()} == expected.held
        stored = snapshot_store(self._settings.output_dir).read_set()
        assert stored is not None
        if stored.manifest.version == version:
            # If a run without Redis has scanned an equal input, the files have its fingerprint before Redis.
            if self._input_of_files == self._input_of_redis:
                assert_redis_holds_the_files(self._server, self._settings)
            assert (stored.decode_index().updates or {}) == held


@pytest.mark.parametrize("files_follow", [False, True])
def test_any_interleaving_gives_what_the_model_gives(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, files_follow: bool
) -> None:
    """Any interleaving of calls, repeated calls, removals, drains, scans and kills gives the result of the model.

    Scans are of older and newer inputs, and Redis may be emptied or away.
    """
    monkeypatch.setattr(optimizer.pipeline.pace, "INTERVAL_MS", 0.0)
    monkeypatch.setattr(optimizer.pipeline.drain, "FILES_FOLLOW_S", -1.0 if files_follow else math.inf)
    run_state_machine_as_test(
        cast("Any", lambda: Updates(redis_server, tmp_path / "source", monkeypatch, files_follow=files_follow)),
        settings=hypothesis_settings(
            max_examples=examples(15), stateful_step_count=15, deadline=None, phases=[Phase.reuse, Phase.generate]
        ),
    )
