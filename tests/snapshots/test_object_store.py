"""Snapshot sets in an object store: whole for every reader, at whatever moment their writer dies."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import msgspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from optimizer.cache.keys import Keys
from optimizer.config.settings import Settings
from optimizer.errors import OutputUnreadable, OutputUnwritable, PublishRefused, SnapshotMissing
from optimizer.models import Report
from optimizer.pipeline.run import optimize
from optimizer.snapshots.format import FILE_NAMES, KINDS, MANIFEST_NAME, decode_manifest, encode_manifest
from optimizer.snapshots.object_store import ObjectStore
from optimizer.storage.location import Url
from tests.support.published_state import NEW, OLD, no_scan, once, version_of
from tests.support.readers import KINDS as READERS
from tests.support.readers import Open
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.rolling_files import a_record, write_json
from tests.support.s3_server import S3Server
from tests.support.snapshot_sets import a_set, write

pytestmark = pytest.mark.slow

NAMES = {MANIFEST_NAME, *FILE_NAMES.values()}
PUTS = 2 * len(NAMES)
CONFIRMED = msgspec.structs.replace(a_set(2).manifest, fingerprint="of another input with the same content")


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Url]:
    """A location in a store of this process, for tests that need no server."""
    yield Url(f"memory://{tmp_path.name}/out")
    fsspec.filesystem("memory").store.clear()


@pytest.fixture(params=["memory", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Url:
    """A location in each store: in this process, and in S3."""
    if request.param == "memory":
        url: Url = request.getfixturevalue("memory")
        return url
    server: S3Server = request.getfixturevalue("s3")
    return server.bucket / tmp_path.name


def names_in(output: Url) -> set[str]:
    """Return the names of all objects below a location, relative to it."""
    root = output.text.partition("://")[2].strip("/")
    return {
        name.strip("/").removeprefix(root + "/")
        for name in fsspec.filesystem(output.scheme, use_listings_cache=False).find(output.text)
    }


def _die_after(puts: int, monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> bool:
    """Do the work and kill it at the put after the first `puts`; return whether it was killed."""
    left = [puts]
    pipe_file = MemoryFileSystem.pipe_file

    def dying(store: MemoryFileSystem, path: str, value: bytes, **options: Any) -> None:
        if not left[0]:
            raise SystemExit("killed")
        left[0] -= 1
        pipe_file(store, path, value, **options)

    with monkeypatch.context() as dead:
        dead.setattr(MemoryFileSystem, "pipe_file", dying)
        dead.setattr(ObjectStore, "_remove", lambda *_: None)  # a killed process removes nothing
        try:
            work()
        except SystemExit:
            return True
        return False


def _failing_at(puts: int, pipe_file: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Return a `_pipe_file` that reports an error at this put, when all those before it are in the store."""
    done: list[str] = []

    async def failing(store: Any, path: str, value: bytes, **options: Any) -> None:
        await pipe_file(store, path, value, **options)
        done.append(path)
        if len(done) == puts:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return failing


def names_of(*versions: int) -> set[str]:
    """Return the names of the objects of these sets, the last of which is current."""
    return NAMES | {f"versions/{version}/{name}" for version in versions for name in NAMES}


# ---- writing and reading


def test_a_set_is_read_back_as_it_was_written(output: Url) -> None:
    """A set is read back as it was written, whole or in part, through the manifest and under the fixed names.

    Before the first one there is none.
    """
    assert ObjectStore(output).read_manifest() is None
    assert ObjectStore(output).read_set() is None
    assert ObjectStore(output).read_current() is None

    write(output, 1)

    assert ObjectStore(output).read_set() == a_set(1)
    part = ObjectStore(output).read_set(kinds=("index",))
    assert part is not None
    assert part.payloads == {"index": a_set(1).payloads["index"]}
    assert ObjectStore(output).read_manifest() == a_set(1).manifest
    current = ObjectStore(output).read_current()
    assert current is not None
    assert current.manifest == a_set(1).manifest
    assert -2 < time.time() - current.checked_s < 30
    store = fsspec.filesystem(output.scheme)
    for kind in KINDS:
        assert store.cat_file((output / FILE_NAMES[kind]).text) == a_set(1).payloads[kind]
    assert json.loads(store.cat_file((output / MANIFEST_NAME).text))["version"] == 1


def test_two_sets_are_kept(output: Url) -> None:
    """The current set and the previous one are kept, the latter for readers that are still reading it.

    Other objects are not touched.
    """
    fsspec.filesystem(output.scheme).pipe_file((output / "versions/1/precious.txt").text, b"")
    write(output, 1, 2, 3, 4)
    assert names_in(output) == names_of(3, 4) | {"versions/1/precious.txt"}


