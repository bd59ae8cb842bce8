"""The pointer holds the manifest as stored; one of an earlier release is read, and rewritten by the next tick."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import redis

from optimizer import Settings, SnapshotReader, optimize
from optimizer.cache.keys import Keys
from optimizer.cache.pointer import Pointer, pointer_fields
from optimizer.errors import CacheUnavailable
from optimizer.models import Manifest, Pin, Rejected, Units
from optimizer.snapshots.format import decode_manifest, encode_manifest, encode_set
from optimizer.snapshots.store import snapshot_store
from tests.support.published_state import (
    NEW,
    assert_redis_holds_the_files,
    no_scan,
    old_pointer,
    run_old,
    version_of,
)
from tests.support.redis_servers import RedisServer
from tests.support.rolling_files import write_json

NOW = "2026-11-01T10:00:00.000Z"
LATER = "2026-11-01T10:00:30.000Z"


def a_manifest(rejected: Rejected | None = None) -> Manifest:
    """The manifest of an empty set."""
    return encode_set(
        source="rolling_brain",
        version=1,
        generated_at=NOW,
        fingerprint="print-1",
        ranked=[],
        predictions=[],
        bots={},
        holdings=[],
        gzip_level=1,
        rejected=rejected,
    ).manifest


def encoded(fields: dict[str, str]) -> dict[bytes, bytes]:
    """Fields as Redis returns them."""
    return {name.encode(): value.encode() for name, value in fields.items()}


def put_old_pointer(client: redis.Redis, settings: Settings) -> None:
    """Put the pointer that an earlier release would have written in place of today's."""
    manifest = snapshot_store(settings.output_dir).read_manifest()
    key = Keys(settings.source).current
    assert manifest is not None
    checked_at = cast("bytes", client.hget(key, "checked_at")).decode()
    client.delete(key)
    client.hset(key, mapping=cast("Any", old_pointer(manifest, checked_at)))


def test_a_pointer_is_decoded_as_it_was_encoded() -> None:
    """Three fields; an empty HASH is no pointer."""
    manifest = a_manifest(Rejected(Units(3, 1), Units(5, 1)))
    fields = pointer_fields(manifest, LATER)

    assert fields.keys() == {b"version", b"checked_at", b"manifest"}
    assert Pointer.from_hash(fields) == Pointer(LATER, manifest)
    assert Pointer.from_hash({}) is None


@pytest.mark.parametrize("rejected", [None, Rejected(Units(3, 1), Units(5, 1))], ids=["not counted", "counted"])
def test_a_pointer_of_an_earlier_release_tells_the_same_manifest(rejected: Rejected | None) -> None:
    """It does not name the source, and has no index."""
    manifest = a_manifest(rejected)

    pointer = Pointer.from_hash(encoded(old_pointer(manifest, LATER)))

    assert pointer is not None
    assert (pointer.version, pointer.checked_at) == (1, LATER)
    payloads = {kind: entry for kind, entry in manifest.snapshots.items() if kind != "index"}
    assert pointer.manifest == msgspec.structs.replace(manifest, source="", snapshots=payloads)


@pytest.mark.parametrize(
    "field",
    ["version", "generated_at", "checked_at", "bots_etag", "bots_bytes", "bots_count", "records_rejected", "bots_seen"],
)
@pytest.mark.parametrize("value", [None, b"\xff", b" 1"])
def test_a_damaged_pointer_of_an_earlier_release_is_refused(field: str, value: bytes | None) -> None:
    """A field that is missing, is not text, or is not a number or a time."""
    fields = encoded(old_pointer(a_manifest(Rejected(Units(3, 1), Units(5, 1))), LATER))
    del fields[field.encode()]
    if value is not None and not (field.endswith("etag") and value == b" 1"):  # an etag may be any text
        fields[field.encode()] = value

    with pytest.raises(CacheUnavailable, match="the pointer is damaged"):
        Pointer.from_hash(fields)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", b"2"),
        ("version", b"1" * 16),
        ("checked_at", b"2026-11-01T10:00:00"),
        ("checked_at", b"yesterday"),
        ("manifest", b""),
        ("manifest", b"{}"),
        ("manifest", b"[" * 100_000),
        ("manifest", b"\xff"),
        ("fingerprint", b"print-1"),
    ],
)
def test_a_damaged_pointer_is_refused(field: str, value: bytes) -> None:
    """A manifest that cannot be decoded, or has another version than the pointer; a time without zone."""
    fields = {**pointer_fields(a_manifest(), LATER), field.encode(): value}

    with pytest.raises(CacheUnavailable, match="the pointer is damaged"):
        Pointer.from_hash(fields)


