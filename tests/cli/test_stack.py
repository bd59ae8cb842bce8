"""`rolling-optimizer demo` and `up` as their users run them; they leave no process and no key behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from optimizer.cli.up import _choose
from tests.support.command import rolling_optimizer
from tests.support.fleet import processes_with
from tests.support.ports import free_port
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.rolling_files import a_record, write_json

pytestmark = [pytest.mark.slow, pytest.mark.no_fork]

COMMAND = [sys.executable, "-m", "optimizer.cli"]
ROOT = Path(__file__).parents[2]


class Up:
    """A running `up`, with a variable in its environment that identifies its processes."""

    def __init__(self, directory: Path) -> None:
        self.mark = f"ROLLING_SOURCE=up-{directory.name}-{os.getpid()}"
        self.log = directory / "log"
        self.redis_port = free_port()
        # Ports of its own: two stacks that start at the same time would find the same default ports free.
        ports = {"--redis-port": self.redis_port, "--web-port": free_port(), "--flower-port": free_port()}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*COMMAND, "up", *(str(word) for option in ports.items() for word in option)],
                cwd=directory,
                env=_environment() | dict([self.mark.split("=")]) | {"ROLLING_STARTUP_DELAY_S": "0.5"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        """All that it has printed so far."""
        return self.log.read_text()

    def others(self) -> list[int]:
        """The ids of the processes that it has started."""
        return [pid for pid in processes_with(self.mark) if pid != self.process.pid]

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait for it to print something."""
        wait_until(lambda: re.search(pattern, self.output) or self.process.poll() is not None, limit_s=30, what=pattern)
        match = re.search(pattern, self.output)
        assert match, self.output
        return match


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    """A stack that has an input; all its processes are killed afterwards."""
    write_json(tmp_path / "data" / "rolling_brain.json.gz", {"AAPL": a_record()})
    running = Up(tmp_path)
    yield running
    for pid in [running.process.pid, *running.others()]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    running.process.wait()


