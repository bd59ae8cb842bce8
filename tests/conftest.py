"""Fixtures of all tests: real servers, settings for the test's own directory, and the order of the test files."""

from __future__ import annotations

import gc
import importlib.util
import os
import pickle
import random
import signal
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from optimizer.cli.dev.redis_server import redis_executable
from optimizer.config.environment import PREFIX
from optimizer.config.settings import Settings
from tests.reliability.chaos.figures import Figures
from tests.support import fork_server
from tests.support.engines import engine
from tests.support.examples import FAST
from tests.support.installed import build_wheel, copy_sources
from tests.support.redis_servers import RedisServer, wait_until

if TYPE_CHECKING:
    from tests.support.s3_server import S3Server

__all__ = ["engine"]  # a fixture

# A shell that starts the tests in the background makes them ignore SIGINT, which each process they start would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A machine that is busy with another test must not fail a property for being slow.
hypothesis_settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.register_profile(FAST, hypothesis_settings.get_profile("suite"), max_examples=10)
hypothesis_settings.load_profile("suite")

# Files that take minutes begin first, so that none of them is left to a single worker at the end.
LONGEST: Final = (
    "reliability/test_chaos.py",
    "web/test_dashboard.py",
    "celery/test_tasks.py",
    "scan/test_native_pruner.py",
    "deployment/test_tls.py",
    "deployment/test_secrets.py",
    "reliability/test_kills.py",
    "docs/test_pages.py",
    "deployment/test_extras.py",
    "source/test_store_object.py",
    "web/test_follow.py",
    "cli/test_stack.py",
    "celery/test_register.py",
    "scan/test_growth.py",
    "scan/test_pruner.py",
    "deployment/test_acl.py",
    "reliability/test_soak.py",
    "integration/test_foreign_names.py",
    "integration/test_schedulers.py",
    "source/test_inflate.py",
    "scan/test_kernel.py",
    "scan/test_engine.py",
    "scan/test_positions.py",
    "cli/test_inspect.py",
    "cli/test_watch.py",
    "cli/test_main.py",
    "source/test_blocked.py",
    "deployment/test_compose.py",
    "web/test_diagnosis.py",
    "web/test_table.py",
    "deployment/test_alerts.py",
    "deployment/test_kubernetes.py",
    "deployment/test_systemd.py",
    "celery/test_sentinels.py",
    "reliability/test_sentinels.py",
    "web/test_panels.py",
    "reader/test_reader.py",
    # the longest in `make test-fast`
    "web/test_routes.py",
    "reader/test_redis_store.py",
    "reader/test_age.py",
    "reader/test_follower.py",
    "pipeline/test_session.py",
    "web/test_trigger.py",
)

FIGURES = pytest.StashKey[Figures]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of `make chaos`."""
    group = parser.getgroup("chaos")
    group.addoption("--chaos-seed", type=int, default=1, help="what decides when and how faults are made")
    group.addoption(
        "--chaos-s", type=float, default=0.0, help="seconds of faults of all kinds; each is made once anyway"
    )
    group.addoption("--long-life", action="store_true", help="3,000 ticks, a minute without Redis; writes the figures")


def pytest_configure(config: pytest.Config) -> None:
    """Start with no figures."""
    config.stash[FIGURES] = Figures()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Have a test that is marked `no_fork`, and its fixtures, start processes as usual, without the fork server."""
    fork_server.forbid(is_forbidden=item.get_closest_marker("no_fork") is not None)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Exclude modules and tests from garbage collections: they stay to the end, and are half a million objects.

    Searching them for garbage takes a quarter of the time in which pytest collects the tests, and later half a second
    each time.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; workers take files in this order."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get("/".join(item.path.parts[-2:]), len(order)))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send a worker's figures to the process that prints them."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["figures"] = pickle.dumps(session.config.stash[FIGURES])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add the figures of a worker, unless it crashed."""
    if hasattr(node, "workeroutput"):
        node.config.stash[FIGURES].merge(pickle.loads(node.workeroutput["figures"]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the figures of faults; write them to the page if `--long-life` is given and no test has failed."""
    figures = config.stash[FIGURES]
    if figures.faults or figures.lines:
        terminalreporter.section("faults")
        terminalreporter.write(figures.table())
    if config.getoption("--long-life") and not terminalreporter.stats.get("failed"):
        figures.write()


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Figures:
    """The figures of this session."""
    return request.config.stash[FIGURES]


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """A random generator, seeded by `--chaos-seed`."""
    return random.Random(request.config.getoption("--chaos-seed"))


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the developer's own settings out of the tests."""
    for name in list(os.environ):
        if name.startswith((PREFIX, "FLOWER_", "AWS_", "FSSPEC_")):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True, scope="module")
def _no_reader_is_left() -> Iterator[None]:
    """Fail a module that leaves the thread of a reader behind, which would disturb all later tests of the process."""

    def readers() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "rolling-reader"}

    before = readers()
    yield
    wait_until(lambda: readers() <= before, what="the readers of the module to end")


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The server behind `redis_server`, not emptied; for fixtures that live longer than a test."""
    _require_redis()
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def redis_server(shared_redis: RedisServer) -> RedisServer:
    """A Redis that is up and empty; for tests that do not stop it."""
    with shared_redis.client as client:
        client.flushall()  # it is ours, on a port of its own
    return shared_redis


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis for one test alone, not started yet; for tests that kill or pause it."""
    _require_redis()
    server = RedisServer(tmp_path / "redis")
    yield server
    server.kill()


@pytest.fixture
def settings(tmp_path: Path, redis_server: RedisServer) -> Settings:
    """Settings for the test's own directory and the shared Redis; the input does not exist yet."""
    return Settings(
        input=tmp_path / "rolling_brain.json.gz", output_dir=tmp_path / "snapshots", redis_url=redis_server.url
    )


@pytest.fixture
def settings_without_redis(tmp_path: Path) -> Settings:
    """Settings for runs with `use_cache=False`."""
    return Settings(input=tmp_path / "rolling_brain.json.gz", output_dir=tmp_path / "snapshots")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the package."""
    return build_wheel(copy_sources(tmp_path_factory.mktemp("wheel")))


@pytest.fixture(scope="session")
def _shared_s3() -> Iterator[S3Server]:
    server = _s3_server()
    server.start()
    yield server
    server.kill()


@pytest.fixture
def s3(_shared_s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """A shared S3 server that is up, and the environment that leads to it; each test uses names of its own there."""
    for name, value in _shared_s3.environ.items():
        monkeypatch.setenv(name, value)
    return _shared_s3


@pytest.fixture
def own_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """An S3 server for one test alone, not started yet; for tests that kill it."""
    server = _s3_server()
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    yield server
    server.kill()


def _s3_server() -> S3Server:
    """Return an S3 server; without the extra and moto, skip on a laptop and fail in CI, which has to have both."""
    missing = [name for name in ("s3fs", "moto", "flask_cors") if importlib.util.find_spec(name) is None]
    if missing and not os.environ.get("CI"):
        pytest.skip(f"no {', '.join(missing)} here")
    from tests.support.s3_server import S3Server  # noqa: PLC0415 - it needs them

    return S3Server()


def _require_redis() -> None:
    """Without a Redis server, skip the test on a laptop and fail in CI, which has to have one."""
    try:
        redis_executable()
    except Exception as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
