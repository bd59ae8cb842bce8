"""The lock of a source, and the assignment of the run that holds it.

The lock is held by one run at a time, and extended on a thread while the run lasts:

    acquire    for a run that begins                             makes a token
    adopt      for the process that ends a distributed run       replaces the run's token by a new one
    join       for each process that scans a part of it          extends the lock under the run's token
    revoke     takes the lock from a run, wherever the run is

A token begins with a digest of the run's id, so that a run can be revoked by its id.

The assignment says what a run has to scan. It is stored under the token until the run ends, and messages contain only
the token. An assignment that exists while the lock is free belongs to a lost run.

Errors: `CacheUnavailable`; `PublishRefused` from `acquire` for a run that was revoked before it began.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Final, cast

from optimizer.cache.client import CacheClient, translated_errors
from optimizer.cache.damage import delete_unusable
from optimizer.cache.keys import REVOKED
from optimizer.cache.scripts import ACQUIRE, ADOPT, DELETE_AS_HOLDER, DISPATCH, END_DISPATCH, EXTEND, REVOKE
from optimizer.errors import CacheUnavailable, PublishRefused
from optimizer.log import SourceLog

__all__ = ["LOCK_TTL_S", "AssignmentStore", "Lock", "SourceLock", "dispatch_ttl_s"]

LOCK_TTL_S: Final = 10.0
LOCK_EXTEND_S: Final = 3.0
RUN_DIGEST_CHARACTERS: Final = 16
# How often a process that waits for a lock tries again: a drain holds `publishing` for some 20 ms.
POLL_S: Final = 0.005

_log = SourceLog(__name__)


@dataclass
class Lock:
    """A lock as its holder sees it.

    Attributes:
        held: Whether it was acquired.
        token: The value that proves ownership.
        keep_s: If above 0, the lock is not released at the end but expires after this many seconds: other processes of
            the same run continue under it.
        lost: Set when an extension finds that the lock has expired or was taken away.
    """

    held: bool
    token: str
    keep_s: float = 0.0
    lost: bool = False


class SourceLock:
    """The lock of one source.

    Args:
        cache: The connection.
        key: A key other than the lock of the runs: `publishing`, the short lock of a process that makes a version from
            the current one (a drain, or the end of a run). It only orders them: the flip compares the pointer.
    """

    def __init__(self, cache: CacheClient, key: str = "") -> None:
        self._cache = cache
        self._keys = cache.keys
        self._key = key or cache.keys.lock

    @contextmanager
    def acquire(self, run_id: str = "") -> Iterator[Lock]:
        """Try to take the lock for a run; release it at the end if it is still the run's.

        Raises:
            PublishRefused: A run of this id was revoked.
        """
        digest = _run_digest(run_id or secrets.token_hex(16))  # a run without an id cannot be revoked by it
        token = f"{digest}{secrets.token_hex(16)}"
        revoked = self._keys.revoked(digest)
        with self._cache.commands() as client:
            if run_id:
                delete_unusable(client, {revoked: REVOKED}, self._keys.source)
            held = client.eval(ACQUIRE, 2, self._key, revoked, token, _ms(LOCK_TTL_S))
        if held == -1:
            raise PublishRefused("the run was revoked before it began")
        with self._extended(Lock(bool(held), token)) as lock:
            yield lock

    @contextmanager
    def acquire_within(self, wait_s: float) -> Iterator[Lock]:
        """Take the lock as soon as it is free, and hold it; it is not held if that takes longer than `wait_s`."""
        until_s = time.monotonic() + wait_s
        while True:
            with self.acquire() as lock:
                if lock.held or time.monotonic() >= until_s:
                    yield lock
                    return
            time.sleep(POLL_S)

    @contextmanager
    def adopt(self, token: str) -> Iterator[Lock]:
        """Take over the lock of a dispatched run, to end that run: a new token replaces the run's."""
        new_token = f"{token[:RUN_DIGEST_CHARACTERS]}{secrets.token_hex(16)}"
        with self._cache.commands() as client:
            keys = (self._keys.lock, self._keys.handed)
            held = client.eval(ADOPT, 2, *keys, token, new_token, _ms(LOCK_TTL_S))
        with self._extended(Lock(bool(held), new_token)) as lock:
            yield lock

    @contextmanager
    def join(self, token: str, keep_s: float) -> Iterator[Lock]:
        """Hold the lock of a dispatched run together with others, and leave it to them for `keep_s` seconds."""
        with self._cache.commands():
            held = self._extend(token, LOCK_TTL_S)
        with self._extended(Lock(held, token, keep_s)) as lock:
            yield lock

    def owns(self, lock: Lock) -> bool:
        """Whether the lock is still held under this token."""
        with self._cache.commands() as client:
            return client.get(self._key) == lock.token.encode()

    def revoke(self, run_id: str) -> None:
        """Take lock and assignment from a run: it cannot publish or be continued, and the next run may begin."""
        digest = _run_digest(run_id)
        keys = (self._keys.lock, self._keys.handed, self._keys.revoked(digest))
        with self._cache.commands() as client:
            # Damaged keys would make the script fail, and no run deletes them before it.
            types = {name: kind for name, kind in self._keys.fixed.items() if name in keys}
            delete_unusable(client, types, self._keys.source)
            client.eval(REVOKE, 3, *keys, digest, _ms(dispatch_ttl_s(self._cache.interval_s)))

    @contextmanager
    def _extended(self, lock: Lock) -> Iterator[Lock]:
        if not lock.held:
            yield lock
            return
        ended = threading.Event()
        # In the caller's context, so that a trace of the run includes the extensions.
        extend = partial(copy_context().run, self._extend_until, lock, ended)
        thread = threading.Thread(target=extend, name="rolling-lock", daemon=True)
        thread.start()
        try:
            yield lock
        finally:
            ended.set()
            thread.join()
            if self._cache.redis_up:
                self._release(lock)

    def _release(self, lock: Lock) -> None:
        try:
            with self._cache.commands() as client:
                if lock.keep_s:
                    self._extend(lock.token, lock.keep_s)
                else:
                    client.eval(DELETE_AS_HOLDER, 2, self._key, self._key, lock.token)
        except CacheUnavailable as error:
            _log.warning("the lock was not released and expires by itself", source=self._keys.source, error=error)

    def _extend_until(self, lock: Lock, ended: threading.Event) -> None:
        """Extend the lock until the run ends, or until it is lost, which the run checks before it publishes."""
        while not ended.wait(LOCK_EXTEND_S):
            try:
                with translated_errors(self._cache.url):
                    if not self._extend(lock.token, LOCK_TTL_S):
                        lock.lost = True
                        return
            except CacheUnavailable as error:
                _log.warning("the lock could not be extended yet", source=self._keys.source, error=error)

    def _extend(self, token: str, seconds: float) -> bool:
        keys = (self._key, self._keys.handed)
        ttls_ms = (_ms(seconds), _ms(dispatch_ttl_s(self._cache.interval_s)))
        return bool(self._cache.connection.eval(EXTEND, 2, *keys, token, *ttls_ms))


