"""The documentation as tests see it: fenced blocks with their markers, and a directory in which their commands run."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from optimizer.cli.dev.sample import write_sample
from tests.support.command import rolling_optimizer
from tests.support.ports import free_port
from tests.support.redis_servers import wait_until

__all__ = ["PAGES", "ROOT", "Block", "Sandbox", "blocks", "code_spans"]

ROOT: Final = Path(__file__).parent.parent.parent
PAGES: Final = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))

_BLOCK: Final = re.compile(r"(?:^<!-- ([a-z]+)(?:: (.+?))? -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_STOP_S: Final = 30.0


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, and the marker in the HTML comment before it, such as `needs: docker`."""

    page: Path
    line: int
    language: str
    text: str
    marker: str
    argument: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The commands of a shell block; a line that ends in a backslash continues in the next."""
        return [line for line in self.text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page in their order."""
    text = page.read_text("utf-8")
    for match in _BLOCK.finditer(text):
        marker, argument, language, content = match.groups(default="")
        yield Block(page, text.count("\n", 0, match.start()) + 1, language, content, marker, argument)


def code_spans(page: Path) -> list[str]:
    """Return the inline code of a page, each span on one line."""
    text = _BLOCK.sub("", page.read_text("utf-8"))
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


@dataclass
class Sandbox:
    """A directory in which the commands of one page run one after another; leaving its `with` block stops the services.

    Port 8000 in a page is a free port here, `redis://localhost:6379/0` the Redis of the test, `make TARGET` the
    recipe of the Makefile, and `.venv` the running Python's. `export` holds for the rest of the page.

    Attributes:
        of_a_team: Whether the directory is another program's, with only the installed package of this repository.
    """

    directory: Path
    redis_url: str
    of_a_team: bool = False
    printed: str = ""
    _exports: list[str] = field(default_factory=list)
    _services: list[tuple[Block, subprocess.Popen[str], Path]] = field(default_factory=list)
    _port: str = field(default_factory=lambda: str(free_port()))

    def __enter__(self) -> Sandbox:
        self.directory.mkdir()
        (self.directory / ".venv").symlink_to(sys.prefix)
        # Without this curl exits with 0 whatever the status.
        (self.directory / ".curlrc").write_text("fail\n")
        for name in ("rolling_brain", "intraday/a", "intraday/b"):
            path = self.directory / "data" / f"{name}.json.gz"
            path.parent.mkdir(exist_ok=True)
            write_sample(path, symbols=200, points=10)
        done = rolling_optimizer(self.directory, "run", **self._environment())
        assert done.returncode == 0, f"the first run exits with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return self

    def __exit__(self, *_: object) -> None:
        for _block, process, _log in self._services:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
        for _block, process, _log in self._services:
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def write(self, block: Block) -> None:
        """Write a block to the file that its marker names."""
        path = self.directory / block.argument
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self._filled_in(block.text), "utf-8")

    def run(self, block: Block) -> None:
        """Run a block, as one script of the shell or of Python; fail unless it exits with 0."""
        self.check()
        command = [sys.executable, "-c", block.text] if block.language == "python" else self._command(block)
        self.printed = self._execute(command, str(block))
        if block.language == "sh":
            self._exports += [self._filled_in(line) for line in block.commands if line.startswith("export ")]

    def start(self, block: Block) -> None:
        """Start a block, and wait until it has printed the argument of its marker and, if it has a port, listens there.

        Uvicorn prints lines before it listens: of its application, and with several workers its address.
        """
        log = self.directory / f"service-{block.line}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                self._command(block),
                cwd=self.directory,
                env=self._environment(),
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        self._services.append((block, process, log))

        def is_up() -> bool:
            self.check()
            has_printed = self._filled_in(block.argument) in log.read_text()
            return has_printed and ("8000" not in block.text or _listens(int(self._port)))

        wait_until(is_up, limit_s=60, what=f"{block} to print {block.argument!r}")

    def check(self) -> None:
        """Fail if a service has ended."""
        for block, process, log in self._services:
            assert process.poll() is None, f"{block} exits with {process.returncode}:\n{log.read_text()}"

    def _execute(self, command: list[str], what: str) -> str:
        done = subprocess.run(
            command, cwd=self.directory, env=self._environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{what} exits with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def _command(self, block: Block) -> list[str]:
        script = "\n".join([*self._exports, *map(self._filled_in, block.commands)])
        return ["bash", "-eu", "-c", script]

    def _filled_in(self, text: str) -> str:
        text = text.replace("8000", self._port).replace("redis://localhost:6379/0", self.redis_url)
        return re.sub(r"^make (\S+)$", lambda match: _recipe(match[1]), text)

    def _environment(self) -> dict[str, str]:
        return os.environ | {
            "PATH": f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": "" if self.of_a_team else str(ROOT),
            "PYTHONUNBUFFERED": "1",  # `start` waits for what a service prints
            "HOME": str(self.directory),
            "ROLLING_REDIS_URL": self.redis_url,
            "ROLLING_TRIGGER_TOKEN": "a-token-of-the-sandbox",
            "TOKEN": "a-token-of-the-sandbox",
        }


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


def _recipe(target: str) -> str:
    match = re.search(rf"^{re.escape(target)}:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert match, f"make has no target {target}"
    return match[1].replace("\t", "").replace("$(BIN)/", "")
