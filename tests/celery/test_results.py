"""Stored results of runs are data: whatever they hold, whoever waits gets a report or an error of ours."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.celery.results import decode_result, report_of
from optimizer.errors import CacheUnavailable, RollingError, RunLost, SourceTorn

REPORT = {"status": "unchanged", "source": "brain", "timestamp": "2026-11-26T16:04:05.323Z"}


def stored(**fields: Any) -> bytes:
    """A result as Celery stores it."""
    meta: dict[str, Any] = {"status": "SUCCESS", "result": REPORT, "traceback": None, "children": [], "task_id": "id"}
    return json.dumps(meta | fields).encode()


def failed(exc_type: object, exc_message: object = ("why",), exc_module: object = "builtins") -> bytes:
    """A failure as Celery stores it."""
    return stored(status="FAILURE", result={"exc_type": exc_type, "exc_message": exc_message, "exc_module": exc_module})


RESULTS: list[object] = [5, None, [1], "x", {}, {"status": 5}]
FORGED = {
    "garbage": b"\xff\x00",
    "half": b"{",
    "list": b"[1]",
    "number": b"5",
    "null": b"null",
    "text": b'"x"',
    "empty": b"{}",
    "deep": b"[" * 100_000,
    "no status": b'{"result": 5}',
    "status object": stored(status={}),
    "status unknown": stored(status="anything"),
    **{f"report {result!r}": stored(result=result) for result in RESULTS},
    **{f"failure {result!r}": stored(status="FAILURE", result=result) for result in RESULTS},
    "type object": failed({}),
    "revoked 5": stored(status="REVOKED", result=5),
}


@pytest.mark.parametrize("data", FORGED.values(), ids=FORGED)
def test_what_is_no_result_of_ours_is_said_to_be_none(data: bytes) -> None:
    """In one line, with the run's id."""
    with pytest.raises(CacheUnavailable, match="the broker holds a result of some-id that is none of ours"):
        decode_result("some-id", data)


@pytest.mark.parametrize("name", ["SystemExit", "KeyboardInterrupt", "system", "X"])
def test_a_failure_makes_no_other_exception_than_ours(name: str) -> None:
    """Celery would import what it names, and raise it."""
    with pytest.raises(RollingError, match=f"{name}: why") as caught:
        report_of(decode_result("id", failed(name, exc_module="os")))
    assert type(caught.value) is RollingError


def test_failures_are_those_of_the_run() -> None:
    """By their names and words; those of Celery say what has happened."""
    with pytest.raises(SourceTorn, match=r"^why$"):
        report_of(decode_result("id", failed("SourceTorn", exc_module="anything")))
    with pytest.raises(RunLost, match="its worker was killed"):
        report_of(decode_result("id", failed("WorkerLostError")))
    with pytest.raises(RunLost, match="revoked"):
        report_of(
            decode_result("id", stored(status="REVOKED", result={"exc_type": "TaskRevokedError", "exc_message": ["x"]}))
        )


@pytest.mark.parametrize("status", ["PENDING", "RECEIVED", "STARTED", "PROGRESS", "RETRY"])
def test_what_has_not_ended_is_waited_for(status: str) -> None:
    """Whatever state it is in."""
    assert report_of(decode_result("id", stored(status=status, result={"percent": 5}))) is None


names = st.sampled_from([*REPORT, "exc_type", "exc_message"])


@given(
    st.fixed_dictionaries(
        {},
        optional={
            name: st.recursive(
                st.none() | st.text() | st.integers() | st.sampled_from(["SUCCESS", "FAILURE", "REVOKED"]),
                lambda inner: (
                    st.lists(inner) | st.dictionaries(st.sampled_from([*REPORT, "exc_type", "exc_message"]), inner)
                ),
                max_leaves=6,
            )
            for name in ("status", "result", "children", "task_id", "traceback")
        },
    )
)
def test_results_of_any_shape(fields: dict[str, Any]) -> None:
    """A report, an error of ours, or nothing yet."""
    with suppress(RollingError):
        report_of(decode_result("id", json.dumps(fields).encode()))
