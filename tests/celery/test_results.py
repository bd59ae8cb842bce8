"""Stored results of runs are data: for any content a caller gets a report or an error of this package."""

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
    "status of two lines": stored(status="any\nthing"),
    **{f"report {result!r}": stored(result=result) for result in RESULTS},
    **{f"failure {result!r}": stored(status="FAILURE", result=result) for result in RESULTS},
    "type object": failed({}),
    "revoked 5": stored(status="REVOKED", result=5),
}


@pytest.mark.parametrize("data", FORGED.values(), ids=FORGED)
def test_a_stored_value_of_another_format_is_refused(data: bytes) -> None:
    """A stored value of another format is refused with an error of one line that has the run's id."""
    with pytest.raises(CacheUnavailable, match="the broker holds a result of some-id that is none of ours") as refused:
        decode_result("some-id", data)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["SystemExit", "KeyboardInterrupt", "system", "X"])
def test_a_failure_raises_no_exception_of_other_modules(name: str) -> None:
    """A failure that names another module's exception is a plain `RollingError`; Celery would import and raise it."""
    with pytest.raises(RollingError, match=f"{name}: why") as caught:
        report_of(decode_result("id", failed(name, exc_module="os")))
    assert type(caught.value) is RollingError


def test_a_failure_is_raised_as_the_error_of_the_run() -> None:
    """A failure is raised as the run's error, with its class and its text.

    Celery's own errors become `RunLost` with a sentence that says what happened.
    """
    with pytest.raises(SourceTorn, match=r"^why$"):
        report_of(decode_result("id", failed("SourceTorn", exc_module="anything")))
    with pytest.raises(RunLost, match="its worker was killed"):
        report_of(decode_result("id", failed("WorkerLostError")))
    with pytest.raises(RunLost, match="revoked"):
        report_of(
            decode_result("id", stored(status="REVOKED", result={"exc_type": "TaskRevokedError", "exc_message": ["x"]}))
        )


@pytest.mark.parametrize("status", ["PENDING", "RECEIVED", "STARTED", "PROGRESS", "RETRY"])
def test_a_run_that_has_not_ended_has_no_report(status: str) -> None:
    """A result in any state before the end of the run gives no report."""
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
    """A stored result of any shape gives a report, an error of this package, or nothing yet."""
    with suppress(RollingError):
        report_of(decode_result("id", json.dumps(fields).encode()))
