"""The stand-alone Celery app of worker, beat, Flower and senders.

It has what may not be imposed on another team's app: the connection that drops unusable messages (`broker.py`),
Flower's defaults, the checks of worker and beat (`startup.py`), and their logs (`process_log.py`).
"""

from __future__ import annotations

import inspect
import os
import sys
from typing import Any, Final

import click
from celery import Celery
from celery.app.amqp import AMQP
from celery.loaders.app import AppLoader

from optimizer.celery.binding import connect
from optimizer.celery.broker import Connection
from optimizer.celery.config import celery_settings
from optimizer.celery.flower import close_flower
from optimizer.celery.registration import Registration
from optimizer.celery.startup import one_line_exit

__all__ = ["create_app"]

APP_NAME: Final = "tasks"
LOG: Final = "optimizer.celery.process_log:ProcessLog"  # by name: only a worker and a beat import it


class _Amqp(AMQP):  # type: ignore[misc]
    Connection = Connection


class _Loader(AppLoader):  # type: ignore[misc]
    """Reads settings when they are first used; if a variable is not usable, Celery's commands end with one line."""

    def read_configuration(self, env: str = "") -> dict[str, Any]:  # noqa: ARG002 - it may be another program's
        """Return the settings of an app for which no configuration module is named."""
        with one_line_exit():
            return celery_settings(os.environ)

    def config_from_object(self, obj: Any, silent: bool = False) -> Any:
        """Load the settings in a module."""
        with one_line_exit():
            return super().config_from_object(obj, silent)


def create_app(config: Any = None) -> Celery:
    """Make the stand-alone app. It is not the process's current app, and reads its settings when they are first used.

    Args:
        config: A module with Celery's settings, or its name; by default `celery_settings(os.environ)`.
    """
    caller = inspect.currentframe().f_back  # type: ignore[union-attr]
    if caller is not None and _is_flower_of(caller.f_globals.get("__name__", "")):
        close_flower(os.environ, sys.argv)
    app = Celery(APP_NAME, amqp=_Amqp, loader=_Loader, log=LOG, set_as_current=False)
    if config is not None:
        app.config_from_object(config)
    app.steps["consumer"].add("optimizer.celery.consumer:DroppedMessages")  # by name: only a worker imports it
    app.on_after_configure.connect(_set_result_backend)
    connect(Registration(app, is_standalone=True))
    return app


def _set_result_backend(sender: Celery, source: Any, **_: Any) -> None:
    """Ignore `CELERY_RESULT_BACKEND`, which may belong to another program, as `config.py` does for the broker."""
    sender.backend_cls = source["result_backend"]


def _is_flower_of(module: str) -> bool:
    """Whether this process is `celery -A MODULE flower`, rather than another app's Flower that imports this app.

    It reads the command line, since Celery 5.4 loads the app before its context knows the subcommand.
    """
    context = click.get_current_context(silent=True)
    options = context.command.params if context is not None and isinstance(context.command, click.Group) else []
    option = next((option for option in options if option.name == "app"), None)
    if context is None or option is None:
        return False
    given, words, _ = context.command.make_parser(context).parse_args(sys.argv[1:])
    if words[:1] != ["flower"]:
        return False
    named = str(option.consume_value(context, given)[0]).partition(":")[0]
    return named in (module, f"{module}.app") or f"{named}.celery" == module  # `find_app` of Celery tries these
