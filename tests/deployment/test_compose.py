"""The container files: a real Compose reads `docker-compose.yml`, and every command in it is run as a process."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Final, NoReturn

import pytest
import redis
import yaml

from optimizer.cache.keys import Keys
from optimizer.cache.pointer import Pointer
from optimizer.cli.dev.redis_server import redis_executable
from optimizer.config.settings import Settings, variable_name
from optimizer.snapshots.store import snapshot_store
from tests.support.compose import (
    APPS,
    COMPOSE_FILE,
    MONITORING,
    ROOT,
    VALKEYS,
    Composed,
    composers,
    config,
    redis_cli,
    services,
)
from tests.support.redis_servers import wait_until
from tests.support.rolling_files import a_record, write_json

pytestmark = pytest.mark.slow

PASSWORDS: Final = {
    "BROKER_PASSWORD": "br0ker.Pass",
    "CACHE_PASSWORD": "cache_Pass-2",
    "FLOWER_BASIC_AUTH": "ops:fl0wer",
}


# ---- what a real Compose makes of the file


@pytest.fixture(scope="module", name="composers")
def every_composer() -> list[list[str]]:
    """Every Compose on this machine; at least one has to be there."""
    return composers() or _missing("no docker compose, docker-compose or podman-compose on the PATH")


def test_every_compose_reads_the_file(composers: list[list[str]], tmp_path: Path) -> None:
    """Compose 1, Compose 2 and podman's read the same services without a warning, once the passwords are set."""
    for composer in composers:
        done = config(composer, tmp_path, PASSWORDS)

        assert done.returncode == 0, done.stderr
        read = yaml.safe_load(done.stdout)["services"]
        # Version 1 also prints services of profiles that were not requested.
        assert {name for name, spec in read.items() if not spec.get("profiles")} == {*VALKEYS, *APPS}, composer
        asked = services([*composer, "--profile", "monitoring"], tmp_path, PASSWORDS)
        assert set(asked) == {*VALKEYS, *APPS, *MONITORING}, composer
        assert "WARN" not in done.stderr.upper(), composer


@pytest.mark.parametrize("name", PASSWORDS)
@pytest.mark.parametrize("value", [None, ""])
def test_nothing_starts_without_a_password(
    composers: list[list[str]], tmp_path: Path, name: str, value: str | None
) -> None:
    """A password that is missing or empty is an error that names the variable."""
    given = {key: text for key, text in PASSWORDS.items() if key != name} | ({} if value is None else {name: value})
    for composer in composers:
        done = config(composer, tmp_path, given)

        assert done.returncode != 0
        assert f"set {name} in .env" in done.stderr


def test_a_directory_of_the_host_can_take_the_place_of_the_output_volume(
    composers: list[list[str]], tmp_path: Path
) -> None:
    """`OUTPUT_DIR=./out` is mounted as that directory, and the input stays read-only."""
    for composer in composers:
        worker = services(composer, tmp_path, PASSWORDS | {"OUTPUT_DIR": "./out", "INPUT_DIR": "./in"})["worker"]

        mounts = json.dumps(worker["volumes"])
        assert str(tmp_path / "out") in mounts or "./out" in mounts
        assert ":/input:ro" in mounts or '"read_only": true' in mounts


def test_the_dashboard_links_flower(composers: list[list[str]], tmp_path: Path) -> None:
    """The web gets Flower's URL from `ROLLING_FLOWER_URL` or the default, which every Compose can read."""
    for composer in composers:
        for given, url in (
            ({}, "http://127.0.0.1:5555/"),
            ({"ROLLING_FLOWER_URL": "https://flower/"}, "https://flower/"),
        ):
            web = services(composer, tmp_path, PASSWORDS | given)["web"]
            assert web["environment"]["ROLLING_FLOWER_URL"] == url


# ---- what the file says


