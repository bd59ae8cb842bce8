"""The pointer: it holds the manifest as stored; the next tick rewrites a pointer of an earlier release."""

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
from optimizer.snapshots.delta import decode_stored
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
    """Return the fields as Redis returns them."""
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
    """A pointer is encoded in three fields and decoded to an equal pointer; an empty HASH is no pointer."""
    manifest = a_manifest(Rejected(Units(3, 1), Units(5, 1)))
    fields = pointer_fields(manifest, LATER)

    assert fields.keys() == {b"version", b"checked_at", b"manifest"}
    assert Pointer.from_hash(fields) == Pointer(LATER, manifest)
    assert Pointer.from_hash({}) is None


@pytest.mark.parametrize("rejected", [None, Rejected(Units(3, 1), Units(5, 1))], ids=["not counted", "counted"])
def test_a_pointer_of_an_earlier_release_tells_the_same_manifest(rejected: Rejected | None) -> None:
    """A pointer of an earlier release gives the same manifest, but without the source and the index, which it lacks."""
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
    """A pointer of an earlier release is damaged if a field is missing, is not text, or is not a number or a time."""
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
    """A pointer is damaged if its manifest cannot be decoded or has another version, or if its time is invalid.

    A time without a zone is invalid. A pointer that also has a field of the earlier format is damaged too.
    """
    fields = {**pointer_fields(a_manifest(), LATER), field.encode(): value}

    with pytest.raises(CacheUnavailable, match="the pointer is damaged"):
        Pointer.from_hash(fields)


@pytest.mark.parametrize("kind", ["predictions", "bots", "portfolio"])
def test_a_manifest_without_a_payload_is_damage(kind: str) -> None:
    """A manifest that lacks one of the three payloads is damage, since readers need the digest of each."""
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
    """A manifest is damaged if a time in it has no zone, is no time, or is not in the years 1 to 9999.

    HTTP headers, ages, the diagnosis and metrics are computed from these times: one bad time would break every
    response.
    """
    manifest = msgspec.structs.replace(a_manifest(), **changed)

    with pytest.raises(CacheUnavailable, match=problem):
        Pointer.from_hash(pointer_fields(manifest, LATER))
    assert decode_manifest(encode_manifest(manifest)) is None


def test_a_reader_reads_the_pointer_of_an_earlier_release(settings: Settings, redis_server: RedisServer) -> None:
    """A reader that sees Redis alone shows the version of an earlier release's pointer, with the counts of rejects.

    Routers are upgraded before workers, and most of them see Redis alone.
    """
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
    """An unchanged tick rewrites an earlier release's pointer from the files, without a scan; the version stays."""
    version = version_of(run_old(settings))
    with redis_server.client as client:
        put_old_pointer(client, settings)

    report = optimize(settings, progress=no_scan)

    assert (report.status, report.cache, report.version) == ("unchanged", "republished", version)
    assert_redis_holds_the_files(redis_server, settings)
    assert optimize(settings, progress=no_scan).cache == "current"


def test_a_run_publishes_after_the_pointer_of_an_earlier_release(settings: Settings, redis_server: RedisServer) -> None:
    """After an earlier release's pointer a run publishes a newer version, and one delta that leads from the old one.

    The old version expires.
    """
    keys = Keys(settings.source)
    version = version_of(run_old(settings))
    with redis_server.client as client:
        put_old_pointer(client, settings)
        write_json(settings.input, NEW)

        report = optimize(settings)

        assert report.cache == "published"
        assert version_of(report) > version
        assert client.ttl(keys.payload(version, "predictions")) > 0
        [(_, fields)] = cast("list[tuple[bytes, dict[bytes, bytes]]]", client.xrange(keys.deltas))
    change = decode_stored(fields[b"change"]).change
    assert (change.before, change.version) == (version, report.version)
    assert change.predictions is not msgspec.UNSET
    assert [record.symbol for record in change.predictions.changed] == ["NVDA", "MSFT"]
    assert change.predictions.removed == ["AAPL"]
    assert_redis_holds_the_files(redis_server, settings)