@pytest.mark.parametrize("kind", ["predictions", "bots", "portfolio"])
def test_a_manifest_without_a_payload_is_damage(kind: str) -> None:
    """A reader looks for the digest of each of the three."""
    manifest = a_manifest()
    del manifest.snapshots[kind]

    with pytest.raises(CacheUnavailable, match=f"the manifest lacks {kind}"):
        Pointer.from_hash(pointer_fields(manifest, LATER))


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"generated_at": "2026-11-01T10:00:00"}, "generated_at has no time zone"),
        ({"generated_at": "9999-12-31T23:00:00-02:00"}, "generated_at is not of the years 1 to 9999"),
        ({"input_at": "yesterday"}, "Invalid isoformat string: 'yesterday'"),
        ({"input_at": "0001-01-01T00:00:00+02:00"}, "input_at is not of the years 1 to 9999"),
        ({"pinned": Pin("2026-11-01T10:00:00", "ann@host")}, "pinned_at has no time zone"),
    ],
)
def test_a_manifest_with_a_time_that_cannot_be_counted_with_is_damage(changed: dict[str, Any], problem: str) -> None:
    """HTTP headers, ages, the diagnosis and metrics are made of them: one would break every answer."""
    manifest = msgspec.structs.replace(a_manifest(), **changed)

    with pytest.raises(CacheUnavailable, match=problem):
        Pointer.from_hash(pointer_fields(manifest, LATER))
    assert decode_manifest(encode_manifest(manifest)) is None


def test_a_reader_reads_the_pointer_of_an_earlier_release(settings: Settings, redis_server: RedisServer) -> None:
    """Routers are upgraded before workers, and most see Redis alone."""
    version = version_of(run_old(settings))
    with redis_server.client as client:
        put_old_pointer(client, settings)

    reader = SnapshotReader.from_settings(replace(settings, output_dir=Path("nowhere")))
    shown = reader.predictions()
    state = reader.manifest()
    reader.close()

    assert (shown.version, shown.origin, shown.stale) == (version, "redis", False)
    assert (state.version, state.origin, state.rejected) == (version, "redis", Rejected(Units(2, 0), Units(1, 0)))


def test_an_unchanged_tick_rewrites_the_pointer_of_an_earlier_release(
    settings: Settings, redis_server: RedisServer
) -> None:
    """From the files, without a scan; the version stays."""
    version = version_of(run_old(settings))
    with redis_server.client as client:
        put_old_pointer(client, settings)

    report = optimize(settings, progress=no_scan)

    assert (report.status, report.cache, report.version) == ("unchanged", "republished", version)
    assert_redis_holds_the_files(redis_server, settings)
    assert optimize(settings, progress=no_scan).cache == "current"


def test_a_run_publishes_after_the_pointer_of_an_earlier_release(settings: Settings, redis_server: RedisServer) -> None:
    """The new version is newer, the old one expires, and the delta begins at it."""
    keys = Keys(settings.source)
    version = version_of(run_old(settings))
    with redis_server.client as client:
        put_old_pointer(client, settings)
        write_json(settings.input, NEW)

        report = optimize(settings)

        assert report.cache == "published"
        assert version_of(report) > version
        assert client.ttl(keys.payload(version, "predictions")) > 0
        assert client.xlen(keys.deltas) == 1
    assert_redis_holds_the_files(redis_server, settings)
