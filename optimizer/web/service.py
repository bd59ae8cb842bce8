"""What the routes share in a process: one reader, the answers of the version it holds, and the hub of events.

Started by the app's lifespan where there is one, or else by the first request; never on import, never before a fork.
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
from optimizer.reader.cached_version import Held
from optimizer.web.events import Hub
from optimizer.web.pages import Pages
from optimizer.web.prepared import Headers
from optimizer.web.problems import PartMissing
from optimizer.web.read_counters import Reads
from optimizer.web.trigger import Trigger

__all__ = ["Service"]

_ORIGIN: Final[dict[Origin, bytes]] = {"redis": b"redis", "files": b"files"}


class Service:
    """One process's view of one source.

    Args:
        settings: Where things are; by default from the environment: at the start, or at once where there is a trigger,
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
        self.pages: Pages | None = None
        self._prepared: Pages | None = None
        self.reads = Reads()
        self._settings = settings
        self._source = source
        self._reader: AsyncSnapshotReader | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def settings(self) -> Settings:
        """The settings in force."""
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
            self._reader = AsyncSnapshotReader.from_settings(self.settings, on_look=self._renew)
            self._reader.follower.prepare = self._prepare
        if self._loop is not asyncio.get_running_loop():
            self._loop = asyncio.get_running_loop()
            self.hub.open()
            self.reads.open()
        await self._reader.start()
        return self._reader

    async def current(self) -> Pages:
        """The answers of the version that is held.

        Raises:
            SnapshotMissing: There is no version.
        """
        reader = await self.reader()
        if self.pages is None:
            reader.follower.current()  # says why
            raise PartMissing("the first snapshot has come this moment; ask again")
        return self.pages

    async def close(self) -> None:
        """End the streams, and close the connections."""
        self.hub.close()
        self._loop = None
        if self._reader is not None:
            await self._reader.close()

    def fresh(self, kind: str | None = None, origin: Origin | None = None) -> Headers:
        """The headers that change within a version, for an answer that is about to go out; counts it as a read.

        Args:
            kind: The payload it is from, where it is from one.
            origin: Where it is from, if it is not what is held.
        """
        assert self._reader is not None  # noqa: S101 - answers are made from what it holds
        follower = self._reader.follower
        held = follower.current()
        age_s = held.age_s()
        if origin is None:
            stored = held.payloads.get(kind) if kind else None
            origin = held.origin if stored is None else stored.origin
        self.reads.count(origin)
        return [
            (b"age", b"%d" % age_s),
            (b"x-snapshot-origin", _ORIGIN[origin]),
            (b"x-snapshot-stale", b"true" if age_s > follower.stale_after_s else b"false"),
        ]

    def _prepare(self, held: Held) -> None:
        """Before a version is shown: prepare its answers, so that no route shows it before the others do."""
        if not _shows(self.pages, held):
            self._prepared = Pages(held, self.fresh)

    async def _renew(self) -> None:
        """After each look, in the same step: show what was prepared, tell who listens, share what was counted."""
        assert self._reader is not None  # noqa: S101 - it is the reader that calls
        follower = self._reader.follower
        held = follower.held
        if held is not None and not _shows(self.pages, held):
            self.pages, self._prepared = self._prepared, None
            self.hub.publish(held.version, held.generated_at)
        self.hub.cache_is(up=follower.cache_up)
        if not self.reads.is_shared:
            await self.reads.share(self._reader)


def _shows(pages: Pages | None, held: Held) -> bool:
    etags = {kind: stored.etag for kind, stored in held.payloads.items()}
    told = (held.version, etags, held.rejected)
    return pages is not None and (pages.version, pages.etags, pages.rejected) == told