def test_an_older_set_is_refused(output: Url) -> None:
    """An older set is refused and removed, since a paused run must not replace the run that overtook it."""
    write(output, 3)
    with pytest.raises(PublishRefused, match=r"version 2 was not published: .* holds version 3"):
        ObjectStore(output).write(a_set(2))
    assert names_in(output) == names_of(3)


def test_an_exception_of_before_commit_stops_the_set(output: Url) -> None:
    """An exception of `before_commit` stops the set, and its objects are removed.

    It is called when the set is in the store, before any fixed name changes.
    """
    write(output, 1)

    def before_commit() -> None:
        assert "versions/2/manifest.json" in names_in(output)
        raise PublishRefused("the lock is lost")

    with pytest.raises(PublishRefused, match="the lock is lost"):
        ObjectStore(output).write(a_set(2), before_commit=before_commit)
    assert names_in(output) == names_of(1)
    assert ObjectStore(output).read_set() == a_set(1)


def test_a_manifest_is_replaced_in_its_set_and_under_its_name(output: Url) -> None:
    """A manifest is replaced in its set and under its fixed name, and the files stay as they are."""
    write(output, 1, 2)

    ObjectStore(output).replace_manifest(CONFIRMED)

    assert ObjectStore(output).read_set() == replace(a_set(2), manifest=CONFIRMED)
    store = fsspec.filesystem(output.scheme)
    for place in (output, output / "versions/2"):
        assert store.cat_file((place / MANIFEST_NAME).text) == encode_manifest(CONFIRMED)
    assert names_in(output) == names_of(1, 2)


def test_a_manifest_replaces_none_of_another_version(output: Url) -> None:
    """Replacing a manifest is refused if another run has published a version since, and nothing is put."""
    write(output, 2, 3)

    with pytest.raises(PublishRefused, match=f"manifest of version 2 was not replaced: {output} holds version 3"):
        ObjectStore(output).replace_manifest(CONFIRMED)

    assert ObjectStore(output).read_set() == a_set(3)
    assert decode_manifest(fsspec.filesystem(output.scheme).cat_file((output / "versions/2/manifest.json").text)) == (
        a_set(2).manifest
    )


def test_an_exception_of_before_commit_keeps_the_manifest(output: Url) -> None:
    """After an exception of `before_commit`, as for a run that lost its lock, the old manifest is current."""
    write(output, 2)

    def before_commit() -> None:
        raise PublishRefused("the lock is lost")

    with pytest.raises(PublishRefused, match="the lock is lost"):
        ObjectStore(output).replace_manifest(CONFIRMED, before_commit=before_commit)
    assert ObjectStore(output).read_set() == a_set(2)


@pytest.mark.parametrize("puts", range(3))
def test_a_writer_that_dies_leaves_one_of_two_manifests(
    memory: Url, monkeypatch: pytest.MonkeyPatch, puts: int
) -> None:
    """A writer that dies after any of its puts leaves the set whole, with the old manifest or the new one.

    The next set is whole too, and replaces it.
    """
    write(memory, 1, 2)
    assert _die_after(puts, monkeypatch, lambda: ObjectStore(memory).replace_manifest(CONFIRMED)) == (puts < 2)
    expected = CONFIRMED if puts == 2 else a_set(2).manifest
    assert ObjectStore(memory).read_set() == replace(a_set(2), manifest=expected)

    write(memory, 3)
    assert ObjectStore(memory).read_set() == a_set(3)
    assert names_in(memory) == names_of(2, 3)


def test_a_run_that_was_overtaken_leaves_the_newer_set(
    settings_without_redis: Settings, s3: S3Server, tmp_path: Path
) -> None:
    """Of two runs that overlap, the one with the older input is refused, whatever its version.

    Two runs may overlap, since there is no lock.
    """
    output = s3.bucket / tmp_path.name
    settings = replace(settings_without_redis, output_dir=output)
    write_json(settings.input, OLD)
    reports: list[Report] = []

    def overtake() -> None:
        write_json(settings.input, NEW)
        reports.append(optimize(settings, use_cache=False))

    with pytest.raises(PublishRefused, match=f"{output} holds version"):
        optimize(settings, use_cache=False, progress=once(overtake))

    assert names_in(output) == names_of(version_of(reports[0]))
    assert optimize(settings, use_cache=False, progress=no_scan).version == reports[0].version


