"""The logs of worker and beat of the stand-alone app: as text or JSON, with one line for each run.

Celery's lines about each task get the level DEBUG, since this package logs one line for each run, whether it succeeds
or fails. ("ignored", which sounds like a loss, is a run whose parts were sent.) The loggers of another team's app are
not changed.
"""

from __future__ import annotations

import logging
import os
from typing import Any, Final

from celery.app import trace
from celery.app.log import Logging
from celery.utils.log import ColorFormatter, get_logger
from celery.worker import strategy

from optimizer.config.settings import logs_json
from optimizer.log import JsonFormatter, TextFormatter, log_runs

__all__ = ["ProcessLog"]

_EACH_TASK: Final = (trace.LOG_RECEIVED, trace.LOG_SUCCESS)
_EXPECTED: Final = (trace.log_policy_ignore.description, trace.log_policy_expected.description)


class _Text(TextFormatter, ColorFormatter):  # type: ignore[misc]
    """Celery's formatter, with the id of the run."""


class ProcessLog(Logging):  # type: ignore[misc]
    """Celery's logging, with the formats and levels of this package."""

    def setup_logging_subsystem(self, *arguments: Any, **options: Any) -> Any:
        """Show one line for each run even at the level WARNING, the default; Celery's task lines only at DEBUG."""
        if not self.already_setup:
            log_runs()
            for name in (strategy.__name__, trace.__name__):
                get_logger(name).addFilter(_with_debug_lines)
        return super().setup_logging_subsystem(*arguments, **options)

    def setup_handlers(
        self, logger: Any, logfile: Any, text: Any, colorize: Any, formatter: Any = ColorFormatter, **options: Any
    ) -> Any:
        """Use this package's formatter in place of Celery's."""
        if logs_json(os.environ):
            formatter = _json
        elif formatter is ColorFormatter:
            formatter = _Text
        return super().setup_handlers(logger, logfile, text, colorize, formatter, **options)


def _json(*_: Any, **__: Any) -> JsonFormatter:
    return JsonFormatter()


def _with_debug_lines(record: logging.LogRecord) -> bool:
    """Set the level of Celery's lines about tasks to DEBUG, since this package logs one line for each run."""
    description = record.args.get("description") if isinstance(record.args, dict) else None
    if record.msg in _EACH_TASK or description in _EXPECTED:
        record.levelno, record.levelname = logging.DEBUG, logging.getLevelName(logging.DEBUG)
        return bool(get_logger(record.name).isEnabledFor(logging.DEBUG))
    return True
