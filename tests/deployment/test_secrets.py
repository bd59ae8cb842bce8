"""No secret is in any output of the fleet."""

from __future__ import annotations

import base64
import gzip
import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Final, cast
from urllib.parse import quote, urlencode

import pytest

from optimizer import Settings
from optimizer.storage.location import Url
from tests.support.acl_users import REFUSED_TO_CONFIG, forms_of, password, secrets_in
from tests.support.command import rolling_optimizer
from tests.support.fleet import FLOWER_LOGIN, Fleet
from tests.support.redis_servers import RedisServer, wait_until, written
from tests.support.rolling_files import a_record
from tests.support.web_apps import WebServer
from tests.support.web_server import Pages, serving
from tests.support.whole_fleet import FAST_TICKS, TOKEN, UrlOf, WholeFleet, ask, celery_inspect

pytestmark = [pytest.mark.slow, pytest.mark.no_fork]


def test_no_secret_is_in_any_output(tmp_path: Path, own_redis: RedisServer, guarded: UrlOf) -> None:
    """Passwords, token and login are in no log, report, message, result, event, response, page or command line.

    This holds before, during and after a loss of Redis, with the worker's log level at DEBUG.
    """
    seen: dict[str, bytes] = {}
    whole = WholeFleet(tmp_path, guarded, "--loglevel", "DEBUG")

    def look(when: str) -> None:
        """Collect the responses of the web and of Flower, the output of commands, and all command lines."""
        for path in ("/status", "/metrics", "/runs", "/openapi.json", "/page", "/nothing", "/predictions?limit=x", "/"):
            seen[f"web {path} {when}"] = web.get(path)[2]
        for method, path in (("POST", "/runs"), ("GET", "/runs/7e1f0a52-3f0e-4a35-9d0c-5b8f3c6a9e11")):
            try:
                seen[f"web {method} {path} {when}"] = json.dumps(ask(web, method, path)).encode()
            except urllib.error.HTTPError as error:
                with error:
                    seen[f"web {method} {path} {when}"] = error.read()
        for path in ("/workers", "/tasks", "/broker", "/metrics", f"/worker/{worker}", "/api/workers?refresh=1"):
            status, seen[f"Flower {path} {when}"] = whole.fleet.flower_page("GET", path)
            assert when == "away" or status == 200, path
        for command in ("config", "status", "trigger"):
            done = rolling_optimizer(tmp_path, command, **whole.urls("sender"), ROLLING_TRIGGER_TOKEN=TOKEN)
            seen[f"{command} {when}"] = (done.stdout + done.stderr).encode()
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                seen[str(process)] = process.read_bytes()

    with whole.running() as web:
        with own_redis.client as admin, admin.pubsub() as everything:
            everything.psubscribe("*")
            worker = next(iter(whole.fleet.flower("GET", "/api/workers?refresh=1")[1]))
            seen["settings by remote control"] = celery_inspect(whole.urls("flower"), "conf").encode()
            whole.check(web)
            look("up")
            while message := everything.get_message():
                seen[f"published {len(seen)}"] = repr(message).encode()
            before = whole.fleet.runs()[0].timestamp
            own_redis.kill()
        look("away")
        lost = len(whole.fleet.lines)
        wait_until(lambda: len(whole.fleet.lines) > lost + 5, what="the loss to be told")
        own_redis.start(*own_redis.options)
        wait_until(lambda: [run for run in whole.fleet.runs() if run.timestamp > before], limit_s=60, what="a run")
        look("back")

    seen["lines of processes"] = "\n".join(whole.fleet.lines).encode()
    seen["lines of the web"] = web.log.read_bytes()
    seen["messages, results and reports"] = written(own_redis)
    with own_redis.client as admin:
        refused = {(entry["username"], entry["object"]) for entry in admin.acl_log()}

    assert b'"broker_url"' in seen["settings by remote control"]
    # Only `config` was refused commands: clients that reconnect send more commands than at their start, and may send
    # all of them.
    assert refused <= REFUSED_TO_CONFIG
    assert b"celery-task-meta-" in seen["messages, results and reports"]
    assert any(b"/0.celeryev/" in data for data in seen.values())
    assert {name: found for name, data in seen.items() if (found := secrets_in(data))} == {}


SIGNATURE: Final = "S1gnature/of+the=URL"
SIGNED: Final = urlencode({"X-Amz-Credential": "AKIAPLANTED", "X-Amz-Signature": SIGNATURE})
GOOD: Final = gzip.compress(json.dumps({"AAPL": a_record()}).encode())

# For each fault: how the web server is made to have it, and what the failed run then reports.
UNUSABLE: Final[dict[str, tuple[Callable[[Pages], None], str]]] = {
    "403": (lambda pages: setattr(pages, "status", 403), "access denied .403"),
    "404": (lambda pages: setattr(pages, "status", 404), "the server answers 404"),
    "500": (lambda pages: setattr(pages, "status", 500), "the server answers 500"),
    "cut": (lambda pages: setattr(pages, "cut_after", 40), "closed the connection after 40 of"),
    "torn": (lambda pages: setattr(pages, "data", GOOD[:-5]), "ends early"),
    "malformed": (lambda pages: setattr(pages, "data", b'{"AAPL":{"confidence":0.5,,}}'), "at byte"),
    "page": (lambda pages: setattr(pages, "data", b"<html>no</html>"), "it is HTML or XML"),
    "nothing": (lambda pages: setattr(pages, "data", b"{}"), "no usable record"),
}


