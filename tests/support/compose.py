"""The services of docker-compose.yml as processes: a real Compose reads the file, and its commands run unchanged.

No container engine is needed. `_places` and `_programs` replace what an image or a network would supply; the rest is
used unchanged, so that a wrong command, variable or health check in the file fails.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import redis
import yaml

from optimizer.cache.client import connect
from optimizer.cli.dev.redis_server import redis_executable
from tests.support.ports import free_port
from tests.support.processes import ROOT, Processes, replaced

__all__ = [
    "APPS",
    "COMPOSE_FILE",
    "MONITORING",
    "ROOT",
    "VALKEYS",
    "Composed",
    "composers",
    "config",
    "redis_cli",
    "services",
]

COMPOSE_FILE: Final = ROOT / "docker-compose.yml"
VALKEYS: Final = ("broker", "cache")
APPS: Final = ("worker", "beat", "beat-2", "watch", "flower", "web")
MONITORING: Final = ("prometheus", "grafana")

Spec = dict[str, Any]


def composers() -> list[list[str]]:
    """Every Compose on this machine, as the beginning of a command line."""
    commands = [[name] for name in ("docker-compose", "podman-compose") if shutil.which(name)]
    if shutil.which("docker"):
        plugin = ["docker", "compose"]
        if subprocess.run([*plugin, "version"], capture_output=True, check=False).returncode == 0:
            commands.insert(0, plugin)
    return commands


def config(composer: list[str], directory: Path, variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Make a Compose read the file next to a `.env` of the test instead of the developer's."""
    shutil.copy(COMPOSE_FILE, directory)
    (directory / ".env").write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
    environ = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        [*composer, "config"], cwd=directory, env=environ, capture_output=True, text=True, check=False
    )


def services(composer: list[str], directory: Path, variables: Mapping[str, str]) -> dict[str, Spec]:
    """The services as a Compose reads them."""
    done = config(composer, directory, variables)
    assert done.returncode == 0, done.stderr
    # `config` prints a file that can be read again, and so doubles every `$`.
    specs: dict[str, Spec] = yaml.safe_load(done.stdout.replace("$$", "$"))["services"]
    return specs


def redis_cli() -> str | None:
    """The path of a Redis command-line client on this machine."""
    return shutil.which("valkey-cli") or shutil.which("redis-cli")


class Composed(Processes):
    """The services of the file as processes, in directories and on ports of their own, until the `with` block ends."""

    def __init__(self, services: Mapping[str, Spec], directory: Path) -> None:
        super().__init__(directory)
        self._services = services
        self.ports = {name: free_port() for name in (*VALKEYS, "flower", "web")}
        self.well_before: dict[str, bool] = {}
        (directory / "data").mkdir()

    def start(self, name: str) -> None:
        """Start a service; its output goes to a file."""
        command = [self._here(name, word) for word in self._services[name]["command"]]
        self.spawn(name, command, self._environment(name))

    def is_well(self, name: str) -> bool:
        """Run a service's health check as Docker does, with its environment and timeout; return whether it passes."""
        check = self._services[name]["healthcheck"]
        assert check["test"][0] == "CMD"
        command = [self._here(name, word) for word in check["test"][1:]]
        return self.succeeds(command, self._environment(name), float(check["timeout"].removesuffix("s")))

    def client(self, name: str, password: str) -> redis.Redis:
        """A client of one of the two servers, `broker` or `cache`."""
        return connect(f"redis://:{password}@127.0.0.1:{self.ports[name]}/0", timeout_s=5.0)

    def _places(self, name: str) -> dict[str, str]:
        """The replacements for the network and the mounts: text of the file, and the text used here."""
        return {
            "@broker:6379": f"@127.0.0.1:{self.ports['broker']}",
            "@cache:6379": f"@127.0.0.1:{self.ports['cache']}",
            "port 6379\n": f"port {self.ports.get(name)}\nbind 127.0.0.1\n",
            "dir /data\n": f"dir {self.directory}/data\n",
            "/input/": f"{self.input.parent}/",
            "/output": str(self.output),
            "/tmp/watch-alive": str(self.directory / "watch-alive"),
            f"worker@{self._services['worker']['hostname']}": f"worker@{socket.gethostname()}",
            "0.0.0.0": "127.0.0.1",
            "5555": str(self.ports["flower"]),
            "8000": str(self.ports["web"]),
        }

    def _programs(self, name: str) -> Path:
        """The directory of the programs that a service's image would have on its PATH, besides a shell."""
        if name not in VALKEYS:
            return Path(sys.executable).parent
        programs = self.directory / f"programs-{name}"
        if not programs.exists():
            programs.mkdir()
            (programs / "valkey-server").symlink_to(redis_executable())
            client = programs / "valkey-cli"
            client.write_text(f'#!/bin/sh\nexec {redis_cli() or "false"} -p {self.ports[name]} "$@"\n')
            client.chmod(0o755)
        return programs

    def _environment(self, name: str) -> dict[str, str]:
        given = {key: self._here(name, str(text)) for key, text in self._services[name]["environment"].items()}
        return {"PATH": f"{self._programs(name)}:/usr/bin:/bin", "PYTHONUNBUFFERED": "1", **given}

    def _here(self, name: str, text: str) -> str:
        return replaced(text, self._places(name))
