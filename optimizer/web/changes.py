"""The routes of the changes between versions, and of a whole version.

GET /changes?since=V      the changes from a version to the current one; 410 if they are not in memory
GET /snapshot             the whole current version

Nothing here asks Redis: the reader holds the changes. Large responses are made in a thread, outside the event loop.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request, Response

from optimizer.errors import ChangesMissing
from optimizer.models import Value
from optimizer.reader.changes import HeldChange
from optimizer.snapshots.delta import Change
from optimizer.web import describe
from optimizer.web.messages import ChangeMessages
from optimizer.web.pages import Pages, WholeVersion
from optimizer.web.prepared import Prepared, ResponseCache, Sending
from optimizer.web.problems import problem
from optimizer.web.service import Service

__all__ = ["ChangesPage", "add_changes"]

# The size of changes, as stored, from which a response is made in a thread: smaller ones are made in the event loop.
THREAD_BYTES: Final = 32 * 1024
# Responses that are kept per version: clients that follow request the same few.
CACHED_RESPONSES: Final = 64
LONGEST_VERSION: Final = 10**15 - 1

_LINES: Final = re.compile("|".join(map(re.escape, describe.JSON_LINES)), re.IGNORECASE)


class ChangesPage(Value, frozen=True):
    """The changes from one version to the current one, oldest first, to be applied in this order."""

    version: int
    changes: list[Change]


class Responses:
    """The responses of one version, by request."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._pages: Pages | None = None
        self._responses = ResponseCache(CACHED_RESPONSES)

    async def respond(self, pages: Pages, held: Sequence[HeldChange], since: int, media_type: str) -> Prepared:
        """Make the response, or take it from the cache."""
        if pages is not self._pages:
            self._pages = pages
            self._responses.clear()
        response = self._responses.get((since, media_type))
        if response is None:
            arguments = (pages, await self._service.messages(), held, media_type)
            if sum(len(change.gz) for change in held) < THREAD_BYTES:
                response = _make(*arguments)
            else:
                response = await asyncio.to_thread(_make, *arguments)
            if pages is self._pages:
                self._responses.store((since, media_type), response)
        return response


def _make(pages: Pages, messages: ChangeMessages, held: Sequence[HeldChange], media_type: str) -> Prepared:
    changes = [message.data for message in messages.encoded(held)]
    if media_type == "application/json":
        body = b'{"version":%d,"changes":[%b]}' % (pages.version, b",".join(changes))
    else:
        body = b"".join(change + b"\n" for change in changes)
    own = [(b"content-type", media_type.encode()), (b"vary", b"accept, accept-encoding")]
    return pages.respond(body, own)


def add_changes(router: APIRouter, service: Service) -> None:
    """Add the two routes."""
    responses = Responses(service)

    @router.get(
        "/changes",
        summary="What changed since a version, oldest first",
        responses=describe.responses(
            ChangesPage, describe.CHANGES_EXAMPLE, 304, 410, 422, 503, snapshot=True, lines=describe.CHANGE_EXAMPLE
        ),
    )
    async def changes(
        request: Request,
        since: Annotated[
            int,
            Query(ge=0, le=LONGEST_VERSION, description="The version that the client has.", examples=[1795000000000]),
            describe.DIGITS,
        ],
    ) -> Response:
        """With `Accept: application/jsonl` one change a line, with the current version in `X-Snapshot-Version`."""
        log = (await service.messages()).log
        cached = (await service.reader()).follower.current()
        try:
            held = log.since(since, cached)
        except ChangesMissing as error:
            members = {"version": cached.version, "oldest": log.oldest(cached), "snapshot": "snapshot"}
            return problem(410, str(error), members=members)
        lines = _LINES.search(request.headers.get("accept", ""))
        media_type = lines[0].lower() if lines else "application/json"
        return Sending(await responses.respond(cached.prepared, held, since, media_type))

    @router.get(
        "/snapshot",
        summary="All of the current version, to which changes can be applied",
        responses=describe.responses(WholeVersion, describe.SNAPSHOT_EXAMPLE, 304, 503, snapshot=True),
    )
    async def snapshot() -> Response:
        pages = await service.current()
        made = pages.whole_version
        if made is None:
            made = await asyncio.to_thread(pages.make_whole_version)
        return Sending(made)
