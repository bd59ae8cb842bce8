"""`rolling-optimizer demo`: one run of the whole service in `.demo/`, from a sample file to a router's view."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import closing
from pathlib import Path
from typing import Final

import click

from optimizer.cache.client import connect, translated_errors
from optimizer.cli.dev.failure import StackFailed, writing
from optimizer.cli.dev.sample import write_sample
from optimizer.cli.dev.stack import POLL_S, Stack, say, stopping_on_signals
from optimizer.cli.report import paint
from optimizer.config.settings import Settings
from optimizer.errors import RollingError, require
from optimizer.models import Report
from optimizer.reader.reader import SnapshotReader
from optimizer.storage.location import redact_url

__all__ = ["demo"]

DIRECTORY: Final = Path(".demo")
MARKER: Final = DIRECTORY / "made-by-rolling-optimizer-demo"
FIRST_RUN_S: Final = 60.0
LINES_SHOWN: Final = 40
URL_VARIABLES: Final = ("ROLLING_REDIS_URL", "ROLLING_BROKER_URL")  # the only settings that the demo takes over


@click.command()
def demo() -> None:
    """Demonstrate the whole service once, in `.demo/`.

    It writes a sample file, starts real processes, waits for the first scheduled run, and shows what routers read.
    """
    require("rolling-optimizer demo", "celery", "celery")
    started = time.monotonic()
    _make_directory()
    overrides = {
        "ROLLING_INPUT": str(DIRECTORY / "rolling_brain.json.gz"),
        "ROLLING_OUTPUT_DIR": str(DIRECTORY / "snapshots"),
        "ROLLING_STARTUP_DELAY_S": "0.5",
        "ROLLING_SOURCE": f"demo-{os.getpid()}",  # separate keys and a separate queue, also on the user's Redis
    }
    lines: list[str] = []
    with Stack(lambda name, line: lines.append(f"{name}| {line}"), DIRECTORY) as stack, stopping_on_signals():
        urls = {stack.environ[name] for name in URL_VARIABLES if stack.environ.get(name)}
        stack.environ = {
            name: value
            for name, value in stack.environ.items()
            if not name.startswith("ROLLING_") or name in URL_VARIABLES
        } | overrides
        _write_input(Path(overrides["ROLLING_INPUT"]))
        try:
            _show_first_run(stack)
        except RollingError:
            click.echo("\n".join(lines[-LINES_SHOWN:]), err=True)
            raise
        finally:
            if urls:
                stack.stop()
                _delete_keys(overrides["ROLLING_SOURCE"], urls)
        say(f"the snapshot files are in {overrides['ROLLING_OUTPUT_DIR']}")
    click.echo(f"all stopped, after {time.monotonic() - started:.0f} s")


def _make_directory() -> None:
    """Create `.demo/`, replacing an earlier demo's.

    Raises:
        StackFailed: A directory of that name was not made by a demo, or it cannot be created.
    """
    if DIRECTORY.exists() and not MARKER.exists():
        raise StackFailed(f"{DIRECTORY.absolute()} is not the demo's, or not whole: move it away")
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    with writing(DIRECTORY):
        DIRECTORY.mkdir()
        MARKER.touch()


def _write_input(path: Path) -> None:
    say("writing a sample rolling file: 2,000 symbols, 12 bots")
    with writing(DIRECTORY):
        json_bytes = write_sample(path)
    say(f"  {path}: {json_bytes / 1e6:.1f} MB of JSON, {path.stat().st_size / 1e6:.1f} MB gzipped")


def _show_first_run(stack: Stack) -> None:
    """Start Redis, worker and beat, and show the first scheduled run and the top five.

    Raises:
        StackFailed: A process ended, no run came in time, or it did not succeed.
    """
    url = stack.start_redis()
    settings = Settings.from_env(stack.environ)
    first_s = settings.startup_delay_s
    say(f"Redis at {redact_url(url)}; starting worker and beat, whose first tick comes after {first_s:g} s")
    # Without a second of waiting for other workers to greet: nothing is revoked here that they could tell of.
    stack.start_celery("worker", "worker", "--loglevel", "INFO", "--without-mingle")
    stack.start_celery("beat", "beat", "--loglevel", "INFO")
    with closing(SnapshotReader.from_settings(settings)) as reader:  # before Redis ends: it would warn of that
        report = _first_report(stack, reader)
        say(f"the first scheduled run: {paint(report)}")
        if report.status != "success":
            raise StackFailed("the run did not succeed")
        _show_top(reader)
    stack.stop()


def _first_report(stack: Stack, reader: SnapshotReader) -> Report:
    deadline = time.monotonic() + FIRST_RUN_S
    while time.monotonic() < deadline:
        stack.check()
        runs = reader.runs(1)
        if runs:
            return runs[0]
        time.sleep(POLL_S)
    raise StackFailed(f"no run within {FIRST_RUN_S:.0f} s")


def _show_top(reader: SnapshotReader) -> None:
    reader.refresh()
    best = reader.top(5)
    say(f"the top five as a router reads them, version {best.version} from {best.origin}:")
    for record in best.value:
        click.echo(
            f"    {record.symbol:<6} confidence {record.confidence:.4f}  prediction {record.prediction:>9.4f}  "
            f"last {record.last_price:>9.4f}  {record.sentiment}"
        )


def _delete_keys(source: str, urls: set[str]) -> None:
    """Delete the demo's keys from the user's Redis."""
    for url in urls:
        with translated_errors(url), connect(url, timeout_s=1.0) as client:
            for pattern in (f"rolling:{{{source}}}:*", f"*rolling.{source}"):
                for key in client.scan_iter(pattern):
                    client.unlink(key)
