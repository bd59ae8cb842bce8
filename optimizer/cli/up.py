"""`rolling-optimizer up`: Redis, worker, beat, watch, Flower and web on this machine, to develop against."""

from __future__ import annotations

import os
import secrets
import sys
import time
from pathlib import Path

import click

from optimizer.cli.dev.redis_server import free_port
from optimizer.cli.dev.stack import POLL_S, Stack, say, stopping_on_signals
from optimizer.cli.options import usage_errors
from optimizer.config.environment import without_service_links
from optimizer.config.settings import Settings
from optimizer.extras import require
from optimizer.storage.location import is_pattern, redact_url

__all__ = ["up"]

NAME_WIDTH = 6
COMMAND = [sys.executable, "-P", "-m", "optimizer.cli"]


@click.command()
def up() -> None:
    """Run Redis, worker, beat, watch, Flower and web in the foreground until Ctrl-C."""
    require("rolling-optimizer up", "flower,watch,web", "celery", "flower", "fastapi", "uvicorn", "watchfiles")
    with usage_errors():  # before anything is started
        Settings.every_from_env(os.environ, strict=True)
    with Stack(_print_prefixed, Path(".up")) as stack, stopping_on_signals():
        redis_url = redact_url(stack.start_redis())
        stack.start_celery("worker", "worker", "--loglevel", "INFO")
        stack.start_celery("beat", "beat", "--loglevel", "INFO")
        stack.start("watch", [*COMMAND, "watch"])
        flower_port, login = _start_flower(stack)
        web_port = _start_web(stack, flower_port)
        say(f"web     http://127.0.0.1:{web_port}/   the dashboard, and the snapshots for other programs")
        say(f"Redis   {redis_url}   (for your own routers: ROLLING_REDIS_URL={redis_url})")
        say(f"Flower  http://127.0.0.1:{flower_port}   login {login}")
        for settings in Settings.every_from_env(stack.environ):
            say(f"input   {settings.input}{_missing(settings)}")
        say("stop with Ctrl-C")
        try:
            while True:
                stack.check()
                time.sleep(POLL_S)
        finally:
            say("stopping everything")


def _start_flower(stack: Stack) -> tuple[str, str]:
    """Start Flower; return its port, and what to tell the user about the login."""
    given = without_service_links(os.environ)
    auth = given.get("FLOWER_BASIC_AUTH") or f"admin:{secrets.token_urlsafe(12)}"
    port = given.get("FLOWER_PORT") or str(free_port(5555))
    stack.start_celery("flower", "flower", environ={"FLOWER_BASIC_AUTH": auth, "FLOWER_PORT": port})
    return port, "as in FLOWER_BASIC_AUTH" if os.environ.get("FLOWER_BASIC_AUTH") else auth


def _start_web(stack: Stack, flower_port: str) -> str:
    """Start the web with its link to Flower; return its port."""
    port = str(free_port(8000))
    flower_url = os.environ.get("ROLLING_FLOWER_URL") or f"http://127.0.0.1:{flower_port}/"
    stack.start("web", [*COMMAND, "web", "--port", port], {"ROLLING_FLOWER_URL": flower_url})
    return port


def _print_prefixed(name: str, line: str) -> None:
    click.echo(f"{name:<{NAME_WIDTH}} | {line}")


def _missing(settings: Settings) -> str:
    """A note on a local input that does not exist; an object store is not asked."""
    is_missing = isinstance(settings.input, Path) and not (is_pattern(settings.input) or settings.input.exists())
    return f"   missing; make one: rolling-optimizer sample {settings.input}" if is_missing else ""
