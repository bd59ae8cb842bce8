"""The tables of `rolling-optimizer bench --compression`, and its recommendation in words. No I/O."""

from __future__ import annotations

from optimizer.cli.compression import CompressionReport, CompressionRow, gzip_row, row_of
from optimizer.snapshots.compression import QUICK_GZIP_LEVEL, ZSTD_LEVEL
from optimizer.snapshots.format import KINDS

__all__ = ["compression_table", "conclusions"]


def compression_table(measured: CompressionReport) -> str:
    """Format sizes and times as tables, with the recommendation of the rule."""
    json = ", ".join(f"{kind} {measured.json_bytes[kind] / 1e3:,.1f}" for kind in KINDS)
    lines = [
        f"{measured.source}, version {measured.version} from {measured.origin}; KB of JSON: {json}",
        "entries: " + ", ".join(f"{measured.counts[kind]:,} in {kind}" for kind in KINDS),
        "",
        f"{'bytes':<10}{''.join(f'{kind:>13}' for kind in KINDS)}{'sum':>13}{'of now':>8}{'MB a day':>10}",
        f"{'now':<10}{''.join(f'{measured.bytes[kind]:>13,}' for kind in KINDS)}{sum(measured.bytes.values()):>13,}",
    ]
    for row in measured.rows:
        if row.total is None or row.day_mb is None:
            lines.append(f"{row.library:<10}  not installed: pip install {row.library}")
            continue
        sizes = "".join(f"{row.files[kind].bytes:>13,}" for kind in KINDS)
        lines.append(f"{_name(row):<10}{sizes}{row.total.bytes:>13,}{row.total.ratio:>7.2f}x{row.day_mb:>10,.1f}")
    lines += ["", f"{'CPU, ms':<10}{''.join(f'{kind:>13}' for kind in KINDS)}{'sum':>13}{'wall':>10}{'reader':>10}"]
    for row in measured.rows:
        if row.total is not None and row.downloads is not None:
            times = "".join(f"{row.files[kind].cpu_ms:>13.3f}" for kind in KINDS)
            total = row.total
            lines.append(
                f"{_name(row):<10}{times}{total.cpu_ms:>13.3f}{total.wall_ms:>10.3f}{row.downloads.inflate_ms:>10.3f}"
            )
    return "\n".join([*lines, "", *conclusions(measured)])


def _name(row: CompressionRow) -> str:
    return f"{row.library} {row.level}"


def conclusions(measured: CompressionReport) -> list[str]:
    """Explain the columns, the rule, and the levels that it selects."""
    now = gzip_row(measured.rows, measured.gzip_level)
    gzip_best = gzip_row(measured.rows, measured.best_gzip_level)
    zstd_best, served = (row_of(measured.rows, "zstd", level) for level in (measured.best_zstd_level, ZSTD_LEVEL))
    against = "" if gzip_best == now else f", with {_compared(gzip_best, now)} {_name(now)}, which is set"
    return [
        f"MB a day: what a client takes that downloads all but the index once in {measured.interval_s:g} s.",
        "reader: to inflate all but the index, once a version, in ms.",
        "The rule, for all but the index: of the levels within 5 % of the smallest, the one that takes the least CPU;",
        f"of zstd, only levels that take no more CPU than {_name(now)}, or else level 1.",
        f"gzip: ROLLING_GZIP_LEVEL={gzip_best.level} ({_name(gzip_best)}){against}",
        f"zstd: {_name(zstd_best)}; served is {_name(served)}, with {_compared(served, now)} {_name(now)}",
        f"The index is always compressed by isal {QUICK_GZIP_LEVEL}: no client downloads it.",
    ]


def _compared(row: CompressionRow, now: CompressionRow) -> str:
    if row.downloads is None or now.downloads is None:
        return ""
    size, cpu = row.downloads.bytes / now.downloads.bytes, row.downloads.cpu_ms / now.downloads.cpu_ms
    return f"{size:.2f} of the bytes and {cpu:.2f} of the CPU of"