@pytest.mark.parametrize("puts", range(PUTS))
def test_a_writer_that_dies_leaves_the_old_set_whole(memory: Url, monkeypatch: pytest.MonkeyPatch, puts: int) -> None:
    """A writer that dies after any of its puts leaves the old set whole.

    The next writer's set is whole, and later ones remove all that the dead writer left.
    """
    write(memory, 1, 2)
    assert _die_after(puts, monkeypatch, lambda: ObjectStore(memory).write(a_set(3)))
    assert ObjectStore(memory).read_set() == a_set(2)

    write(memory, 4)
    assert ObjectStore(memory).read_set() == a_set(4)
    write(memory, 5)
    assert names_in(memory) == names_of(4, 5)


def test_a_set_that_is_being_written_is_not_swept(memory: Url) -> None:
    """A set that is newer than the current one is removed only after an hour.

    Two runs may write while Redis is away, and another one may still be writing that set.
    """
    young, old = time.time_ns() // 1_000_000 + 5, time.time_ns() // 1_000_000 - 3_700_000
    store = fsspec.filesystem("memory")
    for version in (young, old):
        store.pipe_file((memory / "versions" / str(version) / MANIFEST_NAME).text, b"")

    write(memory, 1)

    assert names_in(memory) == names_of(1) | {f"versions/{young}/manifest.json"}


@pytest.mark.parametrize("damage", ["changed", "gone", "manifest"])
def test_a_damaged_set_is_none(output: Url, damage: str) -> None:
    """Bytes that do not match the manifest are never returned; the next write replaces the set."""
    write(output, 1)
    store = fsspec.filesystem(output.scheme)
    if damage == "changed":
        store.pipe_file((output / "versions/1" / FILE_NAMES["bots"]).text, b"damaged")
    elif damage == "gone":
        store.rm_file((output / "versions/1" / FILE_NAMES["bots"]).text)
    else:
        store.pipe_file((output / MANIFEST_NAME).text, b"{")
    assert ObjectStore(output).read_set() is None
    write(output, 2)
    assert ObjectStore(output).read_set() == a_set(2)


def test_marking_renews_the_age_and_mends_the_fixed_names(output: Url) -> None:
    """`mark_checked` puts the same manifest again, and so renews the age of the set.

    A fixed name that was removed, or overwritten by a writer that died, is restored.
    """
    write(output, 1)
    store = fsspec.filesystem(output.scheme)
    before = store.modified((output / MANIFEST_NAME).text)
    store.rm_file((output / FILE_NAMES["bots"]).text)
    store.pipe_file((output / FILE_NAMES["index"]).text, b"of a dead writer")

    wait_until(lambda: time.time() > before.timestamp() + 1.01, what="the next second of the store's clock")
    ObjectStore(output).mark_checked()

    assert store.modified((output / MANIFEST_NAME).text) > before
    assert names_in(output) == names_of(1)
    assert store.cat_file((output / FILE_NAMES["index"]).text) == a_set(1).payloads["index"]
    assert ObjectStore(output).read_set() == a_set(1)


def test_a_reader_never_sees_a_mixed_set(s3: S3Server, tmp_path: Path) -> None:
    """While sets are published and removed, each set that a reader gets is of one version."""
    output = s3.bucket / tmp_path.name
    write(output, 1)
    seen: list[int] = []
    stop = threading.Event()
    problems: list[BaseException] = []

    def poll() -> None:
        try:
            while not stop.is_set():
                read = ObjectStore(output).read_set()
                if read is None:
                    continue  # the set was removed during each of three attempts, which happens in tests only
                assert read == a_set(read.manifest.version)
                seen.append(read.manifest.version)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=poll) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        write(output, *range(2, 22))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert problems == []
    assert len(set(seen)) > 3
    assert names_in(output) == names_of(20, 21)


# ---- what can go wrong


@pytest.mark.parametrize("work", [lambda store: store.lock().__enter__(), lambda store: store.write(a_set(1))])
def test_a_store_that_is_down_cannot_be_written_to(own_s3: S3Server, work: Callable[[ObjectStore], object]) -> None:
    """Locking or writing to a store that is down is an error with the location and what to check.

    The error comes within seconds, before an input is scanned.
    """
    with pytest.raises(OutputUnwritable, match=rf"{own_s3.bucket}/out: .*check the network.*the old snapshots"):
        work(ObjectStore(own_s3.bucket / "out"))


@pytest.mark.parametrize("work", [ObjectStore.read_manifest, ObjectStore.read_set, ObjectStore.read_current])
def test_a_store_that_is_down_is_not_an_empty_one(own_s3: S3Server, work: Callable[[ObjectStore], object]) -> None:
    """Reading from a store that is down is an error, not an empty result.

    Otherwise a writer would forget which version was the newest.
    """
    with pytest.raises(OutputUnreadable, match=rf"{own_s3.bucket}/out: .*check the network"):
        work(ObjectStore(own_s3.bucket / "out"))


