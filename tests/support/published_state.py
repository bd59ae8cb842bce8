"""The published state, byte for byte: files, keys and reports; and two inputs to publish from."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast

import msgspec

from optimizer.cache.client import CacheClient
from optimizer.cache.keys import VERSION_KINDS, Keys
from optimizer.cache.run_log import RunLog
from optimizer.config.settings import Settings
from optimizer.models import Index, Manifest, Record, Report
from optimizer.pipeline.run import Progress, optimize
from optimizer.snapshots.directory import LOCK_NAME
from optimizer.snapshots.format import FILE_NAMES, MANIFEST_NAME
from optimizer.snapshots.store import snapshot_store
from tests.support.redis_servers import RedisServer
from tests.support.rolling_files import a_record, local, write_json

__all__ = [
    "NEW",
    "OLD",
    "as_unprivileged",
    "assert_redis_holds_the_files",
    "assert_tidy",
    "content_of",
    "files_of",
    "keys_of",
    "no_scan",
    "old_pointer",
    "once",
    "report_unchanged",
    "run_next",
    "run_old",
    "runs_of",
    "symbols_shown",
    "version_of",
]

OLD: dict[str, Any] = {
    "AAPL": a_record(),
    "MSFT": a_record(confidence=0.9),
    "bots": {"alpha": {"enabled": True, "equity": 10.5, "positions": [{"symbol": "AAPL", "qty": 2, "avg": 99.5}]}},
}
NEW: dict[str, Any] = {"MSFT": a_record(confidence=0.8), "NVDA": a_record(confidence=0.95), "bots": {"beta": {}}}


def run_old(settings: Settings, *, use_cache: bool = True) -> Report:
    """Do the first run of a test, which succeeds."""
    write_json(settings.input, OLD)
    report = optimize(settings, use_cache=use_cache)
    assert report.status == "success"
    return report


def run_next(settings: Settings, **options: Any) -> Report:
    """Do a run over an input with different predictions, bots and holdings, so that it makes a new version.

    The input has its records by symbol; options are those of `optimize`.
    """
    content = msgspec.json.decode(gzip.decompress(local(settings.input).read_bytes()))
    for name, value in content.items():
        if "prediction" in value:
            value["prediction"] += 1.0
        elif name == "bots":
            for bot in value.values():
                bot["equity"] = bot.get("equity", 0.0) + 1.0
                for position in bot.get("positions", []):
                    position["qty"] += 1
    write_json(settings.input, content)
    return optimize(settings, **options)


def version_of(report: Report) -> int:
    """The version in a report."""
    assert report.version is not None
    return report.version


def report_unchanged(settings: Settings, times: int, at: str = "2099-11-01T10:00:00.000Z") -> None:
    """Add reports of this many runs that found nothing new, as a night without changes leaves them."""
    with closing(CacheClient(settings.redis_url, settings.source, settings.interval_s)) as cache:
        for _ in range(times):
            RunLog(cache).add(Report("unchanged", settings.source, at))


@contextmanager
def as_unprivileged() -> Iterator[None]:
    """Run as an unprivileged user: for root, no directory is read-only."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def files_of(directory: Path) -> dict[str, bytes]:
    """The bytes of every file below a directory except the lock, and the targets of links."""
    return {
        str(path.relative_to(directory)): (f"{path.readlink()}: ".encode() if path.is_symlink() else b"")
        + (path.read_bytes() if path.is_file() else b"")
        for path in directory.rglob("*")
        if (path.is_file() or path.is_symlink()) and path.name != LOCK_NAME
    }


def content_of(settings: Settings) -> dict[str, Any]:
    """The snapshots and the index in the output directory, decoded, without their times."""
    snapshots = snapshot_store(settings.output_dir).read_set()
    assert snapshots is not None
    contents = {kind: msgspec.json.decode(gzip.decompress(data)) for kind, data in snapshots.payloads.items()}
    for content in contents.values():
        del content["timestamp"]
    return contents


