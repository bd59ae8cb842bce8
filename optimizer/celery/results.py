"""Results of runs as the fleet has stored them, read as data.

Celery's own decoder makes of a stored failure whatever exception it names, imports the module of that, and takes all
fields on trust: anyone who can write to the broker could end the process that reads.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec

from optimizer.errors import CacheUnavailable, RollingError, RunLost
from optimizer.models import Report

__all__ = ["ResultInvalid", "RunResult", "decode_result", "read_result", "report_of"]

# A report is of a few KB; the error of a run of thousands of parts names each.
MAX_RESULT_BYTES: Final = 4 << 20

# What decoding any bytes may raise: bad UTF-8 and numbers of thousands of digits are ValueErrors.
_UNREADABLE: Final = (msgspec.DecodeError, ValueError, RecursionError)
_RUNNING: Final = ("STARTED", "RETRY")
_PENDING: Final = ("PENDING", "RECEIVED")


class ResultInvalid(CacheUnavailable):
    """A result that no worker of ours can have written."""


class RunResult(NamedTuple):
    """What has become of a run: its report where it is `done`, an error's name and details where it has `failed`."""

    state: Literal["pending", "running", "done", "failed"]
    percent: float | None = None
    report: Report | None = None
    error: str = ""
    details: str = ""


class _Stored(msgspec.Struct, frozen=True):
    status: str
    result: msgspec.Raw = msgspec.Raw(b"null")


class _Progress(msgspec.Struct, frozen=True):
    percent: Annotated[float, msgspec.Meta(ge=0)]  # over 100 where the file has grown since it was opened


class _Failure(msgspec.Struct, frozen=True):
    exc_type: str
    exc_message: list[Any] | str = ""


def read_result(run_id: str) -> RunResult:
    """What the broker holds of a run.

    Raises:
        ResultInvalid: It is none of ours.
        redis.RedisError: The broker is away, or refuses.
    """
    from optimizer.celery.app import app  # noqa: PLC0415 - Celery's settings are read on import, so only where results are

    return decode_result(run_id, app.backend.client.getrange(app.backend.get_key_for_task(run_id), 0, MAX_RESULT_BYTES))


def decode_result(run_id: str, data: bytes) -> RunResult:
    """The same, of the bytes that are stored; empty where nothing is."""
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
        said = failure.exc_message
        details = said if isinstance(said, str) else ", ".join(map(str, said))
        return RunResult("failed", error=failure.exc_type, details=details)
    if stored.status in _RUNNING:
        return RunResult("running")
    if stored.status in _PENDING:
        return RunResult("pending")
    raise ValueError(f"its status is {stored.status[:100]!r}")


def report_of(result: RunResult) -> Report | None:
    """The report of a run; `None` where it has not ended.

    Raises:
        RollingError: It failed, by the error that it failed with; of those that are Celery's, `RunLost`.
    """
    if result.state != "failed":
        return result.report
    if result.error in ("ChordError", "TaskRevokedError"):
        raise RunLost(
            "it was revoked, or no worker has begun it in time; does one take every queue? "
            "celery -A tasks inspect active_queues"
        )
    if result.error == "WorkerLostError":
        raise RunLost(f"its worker was killed ({result.details}); the next tick makes it again")
    kinds = [RollingError]
    for kind in kinds:
        if kind.__name__ == result.error:
            raise kind(result.details)
        kinds.extend(kind.__subclasses__())
    raise RollingError(f"{result.error}: {result.details}")
