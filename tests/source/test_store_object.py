"""An input in an object store gives the same result as the same local file, or an error within a minute."""

from __future__ import annotations

import gzip
import math
import os
import socket
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import fsspec
import pytest

from optimizer.cli.dev.sample import write_sample
from optimizer.config.settings import Settings
from optimizer.errors import SourceMissing, SourceTorn, SourceUnreadable
from optimizer.pipeline.run import optimize
from optimizer.snapshots.store import snapshot_store
from optimizer.source.opener import expand, open_input_file
from optimizer.source.store_object import BLOCK_BYTES
from optimizer.storage.location import Url, parse_location
from tests.support.fleet import Fleet
from tests.support.published_state import NEW, OLD, content_of, no_scan, once, symbols_shown
from tests.support.redis_servers import wait_until
from tests.support.rolling_files import a_record, write_json
from tests.support.s3_server import S3Server

pytestmark = pytest.mark.slow

FAST_TICKS = {"ROLLING_INTERVAL_S": "1", "ROLLING_STARTUP_DELAY_S": "0.5"}


@pytest.fixture
def place(s3: S3Server, tmp_path: Path) -> Url:
    """A URL in the bucket for the objects of one test."""
    return s3.bucket / tmp_path.name


@pytest.fixture
def remote_settings(settings_without_redis: Settings, place: Url) -> Settings:
    """Settings with an object as the input, and outputs in a directory."""
    return replace(settings_without_redis, input=place / "rolling_brain.json.gz")


def as_gz(tmp_path: Path, value: object) -> bytes:
    return write_json(tmp_path / "content.json.gz", value).read_bytes()


# ---- reading


@pytest.mark.parametrize("name", ["rolling_brain.json.gz", "rolling_brain.json"])
def test_an_object_gives_the_snapshots_of_the_same_file(
    remote_settings: Settings, s3: S3Server, place: Url, tmp_path: Path, name: str
) -> None:
    """A gzipped object, and a plain one of several blocks, give the same snapshots and sizes as the local file."""
    file = tmp_path / name
    write_sample(file, symbols=400, points=500)
    assert name.endswith(".gz") or file.stat().st_size > 2 * BLOCK_BYTES
    s3.put(place / name, file)

    remote = optimize(replace(remote_settings, input=place / name), use_cache=False)
    local_settings = replace(remote_settings, input=file, output_dir=tmp_path / "local")
    local = optimize(local_settings, use_cache=False)

    assert remote.stats is not None
    assert local.stats is not None
    assert (remote.source, remote.stats.input_bytes) == ("rolling_brain", file.stat().st_size)
    assert remote.stats.json_bytes == local.stats.json_bytes
    content = content_of(remote_settings)
    assert content["portfolio"]["holdings"]
    assert content == content_of(local_settings)


def test_an_unchanged_object_is_not_scanned_and_a_replaced_one_is(
    remote_settings: Settings, s3: S3Server, place: Url, tmp_path: Path
) -> None:
    """An object with the same ETag, as after the same bytes were put again, is not scanned; a replaced one is."""
    old = as_gz(tmp_path, OLD)
    s3.put(place / "rolling_brain.json.gz", old)
    first = optimize(remote_settings, use_cache=False)

    s3.put(place / "rolling_brain.json.gz", old)
    second = optimize(remote_settings, use_cache=False, progress=no_scan)
    s3.put(place / "rolling_brain.json.gz", as_gz(tmp_path, NEW))
    third = optimize(remote_settings, use_cache=False)

    assert [first.status, second.status, third.status] == ["success", "unchanged", "success"]
    assert first.version == second.version != third.version


def test_an_object_that_is_replaced_amid_the_scan_is_torn(
    remote_settings: Settings, s3: S3Server, place: Url, tmp_path: Path
) -> None:
    """An object that is replaced during the scan is torn: nothing is published, and the next run reads the new one."""
    s3.put(place / "rolling_brain.json.gz", as_gz(tmp_path, OLD))
    optimize(remote_settings, use_cache=False)
    write_sample(tmp_path / "big.json.gz", symbols=500, points=2_000)
    s3.put(place / "rolling_brain.json.gz", tmp_path / "big.json.gz")
    before = snapshot_store(tmp_path / "snapshots").read_set()

    replaced = once(lambda: s3.put(place / "rolling_brain.json.gz", as_gz(tmp_path, NEW)))
    with pytest.raises(SourceTorn, match="was replaced while it was read"):
        optimize(remote_settings, use_cache=False, progress=replaced)

    assert snapshot_store(tmp_path / "snapshots").read_set() == before
    assert optimize(remote_settings, use_cache=False).status == "success"
    assert symbols_shown(remote_settings) == ["NVDA", "MSFT"]


