"""Spans of OpenTelemetry for a run, its parts and a reader's refresh; without `ROLLING_TRACES` there are none."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from optimizer import AsyncSnapshotReader, Settings, SnapshotReader
from optimizer.config import tracing
from optimizer.errors import SettingsInvalid, SourceMissing
from optimizer.pipeline.assignment import Assignment, Dispatcher
from optimizer.pipeline.distributed import merge_parts, scan_one_part
from optimizer.pipeline.run import optimize, run_source
from tests.support.rolling_files import a_record, write_json

STEPS: Final = ["look", "scan", "select", "write", "publish"]
# A run and a reader where the package cannot be imported.
PROGRAM: Final = """
import sys
sys.modules["opentelemetry"] = None
from optimizer import Settings, SnapshotReader
from optimizer.pipeline.run import optimize
settings = Settings.from_env({"ROLLING_INPUT": sys.argv[1], "ROLLING_OUTPUT_DIR": sys.argv[2]})
assert optimize(settings, use_cache=False).status == "success"
reader = SnapshotReader.from_settings(settings)
reader.refresh()
reader.close()
Settings.from_env({"ROLLING_TRACES": "on"})
"""


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """An exporter that keeps the spans in memory, with a provider of the test's own."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_tracer", None)
    tracing.enable(provider)
    yield exporter
    provider.shutdown()


@pytest.fixture
def traced(settings: Settings) -> Settings:
    """Settings with traces switched on."""
    return replace(settings, traces="on")


def test_a_run_is_a_span_with_its_steps(traced: Settings, exporter: InMemorySpanExporter) -> None:
    """A run is a span, and its steps are spans below it, one after another; an unchanged input has only `look`."""
    write_json(traced.input, {"AAPL": a_record(), "MSFT": a_record()})
    report = optimize(traced)
    run, *steps = by_start(exporter)
    assert [span.name for span in (run, *steps)] == [f"rolling.{name}" for name in ("run", *STEPS)]
    assert {span.parent.span_id for span in steps if span.parent} == {run.context.span_id}
    assert about(run) == {"source": traced.source, "status": "success", "version": report.version}
    assert about(steps[1])["records"] == 2
    assert about(steps[4]) == {"version": report.version, "cache": "published"}
    assert all(first.end_time <= then.start_time for first, then in pairwise(steps))

    exporter.clear()
    optimize(traced)
    run, look = by_start(exporter)
    assert (about(run)["status"], look.name) == ("unchanged", "rolling.look")


def test_a_run_that_fails_has_the_error_in_its_step(traced: Settings, exporter: InMemorySpanExporter) -> None:
    """If a run fails, the spans of the run and of the failed step have the status error and the exception."""
    with pytest.raises(SourceMissing):
        optimize(traced)
    run, look = by_start(exporter)
    for span in (run, look):
        assert span.status.status_code == StatusCode.ERROR
        assert [event.attributes["exception.type"] for event in span.events] == ["optimizer.errors.SourceMissing"]


def test_parts_that_are_scanned_elsewhere_have_spans(
    tmp_path: Path, traced: Settings, exporter: InMemorySpanExporter
) -> None:
    """The scan of each part is a span with the part's location, and the merge is a span of a run without a `look`."""
    for part in "ab":
        write_json(tmp_path / "in" / f"{part}.json.gz", {part: a_record()})
    settings = replace(traced, input=tmp_path / "in" / "*.json.gz")
    sent: list[Assignment] = []
    assert run_source(settings, Dispatcher("7", sent.append, lambda _run, _error: None)) is None
    [assignment] = sent
    exporter_before = [span.name for span in by_start(exporter)]
    outcomes = [scan_one_part(settings, assignment.token, part.location) for part in assignment.parts]
    merge_parts(settings, assignment.token, outcomes)

    spans = by_start(exporter)[len(exporter_before) :]
    assert exporter_before == ["rolling.run", "rolling.look"]
    assert [span.name.removeprefix("rolling.") for span in spans] == ["scan", "scan", "run", *STEPS[2:]]
    assert [about(span)["part"] for span in spans[:2]] == [part.location for part in assignment.parts]
    assert about(by_start(exporter)[0])["run_id"] == "7"


def test_a_refresh_of_a_reader_is_a_span(traced: Settings, exporter: InMemorySpanExporter) -> None:
    """A refresh is a span with source, version and origin; a reader whose settings have traces off makes no spans."""
    write_json(traced.input, {"AAPL": a_record()})
    report = optimize(traced)
    exporter.clear()
    with closing(SnapshotReader.from_settings(replace(traced, traces="off"))) as reader:
        reader.refresh()
    assert not exporter.get_finished_spans()
    with closing(SnapshotReader.from_settings(traced)) as reader:
        reader.refresh()
    first = by_start(exporter)[0]
    assert first.name == "rolling.refresh"
    assert about(first) == {"source": traced.source, "version": report.version, "origin": "redis"}
    assert AsyncSnapshotReader.from_settings(traced).follower.traces


def test_without_the_setting_nothing_is_imported(tmp_path: Path) -> None:
    """Without `ROLLING_TRACES`, neither a run nor a reader imports OpenTelemetry.

    With it, a missing package is an error that names the package and the extra that installs it.
    """
    write_json(tmp_path / "in.json", {"AAPL": a_record()})
    command = [sys.executable, "-c", PROGRAM, f"{tmp_path}/in.json", f"{tmp_path}/out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == (
        f"{SettingsInvalid.__module__}.SettingsInvalid: ROLLING_TRACES=on needs opentelemetry, which is not installed: "
        "pip install 'rolling-optimizer[otel]'"
    )


def by_start(exporter: InMemorySpanExporter) -> Sequence[Any]:
    """The spans in the order in which they began."""
    spans: list[ReadableSpan] = list(exporter.get_finished_spans())
    return sorted(spans, key=lambda span: (span.start_time or 0, span.name != "rolling.run"))


def about(span: Any) -> dict[str, Any]:
    """The attributes of a span, without their prefix."""
    return {name.removeprefix(tracing.PREFIX): value for name, value in span.attributes.items()}
