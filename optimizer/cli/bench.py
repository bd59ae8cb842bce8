"""`rolling-optimizer bench`: how fast this machine reads a file, as a ratio to the limit, the time to inflate it.

Each measurement of `optimizer.cli.measure` runs in its own process, in turn, over several rounds, so that a machine
that slows down affects all of them alike.
"""

from __future__ import annotations

import os
import secrets
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click
import msgspec

from optimizer.cache.client import connect, translated_errors
from optimizer.cache.keys import Keys
from optimizer.cli.compression import compare_compression
from optimizer.cli.compression_table import compression_table
from optimizer.cli.measure import WAYS, Measured, measure
from optimizer.cli.options import settings_or_usage_error, source_option
from optimizer.config.environment import PREFIX, with_secrets, without_sources
from optimizer.config.settings import Settings
from optimizer.errors import CacheUnavailable
from optimizer.scan.engine import choose_engine
from optimizer.source.opener import expand, open_input_file
from optimizer.storage.location import spelled

__all__ = ["Comparison", "Row", "bench", "compare", "rows_of", "table"]

ROUNDS: Final = 3


class Row(msgspec.Struct, frozen=True):
    """One kind of measurement over all rounds: medians, and their ratios to `inflate`."""

    way: str
    json_mb_per_s: float
    wall_s: float
    cpu_s: float
    peak_mb: float
    wall_ratio: float
    cpu_ratio: float


class Comparison(msgspec.Struct, frozen=True):
    """All measurements of one file, and whether a run fits into the interval."""

    input: str
    input_bytes: int
    json_bytes: int
    engine: str
    cache: bool
    rows: list[Row]
    unchanged_ms: float
    interval_s: float
    interval_holds: bool


@click.command()
@source_option
@click.argument("path", required=False, metavar="[PATH|URL]")
@click.option(
    "--rounds", default=ROUNDS, show_default=True, type=click.IntRange(1), help="How often each way is measured."
)
@click.option("--compression", is_flag=True, help="Measure each way to compress the snapshots that are there.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON, alone.")
def bench(source: str | None, path: str | None, rounds: int, compression: bool, as_json: bool) -> None:
    """Measure whether a file fits into the interval here.

    It measures inflate alone, the scan and a whole run.

    PATH or URL is the file, by default ROLLING_INPUT. Files and keys of real runs are not touched.

    With --compression it measures isal, zlib, zlib-ng and zstd at each level on the snapshots of ROLLING_OUTPUT_DIR, or
    else of Redis: time, size, what clients download. It changes nothing.
    """
    if compression and path is not None:
        raise click.UsageError(f"--compression measures snapshots, not {path}: leave PATH out")
    settings = settings_or_usage_error(source, input=path)
    if compression:
        with _one_line(shown=sys.stderr.isatty() and not as_json) as tell:
            measured = compare_compression(settings, rounds=rounds, tell=tell)
        click.echo(msgspec.json.encode(measured) if as_json else compression_table(measured))
        return
    if expand(settings.input) != [settings.input]:
        raise click.UsageError(f"{settings.input} names many files, and one is measured; give its PATH")
    with _one_line(shown=sys.stderr.isatty() and not as_json) as tell:
        comparison = compare(settings, rounds=rounds, tell=tell)
    click.echo(msgspec.json.encode(comparison) if as_json else table(comparison))