def test_ranges_are_of_the_object_that_was_opened(s3: S3Server, place: Url) -> None:
    """S3 refuses a range of another version, so bytes of two are never mixed, even if both are uncompressed."""
    one, other = b"1" * (40 << 20), b"2" * (40 << 20)
    s3.put(place / "rolling_brain.json", one)

    with open_input_file(place / "rolling_brain.json") as input_file:
        chunks = input_file.chunks(1 << 20)
        read = [next(chunks)]
        s3.put(place / "rolling_brain.json", other)
        with pytest.raises(SourceTorn, match="replaced"):
            read.extend(chunks)
        with pytest.raises(SourceTorn, match="replaced"):
            input_file.check_unchanged()
    assert set(b"".join(read)) == set(b"1")


def test_an_object_cut_short_is_torn(remote_settings: Settings, s3: S3Server, place: Url, tmp_path: Path) -> None:
    """An object whose gzip data ends early is torn, like such a local file."""
    s3.put(place / "rolling_brain.json.gz", as_gz(tmp_path, OLD)[:-9])
    with pytest.raises(SourceTorn, match="ends early"):
        optimize(remote_settings, use_cache=False)


# ---- missing objects and denied access


@pytest.mark.parametrize("where", ["key", "bucket"])
def test_what_is_not_there_is_missing(place: Url, where: str) -> None:
    """A missing key or bucket is `SourceMissing`; the message has the URL, and says that the bucket may be missing."""
    url = place / "none.json.gz" if where == "key" else Url("s3://no-such-bucket-here/a.json.gz")
    with pytest.raises(SourceMissing, match=f"{url} not found, or there is no such bucket; set ROLLING_INPUT"):
        open_input_file(url)


def test_what_only_has_others_below_it_is_no_input(s3: S3Server, place: Url) -> None:
    """A URL that is no object, and only has objects below it, is refused like a directory."""
    s3.put(place / "a/b.json", b"{}")
    with pytest.raises(SourceUnreadable, match="is no object"):
        open_input_file(place / "a")


def test_who_may_not_read_is_told_so(own_s3: S3Server) -> None:
    """If the store denies access, the error says to check the credentials."""
    own_s3.start()
    own_s3.refuse_strangers()
    with pytest.raises(SourceUnreadable, match=f"{own_s3.bucket}/a.json: PermissionError: .*check .* the credentials"):
        open_input_file(own_s3.bucket / "a.json")


