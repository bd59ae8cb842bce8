"""OpenTelemetry's own instrumentation of Celery and Redis: one trace from the sender of a run to its publish.

Sender and worker are processes of their own, as a team runs them; both append their spans to a file.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from opentelemetry.instrumentation.redis import RedisInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from optimizer import Settings
from optimizer.cache import lock as lock_module
from optimizer.cache.client import CacheClient
from optimizer.cache.lock import SourceLock
from tests.support.compose import ROOT
from tests.support.fork_server import run, spawn
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.rolling_files import a_record, write_json

TRACING: Final = """
import os
from opentelemetry import trace
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.instrumentation.redis import RedisInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

def instrument(**_):
    out = open(f"spans-{os.getpid()}.jsonl", "a", buffering=1)
    exporter = ConsoleSpanExporter(out=out, formatter=lambda span: span.to_json(indent=None) + "\\n")
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    CeleryInstrumentor().instrument()
    RedisInstrumentor().instrument()
"""
WORKER: Final = """
from celery.signals import worker_process_init
from tasks import app
from tracing import instrument
worker_process_init.connect(instrument, weak=False)
"""
SENDER: Final = """
import time
from tracing import instrument
instrument()
from opentelemetry import trace
from tasks.sender import CelerySender
sender = CelerySender()
with trace.get_tracer("a backend").start_as_current_span("POST /runs"):
    run = sender.send(force=True, accept=False, source="rolling")
    while sender.state(run).state in ("pending", "running"):
        time.sleep(0.05)
    assert sender.state(run).state == "done", sender.state(run)
"""


@dataclass(frozen=True)
class Span:
    """A span that a process has written to its file."""

    name: str
    id: str
    parent: str | None
    trace: str
    process: str

    @classmethod
    def of(cls, process: str, line: str) -> Span:
        """Decode a line that a process has written."""
        span: dict[str, Any] = json.loads(line)
        context = span["context"]
        return cls(span["name"], context["span_id"], span["parent_id"], context["trace_id"], process)


@contextmanager
def a_worker(directory: Path, environ: dict[str, str]) -> Iterator[None]:
    """Start a prefork worker with two children, wait until it takes tasks, and end it afterwards."""
    log = directory / "worker.log"
    with log.open("w") as output:
        command = [sys.executable, "-m", "celery", "-A", "worker", "worker", "--loglevel", "INFO", "--without-mingle"]
        process = spawn(command, environ, directory, output)
    try:
        wait_until(lambda: " ready." in log.read_text() or process.poll() is not None, limit_s=60, what="the worker")
        yield
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pattern", "tasks"),
    [
        ("a.json.gz", ["optimize_rolling_data"]),
        ("*.json.gz", ["merge_rolling_parts", "optimize_rolling_data", "scan_rolling_part", "scan_rolling_part"]),
    ],
    ids=["a file", "two parts"],
)
def test_a_run_is_one_trace(tmp_path: Path, settings: Settings, pattern: str, tasks: list[str]) -> None:
    """Each task's span is in the trace of its sender, and the Redis commands of a run are children of its tasks."""
    for part in "ab":
        write_json(tmp_path / "in" / f"{part}.json.gz", {part: a_record()})
    environ = os.environ | {
        "ROLLING_INPUT": str(tmp_path / "in" / pattern),
        "ROLLING_SOURCE": "rolling",
        "ROLLING_OUTPUT_DIR": str(settings.output_dir),
        "ROLLING_REDIS_URL": settings.redis_url,
        "PYTHONPATH": f"{tmp_path}:{ROOT}",
    }
    for name, program in (("tracing", TRACING), ("worker", WORKER), ("sender", SENDER)):
        (tmp_path / f"{name}.py").write_text(program)
    with a_worker(tmp_path, environ):
        done = run([sys.executable, "sender.py"], environ, tmp_path)
        assert done.returncode == 0, done.stderr + (tmp_path / "worker.log").read_text()

    spans = [Span.of(path.name, line) for path in tmp_path.glob("spans-*") for line in path.read_text().splitlines()]
    [root] = [span for span in spans if span.name == "POST /runs"]
    runs = [span for span in spans if span.name.startswith("run/")]
    assert sorted(span.name.removeprefix("run/tasks.") for span in runs) == tasks
    assert {span.trace for span in spans} == {root.trace}

    by_id = {span.id: span for span in spans}

    def is_below(span: Span, above: list[Span]) -> bool:
        while span.parent is not None:
            span = by_id[span.parent]
            if span in above:
                return True
        return False

    assert all(is_below(span, [root]) for span in runs)
    of_worker = [span for span in spans if span.process != root.process and span not in runs]
    assert {"HGETALL", "EVAL", "TIME", "XADD XADD HINCRBY LLEN"} <= {span.name for span in of_worker}
    assert [span for span in of_worker if not is_below(span, runs)] == []


def test_the_extensions_of_a_lock_are_in_the_trace_of_its_run(
    settings: Settings, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands that extend a lock are in the trace of its run, since the thread that sends them has its context."""
    monkeypatch.setattr(lock_module, "LOCK_EXTEND_S", 0.02)
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    cache = CacheClient(redis_server.url, settings.source, settings.interval_s)
    # Only this client: threads that other tests left in the process have clients, too.
    RedisInstrumentor.instrument_client(cache.connection, tracer_provider=provider)
    try:
        with (
            provider.get_tracer("tests").start_as_current_span("a run") as run,
            SourceLock(cache).acquire() as held,
        ):
            assert held.held
            wait_until(lambda: len(exporter.get_finished_spans()) > 6, what="some extensions")
    finally:
        cache.close()
    commands = [span for span in exporter.get_finished_spans() if span.name != "a run"]
    assert {span.parent and span.parent.span_id for span in commands} == {run.get_span_context().span_id}
