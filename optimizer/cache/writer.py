"""Publishes the versions of a source in Redis: stage, flip, confirm.

Values are staged in batches under keys with the run's token, and a seal after them. Then one short script checks that
the run still holds the lock, that the pointer is the one it started from, and that nothing staged is gone; it renames
the staged keys (constant time each), replaces the pointer, lets the old version expire and publishes the version to the
channel. So a run whose lock expired while it was paused publishes and overwrites nothing, and one that dies leaves only
keys that expire. Each version is published with the changes since the one before. The manifest of a version that is
already current can be replaced alone.

Damaged keys are replaced, with one warning each: a key of another type at the start of the next run (`mend`), a damaged
pointer when it is read, the values of the current version when a tick compares them with the files (`verification.py`).

Errors: `CacheUnavailable`; `PublishRefused` if the script refuses.
"""

from __future__ import annotations

from typing import Any, Final, cast

import msgspec
import redis

from optimizer.cache.client import READER_TIMEOUT_S, UNREADABLE, CacheClient, connect, now_s, translated_errors
from optimizer.cache.clocks import text_of
from optimizer.cache.damage import delete_unusable, warn_of_damage
from optimizer.cache.flip import STAGED_TTL_S, STAGED_TYPES, Consumed, flip, new_seal
from optimizer.cache.keys import (
    NUMBER,
    ORIGINS,
    PAYLOAD_KINDS,
    VERSION_TYPES,
    version_of,
)
from optimizer.cache.lock import Lock
from optimizer.cache.pointer import Pointer
from optimizer.cache.scripts import CONFIRM, DELETE_AS_HOLDER, REPLACE_MANIFEST
from optimizer.cache.update_queue import decode_held, encode_held
from optimizer.errors import CacheUnavailable, PublishRefused
from optimizer.log import SourceLog
from optimizer.models import UNDECODABLE, HeldUpdate, Manifest, Record
from optimizer.snapshots.delta import entry_between
from optimizer.snapshots.format import SnapshotSet, encode_manifest, whole_payloads

__all__ = ["VersionWriter"]

OLD_VERSION_TTL_S: Final = 120
STAGE_BATCH: Final = 1_000

_RECORD: Final = msgspec.json.Decoder(Record)
_log = SourceLog(__name__)