def keys_of(server: RedisServer, source: str) -> dict[bytes, tuple[bytes, bool]]:
    """Return each key's dump, and whether it never expires; without reports, their counts, the lock and ticks."""
    passing = (
        Keys(source).runs.encode(),
        Keys(source).scans.encode(),
        Keys(source).outcomes.encode(),
        Keys(source).lock.encode(),
        Keys(source).tick(0)[:-1].encode(),
    )
    with server.client as client:
        names = cast("list[bytes]", client.keys(f"rolling:{{{source}}}:*"))
        return {
            name: (cast("bytes", client.dump(name)), client.ttl(name) == -1)
            for name in names
            if not name.startswith(passing)
        }


def runs_of(server: RedisServer, source: str) -> list[Report]:
    """The stream of reports, newest first."""
    with server.client as client:
        entries = cast("list[tuple[bytes, dict[bytes, bytes]]]", client.xrevrange(Keys(source).runs))
        return [msgspec.json.decode(fields[b"report"], type=Report) for _, fields in entries]


def assert_tidy(settings: Settings, server: RedisServer | None = None) -> None:
    """Check that an unfinished run has left no partial file or link, no lock, no staged key."""
    assert [path for path in local(settings.output_dir).rglob("*") if "partial" in path.name] == []
    if server is not None:
        with server.client as client:
            assert client.exists(Keys(settings.source).lock) == 0
            assert client.keys("*:staged:*") == []


def assert_redis_holds_the_files(server: RedisServer, settings: Settings) -> None:
    """Check that Redis holds the set of the files (pointer, payloads, lookups of the index), and no key expires."""
    keys = Keys(settings.source)
    files = {kind: (local(settings.output_dir) / name).read_bytes() for kind, name in FILE_NAMES.items()}
    stored = (local(settings.output_dir) / MANIFEST_NAME).read_bytes()
    manifest = msgspec.json.decode(stored, type=Manifest)
    index = msgspec.json.decode(gzip.decompress(files["index"]), type=Index).symbols
    with server.client as client:
        pointer = cast("dict[bytes, bytes]", client.hgetall(keys.current))
        assert pointer.keys() == {b"version", b"checked_at", b"manifest"}
        assert int(pointer[b"version"]) == manifest.version
        assert pointer[b"manifest"] == stored
        names = {kind: keys.payload(manifest.version, kind) for kind in VERSION_KINDS}
        for kind in ("predictions", "bots", "portfolio"):
            assert client.get(names[kind]) == files[kind]
        symbols = cast("dict[bytes, bytes]", client.hgetall(names["symbols"]))
        assert {name.decode(): msgspec.json.decode(data, type=Record) for name, data in symbols.items()} == {
            record.symbol: record for record in index
        }
        ranking = cast("list[tuple[bytes, float]]", client.zrange(names["ranking"], 0, -1, withscores=True))
        assert {name.decode(): score for name, score in ranking} == {r.symbol: r.confidence for r in index}
        assert {client.ttl(name) for name in (keys.current, *names.values())} == {-1}


def old_pointer(manifest: Manifest, checked_at: str) -> dict[str, str]:
    """Return the fields of a pointer as releases wrote them before it contained the manifest."""
    fields = {
        "version": str(manifest.version),
        "generated_at": manifest.generated_at,
        "checked_at": checked_at,
        "fingerprint": manifest.fingerprint,
    }
    for kind in ("predictions", "bots", "portfolio"):
        entry = manifest.snapshots[kind]
        fields |= {f"{kind}_etag": entry.sha256, f"{kind}_bytes": str(entry.bytes), f"{kind}_count": str(entry.count)}
    if manifest.rejected is not None:
        for name, units in (("records", manifest.rejected.records), ("bots", manifest.rejected.bots)):
            fields |= {f"{name}_seen": str(units.seen), f"{name}_rejected": str(units.rejected)}
    return fields


def symbols_shown(settings: Settings) -> list[str]:
    """The symbols of the predictions file, best first."""
    value = msgspec.json.decode(gzip.decompress((local(settings.output_dir) / FILE_NAMES["predictions"]).read_bytes()))
    return [record["symbol"] for record in value["predictions"]]


def no_scan(_done: int, _total: int) -> None:
    """A `progress` for runs that must not read the input."""
    raise AssertionError("the input was scanned")


def once(action: Callable[[], object]) -> Progress:
    """A `progress` that calls `action` once, after the first chunk of the scan."""
    actions = [action]

    def progress(_done: int, _total: int) -> None:
        if actions:
            actions.pop()()

    return progress