def test_without_credentials_the_message_names_them(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without credentials the error is `SourceUnreadable` and names them, though boto's error is not an `OSError`."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(SourceUnreadable, match=r"NoCredentialsError: .*check .* the credentials"):
        open_input_file(Url(f"{s3.bucket}-of-another/a.json"))


def test_a_server_that_is_down_is_an_error_within_seconds(own_s3: S3Server) -> None:
    """A server that is down, at the opening or during the reading of an object, is an error within 30 s.

    The libraries would retry for minutes.
    """
    began = time.monotonic()
    with pytest.raises(
        SourceUnreadable, match=r"EndpointConnectionError: connection refused by 127.0.0.1:\d+: .*check the network"
    ):
        open_input_file(own_s3.bucket / "a.json")
    own_s3.start()
    own_s3.put(own_s3.bucket / "a.json", b"1" * (40 << 20))
    with open_input_file(own_s3.bucket / "a.json") as input_file:
        chunks = input_file.chunks(1 << 20)
        next(chunks)
        own_s3.kill()
        with pytest.raises(SourceUnreadable, match=r"after [\d,]+ bytes of JSON: .*check the network"):
            list(chunks)
    assert time.monotonic() - began < 30


def test_a_server_that_hangs_is_an_error_within_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that accepts connections and never responds is an error within a minute."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "made-up")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "made-up")
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(SourceUnreadable, match="check the network"):
            open_input_file(Url("s3://hanging-bucket/a.json"))
    assert time.monotonic() - began < 60


# ---- patterns


def test_a_pattern_names_objects_by_name(s3: S3Server, place: Url) -> None:
    """A pattern matches objects by their full URLs, in order.

    It leaves out names with a leading dot, which are still being written, unless it has the dot itself, and names with
    a trailing slash, which are placeholders of directories.
    """
    for name in ("b.json", "a.json", ".c.json", "deep/d.json", ".deep/e.json", "dir.json/"):
        s3.put(Url(f"{place}/{name}"), b"{}")

    assert expand(place / "*.json") == [place / "a.json", place / "b.json"]
    assert expand(place / "**" / "*.json") == [place / "a.json", place / "b.json", place / "deep/d.json"]
    assert expand(place / ".deep" / "*.json") == [place / ".deep/e.json"]
    assert expand(place / "[ab].json") == [place / "a.json", place / "b.json"]
    assert expand(place / "none-*.json") == []
    assert expand(place / "a.json") == [place / "a.json"]


def test_a_key_that_is_there_wins_over_the_pattern(
    remote_settings: Settings, s3: S3Server, place: Url, tmp_path: Path
) -> None:
    """An object whose key looks like a pattern is one input; until it exists, the brackets in it are wildcards."""
    odd = place / "brain[ab].json.gz"
    s3.put(place / "braina.json.gz", as_gz(tmp_path, OLD))
    assert expand(odd) == [place / "braina.json.gz"]
    s3.put(odd, as_gz(tmp_path, NEW))
    assert expand(odd) == [odd]
    settings = replace(remote_settings, input=odd, source="odd")
    assert optimize(settings, use_cache=False).status == "success"
    assert symbols_shown(settings) == ["NVDA", "MSFT"]


def test_a_pattern_without_a_match_names_where_it_looked(remote_settings: Settings, s3: S3Server, place: Url) -> None:
    """The error for a pattern without a match has the directory before the first wildcard."""
    s3.put(place / "deep/a.json", b"{}")
    with pytest.raises(SourceMissing, match=rf"matches no file: nothing of that name lies below {place}/deep/, or"):
        optimize(replace(remote_settings, input=place / "deep/b*.json"), use_cache=False)


def test_other_stores_are_read_alike(tmp_path: Path) -> None:
    """An object in a store without ETags is read, and torn if it is replaced: all its metadata is the fingerprint."""
    url = parse_location(f"memory://{tmp_path.name}/a.json.gz")
    assert isinstance(url, Url)
    store = fsspec.filesystem("memory")
    store.pipe_file(url.text, gzip.compress(b"[1]"))
    with open_input_file(url) as input_file:
        assert b"".join(input_file.chunks(1 << 16)) == b"[1]"
        input_file.check_unchanged()
        store.pipe_file(url.text, gzip.compress(b"[1]"))
        with pytest.raises(SourceTorn, match="replaced"):
            input_file.check_unchanged()
    store.rm_file(url.text)


# ---- times


def test_an_object_is_as_old_as_the_store_says(s3: S3Server, place: Url) -> None:
    """An object was written and landed at the time of its put, by the store's clock in whole seconds."""
    before_s = int(time.time())
    s3.put(place / "a.json", b"[1]")
    with open_input_file(place / "a.json") as input_file:
        assert input_file.modified_s is not None
        assert before_s <= input_file.modified_s <= time.time()
        assert input_file.landed_s == input_file.modified_s


NOON: Final = datetime(2026, 11, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("info", "modified_s"),
    [
        ({"LastModified": NOON}, NOON.timestamp()),  # s3fs
        ({"last_modified": NOON, "etag": "x"}, NOON.timestamp()),  # adlfs
        ({"updated": "2026-11-01T12:00:00.250Z", "mtime": NOON}, NOON.timestamp() + 0.25),  # gcsfs
        ({"mtime": NOON.timestamp()}, NOON.timestamp()),  # fsspec's local and SFTP
        ({"created": NOON}, NOON.timestamp()),  # fsspec's memory
        ({"LastModified": NOON.replace(tzinfo=None)}, NOON.timestamp()),
        ({"LastModified": "2026-11-01T13:00:00+01:00"}, NOON.timestamp()),
        ({"LastModified": None, "mtime": 7}, 7.0),
        ({"LastModified": "yesterday"}, None),
        ({"LastModified": ["2026"]}, None),
        ({"mtime": math.nan}, None),
        ({"mtime": math.inf}, None),
        ({"mtime": 10**400}, None),
        ({}, None),
    ],
)
def test_each_store_names_the_time_in_its_own_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, info: dict[str, Any], modified_s: float | None
) -> None:
    """The time is read from the metadata of each kind of store; a value that is no time is unknown, and is no error."""
    url = parse_location(f"memory://{tmp_path.name}/a.json")
    assert isinstance(url, Url)
    store = fsspec.filesystem("memory")
    store.pipe_file(url.text, b"[1]")
    shown = {"name": "a.json", "size": 3, "type": "file", **info}
    monkeypatch.setattr(type(store), "info", lambda *_, **__: shown)
    with open_input_file(url) as input_file:
        assert (input_file.modified_s, input_file.landed_s) == (modified_s, modified_s)
        assert b"".join(input_file.chunks(1 << 16)) == b"[1]"
    monkeypatch.undo()
    store.rm_file(url.text)


