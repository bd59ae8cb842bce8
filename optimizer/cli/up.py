"""`rolling-optimizer up`: Redis, worker, beat, watch, Flower and web on this machine, to develop against."""

from __future__ import annotations

import os
import secrets
import sys
import threading
import time
from pathlib import Path
from typing import Final

import click

from optimizer.cli.dev.ports import choose_port, is_listening
from optimizer.cli.dev.redis_server import DEFAULT_PORT
from optimizer.cli.dev.running_stack import DIRECTORY, announcing
from optimizer.cli.dev.stack import POLL_S, Stack, say, stopping_on_signals
from optimizer.cli.options import usage_errors
from optimizer.config.environment import without_service_links
from optimizer.config.settings import Settings
from optimizer.errors import require
from optimizer.storage.location import is_pattern, redact_url

__all__ = ["up"]

NAME_WIDTH: Final = 6
COMMAND: Final = [sys.executable, "-P", "-m", "optimizer.cli"]
WEB_PORT: Final = 8000
FLOWER_PORT: Final = 5555
_COLOURS: Final = {
    "redis": "red",
    "worker": "green",
    "beat": "yellow",
    "watch": "blue",
    "flower": "magenta",
    "web": "cyan",
}

_port = click.IntRange(1, 65_535)


@click.command()
@click.option("--redis-port", type=_port, help="The port of Redis; by default 6379, or a free one if that is taken.")
@click.option("--web-port", type=_port, help="The same for the dashboard; by default 8000.")
@click.option("--flower-port", type=_port, help="The same for Flower; by default 5555. [FLOWER_PORT]")
def up(redis_port: int | None, web_port: int | None, flower_port: int | None) -> None:
    """Run the whole service on this machine until Ctrl-C.

    That is Redis, worker, beat, watch, Flower and web. Other commands in this directory use its Redis.
    """
    require("rolling-optimizer up", "flower,watch,web", "celery", "flower", "fastapi", "uvicorn", "watchfiles")
    with usage_errors():  # checked before anything is started
        Settings.every_from_env(os.environ, strict=True)
    if redis_port is not None and _names_redis():
        raise click.UsageError("--redis-port is for a Redis that is started here, and ROLLING_REDIS_URL names another")
    is_ready = threading.Event()
    colour = click.get_current_context().color  # for threads, which have no context

    def show(name: str, line: str) -> None:
        click.echo(f"{click.style(f'{name:<{NAME_WIDTH}}', fg=_COLOURS[name])} | {line}", color=colour)
        if name == "worker" and "ready." in line:
            is_ready.set()

    with announcing(DIRECTORY) as announce, Stack(show, DIRECTORY) as stack, stopping_on_signals():
        redis_port = None if _names_redis() else _choose("Redis", "--redis-port", redis_port, DEFAULT_PORT)
        web_port = _choose("web", "--web-port", web_port, WEB_PORT)
        flower_port = _choose_flower_port(flower_port)
        redis_url = redact_url(stack.start_redis(redis_port))
        announce(stack.environ)
        stack.start_celery("worker", "worker", "--loglevel", "INFO")
        stack.start_celery("beat", "beat", "--loglevel", "INFO")
        stack.start("watch", [*COMMAND, "watch"])
        login = _start_flower(stack, flower_port)
        _start_web(stack, web_port, flower_port)
        stack.wait_for("worker", is_ready.is_set)
        stack.wait_for("Flower", lambda: is_listening(flower_port))
        stack.wait_for("web", lambda: is_listening(web_port))
        say("everything has started; stop it with Ctrl-C")
        for settings in Settings.every_from_env(stack.environ):
            say(f"input   {settings.input}{_missing(settings)}")
        elsewhere = "" if redis_port is None else f"; elsewhere: export ROLLING_REDIS_URL={redis_url}"
        say(f"Redis   {redis_url}   used by commands in this directory{elsewhere}")
        say(f"Flower  http://127.0.0.1:{flower_port}   login {login}")
        say(f"web     http://127.0.0.1:{web_port}/   the dashboard, and the snapshots for other programs")
        try:
            while True:
                stack.check()
                time.sleep(POLL_S)
        finally:
            say("stopping everything")


def _names_redis() -> bool:
    return bool(os.environ.get("ROLLING_REDIS_URL") or os.environ.get("ROLLING_REDIS_URL_FILE"))


def _choose(name: str, option: str, asked: int | None, default: int) -> int:
    """Choose a port, and report it if it is not the usual one."""
    port = choose_port(option, asked, default)
    if asked is None and port != default:
        say(f"another program listens on port {default}, so {name} gets port {port}; {option} chooses one")
    return port


def _choose_flower_port(asked: int | None) -> int:
    """Return the port of Flower, which has its own variable."""
    given = without_service_links(os.environ).get("FLOWER_PORT")
    if asked is not None or not given:
        return _choose("Flower", "--flower-port", asked, FLOWER_PORT)
    if not given.isdecimal():
        raise click.UsageError(f"FLOWER_PORT={given!r} is not a port")
    return _choose("Flower", "FLOWER_PORT", int(given), FLOWER_PORT)


def _start_flower(stack: Stack, port: int) -> str:
    """Start Flower; return a note for the user about the login."""
    given = os.environ.get("FLOWER_BASIC_AUTH")
    auth = given or f"admin:{secrets.token_urlsafe(12)}"
    stack.start_celery("flower", "flower", environ={"FLOWER_BASIC_AUTH": auth, "FLOWER_PORT": str(port)})
    return "as in FLOWER_BASIC_AUTH" if given else auth


def _start_web(stack: Stack, port: int, flower_port: int) -> None:
    """Start the web with its link to Flower."""
    flower_url = os.environ.get("ROLLING_FLOWER_URL") or f"http://127.0.0.1:{flower_port}/"
    stack.start("web", [*COMMAND, "web", "--port", str(port)], {"ROLLING_FLOWER_URL": flower_url})


def _missing(settings: Settings) -> str:
    """Return a note about a local input that does not exist; object stores are not checked."""
    is_missing = isinstance(settings.input, Path) and not (is_pattern(settings.input) or settings.input.exists())
    return f"   missing; make one: rolling-optimizer sample {settings.input}" if is_missing else ""
