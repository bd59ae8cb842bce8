"""What the routes share in a process: one reader, the responses of the version it holds, and the hub of events.

Started by the app's lifespan if there is one, or else by the first request; never on import, never before a fork.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from optimizer.config.settings import Settings
from optimizer.models import Origin
from optimizer.reader.async_reader import AsyncSnapshotReader
from optimizer.reader.results import Answer, CachedVersion
from optimizer.web.events import Hub
from optimizer.web.pages import Pages
from optimizer.web.prepared import Headers
from optimizer.web.read_counters import ReadCounters
from optimizer.web.trigger import Trigger

__all__ = ["Service"]

_ORIGIN: Final[dict[Origin, bytes]] = {"redis": b"redis", "files": b"files"}


class Service:
    """One process's view of one source.

    Args:
        settings: The settings; by default from the environment: at the start, or at once where there is a trigger,
            since its token decides about a route.
        trigger: What sends runs to the fleet, where there is a fleet.
        source: Which of several sources, where the settings come from the environment.
        sources: All that the app serves.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        trigger: Trigger | None = None,
        *,
        source: str | None = None,
        sources: Sequence[str] = (),
    ) -> None:
        self.trigger = trigger
        self.sources = sources
        self.hub = Hub()
        self.read_counters = ReadCounters()
        self._settings = settings
        self._source = source
        self._reader: AsyncSnapshotReader | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def settings(self) -> Settings:
        """The settings, from the environment if none were given."""
        if self._settings is None:
            self._settings = Settings.from_env(os.environ, self._source)
        return self._settings

    @property
    def may_trigger(self) -> bool:
        """Whether runs may be started over HTTP."""
        return self.trigger is not None and bool(self.settings.trigger_token)

    @asynccontextmanager
    async def lifespan(self, _app: Any) -> AsyncIterator[None]:
        """Follow the source as long as the app lives."""
        await self.reader()
        try:
            yield
        finally:
            await self.close()

    async def reader(self) -> AsyncSnapshotReader:
        """The reader, started in this event loop."""
        if self._reader is None:
            self._reader = AsyncSnapshotReader.from_settings(self.settings, on_refresh=self._renew)
            self._reader.follower.prepare = self._prepare
        if self._loop is not asyncio.get_running_loop():
            self._loop = asyncio.get_running_loop()
            self.hub.open()
        await self._reader.start()
        return self._reader

    @property
    def pages(self) -> Pages | None:
        """The responses of the version that is held; `None` if there is no version."""
        cached = None if self._reader is None else self._reader.follower.cached
        pages: Pages | None = None if cached is None else cached.prepared
        return pages

    async def current(self) -> Pages:
        """The responses of the version that is held.

        Raises:
            SnapshotMissing: There is no version.
        """
        pages: Pages = (await self.reader()).follower.current().prepared
        return pages

    async def close(self) -> None:
        """End the streams, and close the connections."""
        self.hub.close()
        self._loop = None
        if self._reader is not None:
            await self._reader.close()

    def per_request_headers(self, shown: CachedVersion, kind: str | None) -> Headers:
        """The headers that change within a version, for a response that is about to be sent; counts it as a read.

        Args:
            shown: The version, as it was when its responses were prepared.
            kind: The payload that the response is from, if it is from one.
        """
        assert self._reader is not None  # noqa: S101 - responses are made from what it holds
        follower = self._reader.follower
        newest = follower.cached
        # It may have been confirmed since; or the thread has just replaced it, and the newer version's age is another.
        cached = shown if newest is None or newest.version != shown.version else newest
        payload = cached.payloads.get(kind) if kind else None
        age_s = cached.age_s()
        return self._count(cached.origin if payload is None else payload.origin, age_s, age_s > follower.stale_after_s)

    def lookup_headers(self, answer: Answer[Any]) -> Headers:
        """The same for a record that was looked up."""
        return self._count(answer.origin, answer.age_s, answer.stale)

    def _count(self, origin: Origin, age_s: float, stale: bool) -> Headers:
        self.read_counters.count(origin)
        return [
            (b"age", b"%d" % age_s),
            (b"x-snapshot-origin", _ORIGIN[origin]),
            (b"x-snapshot-stale", b"true" if stale else b"false"),
        ]

    def _prepare(self, cached: CachedVersion) -> Pages:
        """Prepare the responses of a version before it is shown, in the reader's thread: all routes show it at once."""
        pages = self.pages
        return pages if pages is not None and pages.show(cached) else Pages(cached, self.per_request_headers)

    def _renew(self) -> None:
        """After each refresh: send news to the listeners, and share what was counted."""
        assert self._reader is not None  # noqa: S101 - it is the reader that calls
        follower = self._reader.follower
        if follower.cached is not None:
            self.hub.publish(follower.cached.version, follower.cached.manifest.generated_at)
        self.hub.cache_is(up=follower.redis.up)
        if not self.read_counters.are_shared:
            asyncio.get_running_loop().run_in_executor(None, self.read_counters.share, follower.redis)
