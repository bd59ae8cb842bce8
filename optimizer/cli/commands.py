"""The commands that need no Celery: `run`, `sample`, `bench`, `status`, `config`, `web`.

Exit status: 0 for success, unchanged and skipped; 1 for a run that failed or a snapshot that is too old, with one line
on stderr that says what, where and what to do; 2 for wrong usage.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from optimizer.cache.server_checks import check_broker, check_cache
from optimizer.cli.bench import compare, table
from optimizer.cli.dev.sample import SHAPES, write_sample
from optimizer.config.environment import FILE_SUFFIX, variables_of, without_sources
from optimizer.config.redis_url import redact_url
from optimizer.config.settings import ENGINES, Settings, variable_name
from optimizer.errors import CacheUnavailable, RollingError, SettingsInvalid, SnapshotMissing
from optimizer.models import Report
from optimizer.pipeline.run import Progress, failed_report, optimize
from optimizer.reader.reader import SnapshotReader
from optimizer.reader.results import describe_rejected
from optimizer.scan.engine import choose_engine
from optimizer.selection.acceptance import describe_tally
from optimizer.source.opener import expand

__all__ = [
    "CommandGroup",
    "accept_option",
    "commands",
    "describe",
    "settings_or_usage_error",
    "source_option",
    "usage_errors",
]


RUNS_SHOWN: Final = 5
RUNS_READ: Final = 100  # among which the last one that was not skipped is looked for


class CommandGroup(click.Group):
    """A group whose commands end with one line, not with a traceback, when one of our errors comes up."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; exit 1 on a `RollingError`."""
        try:
            return super().invoke(ctx)
        except RollingError as error:
            click.echo(f"rolling-optimizer: {type(error).__name__}: {error}", err=True)
            ctx.exit(1)


def source_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option of every command that is about one source."""
    return click.option("--source", metavar="NAME", help="Which of several sources. [ROLLING_SOURCES]")(command)


def accept_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option of every command that makes a run."""
    text = "Publish though too many records or bots are rejected, this once."
    return click.option("--accept", is_flag=True, help=text)(command)


def settings_or_usage_error(source: str | None = None, **options: Any) -> Settings:
    """Settings from the environment, with options in place of variables; `None` leaves a variable as it is.

    An `input` stands for itself: then the sources of the environment are left aside.

    Raises:
        click.UsageError: A value cannot be used, or there is no such source.
    """
    given = {variable_name(name): str(value) for name, value in options.items() if value is not None}
    environ = without_sources(os.environ) if variable_name("input") in given else os.environ
    with usage_errors():
        return Settings.from_env({**environ, **given}, source, strict=True)


@contextmanager
def usage_errors() -> Iterator[None]:
    """Settings that cannot be used are wrong usage."""
    try:
        yield
    except SettingsInvalid as error:
        raise click.UsageError(str(error)) from None


def describe(report: Report) -> str:
    """A report as a few lines for a person."""
    lines = [f"{report.status}: " + (report.reason or f"version {report.version}, cache {report.cache}")]
    if report.status == "failed":
        lines = [f"failed: {report.error}: {report.details}"]
    stats = report.stats
    if stats:
        lines.append(
            f"  {stats.predictions_extracted:,} predictions of {stats.records_seen:,} records "
            f"({stats.records_rejected:,} rejected, {stats.duplicates:,} duplicates), {stats.bots_processed:,} bots"
            f"{f' ({stats.bots_rejected:,} rejected)' if stats.bots_rejected else ''}, "
            f"{stats.portfolio_holdings:,} holdings"
        )
        lines.append(
            f"  {stats.json_bytes / 1e6:,.1f} MB of JSON ({stats.input_bytes / 1e6:,.1f} MB compressed) in "
            f"{stats.seconds:.2f} s: {stats.json_mb_per_s:,.0f} MB/s, peak memory {stats.peak_rss_mb:.0f} MB, "
            f"engine {stats.engine}"
        )
        if stats.symbols_ignored:
            lines.append(f"  {stats.symbols_ignored:,} records name another symbol than the key under which they stand")
    else:
        lines += [f"  {told}" for told in describe_rejected(report.rejected)]
    lines += [f"  rejected {describe_tally(tally)}" for tally in report.rejects]
    return "\n".join(lines)


