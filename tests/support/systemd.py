"""The units of `deploy/systemd` as processes: each command runs unchanged, with the environment that systemd sets.

No systemd is needed. The paths of an installation are replaced by paths of the test; the rest is used unchanged. The
restrictions that a process can put on itself are in force: no new privileges, and no memory that is both written and
executed. The other restrictions are systemd's own, and `systemd-analyze` reads them.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tests.support.ports import free_port
from tests.support.processes import ROOT, Processes, replaced

__all__ = ["COMMON", "UNITS", "Installed", "Unit"]

UNITS: Final = ROOT / "deploy" / "systemd"
COMMON: Final = UNITS / "rolling-.service.d" / "common.conf"
PR_SET_NO_NEW_PRIVS: Final = 38
PR_SET_MDWE: Final = 65
HOSTNAME: Final = "a-host"


class Unit:
    """The section `[Service]` of a unit, after the drop-in of its prefix, as a list of settings."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._settings = [*_settings(COMMON), *_settings(UNITS / f"{name}.service")]

    def all(self, key: str) -> list[str]:
        """Every value of a setting, in order."""
        return [value for given, value in self._settings if given == key]

    def last(self, key: str) -> str:
        """Return the last value of a setting, which is the one in force."""
        return self.all(key)[-1]


class Installed(Processes):
    """The units as processes, with the files that an operator writes; they run until the `with` block ends."""

    def __init__(self, directory: Path, redis_url: str) -> None:
        super().__init__(directory)
        self.web_port = free_port()
        for name in ("broker_url", "redis_url"):
            (directory / "etc").mkdir(exist_ok=True)
            (directory / "etc" / name).write_text(f"{redis_url}\n")
        (directory / "etc" / "rolling.env").write_text((UNITS / "rolling.env").read_text())

    def start(self, unit: Unit) -> None:
        """Start a unit's process under the restrictions that it can put on itself."""
        self.spawn(unit.name, self._command(unit), self._environment(unit), lambda: _restrict(unit))

    def run(self, unit: Unit) -> bool:
        """Run a unit that ends by itself; return whether it succeeds."""
        return self.succeeds(self._command(unit), self._environment(unit), timeout_s=30)

    def _command(self, unit: Unit) -> list[str]:
        return [self._here(unit, word) for word in shlex.split(unit.last("ExecStart"))]

    def _environment(self, unit: Unit) -> dict[str, str]:
        """Return the environment by the rules of `systemd.exec`: a file overrides the unit's own lines."""
        lines = [word for line in unit.all("Environment") for word in shlex.split(line)]
        for file in unit.all("EnvironmentFile"):
            lines += _without_comments(Path(self._here(unit, file)).read_text().splitlines())
        given = {name: self._here(unit, value) for name, _, value in (line.partition("=") for line in lines)}
        return {"PATH": "/usr/bin:/bin", **given}

    def _here(self, unit: Unit, text: str) -> str:
        return replaced(
            text,
            {
                "/opt/rolling-optimizer/.venv/bin": os.fspath(Path(sys.executable).parent),
                "/etc/rolling": os.fspath(self.directory / "etc"),
                "/srv/engine/rolling_brain.json.gz": os.fspath(self.input),
                "/var/lib/rolling": os.fspath(self.output),
                "8000": str(self.web_port),
                "%H": HOSTNAME,
                "%d": self._credentials(unit),
            },
        )

    def _credentials(self, unit: Unit) -> str:
        """Return a directory with the credentials that the unit loads, and nothing else."""
        directory = self.directory / f"credentials-{unit.name}"
        if not directory.exists():
            directory.mkdir()
            for line in unit.all("LoadCredential"):
                name, _, path = line.partition(":")
                (directory / name).symlink_to(path.replace("/etc/rolling", os.fspath(self.directory / "etc")))
        return os.fspath(directory)


def _settings(path: Path) -> list[tuple[str, str]]:
    """The settings of the section `[Service]`."""
    section, settings = "", []
    for line in _without_comments(path.read_text().splitlines()):
        if line.startswith("["):
            section = line
        elif section == "[Service]":
            key, _, value = line.partition("=")
            settings.append((key, value))
    return settings


def _without_comments(lines: Iterable[str]) -> list[str]:
    return [line for line in lines if line.strip() and not line.startswith("#")]


def _restrict(unit: Unit) -> None:
    libc = ctypes.CDLL(None)
    if unit.last("NoNewPrivileges") == "yes":
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if unit.last("MemoryDenyWriteExecute") == "yes":
        libc.prctl(PR_SET_MDWE, 1, 0, 0, 0)  # since Linux 6.3; older kernels refuse it, and the process runs without it