def failed_with(fleet: Fleet, said: str) -> bool:
    """Return whether the report of the last failed run has this text."""
    return re.search(said, str(fleet.runs("failed")[:1])) is not None


def test_no_signature_of_an_inputs_url_is_in_any_output(tmp_path: Path, own_redis: RedisServer) -> None:
    """For any failure of the input, the signature in its URL is in no log, report, message, result, key or response.

    Nor is it in a file or in the output of a command; the worker logs at DEBUG.
    """
    seen: dict[str, bytes] = {}
    own_redis.start("--appendonly", "yes")
    with ExitStack() as server:
        pages = server.enter_context(serving())
        url = f"{pages.url}/rolling_brain.json.gz?{SIGNED}"
        settings = Settings(input=Url(url), output_dir=tmp_path / "out", redis_url=own_redis.url)
        variables = {
            "ROLLING_REDIS_URL": own_redis.url,
            "ROLLING_INPUT": url,
            "ROLLING_OUTPUT_DIR": str(tmp_path / "out"),
        }
        token = {"ROLLING_TRIGGER_TOKEN": TOKEN}

        def look(when: str) -> None:
            for path in ("/status", "/metrics", "/runs", "/page", "/predictions", "/"):
                seen[f"web {path} {when}"] = web.get(path)[2]
            run = ask(web, "POST", "/runs", b'{"force": true}')["id"]
            wait_until(
                lambda: ask(web, "GET", f"/runs/{run}")["state"] in ("done", "failed"), what="the run by the web"
            )
            seen[f"web /runs/ID {when}"] = json.dumps(ask(web, "GET", f"/runs/{run}")).encode()
            for command in (["config"], ["status"], ["run", "--force", "--no-cache"], ["trigger", "--force", "--wait"]):
                done = rolling_optimizer(tmp_path, *command, **variables)
                seen[f"{command} {when}"] = (done.stdout + done.stderr).encode()

        with Fleet(tmp_path, settings, **FAST_TICKS) as fleet, WebServer(tmp_path, settings, **token) as web:
            pages.data = GOOD
            fleet.start_worker("--loglevel", "DEBUG")
            fleet.start_beat()
            fleet.wait_for_runs(1, "success")
            for prepare, said in UNUSABLE.values():
                pages.data, pages.status, pages.cut_after = GOOD + gzip.compress(b" "), 200, None
                prepare(pages)
                wait_until(partial(failed_with, fleet, said), what=said)
            look("bad")
            server.close()
            wait_until(partial(failed_with, fleet, "connection refused"), what="the refusal")
            seen["web /runs refused"] = web.get("/runs")[2]
            fleet.stop()
        seen["lines of processes"] = "\n".join(fleet.lines).encode()
        seen["lines of the web"] = web.log.read_bytes()
    seen["keys and all that was written"] = written(own_redis)
    with own_redis.client as client:
        for key in cast("list[bytes]", [*client.scan_iter()]):
            seen[f"key {key!r}"] = key + cast("bytes", client.dump(key) or b"")
    for path in (tmp_path / "out").rglob("*.json*"):
        seen[str(path)] = path.read_bytes()

    assert b"?***" in seen["web /runs bad"]
    assert b"?***" in seen["lines of processes"]
    assert b"?***" in seen["['config'] bad"]
    assert any(b"celery-task-meta-" in data for data in seen.values())
    words = [form for word in (SIGNATURE, "AKIAPLANTED") for form in forms_of(word)] + [b"Signature"]
    assert {name: found for name, data in seen.items() if (found := [word for word in words if word in data])} == {}


def test_commands_take_secrets_from_files_and_say_so(tmp_path: Path, guarded: UrlOf) -> None:
    """`config` reads secrets from files, names where each setting comes from, and shows none of the secrets."""
    variables = {}
    for name, text in (("REDIS_URL", guarded("router")), ("BROKER_URL", guarded("worker")), ("TRIGGER_TOKEN", TOKEN)):
        (tmp_path / name).write_text(f"{text}\n")
        variables[f"ROLLING_{name}_FILE"] = str(tmp_path / name)

    done = rolling_optimizer(tmp_path, "config", **variables)

    assert done.stdout.count(" answers") == 2, done.stderr
    assert len(re.findall(r"[*]{3}.* file$", done.stdout, re.MULTILINE)) == 3
    assert secrets_in(done.stdout + done.stderr) == []


@pytest.mark.parametrize(
    "text",
    [
        f"redis://worker:{password('worker')}@host",
        f"redis://worker:{quote(password('worker'), safe='')}@host",
        json.dumps({"token": password("beat")}),
        *(base64.b64encode(f"{user}:{FLOWER_LOGIN.partition(':')[2]}".encode()) for user in ("a", "ab", "abc")),
    ],
)
def test_the_search_finds_what_it_looks_for(text: bytes | str) -> None:
    """`secrets_in` finds a secret in every form in which it may occur: plain, escaped for a URL, in JSON, in base64."""
    assert len(secrets_in(text)) == 1