@click.group(cls=CommandGroup)
def commands() -> None:
    """Small, fresh snapshots from one big rolling file."""


@commands.command()
@source_option
@click.option("--input", metavar="PATH|URL", help="The rolling file, or a pattern. [ROLLING_INPUT]")
@click.option("--output-dir", metavar="PATH|URL", help="Where snapshots are written. [ROLLING_OUTPUT_DIR]")
@click.option("--bots-dir", type=click.Path(path_type=Path), help="One JSON file a bot. [ROLLING_BOTS_DIR]")
@click.option("--top", type=int, help="Predictions to keep. [ROLLING_TOP_SYMBOLS_LIMIT]")
@click.option("--min-confidence", type=float, help="Lowest confidence to keep, 0 to 1. [ROLLING_MIN_CONFIDENCE]")
@click.option("--engine", type=click.Choice(ENGINES), help="How the file is scanned. [ROLLING_ENGINE]")
@click.option("--no-cache", is_flag=True, help="Write files only; Redis is not needed.")
@click.option("--force", is_flag=True, help="Scan though nothing changed.")
@accept_option
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON, alone.")
def run(no_cache: bool, force: bool, accept: bool, as_json: bool, top: int | None, **options: Any) -> None:
    """Do one run in this process."""
    settings = settings_or_usage_error(top_symbols_limit=top, **options)
    with usage_errors():
        choose_engine(settings.engine)
    try:
        with _progress_bar(shown=sys.stderr.isatty() and not as_json) as progress:
            report = optimize(settings, force=force, accept=accept, use_cache=not no_cache, progress=progress)
    except RollingError as error:
        if as_json:
            click.echo(msgspec.json.encode(failed_report(settings, error)))
        raise
    click.echo(msgspec.json.encode(report) if as_json else describe(report))


@commands.command()
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--symbols", default=2000, show_default=True, type=click.IntRange(0), help="Number of records.")
@click.option("--points", default=240, show_default=True, type=click.IntRange(0), help="History objects in a record.")
@click.option("--bots", default=12, show_default=True, type=click.IntRange(0), help="Number of bots.")
@click.option("--shape", default="map", show_default=True, type=click.Choice(SHAPES), help="How records are laid out.")
@click.option("--seed", default=1, show_default=True, help="The same seed gives the same file.")
@click.option("--indent", is_flag=True, help="Pretty-print.")
@click.option("--lean", is_flag=True, help="Records of about 1.1 KB besides their history, not 3.5 KB.")
@click.option("--nan", is_flag=True, help="NaN and -Infinity for target and stop, as Python writes them.")
def sample(path: Path, **options: Any) -> None:
    """Write a rolling file as a prediction engine writes it; gzipped if PATH ends in .gz."""
    try:
        json_bytes = write_sample(path, **options)
    except OSError as error:
        raise click.ClickException(f"{error.filename or path}: {error.strerror or error}") from error
    click.echo(f"{path}: {json_bytes / 1e6:,.1f} MB of JSON, {path.stat().st_size / 1e6:,.1f} MB on disk")


@commands.command()
@source_option
@click.argument("path", required=False, metavar="[PATH|URL]")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="How often each way is measured.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON, alone.")
def bench(source: str | None, path: str | None, rounds: int, as_json: bool) -> None:
    """Does a file fit into the interval here? Measures inflate alone, the scan and a whole run.

    PATH or URL is the file, by default that of ROLLING_INPUT. Files and keys of real runs are not touched.
    """
    settings = settings_or_usage_error(source, input=path)
    if expand(settings.input) != [settings.input]:
        raise click.UsageError(f"{settings.input} names many files, and one is measured; give its PATH")
    with _one_line(shown=sys.stderr.isatty() and not as_json) as tell:
        comparison = compare(settings, rounds=rounds, tell=tell)
    click.echo(msgspec.json.encode(comparison) if as_json else table(comparison))