# ---- processes


def test_a_child_reads_though_its_parent_has_read_before(s3: S3Server, place: Url) -> None:
    """A forked child reads an object after its parent has, and then the parent reads it again.

    The child uses neither thread nor connections of the parent's file systems, and the parent keeps them.
    """
    s3.put(place / "a.json", b"[1]")

    def read() -> bytes:
        with open_input_file(place / "a.json") as input_file:
            return b"".join(input_file.chunks(1 << 16))

    assert read() == b"[1]"
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = 0 if read() == b"[1]" else 2
        finally:
            os._exit(status)
    deadline = time.monotonic() + 20
    ended = 0
    while not ended and time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        time.sleep(0.02)
    if not ended:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    assert ended
    assert status == 0
    assert read() == b"[1]"


def test_runs_leave_no_descriptor_and_no_thread(
    remote_settings: Settings, s3: S3Server, place: Url, tmp_path: Path
) -> None:
    """40 more runs in one process add at most two descriptors and two threads, since all use the same connections."""

    def held() -> tuple[int, int]:
        return len([*Path("/proc/self/fd").iterdir()]), len([*Path("/proc/self/task").iterdir()])

    settings = replace(remote_settings, output_dir=place / "out")
    s3.put(place / "rolling_brain.json.gz", as_gz(tmp_path, OLD))
    for _ in range(3):
        optimize(settings, use_cache=False, force=True)
    before = held()
    for _ in range(20):
        optimize(settings, use_cache=False, force=True)
        optimize(settings, use_cache=False)
    after = held()
    assert after[0] <= before[0] + 2
    assert after[1] <= before[1] + 2


def test_a_worker_reads_and_writes_objects_tick_after_tick(
    settings: Settings, s3: S3Server, place: Url, tmp_path: Path
) -> None:
    """A worker's forked children read and write objects at each tick, and a replaced object is published."""
    settings = replace(settings, input=place / "rolling_brain.json.gz", output_dir=place / "out")
    s3.put(place / "rolling_brain.json.gz", as_gz(tmp_path, {"AAPL": a_record()}))

    with Fleet(tmp_path, settings, **FAST_TICKS) as fleet:
        fleet.start_worker("--concurrency", "2", "--max-tasks-per-child", "2")
        fleet.start_beat()
        fleet.wait_for_runs(1, "success")
        fleet.wait_for_runs(4, "unchanged")
        s3.put(place / "rolling_brain.json.gz", as_gz(tmp_path, {"TSLA": a_record()}))
        fleet.wait_for_runs(2, "success")
        wait_until(lambda: [one.symbol for one in fleet.reader.predictions().value.predictions] == ["TSLA"])
        assert fleet.runs("failed") == []
    assert len([name for name in s3.names(place / "out") if name.endswith("manifest.json")]) == 3
