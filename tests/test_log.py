"""The log lines of the package: their text, their attributes, and the template by which Sentry groups them."""

from __future__ import annotations

import ast
import json
import logging
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import pytest

from optimizer.errors import SourceMissing, SourceTorn
from optimizer.log import JsonFormatter, SourceLog, TextFormatter, error_line, logged_run
from optimizer.models import Report, Stats

PACKAGE: Final = Path(__file__).parent.parent / "optimizer"
# The number of calls in each module that name no source. They are about a process as a whole, a message of the broker,
# a variable, or an error that names its source.
WITHOUT_SOURCE: Final = {
    "celery/broker.py": 1,
    "celery/consumer.py": 1,
    "celery/startup.py": 5,
    "cli/watch.py": 1,
    "config/environment.py": 1,
    "web/problems.py": 1,
}

log: Final = SourceLog("optimizer.tests")


@pytest.fixture(autouse=True)
def _every_level(caplog: pytest.LogCaptureFixture) -> None:
    """Capture records of every level."""
    caplog.set_level(logging.DEBUG, logger="optimizer.tests")


def test_a_line_names_its_source_and_its_error(caplog: pytest.LogCaptureFixture) -> None:
    """A line names its source and its error in its text and in its attributes; what does not apply has no attribute."""
    log.warning("%s of %s stay", 2, "sets", source="brain", version=7, error=SourceTorn("cut at 50 %s"))
    log.info("Redis is back")

    assert caplog.records[0].getMessage() == "[RollingOptimizer] brain: 2 of sets stay: SourceTorn: cut at 50 %s"
    assert rolling(caplog.records[0]) == {"source": "brain", "version": 7, "error": "SourceTorn"}
    assert caplog.records[1].getMessage() == "[RollingOptimizer] Redis is back"
    assert rolling(caplog.records[1]) == {}


def test_lines_have_one_template_for_each_kind_of_error(caplog: pytest.LogCaptureFixture) -> None:
    """Errors of one kind have the same template whatever their path and source; another kind has another template.

    Sentry groups by the template: a path or a source makes no new issue, and another kind of error does.
    """
    errors = [SourceMissing("/a not found"), SourceMissing("/b not found"), SourceTorn("/a")]
    for error, source in zip(errors, "abc", strict=True):
        log.run_failed(source, error)
        log.warning("the run goes on", source=source, error=error)

    failed, warned = ([record.msg for record in caplog.records[start::2]] for start in (0, 1))
    for templates in (failed, warned):
        assert templates[0] == templates[1] != templates[2]
        assert "SourceMissing" in templates[0]


def test_a_failed_run_is_json_with_the_name_of_the_error(caplog: pytest.LogCaptureFixture) -> None:
    """A failed run is logged as JSON with the error's name, whatever characters its message contains.

    If the source was never known, it is null in the JSON, and the record has no such attribute.
    """
    log.run_failed("brain", SourceTorn('"a"\n% d'))
    log.run_failed(None, SourceTorn(""))

    failed = [
        json.loads(record.getMessage().removeprefix("[RollingOptimizer] ⚠️ Optimization failed: "))
        for record in caplog.records
    ]
    assert failed == [
        {"source": "brain", "error": "SourceTorn", "details": '"a"\n% d'},
        {"source": None, "error": "SourceTorn", "details": ""},
    ]
    assert [rolling(record) for record in caplog.records] == [
        {"source": "brain", "error": "SourceTorn"},
        {"error": "SourceTorn"},
    ]


def test_a_run_is_one_line_with_its_stats(caplog: pytest.LogCaptureFixture) -> None:
    """A scan is logged with all its stats, in the text as JSON and as attributes.

    An unchanged run is logged with its version, and a skipped run with its reason.
    """
    log.run_ended(Report("success", "brain", "", version=7, stats=Stats(records_seen=3, engine="native")))
    log.run_ended(Report("unchanged", "brain", "", version=7))
    log.run_ended(Report("skipped", "brain", "", reason="tick_taken"))

    done, unchanged, skipped = caplog.records
    stats = json.loads(done.getMessage().removeprefix("[RollingOptimizer] ✅ Optimized: "))
    assert (stats["source"], stats["records_seen"], stats["engine"]) == ("brain", 3, "native")
    assert rolling(done)["stats"]["records_seen"] == 3
    assert rolling(done)["version"] == 7
    assert unchanged.getMessage() == "[RollingOptimizer] brain: unchanged: version 7"
    assert skipped.getMessage() == "[RollingOptimizer] brain: skipped: tick_taken"
    assert rolling(skipped) == {"source": "brain"}