def test_the_demo_shows_a_run_and_leaves_nothing(tmp_path: Path) -> None:
    """`demo` makes a sample and the first scheduled run, and prints the top five from Redis.

    Then no process of it runs, and only `.demo` is left.
    """
    mark = f"MARK={tmp_path}"
    environment = _environment() | dict([mark.split("=")])
    done = subprocess.run([*COMMAND, "demo"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)

    assert "the first scheduled run: success" in done.stdout
    assert "300 predictions of 2,000 records (0 rejected, 0 duplicates), 12 bots" in done.stdout
    best = re.findall(r"^    (\w+) +confidence ([\d.]+) ", done.stdout, re.MULTILINE)
    assert len(best) == 5
    assert [confidence for _, confidence in best] == sorted((confidence for _, confidence in best), reverse=True)
    assert "from redis" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == [".demo"]
    assert processes_with(mark) == []


def test_the_demo_deletes_no_directory_that_it_has_not_made(tmp_path: Path) -> None:
    """A directory called `.demo` without the demo's marker stays as it is, and `demo` exits with 1."""
    (tmp_path / ".demo").mkdir()
    (tmp_path / ".demo" / "theirs").touch()

    done = subprocess.run(
        [*COMMAND, "demo"], cwd=tmp_path, env=_environment(), capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    assert "is not the demo's" in done.stderr
    assert (tmp_path / ".demo" / "theirs").exists()


def test_the_demo_on_a_redis_of_the_users_touches_no_key_of_theirs(tmp_path: Path, redis_server: RedisServer) -> None:
    """On a user's Redis, `demo` uses a source and a queue of its own, deletes its keys, and changes no other key."""
    with redis_server.client as client:
        client.set("rolling:{rolling_brain}:current", "theirs")

        environment = _environment() | {"ROLLING_REDIS_URL": redis_server.url}
        subprocess.run([*COMMAND, "demo"], cwd=tmp_path, env=environment, capture_output=True, check=True)

        left = {key for key in client.scan_iter() if b"demo" in key}
        assert client.get("rolling:{rolling_brain}:current") == b"theirs"
    assert left == set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_stopping_up_leaves_nothing_behind(up: Up, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM stop all six processes, Redis last; after a SIGKILL of `up` the kernel ends them.

    A process that lost its Redis before it was stopped would print a traceback.
    """
    up.wait_for(r"✅ Optimized")
    up.wait_for(r"flower \| ")
    up.wait_for(r"web    \| http")
    assert len(up.others()) >= 6

    up.process.send_signal(number)

    code = up.process.wait(60)
    assert code == {signal.SIGINT: 0, signal.SIGTERM: 128 + 15, signal.SIGKILL: -9}[number]
    wait_until(lambda: up.others() == [], limit_s=30, what="the end of all processes")
    assert "Traceback" not in up.output


def test_a_process_that_ends_stops_the_others_with_a_clear_message(up: Up) -> None:
    """If one process ends, `up` stops all others and exits with 1; its message names the process and how it ended."""
    up.wait_for(r"beat   \| .*Starting")
    beat = next(pid for pid in up.others() if b"\0beat\0" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(beat, signal.SIGKILL)

    assert up.process.wait(60) == 1
    assert "StackFailed: beat was ended by SIGKILL" in up.output
    assert up.others() == []


def test_up_serves_flower_on_loopback_behind_a_password_that_it_prints(up: Up) -> None:
    """`up` serves Flower on loopback: the printed login works, and a request without it is refused."""
    match = up.wait_for(r"Flower  (http://127\.0\.0\.1:\d+)   login (admin):(\S+)")
    url, user, password = match.groups()
    up.wait_for(r"Visit me at")

    def status(handlers: list[urllib.request.BaseHandler]) -> int:
        try:
            with urllib.request.build_opener(*handlers).open(f"{url}/api/task/types", timeout=20) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    passwords = urllib.request.HTTPPasswordMgrWithPriorAuth()
    passwords.add_password(None, url, user, password, is_authenticated=True)
    assert status([]) == 401
    assert status([urllib.request.HTTPBasicAuthHandler(passwords)]) == 200


def test_up_serves_the_dashboard_at_the_address_that_it_prints(up: Up) -> None:
    """The printed address serves the page, and the prediction that the first run has published."""
    url = up.wait_for(r"web     (http://127\.0\.0\.1:\d+/)")[1]
    up.wait_for(r"✅ Optimized")
    up.wait_for(rf"web    \| {url}")

    def shows() -> bool:
        try:
            with urllib.request.urlopen(f"{url}predictions/AAPL", timeout=20) as answer:
                return b"AAPL" in answer.read()
        except OSError:
            return False

    wait_until(shows, limit_s=5, what="the prediction")
    with urllib.request.urlopen(url, timeout=20) as page:
        assert page.headers["Content-Type"] == "text/html; charset=utf-8"


def test_up_prints_its_addresses_last_and_commands_in_its_directory_use_its_redis(up: Up, tmp_path: Path) -> None:
    """`up` prints its addresses once all is ready; a command in its directory uses its Redis, and prints its address.

    So a second terminal needs no variable. Only the user can read the file with the addresses.
    """
    up.wait_for(r"web     (http://127\.0\.0\.1:\d+/)")
    url = f"redis://127.0.0.1:{up.redis_port}/0"
    before, _, _ = up.output.partition("[rolling-optimizer] Redis   ")
    assert re.search(r"worker \| .*ready\.", before)
    assert re.search(r"web    \| http://", before)
    source = dict([up.mark.split("=")])

    waited = rolling_optimizer(tmp_path, "trigger", "--wait", "--timeout", 60, **source)
    status = rolling_optimizer(tmp_path, "status", **source)

    assert waited.stdout.startswith(("success: ", "unchanged: ")), waited.stderr
    said = f"rolling-optimizer: using the stack of `up` in this directory: {url}\n"
    assert waited.stderr.startswith(said)
    assert status.stderr == said
    assert (tmp_path / ".up" / "stack.json").stat().st_mode & 0o077 == 0


def test_a_port_that_is_taken_is_an_error_that_names_the_option(tmp_path: Path) -> None:
    """A chosen port that is taken is an error with its option, for each server, before anything is started.

    No server is moved to another port silently.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        redis = rolling_optimizer(tmp_path, "up", "--redis-port", port)
        web = rolling_optimizer(tmp_path, "up", "--redis-port", free_port(), "--web-port", port)
        flower = rolling_optimizer(tmp_path, "up", "--redis-port", free_port(), FLOWER_PORT=str(port))

    for done, option in ((redis, "--redis-port"), (web, "--web-port"), (flower, "FLOWER_PORT")):
        assert done.returncode == 1
        assert f"PortTaken: {option} {port}: port {port} of 127.0.0.1 cannot be used: " in done.stderr
        assert " | " not in done.stdout


def test_a_server_whose_usual_port_is_taken_gets_another_one_which_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """If a server's usual port is taken, as 6379 by another Redis, it gets another one, which is printed.

    The message names the option that chooses the port.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        usual = listener.getsockname()[1]
        port = _choose("Redis", "--redis-port", None, usual)
    said = capsys.readouterr().out
    is_free = _choose("Redis", "--redis-port", None, port) == port

    assert port != usual
    assert said == (
        f"[rolling-optimizer] another program listens on port {usual}, so Redis gets port {port}; --redis-port chooses "
        "one\n"
    )
    assert is_free
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("command", ["up", "demo"])
def test_a_directory_that_cannot_be_written_is_one_line(command: str) -> None:
    """A directory that cannot be written ends the command with exit status 1 and one line with the path.

    The test uses /proc, where not even root can make a directory.
    """
    done = subprocess.run(
        [*COMMAND, command], cwd="/proc", env=_environment(), capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    assert done.stderr.startswith(f"rolling-optimizer: StackFailed: /proc/.{command} cannot be written: ")
    assert done.stderr.count("\n") == 1


def _environment() -> dict[str, str]:
    """The developer's environment, in which the package is importable from any directory."""
    return os.environ | {"PYTHONPATH": str(ROOT)}