class VersionWriter:
    """The pointer and the versions of one source."""

    def __init__(self, cache: CacheClient) -> None:
        self._cache = cache
        self._keys = cache.keys
        self._staged: SnapshotSet | None = None
        self._staged_names: list[str] = []
        self._seal = ""

    def mend(self) -> None:
        """Delete keys of the source that cannot be used; the code that writes a key creates it again."""
        names = [self._keys.reads(origin) for origin in ORIGINS]
        with self._cache.commands() as client:
            delete_unusable(client, self._keys.fixed, self._keys.source)
            for name, count in zip(names, cast("list[bytes | None]", client.mget(names)), strict=True):
                if count is not None and not NUMBER.fullmatch(count.decode("ascii", "replace")):
                    warn_of_damage(f"{name} holds what is no number", self._keys.source)
                    client.delete(name)

    def pointer(self, lock: Lock | None = None) -> Pointer | None:
        """Read the pointer; `None` if it is missing or damaged. With the lock, a damaged pointer is deleted."""
        with self._cache.commands() as client:
            return self._pointer(client, lock)

    def pointer_now(self) -> Pointer | None:
        """Read the pointer with a short timeout, also if Redis was away before: it may be back."""
        if self._cache.redis_up:
            return self.pointer()
        with translated_errors(self._cache.url):
            client = connect(self._cache.url, timeout_s=READER_TIMEOUT_S, source=self._keys.source)
            try:
                return self._pointer(client)
            finally:
                client.close()

    def _pointer(self, client: redis.Redis, lock: Lock | None = None) -> Pointer | None:
        fields = cast("dict[bytes, bytes]", client.hgetall(self._keys.current))
        try:
            return Pointer.from_hash(fields)
        except CacheUnavailable as error:
            warn_of_damage(f"{self._keys.current}: {error}", self._keys.source)
            if lock is not None:
                client.eval(DELETE_AS_HOLDER, 2, self._keys.lock, self._keys.current, lock.token)
            return None

    def newest_known(self) -> int:
        """The newest published version, 0 for none; Redis knows it even if the pointer is lost."""
        with self._cache.commands() as client:
            return max(self._newest_changed(client), self._flipped_version(client))

    def confirm(self, version: int) -> None:
        """Confirm that a version is still the newest, if the pointer still names it."""
        with self._cache.commands() as client:
            client.eval(CONFIRM, 2, self._keys.current, self._keys.flipped, str(version), text_of(now_s(client)))

    def replace_manifest(self, manifest: Manifest, lock: Lock) -> bool:
        """Replace the manifest in the pointer if it names this version; false if the lock is lost."""
        with self._cache.commands() as client:
            arguments = (lock.token, str(manifest.version), encode_manifest(manifest))
            return bool(client.eval(REPLACE_MANIFEST, 2, self._keys.lock, self._keys.current, *arguments))

    def stage(self, snapshots: SnapshotSet, lock: Lock) -> None:
        """Stage the values of a set under the run's token, in place of values that were staged under it before.

        Raises:
            CacheUnavailable: Redis does not answer, or has not kept all values; staged keys expire by themselves.
        """
        names = {kind: self._keys.staged(lock.token, kind) for kind in STAGED_TYPES}
        decoded = snapshots.decode_index()
        index, held = decoded.symbols, encode_held(decoded.updates or {})
        seal_name, self._seal = self._keys.staged(lock.token, "seal"), new_seal()
        self._staged, self._staged_names = None, [*names.values(), seal_name]
        with self._cache.commands() as client:
            client.delete(*self._staged_names)
            for kind in PAYLOAD_KINDS:
                client.set(names[kind], snapshots.payloads[kind], ex=STAGED_TTL_S)
            for start in range(0, len(index), STAGE_BATCH):
                batch = index[start : start + STAGE_BATCH]
                # Each batch is a transaction: cut off between two commands, it would leave a key that never expires.
                pipeline = client.pipeline()
                pipeline.hset(names["symbols"], mapping={each.symbol: msgspec.json.encode(each) for each in batch})
                pipeline.zadd(names["ranking"], {each.symbol: each.confidence for each in batch})
                pipeline.expire(names["symbols"], STAGED_TTL_S)
                pipeline.expire(names["ranking"], STAGED_TTL_S)
                pipeline.execute()
            for start in range(0, len(held), STAGE_BATCH):
                pipeline = client.pipeline()
                pipeline.hset(names["updates"], mapping=dict(list(held.items())[start : start + STAGE_BATCH]))
                pipeline.expire(names["updates"], STAGED_TTL_S)
                pipeline.execute()
            # A key that is evicted between two batches is created again by the next one, without its first part.
            pipeline = client.pipeline(transaction=False)
            pipeline.set(seal_name, self._seal, ex=STAGED_TTL_S)
            pipeline.hlen(names["symbols"])
            pipeline.zcard(names["ranking"])
            pipeline.hlen(names["updates"])
            staged = tuple(pipeline.execute()[1:])
        if staged != (len(index), len(index), len(held)):
            raise CacheUnavailable(
                f"of {len(index)} symbols and {len(held)} updates that were staged the cache has "
                f"{min(staged[:2])} and {staged[2]} left: it evicts; raise its maxmemory, or set its maxmemory-policy "
                "to noeviction"
            )
        self._staged = snapshots

    def discard(self) -> None:
        """Delete staged values that were not published: each failed run would leave them for minutes."""
        if self._staged_names:
            with self._cache.commands() as client:
                client.delete(*self._staged_names)

    def publish(
        self,
        snapshots: SnapshotSet,
        *,
        lock: Lock,
        before: Pointer | None,
        in_files: int = 0,
        is_known: bool = True,
        consumed: Consumed | None = None,
    ) -> None:
        """Make a set the current version; it is staged first, unless it was the last set that was staged.

        Args:
            snapshots: The set.
            lock: The run's lock.
            before: The pointer that the run started from.
            in_files: The version that the files had when the run began, 0 for none.
            is_known: False if the files have a different set with the pointer's number, so no change leads from it.
            consumed: What it takes from the queue of updates.

        Raises:
            PublishRefused: The lock is lost, or another run has published since.
            CacheUnavailable: Redis does not answer.
        """
        manifest, keys = snapshots.manifest, self._keys
        version_before = before.version if before else 0
        if manifest.version < version_before:
            raise PublishRefused(
                f"version {manifest.version} is older than the published {version_before}: does another host publish "
                f"{manifest.source} from an input or with settings of its own? Give each its own ROLLING_SOURCE"
            )
        with self._cache.commands() as client:
            checked_at = text_of(now_s(client))
            change = self._change(client, snapshots, before if is_known else None)
            if self._staged is not snapshots:
                self.stage(snapshots, lock)
            # The pointer may be lost, so versions without an expiry are collected from everything that names one.
            known = {self._newest_changed(client), self._flipped_version(client), version_before, in_files}
            flip(
                client.pipeline(),
                keys,
                manifest,
                lock_key=keys.lock,
                token=lock.token,
                seal=self._seal,
                checked_at=checked_at,
                version_before=before.version if before else None,
                old_versions=known,
                old_ttl_s=OLD_VERSION_TTL_S,
                change=change,
                updates=manifest.updates,
                consumed=consumed,
            )
        self._staged, self._staged_names = None, []

    def payloads(self, pointer: Pointer) -> dict[str, bytes] | None:
        """Read predictions, bots and holdings of a version; `None` unless all match the pointer."""
        with self._cache.commands() as client:
            return self._payloads(client, pointer)

    def _payloads(self, client: redis.Redis, pointer: Pointer) -> dict[str, bytes] | None:
        names = [self._keys.payload(pointer.version, kind) for kind in PAYLOAD_KINDS]
        return whole_payloads(pointer.manifest, PAYLOAD_KINDS, cast("list[bytes | None]", client.mget(names)))

    def read_shown(self, pointer: Pointer) -> tuple[dict[str, bytes], list[Record], dict[str, HeldUpdate]] | None:
        """Read payloads, index and updates in force, all at one moment.

        Returns:
            `None` if the pointer names another version by now, or if some values are missing.
        """
        keys, names = self._keys, {kind: self._keys.payload(pointer.version, kind) for kind in VERSION_TYPES}
        with self._cache.commands() as client:
            pipeline = client.pipeline()
            pipeline.hget(keys.current, "version")
            pipeline.mget([names[kind] for kind in PAYLOAD_KINDS])
            pipeline.hvals(names["symbols"])
            pipeline.zcard(names["ranking"])
            pipeline.hgetall(keys.updates)
            version, payloads, records, ranked, updates = pipeline.execute(raise_on_error=False)
            replies = (version, payloads, records, ranked, updates)
            if any(isinstance(reply, Exception) for reply in replies) or version != str(pointer.version).encode():
                return None
            whole = whole_payloads(pointer.manifest, PAYLOAD_KINDS, payloads)
            held = decode_held(updates, keys.source)
            if whole is None or not records or len(records) != ranked or len(held) != pointer.manifest.updates:
                return None
            try:
                return whole, [_RECORD.decode(record) for record in records], held
            except UNDECODABLE as error:
                warn_of_damage(f"{names['symbols']} holds what is no record ({error})", keys.source)
                return None

    def _newest_changed(self, client: redis.Redis) -> int:
        """The version of the newest change, 0 for none; it may exist though the pointer is lost, and only rises."""
        entries = cast("list[tuple[bytes, Any]]", client.xrevrange(self._keys.deltas, count=1))
        return version_of(entries[0][0].split(b"-")[0] if entries else b"")

    def _flipped_version(self, client: redis.Redis) -> int:
        return version_of(cast("bytes | None", client.hget(self._keys.flipped, "version")))

    def _change(self, client: redis.Redis, snapshots: SnapshotSet, before: Pointer | None) -> bytes:
        """Encode the change since the version before; empty if nothing changed, or if that version is not known."""
        if before is None or before.version == snapshots.manifest.version:
            return b""
        try:
            payloads = self._payloads(client, before)
            if payloads is None:
                raise CacheUnavailable("it is evicted or damaged")
            old = SnapshotSet(before.manifest, payloads).content()
            return entry_between(old, snapshots.content(), since=before.manifest.content_since)
        except (CacheUnavailable, *UNREADABLE) as error:  # or of another release
            text = "version %d cannot be read, so there is no change from it"
            _log.warning(text, before.version, source=self._keys.source, error=error)
            return b""
