"""Updates of a test: checked as by `publish` of `optimizer.producer`, and applied at once, without Redis and workers.

What is not there: a queue with its limit, guards, pins, and a scan that takes over what holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from optimizer.config.settings import Settings
from optimizer.errors import CacheUnavailable, SettingsInvalid, UpdatesPending
from optimizer.models import QueuedUpdate
from optimizer.testing.memory import Memory

if TYPE_CHECKING:
    from optimizer.producer.updates import Accepted

__all__ = ["PublishesUpdates"]


class PublishesUpdates:
    """The method `update`, which both readers share."""

    _memory: Memory

    def update(
        self,
        records: Iterable[Any] | Mapping[str, Any] | bytes | str = (),
        *,
        remove: Iterable[str] = (),
        source: str | None = None,
        settings: Settings | None = None,
        wait_s: float = 0.0,
        app: Any = None,
    ) -> Accepted:
        """Take the place of `optimizer.producer.publish` in a test: this reader shows what is accepted.

        Arguments, result and errors are those of `publish`, and so are the settings: the `ROLLING_*` variables, unless
        `settings` are given. The predictions afterwards are the best of all records from `min_confidence` on.

        Raises:
            SettingsInvalid, UpdatesRefused, SourceMalformed, SourceTorn: As `publish`; or the source is not the
                reader's.
            CacheUnavailable: The last version has `origin="files"`, so Redis is away.
            UpdatesPending: With `wait_s`, if no version was published yet. Without `wait_s`, such updates are lost.
        """
        # Imported here, since most tests of pages do not need the scanner.
        from optimizer.pipeline.updates import checked_update  # noqa: PLC0415
        from optimizer.producer.updates import Accepted, settings_of_call  # noqa: PLC0415

        memory = self._memory
        settings = settings_of_call(source, settings, wait_s, app)
        if settings.source != memory.source:
            raise SettingsInvalid(f"the updates are of {settings.source!r}, and this reader is of {memory.source!r}")
        update = checked_update(settings, records, remove)
        version = None
        if update.records or update.removed:
            if not memory.stores.redis.up:
                raise CacheUnavailable(memory.stores.redis.problem)
            if memory.published is not None:
                version = memory.update(QueuedUpdate(0, 0, update.records, update.removed), settings)
            elif wait_s:
                raise UpdatesPending(f"the updates of {memory.source!r} are accepted, and there is no version yet")
        return Accepted(len(update.records), len(update.removed), update.rejects, version if wait_s else None)