def test_a_run_tells_how_fresh_its_input_was(caplog: pytest.LogCaptureFixture) -> None:
    """A run's record has the age of its input and the time until it was published as attributes, if they are known.

    The text of a scan has them too.
    """
    log.run_ended(Report("success", "brain", "", stats=Stats(), input_age_s=12.5, published_after_s=2.1))
    log.run_ended(Report("success", "brain", "", stats=Stats()))
    log.run_ended(Report("unchanged", "brain", "", version=7, input_age_s=42.0))

    lines = [json.loads(record.getMessage().partition(": ")[2]) for record in caplog.records[:2]]
    times = [{name: line.get(name) for name in ("input_age_s", "published_after_s")} for line in lines]
    assert times == [{"input_age_s": 12.5, "published_after_s": 2.1}, {"input_age_s": None, "published_after_s": None}]
    attributes = [rolling(record) for record in caplog.records]
    assert (attributes[0]["input_age_s"], attributes[0]["published_after_s"]) == (12.5, 2.1)
    assert "input_age_s" not in attributes[1]
    assert (attributes[2]["input_age_s"], "published_after_s" in attributes[2]) == (42.0, False)


def test_a_record_is_of_its_caller(caplog: pytest.LogCaptureFixture) -> None:
    """A record names the file and the function of the caller, not of the helper; only `exception` adds a traceback."""
    log.error("a")
    log.run_failed("brain", SourceTorn(""))
    log.run_ended(Report("success", "brain", "", stats=Stats()))
    log.run_ended(Report("skipped", "brain", "", reason="superseded"))
    try:
        raise ZeroDivisionError
    except ZeroDivisionError as error:
        log.exception("a bug", error=error)

    assert {record.filename for record in caplog.records} == {"test_log.py"}
    assert {record.funcName for record in caplog.records} == {"test_a_record_is_of_its_caller"}
    assert [record.exc_info is not None for record in caplog.records] == [False] * 4 + [True]


def test_records_of_a_run_have_its_id(caplog: pytest.LogCaptureFixture) -> None:
    """Records within `logged_run` have its id; without an id it makes a new one, and outside of it records have none.

    A block within a block keeps the id, unless it has one of its own.
    """
    with logged_run("7"):
        log.info("a")
        with logged_run():
            log.info("b")
        with logged_run("8"):
            log.info("c")
    with logged_run():
        log.info("d")
        log.info("e")
    log.info("f")

    ids = [rolling(record).get("run_id") for record in caplog.records]
    assert ids[:3] == ["7", "7", "8"]
    assert ids[3] == ids[4] not in (None, "7", "8")
    assert ids[5] is None


def test_a_line_of_text_has_the_id_of_its_run(caplog: pytest.LogCaptureFixture) -> None:
    """A line of text has the run's id before the message, once, however many handlers format the record.

    A handler with a formatter of another program has the message without the id.
    """
    ours, theirs = (make("%(levelname)s %(message)s") for make in (TextFormatter, logging.Formatter))
    log.info("no run of %s", "brain")
    with logged_run("7"):
        log.info("a run of %s", "brain")

    lines = [formatter.format(record) for record in caplog.records for formatter in (ours, ours, theirs)]
    assert lines[:3] == ["INFO [RollingOptimizer] no run of brain"] * 3
    assert lines[3:5] == ["INFO [7] [RollingOptimizer] a run of brain"] * 2
    assert lines[5] == "INFO [RollingOptimizer] a run of brain"


def test_a_message_of_ours_is_one_line_without_commands_for_a_terminal(caplog: pytest.LogCaptureFixture) -> None:
    """A message of the package is escaped to one line without terminal commands.

    A file may be named like a line of the log. Messages that other programs log stay as they are, and so does the
    traceback of a bug, which follows the message.
    """
    formatter = TextFormatter("%(levelname)s %(message)s")
    log.warning("cannot read %s", "a\nERROR forged", error=SourceTorn("\x1b[2J\u202e ⚠️"))
    logging.getLogger("theirs").warning("two\nlines")
    try:
        raise ZeroDivisionError("a\nb")
    except ZeroDivisionError as error:
        log.exception("a bug", error=error)

    ours, theirs, bug = map(formatter.format, caplog.records)
    escaped = r"a\nERROR forged: SourceTorn: \x1b[2J\u202e ⚠️"
    assert ours == f"WARNING [RollingOptimizer] cannot read {escaped}"
    assert theirs == "WARNING two\nlines"
    message, first, *_ = bug.splitlines()
    assert message == r"ERROR [RollingOptimizer] a bug: ZeroDivisionError: a\nb"
    assert first == "Traceback (most recent call last):"
    assert error_line("", SourceTorn("a\nb"), as_json=False) == r"SourceTorn: a\nb"


