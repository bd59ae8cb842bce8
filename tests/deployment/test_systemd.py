"""The systemd units: systemd's own tools check them, and every command in them is run as a process."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from optimizer.config.settings import Settings, variable_name
from tests.support.processes import ROOT
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.rolling_files import a_record, write_json
from tests.support.systemd import COMMON, UNITS, Installed, Unit

pytestmark = pytest.mark.slow

SERVICES: Final = ("rolling-worker", "rolling-beat", "rolling-watch", "rolling-web")
# On systemd's scale, where 10 is a service without any restriction.
EXPOSED_AT_MOST: Final = 2.0


# ---- what systemd makes of the files


@pytest.fixture(scope="module", name="installed_units")
def units_of_an_installation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The units as they would be in /etc/systemd/system, with programs that exist."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze on the PATH")
    directory = tmp_path_factory.mktemp("units")
    shutil.copytree(UNITS, directory, dirs_exist_ok=True)
    for path in directory.glob("*.service"):
        path.write_text(re.sub(r"^ExecStart=/opt\S+", "ExecStart=/usr/bin/env", path.read_text(), flags=re.MULTILINE))
    return directory


def test_systemd_finds_nothing_wrong_with_them(installed_units: Path) -> None:
    """`systemd-analyze verify` accepts all units: each setting is known, has a usable value, and fits the others.

    The drop-in is found by its prefix.
    """
    names = [path.name for path in installed_units.iterdir() if path.is_file() and path.suffix != ".env"]
    assert len(names) == len(SERVICES) + 2

    done = analyze(installed_units, "verify", "--man=no", *names)

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("service", SERVICES)
def test_services_are_contained(installed_units: Path, service: str) -> None:
    """`systemd-analyze security` rates the exposure of each service at 2.0 or less.

    This is systemd's own judgement of what a service could reach if the code of the service were an attacker's.
    """
    done = analyze(installed_units, "security", "--offline=true", "--json=short", f"{service}.service")

    reached = {row["json_field"]: float(row["exposure"] or 0) for row in json.loads(done.stdout) if not row["set"]}
    shown = analyze(installed_units, "security", "--offline=true", "--no-pager", f"{service}.service").stdout
    (level,) = re.findall(r"Overall exposure level .*: ([\d.]+)", shown)
    assert float(level) <= EXPOSED_AT_MOST, reached


def analyze(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `systemd-analyze` with these units beside those of this machine."""
    environ = os.environ | {"SYSTEMD_UNIT_PATH": f"{directory}:", "SYSTEMD_COLORS": "0"}
    command = ["systemd-analyze", *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=60)


# ---- what the files say


def test_only_the_worker_may_write_and_waits_for_its_run() -> None:
    """Only the worker has a directory to write to, and SIGTERM does not reach its children, so that a run can end."""
    writes = [name for name in SERVICES if Unit(name).all("StateDirectory") or Unit(name).all("ReadWritePaths")]

    assert writes == ["rolling-worker"]
    assert Unit("rolling-worker").last("KillMode") == "mixed"


@pytest.mark.parametrize("service", SERVICES)
def test_services_come_back_and_have_limits(service: str) -> None:
    """Each service is started again whatever ended it, has a limit of memory, and has at least 20 s to stop."""
    unit = Unit(service)

    assert unit.last("Restart") == "always"
    assert unit.last("MemoryMax")
    assert int(unit.last("TimeoutStopSec")) >= 20


def test_settings_are_settings_and_hold_no_secret() -> None:
    """The variables in the example file are settings, and URLs with passwords are read from files only."""
    names = set(re.findall(r"^#?(ROLLING_\w+)=", (UNITS / "rolling.env").read_text(), re.MULTILINE))

    assert names <= {variable_name(name) for name in Settings.__dataclass_fields__}
    assert not [name for name in names if "URL" in name]
    assert set(re.findall(r"ROLLING_\w*URL\w*", COMMON.read_text())) == {
        "ROLLING_BROKER_URL_FILE",
        "ROLLING_REDIS_URL_FILE",
    }


# ---- the units' own commands, as processes


@pytest.fixture
def installed(tmp_path: Path, own_redis: RedisServer) -> Iterator[Installed]:
    """All four services as processes, started in the order of the page, with a Redis that has a password."""
    own_redis.url = f"redis://:pass-word@127.0.0.1:{own_redis.port}/0"
    own_redis.start("--requirepass", "pass-word")
    with Installed(tmp_path, own_redis.url) as running:
        write_json(running.input, {"AAPL": a_record(), "MSFT": a_record(confidence=0.9)})
        for service in SERVICES:
            running.start(Unit(service))
        yield running


def test_the_units_are_a_whole_service(installed: Installed, own_redis: RedisServer) -> None:
    """The services make runs and show them, publish a changed input before the next tick, and exit with 0 on SIGTERM.

    `rolling-check` succeeds with a fresh snapshot and fails without one.
    """
    check = Unit("rolling-check")

    wait_until(lambda: installed.check() and get(installed, "/predictions")["count"] == 2, limit_s=60, what="a version")
    wait_until(
        lambda: {each["kind"] for each in get(installed, "/status")["processes"]} == {"worker", "beat"},
        what="worker and beat",
    )
    assert installed.run(check)
    write_json(installed.input, {"AAPL": a_record()})
    # Long before the next tick: the watch has sent a run.
    wait_until(lambda: installed.check() and get(installed, "/predictions")["count"] == 1, what="the new input")
    assert (installed.output / "rolling_optimized.json.gz").exists()

    for process in installed.processes.values():
        process.terminate()
    for name, process in installed.processes.items():
        assert process.wait(int(Unit(name).last("TimeoutStopSec"))) == 0, name
    shutil.rmtree(installed.output)
    own_redis.kill(lose_data=True)
    assert not installed.run(check)


def get(installed: Installed, path: str) -> dict[str, Any]:
    """Return the web's response, decoded; before it responds, a count of `None` and no processes."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{installed.web_port}{path}", timeout=20) as answer:
            content: dict[str, Any] = json.loads(answer.read())
            return content
    except OSError:  # HTTP errors are among them
        return {"count": None, "processes": []}


def test_the_copies_go_where_the_page_says() -> None:
    """The page of the deployment names each file of `deploy/systemd`."""
    page = (ROOT / "docs/deploy.md").read_text("utf-8")

    for path in UNITS.rglob("*"):
        if path.is_file():
            assert path.name in page or path.stem.removeprefix("rolling-") in page, path
