"""The log lines of this package: each names its source, and has its data as attributes of the record too.

    _log = SourceLog(__name__)
    _log.warning("the cache is down, the run goes on without it", source="brain", error=error)

    [RollingOptimizer] brain: the cache is down, the run goes on without it: CacheUnavailable: Redis at ...

The record of that line has `rolling_source` and `rolling_error`; others have `rolling_version`, `rolling_stats`,
`rolling_input_age_s` and `rolling_published_after_s`, and during a run `rolling_run_id`. A formatter that writes JSON
shows them. They have a prefix because `logging` refuses to replace an attribute that another program's record factory
has set, such as `source` or `version`.

The name of an error is part of the message's template (`record.msg`), and everything that varies is an argument: Sentry
groups lines by their template, so each kind of error is one issue, whatever its paths and numbers.

`TextFormatter` and `JsonFormatter` are used by this package's processes. `log_to_stderr` is called by commands, never
by an import: a program that uses this package keeps its own logging.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Final, TypedDict, Unpack
from uuid import uuid4

import msgspec

from optimizer.models import Report, Stats

__all__ = [
    "JsonFormatter",
    "SourceLog",
    "TextFormatter",
    "error_line",
    "log_runs",
    "log_to_stderr",
    "logged_run",
    "printable",
]

NAME: Final = "[RollingOptimizer] "
PREFIX: Final = "rolling_"
TEXT_FORMAT: Final = "[%(asctime)s: %(levelname)s] %(message)s"

_run_id: Final[ContextVar[str]] = ContextVar("rolling_run_id", default="")


@contextmanager
def logged_run(run_id: str | None = None) -> Iterator[None]:
    """Give the log records of a run its id.

    Args:
        run_id: The id of its task; by default a new one, unless a block around this one has given one.
    """
    token = _run_id.set(run_id or _run_id.get() or str(uuid4()))
    try:
        yield
    finally:
        _run_id.reset(token)


def printable(text: str) -> str:
    """Escape unprintable characters, as in a Python literal.

    Messages contain names of files and data that other programs have written to Redis: a line break would forge a line
    of the log, and an escape sequence would control a terminal.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


