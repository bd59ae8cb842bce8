"""Runs on demand: `POST /runs` and `GET /runs/{id}`, only if a token is configured and there is a `Trigger`.

This package does not import Celery: the caller passes a `Trigger` (`optimizer.celery.sender` has one).
"""

from __future__ import annotations

import asyncio
import hmac
import math
import time
from http import HTTPStatus
from typing import Annotated, Any, Final, NoReturn, Protocol

import msgspec
from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from optimizer.errors import RunPending
from optimizer.models import RunState, Value
from optimizer.web.describe import RUN_STATE_EXAMPLE, responses
from optimizer.web.problems import TOO_MANY_UNAUTHORIZED, UNAUTHORIZED, json_response, problem

__all__ = ["Trigger", "add_trigger_routes"]

MAX_BODY_BYTES: Final = 1_024
# Wrong tokens: ten are answered at once, further ones at two a second.
ANSWER_EVERY_S: Final = 0.5
AT_ONCE_S: Final = 10 * ANSWER_EVERY_S
LONGEST_DELAY_S: Final = 2.0


class RunSent(Value, frozen=True):
    """The run that was sent."""

    id: str


class _Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    force: bool = False
    accept: bool = False


class Trigger(Protocol):
    """Sends runs to the fleet. Both may block, and raise `CacheUnavailable` if the broker is away."""

    def send(self, *, force: bool, accept: bool, source: str) -> str:
        """Send a run of a source and return its id; if a run that was sent here has not ended, return that run's id.

        Raises:
            RunPending: A run has not ended, and does less than this one should: it is not forced, or accepts less.
        """

    def state(self, run_id: str) -> RunState:
        """Return the state of a run."""


_ORDER: Final = msgspec.json.Decoder(_Order)
_bearer: Final = HTTPBearer(auto_error=False, description="The value of ROLLING_TRIGGER_TOKEN.")


def add_trigger_routes(router: APIRouter, trigger: Trigger, token: str, source: str) -> None:
    """Add both routes to a router: for runs of one source, to clients that have the token."""
    wrong_tokens = _WrongTokens()

    async def check_token(given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> None:
        # Compared in constant time, so that the duration does not reveal how much of the token is right.
        if given is None or not hmac.compare_digest(given.credentials.encode(), token.encode()):
            await wrong_tokens.refuse()

    @router.post(
        "/runs",
        status_code=HTTPStatus.ACCEPTED,
        dependencies=[Depends(check_token)],
        responses=responses(RunSent, {"id": RUN_STATE_EXAMPLE["id"]}, 400, 401, 409, 429, 503, status=202),
        openapi_extra={"requestBody": _ORDER_DESCRIPTION},
        summary="Send one run to the fleet",
    )
    async def send_run(request: Request) -> Response:
        """One at a time: while a run that was sent here has not ended, the response has its id.

        If a scheduled run is in progress, the report of this one says `skipped`.
        """
        order = await _read_order(request)
        try:
            run_id = await asyncio.to_thread(trigger.send, force=order.force, accept=order.accept, source=source)
        except RunPending as error:
            return problem(HTTPStatus.CONFLICT, str(error))
        return json_response(RunSent(run_id), HTTPStatus.ACCEPTED)

    @router.get(
        "/runs/{id}",
        dependencies=[Depends(check_token)],
        responses=responses(RunState, RUN_STATE_EXAMPLE, 401, 422, 429, 503),
        summary="The state of a run that was sent",
    )
    async def run_state(
        run_id: Annotated[str, Path(alias="id", pattern="^[0-9a-f-]{36}$", examples=[RUN_STATE_EXAMPLE["id"]])],
    ) -> Response:
        """Results are kept for a quarter of an hour; an unknown run is `pending`."""
        return json_response(await asyncio.to_thread(trigger.state, run_id))


class _WrongTokens:
    """Delays the responses to wrong tokens, by more the more of them there are; right tokens are not delayed.

    It does not distinguish addresses, since behind a proxy all clients have the same.
    """

    def __init__(self) -> None:
        self._due_s = 0.0

    async def refuse(self) -> NoReturn:
        """Answer 401, or 429 if too many others are waiting; either after its delay."""
        now_s = time.monotonic()
        most_s = now_s + AT_ONCE_S + 2 * LONGEST_DELAY_S  # so that the delays end soon after the wrong tokens
        self._due_s = min(max(self._due_s, now_s) + ANSWER_EVERY_S, most_s)
        delay_s = self._due_s - now_s - AT_ONCE_S
        await asyncio.sleep(min(max(0.0, delay_s), LONGEST_DELAY_S))
        if delay_s > LONGEST_DELAY_S:
            raise HTTPException(
                HTTPStatus.TOO_MANY_REQUESTS,
                TOO_MANY_UNAUTHORIZED,
                {"Retry-After": str(math.ceil(delay_s))},
            )
        raise HTTPException(
            HTTPStatus.UNAUTHORIZED,
            UNAUTHORIZED,
            {"WWW-Authenticate": "Bearer"},
        )


async def _read_order(request: Request) -> _Order:
    """Read the body, up to its limit; called after the token was checked."""
    body = b""
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                raise HTTPException(HTTPStatus.BAD_REQUEST, f"the body is over {MAX_BODY_BYTES} bytes")
    except ClientDisconnect:
        raise HTTPException(HTTPStatus.BAD_REQUEST, "the body ends early") from None
    try:
        return _ORDER.decode(body or b"{}")
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HTTPException(
            HTTPStatus.BAD_REQUEST, f'the body is not {{"force": true or false, "accept": true or false}}: {error}'
        ) from None


_ORDER_DESCRIPTION: Final[dict[str, Any]] = {
    "required": False,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {
                    "force": {
                        "type": "boolean",
                        "default": False,
                        "description": "Scan even if nothing changed.",
                    },
                    "accept": {
                        "type": "boolean",
                        "default": False,
                        "description": "Publish this once, even if too much is rejected or a guard refuses.",
                    },
                },
                "additionalProperties": False,
            },
            "example": {"force": True},
        }
    },
}
