"""The results of runs as workers have stored them, decoded as plain data.

Celery's decoder trusts all fields: it imports the module that a stored failure names, and raises the exception named
there, so anyone who can write to the broker could end a process that reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NamedTuple

import msgspec

from optimizer.errors import CacheUnavailable, RollingError, RunLost
from optimizer.models import Report

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["ResultInvalid", "RunResult", "decode_result", "read_result", "report_of"]

# A report has a few KB; the error of a run of thousands of parts names each of them.
MAX_RESULT_BYTES: Final = 4 << 20

# The errors of decoding arbitrary bytes: bad UTF-8 and numbers of thousands of digits are ValueErrors.
_UNREADABLE: Final = (msgspec.DecodeError, ValueError, RecursionError)
_RUNNING: Final = ("STARTED", "RETRY")
_PENDING: Final = ("PENDING", "RECEIVED")


class ResultInvalid(CacheUnavailable):
    """A stored result that no worker of this service can have written."""


class RunResult(NamedTuple):
    """The state of a run, with its report if it is `done`, with an error's name and details if it has `failed`."""

    state: Literal["pending", "running", "done", "failed"]
    percent: float | None = None
    report: Report | None = None
    error: str = ""
    details: str = ""


class _Stored(msgspec.Struct, frozen=True):
    status: str
    result: msgspec.Raw = msgspec.Raw(b"null")


class _Progress(msgspec.Struct, frozen=True):
    percent: Annotated[float, msgspec.Meta(ge=0)]  # over 100 if the file has grown since it was opened


class _Failure(msgspec.Struct, frozen=True):
    exc_type: str
    exc_message: list[Any] | str = ""


def read_result(app: Celery, run_id: str) -> RunResult:
    """Read the result of a run from an app's Redis.

    Raises:
        ResultInvalid: The stored result is not of this service's format.
        redis.RedisError: The broker is away, or refuses.
    """
    return decode_result(run_id, app.backend.client.getrange(app.backend.get_key_for_task(run_id), 0, MAX_RESULT_BYTES))


def decode_result(run_id: str, data: bytes) -> RunResult:
    """Decode a stored result; without bytes, the run is pending.

    Raises:
        ResultInvalid: The bytes are not of this service's format.
    """
    if not data:
        return RunResult("pending")
    try:
        if len(data) > MAX_RESULT_BYTES:
            raise ValueError(f"over {MAX_RESULT_BYTES:,} bytes")
        return _decode(msgspec.json.decode(data, type=_Stored))
    except _UNREADABLE as error:
        raise ResultInvalid(f"the broker holds a result of {run_id} that is none of ours: {error}") from error


def _decode(stored: _Stored) -> RunResult:
    if stored.status == "SUCCESS":
        return RunResult("done", 100.0, msgspec.json.decode(stored.result, type=Report))
    if stored.status == "PROGRESS":
        return RunResult("running", min(100.0, msgspec.json.decode(stored.result, type=_Progress).percent))
    if stored.status in ("FAILURE", "REVOKED"):
        failure = msgspec.json.decode(stored.result, type=_Failure)
        message = failure.exc_message
        details = message if isinstance(message, str) else ", ".join(map(str, message))
        return RunResult("failed", error=failure.exc_type, details=details)
    if stored.status in _RUNNING:
        return RunResult("running")
    if stored.status in _PENDING:
        return RunResult("pending")
    raise ValueError(f"its status is {stored.status[:100]!r}")


def report_of(result: RunResult) -> Report | None:
    """Return the report of a run; `None` if it has not ended.

    Raises:
        RollingError: The run failed. An error of this package is raised again as its own class; `RunLost` stands for
            Celery's errors.
    """
    if result.state != "failed":
        return result.report
    if result.error in ("ChordError", "TaskRevokedError"):
        raise RunLost(
            "it was revoked, or no worker has begun it in time; does one take every queue? "
            "celery -A optimizer.celery.standalone inspect active_queues"
        )
    if result.error == "WorkerLostError":
        raise RunLost(f"its worker was killed ({result.details}); the next tick makes it again")
    kinds = [RollingError]
    for kind in kinds:
        if kind.__name__ == result.error:
            raise kind(result.details)
        kinds.extend(kind.__subclasses__())
    raise RollingError(f"{result.error}: {result.details}")
