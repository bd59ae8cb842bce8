"""Results of runs as the fleet has stored them, read as data.

Celery makes of a stored failure whatever exception it names, and takes its fields on trust: anyone who can write to the
broker could end the process that waits.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from optimizer.errors import CacheUnavailable, RollingError, RunLost
from optimizer.records import Report
from tasks.celeryapp import app

__all__ = ["decode_result", "read_result"]


class _Failure(msgspec.Struct):
    exc_type: str
    exc_message: Any = None


class _Stored(msgspec.Struct):
    status: str
    result: msgspec.Raw = msgspec.Raw(b"null")


_STORED: Final = msgspec.json.Decoder(_Stored)
_REPORT: Final = msgspec.json.Decoder(Report)
_FAILURE: Final = msgspec.json.Decoder(_Failure)


def read_result(run_id: str) -> Report | None:
    """The report of a run; `None` where it has not ended.

    Raises:
        RollingError: It failed, by the error that it failed with.
        CacheUnavailable: What is stored is no result of ours.
    """
    data = app.backend.get(app.backend.get_key_for_task(run_id))
    return None if data is None else decode_result(run_id, data)


def decode_result(run_id: str, data: bytes) -> Report | None:
    """The same, of the bytes that are stored."""
    try:
        stored = _STORED.decode(data)
        if stored.status == "SUCCESS":
            return _REPORT.decode(stored.result)
        if stored.status not in ("FAILURE", "REVOKED"):
            return None
        failure = _FAILURE.decode(stored.result)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CacheUnavailable(f"the broker holds a result of {run_id} that is none of ours: {error}") from error
    raise _error(failure)


def _error(failure: _Failure) -> RollingError:
    arguments = failure.exc_message if isinstance(failure.exc_message, list) else [failure.exc_message]
    details = " ".join(str(argument) for argument in arguments)
    if failure.exc_type in ("ChordError", "TaskRevokedError"):
        return RunLost(
            "it was revoked, or no worker has begun it in time; does one take every queue? "
            "celery -A tasks inspect active_queues"
        )
    if failure.exc_type == "WorkerLostError":
        return RunLost(f"its worker was killed ({details}); the next tick makes it again")
    kinds = [RollingError]
    for kind in kinds:
        if kind.__name__ == failure.exc_type:
            return kind(details)
        kinds.extend(kind.__subclasses__())
    return RollingError(f"{failure.exc_type}: {details}")