def test_a_bucket_that_is_not_there_is_named(s3: S3Server) -> None:
    """A missing bucket is an error that names it; it is not created, since its name may be misspelt."""
    output = Url("s3://no-such-bucket-here/out")
    with pytest.raises(OutputUnwritable, match=r"no-such-bucket-here/out: .*Is there such a bucket"):
        ObjectStore(output).write(a_set(1))
    assert not s3.behind.exists("s3://no-such-bucket-here")


def test_a_failed_write_leaves_files_and_redis_as_they_were(
    settings: Settings, redis_server: RedisServer, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the files cannot be written, the old ones stay, and nothing is published in Redis, as when a disk is full.

    The put of the last object of the set fails, or there is no bucket.
    """
    output = s3.bucket / tmp_path.name
    write_json(settings.input, OLD)
    good = replace(settings, output_dir=output)
    version = version_of(optimize(good))
    store = fsspec.filesystem(output.scheme)
    objects = {name: store.cat_file((output / name).text) for name in names_in(output)}
    write_json(settings.input, NEW)
    with monkeypatch.context() as full:
        full.setattr(type(store), "_pipe_file", _failing_at(len(NAMES), type(store)._pipe_file))
        with pytest.raises(OutputUnwritable, match="the old snapshots are as they were"):
            optimize(good)
    with pytest.raises(OutputUnwritable):
        optimize(replace(good, output_dir=Url("s3://no-such-bucket-here/out")))
    assert {name: store.cat_file((output / name).text) for name in names_in(output)} == objects
    with redis_server.client as client:
        assert int(client.hget(Keys(settings.source).current, "version") or 0) == version


# ---- runs and readers


def test_redis_is_filled_again_from_the_objects(
    settings: Settings, redis_server: RedisServer, s3: S3Server, tmp_path: Path
) -> None:
    """After Redis has lost its data, the next run publishes the version again from the objects, without a scan."""
    settings = replace(settings, output_dir=s3.bucket / tmp_path.name)
    write_json(settings.input, OLD)
    first = optimize(settings)
    assert optimize(settings, progress=no_scan).cache == "current"
    with redis_server.client as client:
        client.flushall()

    report = optimize(settings, progress=no_scan)

    assert (report.status, report.cache, report.version) == ("unchanged", "republished", first.version)
    write_json(settings.input, NEW)
    assert version_of(optimize(settings)) > version_of(first)


@pytest.mark.parametrize("kind", READERS)
def test_objects_answer_while_redis_is_away(settings: Settings, s3: S3Server, tmp_path: Path, kind: str) -> None:
    """While Redis is away, both readers follow the objects to the next version.

    They look up symbols in the index of the objects, and know the age.
    """
    settings = replace(settings, output_dir=s3.bucket / tmp_path.name)
    write_json(settings.input, OLD | {"LOW": a_record(confidence=0.1, last_price=7.5)})
    first = optimize(settings)
    with ExitStack() as stack:
        reader = Open(stack, kind)(settings, "files")
        page = reader.predictions()
        assert (page.version, page.origin, page.stale) == (first.version, "files", False)
        assert [record.symbol for record in page.value.predictions] == ["MSFT", "AAPL"]
        assert reader.bots().value.bots.keys() == {"alpha"}
        low = reader.symbol("LOW")  # it is in the index only
        assert low.value is not None
        assert (low.value.last_price, low.version, low.origin) == (7.5, first.version, "files")
        assert 0 <= low.age_s < 60
        assert reader.symbol("none-such").value is None

        write_json(settings.input, NEW)
        second = optimize(settings)
        wait_until(lambda: reader.predictions().version == second.version, what="the new version")
        assert [record.symbol for record in reader.top(10).value] == ["NVDA", "MSFT"]


@pytest.mark.parametrize("kind", READERS)
def test_a_reader_of_a_store_that_is_down_says_so(settings: Settings, own_s3: S3Server, kind: str) -> None:
    """A reader without any version reports why neither Redis nor the store can be read.

    A version that it holds is still returned when the store is down.
    """
    settings = replace(settings, output_dir=own_s3.bucket / "out")
    with ExitStack() as stack:
        reader = Open(stack, kind)(settings, "files")
        with pytest.raises(SnapshotMissing, match=rf"Redis: .*files: {own_s3.bucket}/out cannot be read: .*network"):
            reader.predictions()

        own_s3.start()
        write_json(settings.input, OLD)
        first = optimize(settings, use_cache=False)
        wait_until(lambda: _version(reader) == first.version, what="the first version")
        own_s3.kill()
        reader.refresh()
        assert reader.predictions().version == first.version


def _version(reader: Any) -> int | None:
    try:
        version: int = reader.predictions().version
    except SnapshotMissing:
        return None
    return version
