"""`rolling-optimizer versions`, `rollback` and `unpin`: list the kept versions, go back to one, and resume."""

from __future__ import annotations

from typing import Any, Final

import click
import msgspec

from optimizer.cli.options import settings_or_usage_error, source_option
from optimizer.cli.report import paint
from optimizer.config.settings import Settings
from optimizer.log import printable
from optimizer.models import ChangeCounts, KindCounts, Manifest
from optimizer.pipeline import rollback as pipeline
from optimizer.snapshots.format import KeptVersion
from optimizer.snapshots.store import snapshot_store

__all__ = ["rollback", "unpin", "versions"]

COLUMNS: Final = ("version", "made", "predictions", "bots", "holdings", "changed", "by", "")

wait_option = click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(min=0),
    metavar="S",
    help="How long to wait for a run in progress; by default as long as a run may take.",
)


@click.command()
@source_option
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def versions(source: str | None, as_json: bool) -> None:
    """List the versions that are kept in the files, newest first.

    Redis is not asked.
    """
    settings = settings_or_usage_error(source)
    store = snapshot_store(settings.output_dir)
    kept, current = store.versions(), store.read_manifest()
    newest = 0 if current is None else current.version
    if as_json:
        listed = [_listed(each, is_current=each.version == newest) for each in kept]
        shown = {"source": settings.source, "output_dir": str(settings.output_dir), "versions": listed}
        click.echo(msgspec.json.encode(shown))
    elif not kept:
        click.echo(f"no version of {settings.source!r} is kept in {settings.output_dir}")
    else:
        _print_table([COLUMNS, *(_row(each, is_current=each.version == newest) for each in kept)])


@click.command()
@click.argument("version", type=int)
@source_option
@wait_option
def rollback(version: int, source: str | None, wait_s: float | None) -> None:
    """Publish a kept VERSION again as a new one, and pin it.

    No run replaces it until `unpin`.
    """
    settings = settings_or_usage_error(source)
    report = pipeline.rollback(settings, version, wait_s=wait_s, on_wait=lambda: _tell_wait(settings, wait_s))
    click.echo(paint(report))


@click.command()
@source_option
@wait_option
def unpin(source: str | None, wait_s: float | None) -> None:
    """Let runs publish again after `rollback`.

    The version stays until one does.
    """
    settings = settings_or_usage_error(source)
    report = pipeline.unpin(settings, wait_s=wait_s, on_wait=lambda: _tell_wait(settings, wait_s))
    click.echo(paint(report))


def _tell_wait(settings: Settings, wait_s: float | None) -> None:
    limit_s = settings.time_limit_s if wait_s is None else wait_s
    click.echo(f"a run of {settings.source} is on; waiting up to {limit_s:g} s for it to end", err=True)


def _listed(kept: KeptVersion, *, is_current: bool) -> dict[str, Any]:
    """Return a version as values for JSON; unknown values are null."""
    manifest = kept.manifest
    return {
        "version": kept.version,
        "current": is_current,
        "generated_at": manifest and manifest.generated_at,
        "counts": manifest and {kind: entry.count for kind, entry in manifest.snapshots.items()},
        "changes": manifest and manifest.changes,
        "rejected": manifest and manifest.rejected,
        "made_by": manifest and manifest.made_by,
        "restored_from": manifest and manifest.restored_from,
        "scan_version": manifest and manifest.scan_version,
        "pinned": manifest and manifest.pinned if is_current else None,
        "problem": kept.problem or None,
    }


def _row(kept: KeptVersion, *, is_current: bool) -> tuple[str, ...]:
    manifest = kept.manifest
    notes = ["current"] if is_current else []
    if kept.problem:
        notes.append(f"damaged: {kept.problem}")
    if manifest is None:
        return (str(kept.version), "", "", "", "", "", "", "; ".join(notes))
    if manifest.restored_from is not None:
        notes.append(f"restored from {manifest.restored_from}")
    if manifest.scan_version is not None:
        notes.append(f"updates since the scan {manifest.scan_version}")
    if manifest.pinned is not None and is_current:
        notes.append(manifest.pinned.describe())
    counts = [f"{_count(manifest, kind):,}" for kind in ("predictions", "bots", "portfolio")]
    by = manifest.made_by or ""
    return (
        str(kept.version),
        manifest.generated_at,
        *counts,
        _describe_changes(manifest.changes),
        by,
        "; ".join(notes),
    )


def _count(manifest: Manifest, kind: str) -> int:
    entry = manifest.snapshots.get(kind)
    return 0 if entry is None else entry.count


def _describe_changes(changes: ChangeCounts | None) -> str:
    """Describe the changes of a version: `predictions +1 ~20 -2, bots ~3`; empty if they are not known."""
    if changes is None:
        return ""
    kinds = {"predictions": changes.predictions, "bots": changes.bots, "holdings": changes.holdings}
    described = [f"{name} {_describe_counts(counts)}" for name, counts in kinds.items() if counts != KindCounts()]
    return ", ".join(described) or "nothing"


def _describe_counts(counts: KindCounts) -> str:
    marks = {"+": counts.added, "~": counts.changed, "-": counts.removed}
    return " ".join(f"{mark}{count:,}" for mark, count in marks.items() if count)


def _print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        cells[-3:] = [cell.ljust(width) for cell, width in zip(row[-3:], widths[-3:], strict=True)]
        click.echo(printable("  ".join(cells).rstrip()))
