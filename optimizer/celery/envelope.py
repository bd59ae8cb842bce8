"""The schema of messages, checked before Celery handles them: Celery itself trusts the fields of a message.

`check_envelope` checks every message of the broker (tasks, remote control, events, replies), decoded from JSON. After
it, `check_command` checks remote control and `check_task` tasks: the headers and the body of Celery's protocol 2, which
Celery 4 and later send. All raise `MessageInvalid`, which names the field and what was expected, and does not quote the
message.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec

from optimizer.errors import RollingError

__all__ = ["MessageInvalid", "check_command", "check_envelope", "check_task"]

# A signature in a chord in a chain has fewer than 20 levels; pickling for a child of the pool fails at a few hundred.
MAX_DEPTH: Final = 64
MAX_SECONDS: Final = 10_000_000

# Names and ids go into log lines and Redis keys: no control characters, and no surrogates, which UTF-8 cannot encode.
_Text = Annotated[str, msgspec.Meta(pattern=r"\A[^\x00-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]+\Z", max_length=255)]
# Patterns, not literals: the error of a literal quotes the value of the message.
_Json = Annotated[str, msgspec.Meta(pattern=r"\Aapplication/json\Z")]
_Utf8 = Annotated[str, msgspec.Meta(pattern=r"\A(?i:utf-8)\Z")]
_Base64 = Annotated[str, msgspec.Meta(pattern=r"\Abase64\Z")]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=MAX_SECONDS)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]


class MessageInvalid(RollingError):
    """A message that cannot be decoded or dispatched."""


class _DeliveryInfo(msgspec.Struct):
    exchange: str
    routing_key: str


class _Properties(msgspec.Struct):
    delivery_tag: _Text
    delivery_info: _DeliveryInfo
    body_encoding: _Base64 | None = None
    correlation_id: _Text | None = None
    reply_to: _Text | None = None
    priority: _Count | None = None


class _CommonHeaders(msgspec.Struct):
    """`compression` is not allowed: a few KB could inflate to any amount of memory, and no sender here uses it."""

    compression: None = None
    clock: int | None = None


class _Envelope(msgspec.Struct, rename={"content_type": "content-type", "content_encoding": "content-encoding"}):
    body: str
    properties: _Properties
    headers: _CommonHeaders
    content_type: _Json
    content_encoding: _Utf8


class _TaskHeaders(msgspec.Struct):
    """`eta` is not allowed: a waiting message is lost, or ends the worker, if the connection to Redis drops."""

    id: _Text
    task: _Text
    eta: None = None
    expires: str | None = None
    timelimit: tuple[_Seconds | None, _Seconds | None] | None = None
    retries: _Count | None = None
    root_id: _Text | None = None
    parent_id: _Text | None = None
    group: _Text | None = None
    group_index: _Count | None = None
    replaced_task_nesting: _Count | None = None
    shadow: _Text | None = None
    lang: str | None = None
    argsrepr: str | None = None
    kwargsrepr: str | None = None
    origin: str | None = None
    ignore_result: bool | None = None
    stamped_headers: list[str] | None = None
    stamps: dict[str, str | list[str]] | None = None


class _Embedded(msgspec.Struct):
    callbacks: list[dict[str, Any]] | None = None
    errbacks: list[dict[str, Any]] | None = None
    chain: list[dict[str, Any]] | None = None
    chord: dict[str, Any] | None = None


_BODY: Final = msgspec.json.Decoder(tuple[list[Any], dict[str, Any], _Embedded | None])


class _Reply(msgspec.Struct):
    exchange: _Text
    routing_key: _Text


class _Command(msgspec.Struct):
    method: _Text
    arguments: dict[str, Any] | None = None
    destination: list[str] | None = None
    pattern: str | None = None
    matcher: str | None = None
    reply_to: _Reply | None = None
    ticket: _Text | None = None


_COMMAND: Final = msgspec.json.Decoder(_Command)


def check_envelope(message: object) -> None:
    """Check the fields that every message has.

    Raises:
        MessageInvalid: A field is missing or of another type.
    """
    try:
        msgspec.convert(message, _Envelope)
    except (msgspec.ValidationError, RecursionError) as error:
        raise MessageInvalid(str(error)) from error


def check_command(message: Mapping[str, Any]) -> None:
    """Check the body of a remote control command, after its envelope was checked.

    Raises:
        MessageInvalid: It is not a command.
    """
    try:
        body = base64.b64decode(message["body"]) if message["properties"].get("body_encoding") else message["body"]
        _COMMAND.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise MessageInvalid(f"body: {_without_content(error)}") from error


def check_task(headers: Mapping[str, Any], body: bytes) -> None:
    """Check the headers and the body of a task.

    Raises:
        MessageInvalid: They do not follow protocol 2.
    """
    try:
        msgspec.convert(headers, _TaskHeaders)
    except (msgspec.ValidationError, RecursionError) as error:
        raise MessageInvalid(f"headers: {error}") from error
    try:
        arguments, keywords, _ = _BODY.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise MessageInvalid(f"body: {_without_content(error)}") from error
    if _is_deeper([arguments, keywords], MAX_DEPTH):
        raise MessageInvalid(f"body: nested deeper than {MAX_DEPTH} containers")


def _without_content(error: Exception) -> str:
    """Return msgspec's message, which names fields and types; for other errors, which may quote data, the class."""
    return str(error) if isinstance(error, msgspec.DecodeError) else type(error).__name__


def _is_deeper(value: object, levels: int) -> bool:
    level = [value]
    for _ in range(levels):
        nested = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, (dict, list)))
        level = [child for children in nested for child in children]
        if not level:
            return False
    return True