class TextFormatter(logging.Formatter):
    """Text in the given format; this package's messages are one line each, after the id of the run in brackets."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name that logging calls
        """Format the record, without a traceback."""
        # `format` has set the message again from the record's arguments.
        if str(record.msg).startswith(NAME):
            record.message = printable(record.message)
        run_id = vars(record).get(PREFIX + "run_id")
        if run_id:
            record.message = f"[{run_id}] {record.message}"
        return super().formatMessage(record)


class JsonFormatter(logging.Formatter):
    """One JSON object a line, in ASCII: neither a locale nor a file name that is not UTF-8 can break it.

    Its members are `time` (UTC, RFC 3339), `level`, `logger`, `pid` and `message`, then the attributes of the record
    that `SourceLog` sets, without the prefix (`source`, `run_id`, `version`, `error`, ...), and `exception` for a
    traceback.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Format the record."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
        }
        attributes = vars(record).items()
        line |= {name.removeprefix(PREFIX): value for name, value in attributes if name.startswith(PREFIX)}
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_to_stderr(*, as_json: bool) -> None:
    """Log warnings to stderr, in a process of this package."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter(TEXT_FORMAT))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)


def log_runs() -> None:
    """Also log lines that need no action, such as the end of each run, in a long-running process of this package."""
    logging.getLogger("optimizer").setLevel(logging.INFO)


def error_line(program: str, error: BaseException, *, as_json: bool) -> str:
    """Return the last line of a process that an error ends, in the format of its log."""
    text, name = f"{type(error).__name__}: {error}", type(error).__name__
    if not as_json:
        text = printable(text)
        return f"{program}: {text}" if program else text
    values = {"name": program or "optimizer", "levelno": logging.ERROR, "levelname": "ERROR", "msg": text}
    return JsonFormatter().format(logging.makeLogRecord({**values, "process": os.getpid(), PREFIX + "error": name}))


class About(TypedDict, total=False):
    """The data of a line."""

    source: str
    version: int | None
    error: BaseException
    stats: Stats | None
    input_age_s: float | None
    published_after_s: float | None


class SourceLog:
    """The log of one module.

    Texts are the templates of `logging`, with `%s` for each argument. A source is put before the text, an error after
    it, as `: NAME: MESSAGE`.

    Args:
        name: The logger's name, `__name__`.
    """

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, text: str, *arguments: object, **about: Unpack[About]) -> None:
        """Log a detail."""
        self._log_about(logging.DEBUG, text, arguments, about)

    def info(self, text: str, *arguments: object, **about: Unpack[About]) -> None:
        """Log a line that needs no action."""
        self._log_about(logging.INFO, text, arguments, about)

    def warning(self, text: str, *arguments: object, **about: Unpack[About]) -> None:
        """Log a problem that may need action, though the run goes on."""
        self._log_about(logging.WARNING, text, arguments, about)

    def error(self, text: str, *arguments: object, **about: Unpack[About]) -> None:
        """Log a failure."""
        self._log_about(logging.ERROR, text, arguments, about)

    def exception(self, text: str, *arguments: object, **about: Unpack[About]) -> None:
        """Log a bug, with the traceback of the error that is being handled."""
        self._log_about(logging.ERROR, text, arguments, about, traceback=True)

    def run_ended(self, report: Report) -> None:
        """Log a run that did not fail, in one line."""
        about: About = {
            "source": report.source,
            "version": report.version,
            "stats": report.stats,
            "input_age_s": report.input_age_s,
            "published_after_s": report.published_after_s,
        }
        if report.status == "success":
            values = msgspec.to_builtins(report)  # without the times that are unknown
            times = {name: values[name] for name in ("input_age_s", "published_after_s") if name in values}
            stats = {"source": report.source, **values["stats"], **times}
            self._log("✅ Optimized: %s", (msgspec.json.encode(stats).decode(),), logging.INFO, about)
        else:
            outcome = (report.status, report.reason or f"version {report.version}")
            self._log_about(logging.INFO, "%s: %s", outcome, about)

    def run_failed(self, source: str | None, error: BaseException) -> None:
        """Log a run that failed, in one line."""
        name = type(error).__name__
        values = [msgspec.json.encode(text).decode() for text in (source, str(error))]
        text = f'⚠️ Optimization failed: {{"source":%s,"error":"{name}","details":%s}}'
        about: About = {"error": error} if source is None else {"source": source, "error": error}
        self._log(text, tuple(values), logging.ERROR, about)

    def _log_about(
        self, level: int, text: str, arguments: tuple[object, ...], about: About, *, traceback: bool = False
    ) -> None:
        if "source" in about:
            text, arguments = f"%s: {text}", (about["source"], *arguments)
        if "error" in about:
            text, arguments = f"{text}: {type(about['error']).__name__}: %s", (*arguments, about["error"])
        self._log(text, arguments, level, about, traceback=traceback, stacklevel=4)

    def _log(
        self,
        text: str,
        arguments: tuple[object, ...],
        level: int,
        about: About,
        *,
        traceback: bool = False,
        stacklevel: int = 3,
    ) -> None:
        if not self._logger.isEnabledFor(level):
            return
        extra: dict[str, Any] = {PREFIX + name: value for name, value in about.items() if value is not None}
        if run_id := _run_id.get():
            extra[PREFIX + "run_id"] = run_id
        if "rolling_error" in extra:
            extra["rolling_error"] = type(extra["rolling_error"]).__name__
        if "rolling_stats" in extra:
            extra["rolling_stats"] = msgspec.to_builtins(extra["rolling_stats"])
        self._logger.log(level, NAME + text, *arguments, extra=extra, exc_info=traceback or None, stacklevel=stacklevel)