@commands.command()
@source_option
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.option("--max-age", type=float, metavar="S", help="Exit 1 if no run has made or confirmed it for S seconds.")
def status(source: str | None, as_json: bool, max_age: float | None) -> None:
    """Show the current version, its age, the last runs, the last scan; with --max-age, a health check."""
    reader = SnapshotReader.from_settings(settings_or_usage_error(source))
    state = reader.manifest()
    recent = reader.runs(RUNS_READ)
    runs = recent[:RUNS_SHOWN]
    last = next((run for run in recent if run.status != "skipped"), None)
    failure = last if last is not None and last.status == "failed" else None
    if failure is not None and failure not in runs:
        runs.append(failure)
    if all(run.status != "success" for run in runs):
        runs += reader.runs(1, status="success")
    if as_json:
        click.echo(msgspec.json.encode({**msgspec.to_builtins(state), "runs": runs}))
    else:
        click.echo(
            f"version {state.version}, made {state.generated_at}, confirmed {state.age_s:.0f} s ago, "
            f"from {state.origin}"
        )
        for told in describe_rejected(state.rejected):
            click.echo(f"  {told}")
        for report in runs:
            click.echo(f"{report.timestamp} {describe(report)}")
    if max_age is not None and state.age_s > max_age:
        cause = "is the worker running, and is beat?" if failure is None else f"the last run {describe(failure)}."
        raise SnapshotMissing(
            f"the snapshot was last confirmed {state.age_s:.0f} s ago, more than {max_age:g} s: {cause} "
            "The last runs are shown by: rolling-optimizer status"
        )


@commands.command()
def config() -> None:
    """Show the settings in force, secrets as ***, and try on both Redis what is needed there."""
    with usage_errors():
        every = Settings.every_from_env(os.environ, strict=True)
    for settings in every:
        if len(every) > 1:
            click.echo(f"source {settings.source}:")
        shown = settings.redacted()
        width = max(map(len, shown))
        for name, value in shown.items():
            variables = variables_of(name, settings.source)
            in_file = os.environ.get(name + FILE_SUFFIX)
            origin = "environment" if any(map(os.environ.get, variables)) else "file" if in_file else "default"
            click.echo(f"{name:<{width}}  {value or '-':<40}  {origin}")
    problems = []
    checks: list[tuple[str, str, Callable[[str, str], list[str]], str]] = [
        *(("cache", settings.redis_url, check_cache, settings.source) for settings in every),
        ("broker", every[0].broker_url, check_broker, every[0].source),
    ]
    lines = []
    for role, url, check, source in checks:
        try:
            lines.append("; ".join([f"{role}: {redact_url(url)} answers", *check(url, source)]))
        except CacheUnavailable as error:
            problems.append(f"{role}: {error}")
    for line in dict.fromkeys(lines):  # of many sources in one Redis once
        click.echo(line)
    if problems:
        raise CacheUnavailable("; ".join(dict.fromkeys(problems)))


@commands.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65_535), help="0 for one that is free.")
@click.pass_context
def web(ctx: click.Context, host: str, port: int) -> None:
    """Serve the snapshots and the dashboard over HTTP, until Ctrl-C: of each source at /sources/NAME/."""
    try:
        from optimizer.web.serve import serve  # noqa: PLC0415 - FastAPI is an extra, and takes half a second
    except ModuleNotFoundError as error:
        raise click.UsageError(f"no {error.name} here; pip install 'rolling-optimizer[web]'") from error
    with usage_errors():
        every = Settings.every_from_env(os.environ, strict=True)
    try:
        # Who knows the fleet hands in what sends a run to it.
        serve(every, host=host, port=port, trigger=ctx.obj, started=click.echo)
    except OSError as error:
        raise click.ClickException(f"{host}:{port}: {error.strerror or error}") from error


@contextmanager
def _one_line(*, shown: bool) -> Iterator[Callable[[str], None]]:
    """A line on stderr that each text replaces, and that is gone at the end."""

    def tell(text: str) -> None:
        click.echo(f"\r{text:<60}", nl=False, err=True)

    yield tell if shown else lambda _: None
    if shown:
        tell("")
        click.echo("\r", nl=False, err=True)


@contextmanager
def _progress_bar(*, shown: bool) -> Iterator[Progress | None]:
    """A bar over the compressed bytes, on stderr."""
    if not shown:
        yield None
        return
    with click.progressbar(length=1, label="scanning", file=sys.stderr) as bar:

        def report(done_bytes: int, total_bytes: int) -> None:
            bar.length = max(1, total_bytes)
            bar.update(done_bytes - bar.pos)

        yield report