def compare(settings: Settings, *, rounds: int = ROUNDS, tell: Callable[[str], None] = lambda _: None) -> Comparison:
    """Measure `settings.input` in every way.

    The snapshots go to a temporary directory and, if Redis answers, to the keys of a made-up source, which are deleted
    at the end.

    Args:
        settings: The file, the engine, the limits and Redis.
        rounds: The number of rounds.
        tell: Called with a line for each measurement.

    Raises:
        RollingError: The file cannot be read, or a way failed.
    """
    with open_input_file(settings.input) as source:
        input_bytes = source.size_bytes
    engine = choose_engine(settings.engine)
    cache = _redis_is_there(settings)
    taken: dict[str, list[Measured]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(prefix="rolling-bench-") as directory:
        keys = Keys(f"bench-{secrets.token_hex(4)}")
        environ = without_sources(with_secrets(os.environ)) | _variables(settings, Path(directory), keys.source)
        try:
            for number in range(rounds):
                for way in WAYS:
                    options = [] if cache else ["--no-cache"]
                    measured = measure(way, [sys.executable, "-m", "optimizer.cli.measure", way, *options], environ)
                    taken[way].append(measured)
                    tell(f"round {number + 1} of {rounds}: {way}: {measured.wall_s:.2f} s")
        finally:
            if cache:
                _delete_keys(settings, keys)
    rows = rows_of(taken)
    run = rows[WAYS.index("run")]
    return Comparison(
        input=str(settings.input),
        input_bytes=input_bytes,
        json_bytes=taken["inflate"][0].json_bytes,
        engine=engine.name,
        cache=cache,
        rows=rows,
        unchanged_ms=statistics.median(one.unchanged_ms or 0.0 for one in taken["run"]),
        interval_s=settings.interval_s,
        interval_holds=run.wall_s <= settings.interval_s,
    )


def rows_of(taken: Mapping[str, Sequence[Measured]], *, limit: str = "inflate") -> list[Row]:
    """Return the medians of each way, and their ratios to the way `limit`."""

    def median(way: str, name: str) -> float:
        return float(statistics.median(getattr(one, name) for one in taken[way]))

    limit_wall_s, limit_cpu_s = median(limit, "wall_s"), median(limit, "cpu_s")
    return [
        Row(
            way=way,
            json_mb_per_s=round(taken[way][0].json_bytes / 1e6 / median(way, "wall_s"), 1),
            wall_s=round(median(way, "wall_s"), 3),
            cpu_s=round(median(way, "cpu_s"), 3),
            peak_mb=round(median(way, "peak_mb"), 1),
            wall_ratio=round(median(way, "wall_s") / limit_wall_s, 2),
            cpu_ratio=round(median(way, "cpu_s") / limit_cpu_s, 2),
        )
        for way in taken
    ]


def table(comparison: Comparison) -> str:
    """Format a comparison as a table."""
    sizes = f"{comparison.json_bytes / 1e6:,.1f} MB of JSON, {comparison.input_bytes / 1e6:,.1f} MB on disk"
    outputs = "files and Redis" if comparison.cache else "files only: no Redis answers"
    lines = [
        f"{comparison.input}: {sizes}; engine {comparison.engine}, {outputs}",
        f"{'':<8} {'MB/s':>7} {'wall s':>8} {'CPU s':>8} {'peak MB':>8} {'wall':>7} {'CPU':>7}",
    ]
    for row in comparison.rows:
        lines.append(  # noqa: PERF401 - a comprehension of these lines is harder to read
            f"{row.way:<8} {row.json_mb_per_s:>7,.0f} {row.wall_s:>8.2f} {row.cpu_s:>8.2f} {row.peak_mb:>8.0f} "
            f"{row.wall_ratio:>6.2f}x {row.cpu_ratio:>6.2f}x"
        )
    run_s = comparison.rows[-1].wall_s
    verdict = "fits" if comparison.interval_holds else "DOES NOT FIT"
    lines.append(f"a run of {run_s:.2f} s {verdict} into the interval of {comparison.interval_s:g} s")
    lines.append(f"a tick that finds nothing changed takes {comparison.unchanged_ms:.1f} ms")
    return "\n".join(lines)


def _variables(settings: Settings, directory: Path, source: str) -> dict[str, str]:
    """Return the variables of a run that writes to this directory, and to Redis under this source's name."""
    return {
        f"{PREFIX}INPUT": spelled(settings.input),
        f"{PREFIX}OUTPUT_DIR": str(directory),
        f"{PREFIX}SOURCE": source,
        f"{PREFIX}REDIS_URL": settings.redis_url,
        f"{PREFIX}ENGINE": settings.engine,
        f"{PREFIX}FIELDS": settings.fields,
        f"{PREFIX}BOT_FIELDS": settings.bot_fields,
        f"{PREFIX}POSITION_FIELDS": settings.position_fields,
    }


def _redis_is_there(settings: Settings) -> bool:
    try:
        with translated_errors(settings.redis_url), connect(settings.redis_url, timeout_s=1.0) as client:
            client.scan(count=1)  # an ACL may forbid SCAN, without which the keys could not be found and deleted
            return True
    except CacheUnavailable:
        return False


def _delete_keys(settings: Settings, keys: Keys) -> None:
    with (
        translated_errors(settings.redis_url),
        connect(settings.redis_url, timeout_s=5.0, source=keys.source) as client,
    ):
        for key in client.scan_iter(match=keys.every, count=1000):
            client.unlink(key)


@contextmanager
def _one_line(*, shown: bool) -> Iterator[Callable[[str], None]]:
    """Yield a function that replaces the text shown on stderr; at the end the text is removed."""

    def tell(text: str) -> None:
        click.echo(f"\r{text:<60}", nl=False, err=True)

    yield tell if shown else lambda _: None
    if shown:
        tell("")
        click.echo("\r", nl=False, err=True)