def test_a_line_of_json_has_what_it_is_about(caplog: pytest.LogCaptureFixture) -> None:
    """A line of JSON is one line in ASCII, whatever the message, with its time, level, logger and process.

    It also has the run, source, version, stats and error that the record is about; a traceback is a member.
    """
    with logged_run("7"):
        log.run_ended(Report("success", "brain", "", version=7, stats=Stats(records_seen=3)))
        try:
            raise SourceTorn("/a/é\nb")
        except SourceTorn as error:
            log.exception("it failed", source="brain", error=error)

    # A file name that is not UTF-8. It is not logged, since pytest-xdist could not send the captured record.
    named = logging.makeLogRecord({"msg": "/a/\udce9"})
    text = [JsonFormatter().format(record) for record in (*caplog.records, named)]
    assert all(line.isascii() and line.isprintable() for line in text)
    done, failed, other = map(json.loads, text)
    assert other["message"] == named.msg
    assert datetime.fromisoformat(done["time"]).timestamp() == pytest.approx(caplog.records[0].created, abs=0.001)
    assert (done["level"], done["logger"], done["pid"]) == ("INFO", "optimizer.tests", os.getpid())
    assert done["message"].startswith("[RollingOptimizer] ✅ Optimized: {")
    assert (done["source"], done["run_id"], done["version"], done["stats"]["records_seen"]) == ("brain", "7", 7, 3)
    assert (failed["level"], failed["error"], failed["source"]) == ("ERROR", "SourceTorn", "brain")
    assert failed["exception"].startswith("Traceback")


def test_a_file_name_that_is_not_utf_8_does_not_break_a_line_of_json() -> None:
    """A file name that is not UTF-8 gives a line of JSON in ASCII, from which the name can be read back.

    The record is made in the test: pytest-xdist could not send such a name if caplog had captured it.
    """
    line = JsonFormatter().format(logging.makeLogRecord({"msg": "no %s", "args": ("/a/\udce9",)}))
    assert line.isascii()
    assert json.loads(line)["message"] == "no /a/\udce9"


def test_the_last_line_of_a_process_is_in_the_format_of_its_log() -> None:
    """The last line of a process that fails is text for people, or JSON for programs where the log is JSON."""
    error = SourceMissing("/a not found")
    assert error_line("rolling-optimizer", error, as_json=False) == "rolling-optimizer: SourceMissing: /a not found"
    assert error_line("", error, as_json=False) == "SourceMissing: /a not found"
    line = json.loads(error_line("", error, as_json=True))
    assert (line["level"], line["message"], line["error"]) == ("ERROR", "SourceMissing: /a not found", "SourceMissing")


@pytest.fixture
def _own_factory() -> Iterator[None]:
    """Have `logging` make records with attributes of another program."""
    before = logging.getLogRecordFactory()

    def make(*arguments: Any, **keywords: Any) -> logging.LogRecord:
        record = before(*arguments, **keywords)
        record.__dict__.update(source="theirs", version="1.0", error=None, stats=None)
        return record

    logging.setLogRecordFactory(make)
    yield
    logging.setLogRecordFactory(before)


@pytest.mark.usefixtures("_own_factory")
def test_attributes_of_another_program_are_not_touched(caplog: pytest.LogCaptureFixture) -> None:
    """Attributes of another program stay as they are, since `logging` would raise for one that already exists."""
    log.run_failed("brain", SourceTorn(""))
    assert (vars(caplog.records[0])["source"], rolling(caplog.records[0])["source"]) == ("theirs", "brain")


def test_every_line_of_the_package_goes_this_way() -> None:
    """The package logs by `SourceLog` alone, and each call names its source, except the calls in `WITHOUT_SOURCE`."""
    without: dict[str, int] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = str(path.relative_to(PACKAGE))
        for call in (node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)):
            function = ast.unparse(call.func).replace("_log()", "_log")
            if function == "logging.getLogger":
                assert name == "log.py" or ast.unparse(call) == "logging.getLogger('optimizer')", name
            elif function in {f"_log.{level}" for level in ("debug", "info", "warning", "error", "exception")}:
                without[name] = without.get(name, 0) + ("source" not in {keyword.arg for keyword in call.keywords})
    assert {name: count for name, count in without.items() if count} == WITHOUT_SOURCE


def rolling(record: logging.LogRecord) -> dict[str, Any]:
    """Return the attributes of a record that the package has set, without their prefix."""
    return {name.removeprefix("rolling_"): value for name, value in vars(record).items() if name.startswith("rolling_")}