class AssignmentStore:
    """The assignment of a source's current run; there is at most one."""

    def __init__(self, cache: CacheClient) -> None:
        self._cache = cache
        self._keys = cache.keys

    def dispatch(self, token: str, assignment: bytes) -> bool:
        """Store the assignment of a run; false if the run no longer holds the lock."""
        with self._cache.commands() as client:
            ttl_ms = round(1000 * dispatch_ttl_s(self._cache.interval_s))
            return bool(client.eval(DISPATCH, 2, self._keys.lock, self._keys.handed, token, assignment, str(ttl_ms)))

    def read(self, token: str) -> bytes | None:
        """Read the assignment of the run with this token; `None` if the run has ended or was replaced by another."""
        with self._cache.commands() as client:
            stored = cast("list[bytes | None]", client.hmget(self._keys.handed, ["token", "assignment"]))
            return stored[1] if stored[0] == token.encode() else None

    def end(self, token: str) -> None:
        """Delete the assignment of this run."""
        with self._cache.commands() as client:
            client.eval(END_DISPATCH, 1, self._keys.handed, token)

    def take_unfinished(self) -> bytes | None:
        """Return and delete the assignment of a run that has not ended; `None` if there is none."""
        with self._cache.commands() as client:
            pipeline = client.pipeline()
            pipeline.hget(self._keys.handed, "assignment")
            pipeline.delete(self._keys.handed)
            return cast("bytes | None", pipeline.execute()[0])


def dispatch_ttl_s(interval_s: float) -> float:
    """Seconds for which the assignment of a dispatched run stays after the last work on it."""
    return max(60.0, 10 * interval_s)


def _run_digest(run_id: str) -> str:
    """The prefix of all tokens of a run."""
    return hashlib.sha256(run_id.encode("utf-8", "backslashreplace")).hexdigest()[:RUN_DIGEST_CHARACTERS]


def _ms(seconds: float) -> str:
    return str(round(seconds * 1000))
