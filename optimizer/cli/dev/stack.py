"""The stack on one machine, as real processes: Redis, worker, beat, Flower, web; to develop and to show the whole line.

Invariant: nothing outlives us. Children are stopped in reverse order of their start when we leave, and the kernel ends
them when we are killed (on Linux; elsewhere they find their Redis gone). Each has its own session, so that a Ctrl-C
reaches us alone and everything stops in order.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import click

from optimizer.cache.client import connect, ping, translated_errors
from optimizer.cli.commands import describe, usage_errors
from optimizer.cli.dev.redis_server import DEFAULT_PORT, free_port, redis_command
from optimizer.cli.dev.sample import write_sample
from optimizer.config.environment import with_secrets, without_service_links
from optimizer.config.redis_url import redact_url
from optimizer.config.settings import Settings
from optimizer.errors import CacheUnavailable, RollingError
from optimizer.models import Report
from optimizer.reader.reader import SnapshotReader
from optimizer.storage.location import is_pattern

__all__ = ["Stack", "StackFailed", "demo", "up"]

STOP_S: Final = 20.0
START_S: Final = 20.0
POLL_S: Final = 0.1
FIRST_RUN_S: Final = 60.0
PR_SET_PDEATHSIG: Final = 1
NAME_WIDTH: Final = 6

Sink = Callable[[str, str], None]


class StackFailed(RollingError):
    """A process of the stack ended by itself, or did not start."""


class Stack:
    """Processes that live and die together.

    Args:
        sink: Called with a process's name and each line that it prints.
        directory: Where Redis keeps its data.
    """

    def __init__(self, sink: Sink, directory: Path) -> None:
        self._sink = sink
        self._directory = directory
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._printers: dict[str, threading.Thread] = {}
        self.environ: dict[str, str] = with_secrets(os.environ)

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, name: str, command: list[str], environ: Mapping[str, str] | None = None) -> None:
        """Start a process of the stack."""
        process = subprocess.Popen(
            command,
            env={**self.environ, **(environ or {}), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - one system call, looked up before
        )
        self._processes[name] = process
        printer = threading.Thread(target=self._print_lines, args=(name, process), daemon=True)
        printer.start()
        self._printers[name] = printer

    def start_redis(self) -> str:
        """Use the Redis of `ROLLING_REDIS_URL`, or start one; return its URL once it answers."""
        url = self.environ.get("ROLLING_REDIS_URL")
        if not url:
            port = free_port(DEFAULT_PORT)
            url = f"redis://127.0.0.1:{port}/0"
            self.start("redis", redis_command(port, self._directory / "redis"))
            self.environ["ROLLING_REDIS_URL"] = url
        deadline = time.monotonic() + START_S
        while True:
            try:
                ping(url)
            except CacheUnavailable:
                self.check()
                if time.monotonic() > deadline or "redis" not in self._processes:
                    raise
                time.sleep(POLL_S)
            else:
                return url

    def start_celery(self, name: str, *arguments: str, environ: Mapping[str, str] | None = None) -> None:
        """Start `celery -A tasks` with these arguments."""
        self.start(name, [sys.executable, "-m", "celery", "-A", "tasks", *arguments], environ)

    def pid(self, name: str) -> int:
        """The process id of a process of the stack."""
        return self._processes[name].pid

    def check(self) -> None:
        """Check that every process runs.

        Raises:
            StackFailed: One has ended; its last lines are out by then.
        """
        for name, process in self._processes.items():
            if process.poll() is not None:
                self._printers[name].join(STOP_S)
                raise StackFailed(
                    f"{name} ended by itself with {_ending(process.returncode)}; its lines above say why. "
                    "Everything else is stopped"
                )

    def stop(self) -> None:
        """Stop everything, the last started first; who does not listen is killed."""
        for process in reversed(list(self._processes.values())):
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for printer in self._printers.values():
            printer.join(STOP_S)
        self._processes.clear()

    def _print_lines(self, name: str, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        with process.stdout as lines:
            for line in lines:
                self._sink(name, line.decode("utf-8", "replace").rstrip("\n"))


def up() -> None:
    """Run the stack in the foreground until Ctrl-C or SIGTERM.

    Raises:
        StackFailed: A process ended by itself; the others are stopped.
    """
    with usage_errors():  # before anything is started
        Settings.every_from_env(os.environ, strict=True)
    with Stack(_print_prefixed, Path(".up")) as stack, _stopping_on_signals():
        url = stack.start_redis()
        given = without_service_links(os.environ)
        auth = given.get("FLOWER_BASIC_AUTH") or f"admin:{secrets.token_urlsafe(12)}"
        port = given.get("FLOWER_PORT") or str(free_port(5555))
        stack.start_celery("worker", "worker", "--loglevel", "INFO")
        stack.start_celery("beat", "beat", "--loglevel", "INFO")
        stack.start_celery("flower", "flower", environ={"FLOWER_BASIC_AUTH": auth, "FLOWER_PORT": port})
        web_port = str(free_port(8000))
        flower_url = os.environ.get("ROLLING_FLOWER_URL") or f"http://127.0.0.1:{port}/"
        web = [sys.executable, "-m", "optimizer.cli", "web", "--port", web_port]
        stack.start("web", web, {"ROLLING_FLOWER_URL": flower_url})
        every = Settings.every_from_env(stack.environ)
        _say(f"web     http://127.0.0.1:{web_port}/   the dashboard, and the snapshots for other programs")
        _say(f"Redis   {redact_url(url)}   (for your own routers: ROLLING_REDIS_URL={redact_url(url)})")
        login = auth if not os.environ.get("FLOWER_BASIC_AUTH") else "as in FLOWER_BASIC_AUTH"
        _say(f"Flower  http://127.0.0.1:{port}   login {login}")
        for settings in every:
            _say(f"input   {settings.input}{_missing(settings)}")
        _say("stop with Ctrl-C")
        try:
            while True:
                stack.check()
                time.sleep(POLL_S)
        finally:
            _say("stopping everything")


def demo() -> None:
    """Show the line once, in `.demo/`: sample file, Redis, worker, beat, the first scheduled run, the readers' side.

    Raises:
        StackFailed: A process ended, or no run came in time; the processes' last lines are printed.
    """
    directory = Path(".demo")
    marker = directory / "made-by-rolling-optimizer-demo"
    if directory.exists() and not marker.exists():
        raise StackFailed(f"{directory.absolute()} is not the demo's, or not whole: move it away")
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    marker.touch()
    lines: list[str] = []
    overrides = {
        "ROLLING_INPUT": str(directory / "rolling_brain.json.gz"),
        "ROLLING_OUTPUT_DIR": str(directory / "snapshots"),
        "ROLLING_SOURCE": f"demo-{os.getpid()}",  # on a Redis of the user's, nobody's keys and nobody's queue
    }
    with Stack(lambda name, line: lines.append(f"{name}| {line}"), directory) as stack, _stopping_on_signals():
        given = stack.environ
        urls = {given[name] for name in ("ROLLING_REDIS_URL", "ROLLING_BROKER_URL") if given.get(name)}
        stack.environ = {
            name: value
            for name, value in given.items()
            if not name.startswith("ROLLING_") or name in ("ROLLING_REDIS_URL", "ROLLING_BROKER_URL")
        } | overrides
        _say("writing a sample rolling file: 2,000 symbols, 12 bots")
        json_bytes = write_sample(Path(overrides["ROLLING_INPUT"]))
        size = Path(overrides["ROLLING_INPUT"]).stat().st_size
        _say(f"  {overrides['ROLLING_INPUT']}: {json_bytes / 1e6:.1f} MB of JSON, {size / 1e6:.1f} MB gzipped")
        try:
            url = stack.start_redis()
            settings = Settings.from_env(stack.environ)
            _say(f"Redis at {redact_url(url)}; starting worker and beat, whose first tick comes after 5 s")
            stack.start_celery("worker", "worker", "--loglevel", "INFO")
            stack.start_celery("beat", "beat", "--loglevel", "INFO")
            reader = SnapshotReader.from_settings(settings)
            report = _first_report(stack, reader)
            _say(f"the first scheduled run: {describe(report)}")
            if report.status != "success":
                raise StackFailed("the run did not succeed")
            _show_top(reader)
            stack.stop()
        except RollingError:
            click.echo("\n".join(lines[-40:]), err=True)
            raise
        finally:
            if urls:
                stack.stop()
                _forget(overrides["ROLLING_SOURCE"], urls)
        _say(f"the snapshot files are in {settings.output_dir}")


def _forget(source: str, urls: set[str]) -> None:
    """Remove what the demo left on a Redis of the user's."""
    for url in urls:
        with translated_errors(url):
            client = connect(url, timeout_s=1.0)
            for pattern in (f"rolling:{{{source}}}:*", f"*rolling.{source}"):
                for key in client.scan_iter(pattern):
                    client.unlink(key)
            client.close()


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
    _say(f"the top five as a router reads them, version {best.version} from {best.origin}:")
    for record in best.value:
        click.echo(
            f"    {record.symbol:<6} confidence {record.confidence:.4f}  prediction {record.prediction:>9.4f}  "
            f"last {record.last_price:>9.4f}  {record.sentiment}"
        )


@contextmanager
def _stopping_on_signals() -> Iterator[None]:
    """Leave the block in order on Ctrl-C, SIGTERM and SIGHUP; restore what was set before."""

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(0 if number == signal.SIGINT else 128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _die_with_parent() -> None:
    """In the child, before it becomes the program: be told to end when the parent dies, however it dies."""
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


# Looked up here: after a fork is no time to load a library.
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def _print_prefixed(name: str, line: str) -> None:
    click.echo(f"{name:<{NAME_WIDTH}} | {line}")


def _say(line: str) -> None:
    click.echo(f"[rolling-optimizer] {line}")


def _missing(settings: Settings) -> str:
    """What to say of a local input that is not there; a store is not asked."""
    is_missing = isinstance(settings.input, Path) and not (is_pattern(settings.input) or settings.input.exists())
    return f"   missing; {_hint(settings)}" if is_missing else ""


def _hint(settings: Settings) -> str:
    return f"make one: rolling-optimizer sample {settings.input}"


def _ending(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