def test_the_settings_of_the_service_can_all_be_set() -> None:
    """Every setting reaches the worker or the web, and every variable that the file reads is in `.env.example`."""
    text = COMPOSE_FILE.read_text()
    services = yaml.safe_load(text)["services"]
    given = {name for service in ("worker", "web") for name in services[service]["environment"]}
    example = re.findall(r"^#?(\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE)

    assert {name for name in given if name.startswith("ROLLING_")} == {variable_name(f.name) for f in fields(Settings)}
    assert set(example) == set(re.findall(r"\$\{(\w+)", text))
    assert len(example) == len(set(example))


def test_no_secret_is_in_the_files() -> None:
    """Passwords have no default, neither in the file nor in the example."""
    text, example = COMPOSE_FILE.read_text(), (ROOT / ".env.example").read_text()

    for name in PASSWORDS:
        assert re.search(rf"^{name}=$", example, re.MULTILINE)
        assert set(re.findall(rf"\$\{{{name}(..)", text)) == {":?"}


def test_services_are_contained() -> None:
    """No service can gain rights, write into its image, grow without limit, or be reached from another machine."""
    for name, service in yaml.safe_load(COMPOSE_FILE.read_text())["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["mem_limit"], name
        assert service["restart"] == "unless-stopped", name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        if "build" not in service:
            assert re.search(r":v?\d+\.\d+\.\d+", service["image"]) or service["image"] == "rolling-optimizer", name


# ---- the file's own commands, as processes


@pytest.fixture(scope="module")
def composed(composers: list[list[str]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    """All services as processes, once the first scheduled run has published."""
    try:
        redis_executable()
    except Exception as error:
        _missing(str(error))
    directory = tmp_path_factory.mktemp("compose")
    variables = PASSWORDS | {"ROLLING_INTERVAL_S": "5", "ROLLING_STARTUP_DELAY_S": "1"}
    with Composed(services(composers[0], directory, variables), directory) as running:
        write_json(running.input, {"AAPL": a_record(), "MSFT": a_record(confidence=0.9)})
        for names in (VALKEYS, APPS):
            for name in names:
                running.well_before[name] = running.is_well(name)
            for name in names:
                running.start(name)
            if names is VALKEYS:
                wait_until(lambda: running.check() and all(_listens(running.ports[name]) for name in VALKEYS))
        with running.client("cache", PASSWORDS["CACHE_PASSWORD"]) as client:
            current = Keys("rolling_brain").current
            wait_until(lambda: running.check() and client.exists(current), limit_s=60, what="the first publish")
        wait_until(lambda: running.check() and _listens(running.ports["flower"]), limit_s=60, what="Flower")
        wait_until(lambda: running.check() and _listens(running.ports["web"]), what="the web")
        yield running


def test_beat_and_worker_publish_to_the_cache_and_the_files(composed: Composed) -> None:
    """Mounted input is published in the cache, behind its password, and in the output directory, with equal bytes."""
    with composed.client("cache", PASSWORDS["CACHE_PASSWORD"]) as client:
        pointer = Pointer.from_hash(client.hgetall(Keys("rolling_brain").current))
        written = snapshot_store(composed.output).read_set()
        assert pointer is not None
        assert written is not None
        assert pointer.version == written.manifest.version
        assert pointer.manifest.snapshots["predictions"].count == 2
        stored = client.get(Keys("rolling_brain").payload(pointer.version, "predictions"))
        assert stored == written.payloads["predictions"]
    # The run is logged a moment after the publish.
    wait_until(lambda: "✅ Optimized" in composed.lines("worker"), what="the log line of the run")


def test_worker_and_both_beats_are_listed(composed: Composed) -> None:
    """The web's `/status` lists the worker and both beats as alive, by their heartbeats in the cache.

    A beat sends a heartbeat once it has sent a run.
    """

    def listed() -> list[str]:
        with urllib.request.urlopen(f"http://127.0.0.1:{composed.ports['web']}/status", timeout=20) as answer:
            return sorted(each["kind"] for each in json.loads(answer.read())["processes"] if each["is_alive"])

    wait_until(lambda: composed.check() and listed() == ["beat", "beat", "worker"], limit_s=60, what="both beats")


def test_the_web_shows_what_the_cache_holds(composed: Composed) -> None:
    """The web's `/predictions` has the records from the cache, which has a password, and `/` is the dashboard."""
    url = f"http://127.0.0.1:{composed.ports['web']}"
    with urllib.request.urlopen(f"{url}/predictions", timeout=20) as answer:
        assert [record["symbol"] for record in json.loads(answer.read())["predictions"]] == ["MSFT", "AAPL"]
        assert answer.headers["X-Snapshot-Origin"] == "redis"
    with urllib.request.urlopen(f"{url}/", timeout=20) as answer:
        assert answer.headers["Content-Type"].startswith("text/html")
        assert b"dashboard.js" in answer.read()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("broker", {"maxmemory-policy": "noeviction", "appendonly": "yes", "save": ""}),
        ("cache", {"maxmemory-policy": "volatile-lru", "appendonly": "no", "save": "", "lazyfree-lazy-eviction": "no"}),
    ],
)
def test_servers_have_their_settings_and_keep_their_password(
    composed: Composed, name: str, expected: dict[str, str]
) -> None:
    """Broker and cache have the settings given by stdin, and require their password, which is on no command line."""
    password = PASSWORDS[f"{name.upper()}_PASSWORD"]
    with composed.client(name, password) as client:
        assert client.config_get(*expected) == expected
        assert int(client.config_get("maxmemory")["maxmemory"]) > 0
        # The server has replaced the shell, so it is the process that gets SIGTERM.
        assert client.info("server")["process_id"] == composed.processes[name].pid
    with composed.client(name, "wrong") as client, pytest.raises(redis.AuthenticationError):
        client.ping()
    command_line = Path(f"/proc/{composed.processes[name].pid}/cmdline")
    if command_line.exists():
        assert password.encode() not in command_line.read_bytes()


def test_flower_asks_for_the_password(composed: Composed) -> None:
    """Flower's pages and its API respond with 401 without the login of `.env`, and with 200 with it."""
    login = PASSWORDS["FLOWER_BASIC_AUTH"]
    for path in ("/", "/api/workers"):
        assert _status(composed, path) == 401
        assert _status(composed, path, "ops:wrong") == 401
        assert _status(composed, path, login) == 200


@pytest.mark.parametrize("name", [*VALKEYS, *APPS])
def test_health_checks_tell_a_service_that_is_up_from_one_that_is_not(composed: Composed, name: str) -> None:
    """A health check fails before its service is started, and succeeds within its timeout afterwards.

    Broker and cache are already up when the checks of the other services fail.
    """
    if name in VALKEYS and not redis_cli():
        _missing("no valkey-cli or redis-cli on the PATH")
    assert not composed.well_before[name]

    wait_until(lambda: composed.check() and composed.is_well(name), limit_s=60, what=f"health of {name}")


@pytest.mark.parametrize("name", VALKEYS)
def test_a_password_that_would_break_a_url_is_refused(composers: list[list[str]], tmp_path: Path, name: str) -> None:
    """A server whose password would break a URL exits with 1 and says which characters are allowed.

    Otherwise a client would only fail to find a port in its URL.
    """
    variables = PASSWORDS | {f"{name.upper()}_PASSWORD": "a/b@c"}
    with Composed(services(composers[0], tmp_path, variables), tmp_path) as composed:
        composed.start(name)

        assert composed.processes[name].wait(20) == 1
        assert "letters, digits" in composed.lines(name)


# ---- the image


def test_the_image_runs_the_worker_of_the_compose_file() -> None:
    """The image's default command is the worker's command in the Compose file."""
    (command,) = (words for name, words in _dockerfile() if name == "CMD")

    assert json.loads(command) == yaml.safe_load(COMPOSE_FILE.read_text())["services"]["worker"]["command"]


def test_the_image_copies_what_is_there_and_does_not_run_as_root() -> None:
    """Every path that the image copies exists and passes `.dockerignore`, and the last stage does not run as root."""
    steps = _dockerfile()
    sources = [path for name, words in steps if name == "COPY" and "--from" not in words for path in words.split()[:-1]]

    for path in sources:
        assert (ROOT / path).exists(), path
        assert not _ignored(path), path
    last = steps[max(at for at, (name, _) in enumerate(steps) if name == "FROM") :]
    assert ("USER", "10001:10001") in last
    # All that `.dockerignore` lets through is copied, so nothing else is sent to the engine.
    allowed = [line[1:] for line in _dockerignore() if line.startswith("!")]
    assert sorted(allowed) == sorted(sources)


@pytest.mark.parametrize(
    "path",
    [
        *(".env", ".git/config", ".venv/bin/python", ".demo/rolling_brain.json.gz", ".up/redis/dump.rdb", ".ci/run"),
        *("data/rolling_brain.json.gz", "tests/conftest.py", "build/lib/x.py", "rolling_optimizer.egg-info/PKG-INFO"),
        *("optimizer/__pycache__/cache.pyc", "optimizer/.env", "tasks/deep/.env", "tasks/deep/__pycache__/x.pyc"),
    ],
)
def test_what_is_not_the_package_stays_out_of_the_image(path: str) -> None:
    """`.dockerignore` keeps secrets, data, the repository and leftovers from being sent to the engine, at any depth."""
    assert _ignored(path)


def _dockerfile() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile with their arguments."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", "")
    return [(name, words) for name, _, words in (line.partition(" ") for line in text.splitlines() if line.strip())]


def _dockerignore() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _ignored(path: str) -> bool:
    """Return whether `.dockerignore` ignores a path: the last line that matches it or a directory above it decides."""
    ignored = False
    for line in _dockerignore():
        pattern = re.escape(line.removeprefix("!")).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
        if re.fullmatch(f"{pattern}(/.*)?", path):
            ignored = not line.startswith("!")
    return ignored


# ---- requests


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _status(composed: Composed, path: str, login: str | None = None) -> int:
    request = urllib.request.Request(f"http://127.0.0.1:{composed.ports['flower']}{path}")
    if login:
        request.add_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def _missing(what: str) -> NoReturn:
    """Skip the test on a laptop; fail it in CI, which has to have what is missing."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)
