"""The OpenAPI descriptions: responses, with their structs and examples, and shared parameters.

FastAPI makes a component from each struct, in the description of any app that includes the router.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final

import msgspec
from fastapi import Query
from pydantic import BeforeValidator
from pydantic_core import PydanticKnownError

from optimizer.models import Bot, BotSummary, Record, rules_of
from optimizer.web.problems import (
    MEDIA_TYPE,
    NO_SNAPSHOT,
    TOO_MANY_UNAUTHORIZED,
    UNAUTHORIZED,
    ChangesGone,
    Problem,
)

__all__ = [
    "BOTS_EXAMPLE",
    "CHANGES_EXAMPLE",
    "CHANGE_EXAMPLE",
    "DIGITS",
    "EXPOSED_HEADERS",
    "HISTORY_EXAMPLE",
    "JSON_LINES",
    "PAGE_EXAMPLE",
    "PORTFOLIO_EXAMPLE",
    "PREDICTIONS_EXAMPLE",
    "RECORD_EXAMPLE",
    "RUNS_EXAMPLE",
    "RUN_STATE_EXAMPLE",
    "SNAPSHOT_EXAMPLE",
    "STATUS_EXAMPLE",
    "SYMBOL_HISTORY_EXAMPLE",
    "Limit",
    "MinConfidence",
    "Offset",
    "Sentiment",
    "responses",
    "text_response",
]

# The media types of JSON lines; none is registered.
JSON_LINES: Final = ("application/jsonl", "application/x-ndjson")


def _digits(given: str | int | None) -> str | int | None:
    # The oldest FastAPI that is supported validates the default too.
    if isinstance(given, str) and re.fullmatch("-?[0-9]+", given) is None:
        raise PydanticKnownError("int_parsing")
    return given


# Of a parameter: decimal digits, as OpenAPI's `integer` says; Pydantic alone would take 1.0, 1_0 and blanks too.
DIGITS: Final = BeforeValidator(_digits)
# The filters of predictions.
Limit = Annotated[
    int | None, Query(ge=0, le=1_000_000, description="The largest number of records.", examples=[50]), DIGITS
]
Offset = Annotated[int, Query(ge=0, le=1_000_000, description="The number of records to skip.", examples=[0]), DIGITS]
MinConfidence = Annotated[float, Query(ge=0, le=1, allow_inf_nan=False, examples=[0.8])]
Sentiment = Annotated[str | None, Query(max_length=1_024, description="In upper or lower case.", examples=["bullish"])]

_TIMESTAMP: Final = "2026-11-01T10:00:00.000Z"
_VERSION: Final = 1795000000000
_OLDEST: Final = _VERSION - 3_600_000

RECORD_EXAMPLE: Final[dict[str, Any]] = {name: rule.example for name, rule in rules_of(Record).items()}
_REJECTED: Final = {"records": {"seen": 8000, "rejected": 0}, "bots": {"seen": 2, "rejected": 1}}
_BOT_EXAMPLES: Final = {name: rule.example for name, rule in rules_of(Bot).items()} | {"positions": 2}
_BOTS: Final = {"alpha": {name: _BOT_EXAMPLES[name] for name in BotSummary.__struct_encode_fields__}}
_HOLDINGS: Final = [{"symbol": "AAPL", "qty": 10.0, "avg": 99.5}]
PREDICTIONS_EXAMPLE: Final = {"predictions": [RECORD_EXAMPLE], "timestamp": _TIMESTAMP, "count": 1}
BOTS_EXAMPLE: Final[dict[str, Any]] = {"bots": _BOTS, "timestamp": _TIMESTAMP}
PORTFOLIO_EXAMPLE: Final[dict[str, Any]] = {"holdings": _HOLDINGS, "timestamp": _TIMESTAMP}
PAGE_EXAMPLE: Final = {
    "version": _VERSION,
    "timestamp": _TIMESTAMP,
    "predictions": [RECORD_EXAMPLE],
    "bots": _BOTS,
    "holdings": _HOLDINGS,
    "summary": {
        "total_equity": 10500.0,
        "pnl_today": -12.5,
        "active_bots": 1,
        "open_positions": 2,
        "rejected": _REJECTED,
        "notes": ["1 of 2 bots rejected; sums leave it out"],
    },
}
_COUNTS: Final = {"added": 1, "changed": 12, "removed": 1}
HISTORY_EXAMPLE: Final[dict[str, Any]] = {
    "version": _VERSION,
    "steps": [
        {
            "version": _VERSION,
            "before": _VERSION - 30_000,
            "timestamp": _TIMESTAMP,
            "counts": {"predictions": _COUNTS, "bots": _COUNTS, "holdings": _COUNTS},
            "entered": [{"symbol": "AAPL", "rank": 3, "confidence": 0.93}],
            "left": [{"symbol": "NVDA", "rank": 7, "confidence": 0.91}],
            "moved": [{"symbol": "MSFT", "from": 9, "to": 4}],
            "confidence": [{"symbol": "MSFT", "from": 0.87, "to": 0.92}],
        }
    ],
}
SYMBOL_HISTORY_EXAMPLE: Final[dict[str, Any]] = {
    "symbol": "AAPL",
    "version": _VERSION,
    "since": _VERSION - 3_600_000,
    "points": [
        {
            "version": _VERSION,
            "timestamp": _TIMESTAMP,
            "confidence": 0.93,
            "prediction": 104.2,
            "last_price": 101.5,
        }
    ],
}
CHANGE_EXAMPLE: Final[dict[str, Any]] = {
    "version": _VERSION,
    "before": _VERSION - 30_000,
    "since": _VERSION - 60_000,
    "timestamp": _TIMESTAMP,
    "predictions": {"changed": [RECORD_EXAMPLE], "removed": ["MSFT"]},
    "bots": {"changed": _BOTS, "removed": []},
    "holdings": {"changed": _HOLDINGS, "removed": ["MSFT"]},
}
CHANGES_EXAMPLE: Final[dict[str, Any]] = {"version": _VERSION, "changes": [CHANGE_EXAMPLE]}
SNAPSHOT_EXAMPLE: Final[dict[str, Any]] = {
    "version": _VERSION,
    "generated_at": _TIMESTAMP,
    "predictions": [RECORD_EXAMPLE],
    "bots": _BOTS,
    "holdings": _HOLDINGS,
    "rejected": _REJECTED,
    "timestamp": _TIMESTAMP,
}
# Of a version that an operator has restored: FastAPI leaves nulls out of examples, and no member is optional.
STATUS_EXAMPLE: Final = {
    "source": "rolling_brain",
    "sources": ["rolling_brain"],
    "version": _VERSION,
    "generated_at": _TIMESTAMP,
    "age_s": 3.2,
    "stale": False,
    "origin": "redis",
    "interval_s": 30.0,
    "cache_up": True,
    "trigger": False,
    "flower_url": "https://flower.example.com/",
    "last_success": _TIMESTAMP,
    "rejected": _REJECTED,
    "notes": ["1 of 2 bots rejected; sums leave it out"],
    "bots_lack_fields": False,
    "pinned": {"at": _TIMESTAMP, "by": "user@host"},
    "restored_from": _OLDEST,
    "updates": 0,
    "input_at": _TIMESTAMP,
    "input_age_s": 12.4,
    "input_stale": False,
    "published_after_s": 2.143,
    "diagnosis": {
        "code": "ok",
        "level": "ok",
        "text": "Checked 3 s ago; data from 10:00:00 UTC (12 s ago).",
        "advice": "",
        "docs": "",
    },
    "processes": [
        {
            "kind": "worker",
            "name": "celery@host",
            "seen_at": _TIMESTAMP,
            "is_alive": True,
            "queues": ["rolling.rolling_brain"],
            "memory_limit_bytes": 536_870_912,
        }
    ],
}
_REPORT: Final = {"status": "unchanged", "source": "rolling_brain", "timestamp": _TIMESTAMP, "version": _VERSION}
RUNS_EXAMPLE: Final = {"runs": [_REPORT]}
RUN_STATE_EXAMPLE: Final[dict[str, Any]] = {
    "id": "7e1f0a52-3f0e-4a35-9d0c-5b8f3c6a9e11",
    "state": "done",
    "percent": 100.0,
    "report": _REPORT,
    "error": None,
}

_DETAILS: Final = {
    304: "The client has it.",
    400: "The body is not what it should be.",
    401: "The token is missing or wrong.",
    404: "There is no such thing.",
    409: "A run that does less is on its way, and has not ended.",
    410: "What changed since that version is not held (any more): take the snapshot.",
    422: "A parameter has a value that cannot be used.",
    429: "Too many tokens were wrong.",
    503: "There is no snapshot, or a server behind this one is away.",
}
_PROBLEMS: Final = {
    400: 'the body is not {"force": true or false, "accept": true or false}: Expected `bool`, got `int` - at `$.force`',
    401: UNAUTHORIZED,
    404: f"no prediction for 'XYZ' in version {_VERSION}",
    409: "the run 7e1f0a52-3f0e-4a35-9d0c-5b8f3c6a9e11, sent without force, has not ended: ask again then",
    410: f"what changed since version 7 is not held: the oldest version from which changes are held is {_OLDEST}; "
    f"take all of version {_VERSION}, by reader.snapshot() or GET /snapshot, and what changes after it",
    422: "query.limit: Input should be greater than or equal to 0",
    429: TOO_MANY_UNAUTHORIZED,
    503: NO_SNAPSHOT,
}
# Problems that have more members: their struct, and examples of these.
_MEMBERS: Final[dict[int, tuple[type[Problem], dict[str, Any]]]] = {
    410: (ChangesGone, {"version": _VERSION, "oldest": _OLDEST, "snapshot": "snapshot"}),
}
_PROBLEM_HEADERS: Final = {
    401: {"WWW-Authenticate": "`Bearer`."},
    429: {"Retry-After": "Seconds."},
    503: {"Retry-After": "Seconds."},
}
_SNAPSHOT_HEADERS: Final = {
    "ETag": "Strong; another for each content coding.",
    "Last-Modified": "When the version was made.",
    "Age": "Seconds since a run last made or confirmed the version.",
    "X-Snapshot-Input-Age": "Seconds since the input was last written; absent if its place does not say.",
    "X-Snapshot-Version": "Strictly rising.",
    "X-Snapshot-Origin": "`redis` or `files`.",
    "X-Snapshot-Rejected": "What the version leaves out of all records and bots: `records=0/8000, bots=1/2`.",
    "X-Snapshot-Stale": "`true` where no run has confirmed the version for three intervals.",
}
# Headers that a browser hides from a page of another origin unless the server exposes them. It always shows
# Last-Modified.
EXPOSED_HEADERS: Final = (
    *sorted(_SNAPSHOT_HEADERS.keys() - {"Last-Modified"}),
    *("Content-Disposition", "X-Total-Count", "Retry-After"),
)


def responses(
    type_: Any, example: Any, *others: int, status: int = 200, snapshot: bool = False, lines: Any = None
) -> dict[int | str, dict[str, Any]]:
    """Describe every response of an operation.

    Args:
        type_: The struct that is sent.
        example: A value of the struct, as JSON.
        others: The other statuses.
        status: The status of success.
        snapshot: Whether it belongs to a version, with its headers.
        lines: An example line, if it can also be requested as JSON lines.
    """
    headers = _headers(_SNAPSHOT_HEADERS if snapshot else {})
    described: dict[int | str, dict[str, Any]] = {
        status: {
            "description": (type_.__doc__ or "").split("\n")[0],
            "headers": headers,
            "model": type_,
            "content": {"application/json": {"example": example}},
        }
    }
    if lines is not None:
        text = {"schema": {"type": "string"}, "example": msgspec.json.encode(lines).decode() + "\n"}
        described[status]["content"] |= dict.fromkeys(JSON_LINES, text)
    return described | _other_responses(others, headers)


def _other_responses(others: Iterable[int], headers: Mapping[str, Any]) -> dict[int | str, dict[str, Any]]:
    described: dict[int | str, dict[str, Any]] = {}
    for other in others:
        more = {"headers": headers} if other == 304 else _problem_response(other, _PROBLEMS[other])
        described[other] = {"description": _DETAILS[other], **more}
    return described


def _problem_response(status: int, detail: str) -> dict[str, Any]:
    model, members = _MEMBERS.get(status, (Problem, {}))
    content = _ProblemContent({MEDIA_TYPE: {"example": Problem.of(status, detail).to_dict() | members}})
    return {"headers": _headers(_PROBLEM_HEADERS.get(status, {})), "model": model, "content": content}


class _ProblemContent(dict[str, Any]):
    """The content of a response with problem details.

    FastAPI puts the schema of a `model` under the media type of the route, `application/json`, without an option for
    another one. A literal reference to the component would break in an app that has another `Problem`, where pydantic
    gives both longer names.
    """

    def setdefault(self, _media_type: str, default: Any = None) -> Any:
        return super().setdefault(MEDIA_TYPE, default)


def _headers(texts: Mapping[str, str]) -> dict[str, Any]:
    return {name: {"description": text, "schema": {"type": "string"}} for name, text in texts.items()}


def text_response(
    media_type: str,
    description: str,
    example: str,
    *others: int,
    headers: Mapping[str, str] | None = None,
    full: str | None = None,
) -> dict[int | str, dict[str, Any]]:
    """Describe every response of an operation that sends text.

    Args:
        media_type: Its media type.
        description: Its description.
        example: An example.
        others: The other statuses.
        headers: Additional headers, if it belongs to a version; those of all such responses are included.
        full: Why there may be too many clients, for a 503. The 422 is described too, to replace FastAPI's description.
    """
    of_version = {} if headers is None else _headers({**_SNAPSHOT_HEADERS, **headers})
    content = {media_type: {"schema": {"type": "string"}, "example": example}}
    described: dict[int | str, dict[str, Any]] = {200: {"description": description, "content": content}}
    if of_version:
        described[200]["headers"] = of_version
    described |= _other_responses(others, of_version)
    if full is not None:
        described[422] = {"description": _DETAILS[422]} | _problem_response(422, _PROBLEMS[422])
        described[503] = {"description": "There are too many."} | _problem_response(503, full)
    return described
