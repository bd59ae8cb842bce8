"""Worker, beat, Flower and web of one source, each with the Redis URLs of its role."""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from optimizer import Settings
from optimizer.celery.schedule import SCAN_QUEUE, UPDATE_QUEUE
from optimizer.producer import publish
from tests.support.command import rolling_optimizer
from tests.support.compose import ROOT
from tests.support.fleet import Fleet
from tests.support.fork_server import run
from tests.support.readers import KINDS, Open
from tests.support.redis_servers import wait_until
from tests.support.rolling_files import a_record, write_json
from tests.support.web_apps import WebServer

__all__ = ["FAST_TICKS", "QUEUE", "TASK", "TOKEN", "UrlOf", "WholeFleet", "ask", "celery_inspect"]

TASK: Final = "tasks.optimize_rolling_data"
QUEUE: Final = "rolling.rolling_brain"
TOKEN: Final = "the/token&of-the-web"
FAST_TICKS: Final = {"ROLLING_INTERVAL_S": "1", "ROLLING_STARTUP_DELAY_S": "0.5"}
UrlOf = Callable[[str], str]


class WholeFleet:
    """Worker, beat, Flower and web, each with the URLs of its role."""

    def __init__(
        self,
        directory: Path,
        url_of: UrlOf,
        *worker_options: str,
        cache_url_of: UrlOf | None = None,
        input: Path = Path("rolling_brain.json.gz"),  # noqa: A002 - as the setting
    ) -> None:
        self._worker_options = worker_options
        self._url_of = url_of
        self._cache_url_of = cache_url_of or url_of
        self._directory = directory
        self.settings = Settings(
            input=directory / input,
            source="rolling_brain",
            output_dir=directory / "out",
            redis_url=self._cache_url_of("router"),
        )
        self.fleet = Fleet(directory, self.settings, ROLLING_SOURCE="rolling_brain", **FAST_TICKS)

    @contextmanager
    def running(self) -> Iterator[WebServer]:
        """Start everything, with an input to read; yield the web once the first scheduled run is published."""
        for part in "ab":  # one file, or two if the input is a pattern
            write_json(Path(str(self.settings.input).replace("*", part)), {"AAPL": a_record()})
        with self.fleet as fleet:
            fleet.start_worker(*self._worker_options, **self.urls("worker", "worker"))
            fleet.start_beat(**self.urls("beat", "beat"))
            fleet.start_flower(**self.urls("flower"))
            fleet.wait_for_runs(1, "success")
            token = {"ROLLING_TRIGGER_TOKEN": TOKEN, "ROLLING_SOURCE": self.settings.source}
            with WebServer(self._directory, self.settings, **self.urls("sender", "router"), **token) as web:
                yield web
            fleet.stop()

    def urls(self, broker_role: str, cache_role: str = "router") -> dict[str, str]:
        """Return the variables with the URLs for a process with these roles."""
        return {"ROLLING_BROKER_URL": self._url_of(broker_role), "ROLLING_REDIS_URL": self._cache_url_of(cache_role)}

    def check(self, web: WebServer) -> None:
        """Use Redis in every way: runs by command, Flower and web, updates, both readers, `status` and `config`."""
        said = "skipped"
        while said.startswith("skipped"):  # a scheduled run was running
            commanded = rolling_optimizer(self._directory, "trigger", "--force", "--wait", **self.urls("sender"))
            said = commanded.stdout
        assert (commanded.returncode, said[:8]) == (0, "success:"), said + commanded.stderr

        status, sent = self.fleet.flower("POST", f"/api/task/async-apply/{TASK}", {"kwargs": {"force": True}})
        assert status == 200
        info = f"/api/task/info/{sent['task-id']}"
        wait_until(lambda: self.fleet.flower("GET", info)[1].get("state") == "SUCCESS", what="the run by Flower")
        queues = self.fleet.flower("GET", "/api/queues/length")
        assert queues == (
            200,
            {"active_queues": [{"name": name, "messages": 0} for name in (QUEUE, SCAN_QUEUE, UPDATE_QUEUE)]},
        )

        run = ask(web, "POST", "/runs", b'{"force": true}')["id"]
        wait_until(lambda: ask(web, "GET", f"/runs/{run}")["state"] == "done", what="the run by the web")
        wait_until(lambda: ask(web, "GET", "/status")["origin"] == "redis", what="the web to read Redis")
        assert ask(web, "GET", "/predictions")["count"] == 1

        def lives() -> set[tuple[str, bool]]:
            return {(each["kind"], each["is_alive"]) for each in ask(web, "GET", "/status")["processes"]}

        wait_until(lambda: lives() == {("worker", True), ("beat", True)}, what="the heartbeats of worker and beat")

        engine = replace(self.settings, redis_url=self._cache_url_of("engine"), broker_url=self._url_of("sender"))
        for number in range(2):
            record = {"symbol": "TSLA", **a_record(confidence=0.9 + number / 100)}
            accepted = publish([record], settings=engine, wait_s=20)
            wait_until(lambda: ask(web, "GET", "/predictions")["count"] == 2, what="the update in the web")
            removed = publish(remove=["TSLA"], settings=engine, wait_s=20)
            assert (removed.version or 0) > (accepted.version or 0)
            wait_until(lambda: ask(web, "GET", "/predictions")["count"] == 1, what="the removal in the web")
        kwargs = {"records": {"TSLA": a_record(confidence=2)}, "remove": ["TSLA"]}
        status, sent = self.fleet.flower("POST", "/api/task/async-apply/tasks.update_predictions", {"kwargs": kwargs})
        info = f"/api/task/info/{sent['task-id']}"
        wait_until(lambda: self.fleet.flower("GET", info)[1].get("state") == "SUCCESS", what="the update by Flower")

        for kind in KINDS:
            with ExitStack() as stack:
                reader = Open(stack, kind)(self.settings, "redis")
                assert reader.predictions().origin == "redis"
                assert reader.symbol("AAPL").value is not None
                assert [record.symbol for record in reader.top(3, 0).value] == ["AAPL"]
                assert reader.runs(3)

        shown = rolling_optimizer(self._directory, "status", **self.urls("sender"))
        assert (shown.returncode, "from redis" in shown.stdout) == (0, True), shown.stderr
        shown = rolling_optimizer(self._directory, "config", **self.urls("sender"))
        assert shown.stdout.count(" answers") == 2, shown.stderr


def ask(web: WebServer, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
    """Send a request with the token to the web; return the decoded response."""
    login = {"Authorization": f"Bearer {TOKEN}"}
    request = urllib.request.Request(f"http://127.0.0.1:{web.port}{path}", body, login, method=method)
    with urllib.request.urlopen(request, timeout=10) as answer:
        content: dict[str, Any] = json.loads(answer.read())
        return content


def celery_inspect(environ: dict[str, str], asked: str = "ping") -> str:
    """Return what `celery inspect` prints."""
    command = [sys.executable, "-m", "celery", "-A", "tasks", "inspect", asked, "-t", "2"]
    done = run(command, os.environ | environ, ROOT, 60.0)
    return done.stdout + done.stderr
