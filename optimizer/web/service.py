"""The state that routes share in a process: one reader, the responses of its current version, and the hub of events.

It is started by the app's lifespan if there is one, else by the first request; never on import or before a fork.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from optimizer.config.settings import Settings
from optimizer.errors import SettingsInvalid
from optimizer.models import Origin
from optimizer.reader.async_reader import AsyncSnapshotReader
from optimizer.reader.follower import Follower
from optimizer.reader.reader import SnapshotReader
from optimizer.reader.results import Answer, CachedVersion
from optimizer.storage.location import redact_url
from optimizer.web.events import Hub
from optimizer.web.history_pages import HistoryPages
from optimizer.web.messages import ChangeMessages
from optimizer.web.pages import Pages
from optimizer.web.prepared import Headers
from optimizer.web.problems import PartMissing
from optimizer.web.read_counters import ReadCounters

__all__ = ["Service"]

_ORIGIN: Final[dict[Origin, bytes]] = {"redis": b"redis", "files": b"files"}


class Service:
    """One process's view of one source. Its reader calls it to prepare each version.

    Args:
        settings: The settings; by default from the environment, when they are first needed.
        source: Selects one of several sources, if the settings come from the environment.
        reader: An existing reader of the app; by default a new one.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        source: str | None = None,
        reader: SnapshotReader | AsyncSnapshotReader | None = None,
    ) -> None:
        self.hub = Hub()
        self.read_counters = ReadCounters()
        self._messages: ChangeMessages | None = None
        self._settings = settings
        self._source = source
        self._reader: AsyncSnapshotReader | None = None
        self._history: HistoryPages | None = None
        self._history_of: tuple[object, ...] = ()
        self._is_readers_owner = reader is None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lifespans = 0
        if reader is not None:
            self._use(AsyncSnapshotReader.over(reader, on_refresh=self._renew))

    @classmethod
    def of(
        cls, settings: Settings | None, *, source: str | None, reader: SnapshotReader | AsyncSnapshotReader | None
    ) -> Service:
        """Return the service of a router; routers of one reader share a service.

        Raises:
            SettingsInvalid: The settings, or the source, are not those of the reader.
        """
        if reader is None:
            return cls(settings, source=source)
        if not isinstance(reader, SnapshotReader | AsyncSnapshotReader):
            raise SettingsInvalid(
                f"reader={reader!r} is a {type(reader).__name__}; pass a SnapshotReader or an AsyncSnapshotReader"
            )
        follower = reader.follower
        if source is not None and source != follower.source:
            raise SettingsInvalid(f"source={source!r}, but the reader follows {follower.source!r}: leave source out")
        if settings is not None:
            _check_agreement(settings, follower)
        shared = follower.prepare
        service = shared if isinstance(shared, cls) else cls(source=follower.source, reader=reader)
        service._settings = settings or service._settings  # noqa: SLF001 - its own class
        return service

    @property
    def settings(self) -> Settings:
        """The settings, from the environment if none were given.

        Raises:
            SettingsInvalid: They cannot be used, or are not those of the reader.
        """
        if self._settings is None:
            settings = Settings.from_env(os.environ, self._source)
            if self._reader is not None:
                _check_agreement(settings, self._reader.follower)
            self._settings = settings
        return self._settings

    @property
    def flower_url(self) -> str | None:
        """The address of Flower, if the settings have one; an app that passes its reader may have no settings."""
        known = self.settings if self._is_readers_owner else self._settings
        return None if known is None else known.flower_url or None

    @asynccontextmanager
    async def lifespan(self, _app: Any) -> AsyncIterator[None]:
        """Follow the source during the lifespan of an app that includes one of the routers."""
        await self.reader()
        self._lifespans += 1
        try:
            yield
        finally:
            self._lifespans -= 1
            if not self._lifespans:
                await self.close()

    async def reader(self) -> AsyncSnapshotReader:
        """The reader, started in this event loop."""
        if self._reader is None:
            self._use(AsyncSnapshotReader.from_settings(self.settings, on_refresh=self._renew))
        assert self._reader is not None  # noqa: S101 - for mypy
        is_first = self._loop is not asyncio.get_running_loop()
        if is_first:
            self._loop = asyncio.get_running_loop()
            self.hub.open()
        if self._messages is None:
            # Before its thread starts, so that this is the first refresh, within the reader's time limits.
            self._messages = ChangeMessages(await asyncio.to_thread(self._reader.follower.hold_changes))
        await self._reader.start()
        if is_first and not self._is_readers_owner:
            self._renew()  # the reader may have started long ago, and its next refresh may be a while off
        return self._reader

    async def messages(self) -> ChangeMessages:
        """Return the messages of the changes in memory."""
        await self.reader()
        assert self._messages is not None  # noqa: S101 - for mypy
        return self._messages

    def _use(self, reader: AsyncSnapshotReader) -> None:
        self._reader = reader
        reader.follower.prepare_with(self)
        reader.follower.on_refresh.append(self._follow_history)

    @property
    def pages(self) -> Pages | None:
        """The responses of the version in memory; `None` if there is none."""
        cached = None if self._reader is None else self._reader.follower.cached
        pages: Pages | None = None if cached is None else cached.prepared
        return pages

    async def current(self) -> Pages:
        """Return the responses of the version in memory.

        Raises:
            SnapshotMissing: There is no version.
        """
        pages: Pages = (await self.reader()).follower.current().prepared
        return pages

    async def history(self) -> HistoryPages:
        """Return the history of the version in memory.

        Raises:
            SnapshotMissing: There is no version, or a part of it cannot be read.
        """
        version = (await self.current()).version
        if self._history is None:
            raise PartMissing(f"version {version} has a part that cannot be read; the next publish mends it")
        return self._history

    async def close(self) -> None:
        """End the streams, and close the reader, unless the app has passed it."""
        self.hub.close()
        self._loop = None
        if self._reader is not None and self._is_readers_owner:
            await self._reader.close()

    def per_request_headers(self, shown: CachedVersion, kind: str | None) -> Headers:
        """Return the headers that change within a version, for a response about to be sent; count it as a read.

        Args:
            shown: The version, as it was when its responses were prepared.
            kind: The payload from which the response was made, if it was made from one.
        """
        assert self._reader is not None  # noqa: S101 - responses are made from what it holds
        follower = self._reader.follower
        newest = follower.cached
        # It may have been confirmed since; or the thread has just replaced it by a newer version, whose age differs.
        cached = shown if newest is None or newest.version != shown.version else newest
        payload = cached.payloads.get(kind) if kind else None
        age_s = cached.age_s()
        origin = cached.origin if payload is None else payload.origin
        return self._count(origin, age_s, age_s > follower.stale_after_s, cached)

    def lookup_headers(self, answer: Answer[Any]) -> Headers:
        """Return the same headers for a record that was looked up."""
        held = None if self._reader is None else self._reader.follower.cached
        return self._count(answer.origin, answer.age_s, answer.stale, held)

    def _count(self, origin: Origin, age_s: float, stale: bool, cached: CachedVersion | None) -> Headers:
        self.read_counters.count(origin)
        headers = [
            (b"age", b"%d" % age_s),
            (b"x-snapshot-origin", _ORIGIN[origin]),
            (b"x-snapshot-stale", b"true" if stale else b"false"),
        ]
        input_age_s = None if cached is None else cached.input_age_s()
        if input_age_s is not None:
            headers.append((b"x-snapshot-input-age", b"%d" % input_age_s))
        return headers

    def __call__(self, cached: CachedVersion) -> Pages:
        """Prepare the responses of a version in the reader's thread, before it is shown by all routes at once."""
        if self._messages is not None:
            self._messages.prepare()
        pages = self.pages
        if pages is None or not pages.show(cached):
            pages = Pages(cached, self.per_request_headers)
        self._add_to_history(cached, pages)
        return pages

    def _follow_history(self) -> None:
        """Update the history after each refresh, in the reader's thread: changes may arrive after their version."""
        if self._reader is not None and self.pages is not None:
            self._add_to_history(self._reader.follower.current(), self.pages)

    def _add_to_history(self, cached: CachedVersion, pages: Pages) -> None:
        """Make the history up to a version, unless it exists."""
        log = self._reader.follower.changes if self._reader is not None else None
        if log is None or not cached.is_whole or self._history_of == (pages, log.entries):
            return
        before = self._history
        self._history = HistoryPages.after(before, cached, pages, log.entries)
        self._history_of = (pages, log.entries)

    def _renew(self) -> None:
        """After each refresh, notify the listeners and share the read counts."""
        assert self._reader is not None  # noqa: S101 - it is the reader that calls
        follower = self._reader.follower
        cached = follower.cached
        if cached is not None:
            self.hub.publish(cached.version, cached.manifest.generated_at)
            if self._messages is not None:
                self.hub.show(cached, self._messages)
        self.hub.cache_is(up=follower.redis.up)
        if not self.read_counters.are_shared:
            with suppress(RuntimeError):  # the loop has ended, but the app's reader goes on
                asyncio.get_running_loop().run_in_executor(None, self.read_counters.share, follower)


def _check_agreement(settings: Settings, follower: Follower) -> None:
    """Raise `SettingsInvalid` if settings and a reader have different sources, caches or intervals."""
    for name, value, of_reader in (
        ("source", repr(settings.source), repr(follower.source)),
        # A reader of `optimizer.testing` has no Redis.
        ("redis_url", settings.redis_url, follower.redis_url or settings.redis_url),
        ("interval_s", f"{settings.interval_s:g}", f"{follower.interval_s:g}"),
    ):
        if value != of_reader:
            raise SettingsInvalid(
                f"the settings have {name}={redact_url(value)}, but the reader that the router was given has "
                f"{redact_url(of_reader)}: make the reader from the same settings, or pass only one of the two"
            )
