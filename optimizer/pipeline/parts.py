"""The input as a run sees it: one file, or the parts that a pattern names.

Both have a fingerprint that shows whether anything has changed, and both are scanned to a result. An unchanged part is
not read again: the result of its last scan is in Redis, under a digest of its name, fingerprint and settings.

Errors: those of `source`, and of the scan, with the path.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

import msgspec

from optimizer.cache.parts import PartStore
from optimizer.config.settings import Settings
from optimizer.errors import NoRecords, SourceError, SourceMissing
from optimizer.models import PartResult
from optimizer.pipeline.process import peak_rss_mb
from optimizer.pipeline.session import Session
from optimizer.scan.engine import Engine
from optimizer.scan.scanner import scan, scan_bot
from optimizer.selection.result import ScanResult
from optimizer.selection.top_n import Selection
from optimizer.selection.updates import symbols_of
from optimizer.snapshots.format import SET_FILES
from optimizer.snapshots.store import snapshot_store
from optimizer.source.bot_files import bots_fingerprint, read_bots
from optimizer.source.input_file import InputFile
from optimizer.source.opener import expand, open_input_file, where_looked
from optimizer.source.read_ahead import read_ahead
from optimizer.storage.location import Location, parse_location

__all__ = [
    "Input",
    "Part",
    "Progress",
    "ScannedInput",
    "ScannedPart",
    "collect",
    "merge_results",
    "open_input",
    "part_digest",
    "parts_fingerprint",
    "scan_part",
    "without_snapshots",
]

# Called with the compressed bytes read so far, and their total.
Progress = Callable[[int, int], None]

# Part of every fingerprint, so that a new format of the snapshots causes a scan of an unchanged input; and of every
# digest of a part, so that results of an older release are not used. 2: rejected bots are counted.
FORMAT: Final = 2


class Part(msgspec.Struct, frozen=True):
    """One file of several, as it was at one moment; `digest` names the result of its scan under these settings.

    `modified_s` and `landed_s` are as in `ByteReader`.
    """

    location: str
    fingerprint: str
    digest: str
    modified_s: float | None = None
    landed_s: float | None = None


class ScannedPart(msgspec.Struct, frozen=True):
    """A part as it was scanned; its result is stored under its digest."""

    part: Part
    input_bytes: int
    json_bytes: int
    peak_rss_mb: float


@dataclass
class ScannedInput:
    """The result of a scan, and its input; `began_s` in seconds since the epoch, memory in MB (10^6 bytes).

    `fingerprint`, `parts` (empty if the input is one file) and times describe the bytes that were read, which may be
    newer than the input when the run began. `answered_s` is used with parts: for each symbol with an update in force
    or waiting when they were merged, it has the time of the last write to the file that has the symbol.
    """

    result: ScanResult
    fingerprint: str
    engine: str
    began_s: float
    parts: Sequence[Part] = ()
    modified_s: float | None = None
    landed_s: float | None = None
    answered_s: dict[str, float | None] = field(default_factory=dict)
    parts_scanned: int = 0
    input_bytes: int = 0
    peak_rss_mb: float = 0.0

    def modified_ms(self, symbol: str) -> float:
        """Return when the file that has a symbol was last written to, in milliseconds since the epoch.

        With parts, that is the file with the symbol's record, or the newest file if none has it. If its time is not
        known, the result is the time at which the run began. For a symbol whose update came after the merge, it is
        minus infinity, so that the update is newer.
        """
        modified_s = self.modified_s
        if self.parts:
            if symbol not in self.answered_s:
                return -math.inf
            modified_s = self.answered_s[symbol]
        return 1000 * (self.began_s if modified_s is None else modified_s)

    def take_parts(self, settings: Settings, parts: Sequence[Part]) -> None:
        """Set the parts as they were read."""
        self.parts, self.fingerprint = parts, parts_fingerprint(settings, parts)
        self.modified_s = _newest(part.modified_s for part in parts)
        self.landed_s = _newest(part.landed_s for part in parts)

    def count(self, scanned: ScannedPart) -> None:
        """Count a part that was read."""
        self.parts_scanned += 1
        self.input_bytes += scanned.input_bytes
        self.result.json_bytes += scanned.json_bytes
        self.peak_rss_mb = max(self.peak_rss_mb, scanned.peak_rss_mb)


class Input(Protocol):
    """The input of a run: its fingerprint, and its parts if it has several.

    `modified_s` and `landed_s` are as in `ByteReader`; with parts, those of the newest; `None` if unknown.
    """

    fingerprint: str
    parts: Sequence[Part]
    modified_s: float | None
    landed_s: float | None

    def scan(self, engine: Engine, session: Session, progress: Progress | None, *, force: bool) -> ScannedInput:
        """Read everything to its verified end; unchanged parts only with `force`."""

    def close(self) -> None:
        """Close open files."""


def open_input(settings: Settings) -> Input:
    """Open the input of a source.

    Raises:
        SourceError: It, or a part of it, does not exist or cannot be opened.
    """
    locations = expand(settings.input)
    return _File(settings) if locations == [settings.input] else _Parts(settings, locations)


class _File:
    """One file, open from the fingerprint to the end of the scan, so that both are of the same file."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._source = open_input_file(settings.input)
        self.fingerprint = _with_options(self._source.fingerprint, settings)
        self.parts: Sequence[Part] = ()
        self.modified_s, self.landed_s = self._source.modified_s, self._source.landed_s

    def scan(self, engine: Engine, _session: Session, progress: Progress | None, *, force: bool) -> ScannedInput:  # noqa: ARG002 - nothing is stored of a file
        began_s = time.time()
        result = ScanResult(Selection(self._settings.index_symbols_limit))
        collect(self._settings, engine, self._source, result, progress)
        size_bytes = self._source.size_bytes
        if not result.json_bytes:
            raise NoRecords(
                f"{self._source.path} is empty ({size_bytes:,} bytes, 0 of JSON): 0 records seen, the old snapshots "
                "stay; is it still being written?"
            )
        _take_bot_files(self._settings, result)
        return ScannedInput(
            result,
            self.fingerprint,
            engine.name,
            began_s,
            modified_s=self.modified_s,
            landed_s=self.landed_s,
            parts_scanned=1,
            input_bytes=size_bytes,
        )

    def close(self) -> None:
        self._source.close()


class _Parts:
    """The files that a pattern names; each is opened for its fingerprint, and again for its scan."""

    def __init__(self, settings: Settings, locations: Sequence[Location]) -> None:
        self._settings = settings
        self.parts: Sequence[Part] = _parts_at(settings, locations)
        self.modified_s = _newest(part.modified_s for part in self.parts)
        self.landed_s = _newest(part.landed_s for part in self.parts)
        self.fingerprint = parts_fingerprint(settings, self.parts)

    def scan(self, engine: Engine, session: Session, progress: Progress | None, *, force: bool) -> ScannedInput:
        stored = PartStore(session.cache).load([part.digest for part in self.parts])
        scanned = ScannedInput(ScanResult(Selection(self._settings.index_symbols_limit)), "", engine.name, time.time())
        read: list[Part] = []

        def result_of(part: Part) -> tuple[Part, PartResult]:
            result = None if force else session.ask(lambda: next(stored), absent=None)
            if result is None:
                one, result = scan_part(self._settings, engine, part.location, session, progress)
                scanned.count(one)
                part = one.part
            read.append(part)
            return part, result

        merge_results(scanned, self._settings, session, self.parts, result_of)
        scanned.take_parts(self._settings, read)
        return scanned

    def close(self) -> None:
        """Do nothing: each part was closed after it was read."""


def merge_results(
    merged: ScannedInput,
    settings: Settings,
    session: Session,
    parts: Sequence[Part],
    result_of: Callable[[Part], tuple[Part, PartResult]],
) -> None:
    """Merge the parts' results in the order of names, so that the outcome does not depend on the order of the scans.

    Args:
        merged: The target of the merge.
        settings: All settings of the source.
        session: The run's Redis.
        parts: The parts by name.
        result_of: Returns a part as it was read, and its result; called for each in their order.
    """
    updated = session.read_held(snapshot_store(settings.output_dir)).keys() | symbols_of(session.queued())
    confidences: dict[str, float] = {}
    newest_s: float | None = None
    for each in parts:
        part, result = result_of(each)
        merged.result.take_part(result, part.location)
        newest_s = _newest((newest_s, part.modified_s))
        for record in result.records if updated else ():
            # The rule of a selection: the highest confidence; at equal confidence, the earlier record.
            if record.symbol in updated and record.confidence > confidences.get(record.symbol, -1.0):
                confidences[record.symbol] = record.confidence
                merged.answered_s[record.symbol] = part.modified_s
    merged.answered_s = {symbol: merged.answered_s.get(symbol, newest_s) for symbol in updated}
    _take_bot_files(settings, merged.result)


def scan_part(
    settings: Settings, engine: Engine, location: str, session: Session, progress: Progress | None
) -> tuple[ScannedPart, PartResult]:
    """Scan one part to its verified end, and store its result.

    Raises:
        SourceError: It cannot be used.
    """
    scan_result = ScanResult(Selection(settings.index_symbols_limit))
    with open_input_file(parse_location(location)) as source:
        collect(settings, engine, source, scan_result, progress)
        part = _part(settings, source)
    result = scan_result.part_result()
    session.ask(lambda: PartStore(session.cache).save(part.digest, result), absent=None)
    return ScannedPart(part, source.size_bytes, scan_result.json_bytes, peak_rss_mb()), result


def parts_fingerprint(settings: Settings, parts: Sequence[Part]) -> str:
    """Return the fingerprint of many parts."""
    names = "".join(f"{part.location}\0{part.fingerprint}\n" for part in parts)
    return _with_options(f"{len(parts)}-parts-{_digest(names)}", settings)


def collect(
    settings: Settings, engine: Engine, source: InputFile, result: ScanResult, progress: Progress | None
) -> None:
    """Read one file to its verified end, into a result."""

    def counted(chunks: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
        for chunk in chunks:
            result.json_bytes += len(chunk)
            if progress is not None:
                progress(source.position_bytes, source.size_bytes)
            yield chunk

    chunks = source.chunks(engine.chunk_bytes, threads=engine.threads)
    try:
        with read_ahead(chunks) if engine.ahead else closing(chunks) as ahead:
            for item in scan(
                counted(ahead), engine, max_record_bytes=settings.max_record_bytes, mapping=settings.mapping
            ):
                result.take(item)
                del item  # so that the next batch is decoded into the memory of this one
    except SourceError as error:
        source.check_unchanged()  # if the file was written to, that explains any other error
        raise type(error)(f"{source.path}: {error}") from error
    source.check_unchanged()


def _take_bot_files(settings: Settings, result: ScanResult) -> None:
    """Take the bot files after the input, since a bot file has precedence over the same bot in the input."""
    if settings.bots_dir is not None:
        read_bot = partial(scan_bot, max_record_bytes=settings.max_record_bytes, mapping=settings.mapping)
        for bot in read_bots(settings.bots_dir, read_bot):
            result.take_bot_file(bot)


def without_snapshots(pattern: Location, locations: Sequence[Location]) -> list[Location]:
    """Remove snapshots, which are often in the input's directory, from the locations that match a pattern.

    Raises:
        SourceMissing: Nothing else matches.
    """
    snapshots = [location.name for location in locations if location.name in SET_FILES]
    if len(snapshots) == len(locations):
        matches = f"only snapshots ({', '.join(snapshots)}), which are no input" if snapshots else "no file"
        where = where_looked(pattern)
        raise SourceMissing(f"{pattern} matches {matches}: {where}; does the prediction engine write there?")
    return [location for location in locations if location.name not in SET_FILES]


def _parts_at(settings: Settings, locations: Sequence[Location]) -> list[Part]:
    """Open each location for its fingerprint."""
    parts = []
    for location in without_snapshots(settings.input, locations):
        with open_input_file(location) as source:
            parts.append(_part(settings, source))
    return parts


def _part(settings: Settings, source: InputFile) -> Part:
    location = str(source.path)
    digest = part_digest(settings, location, source.fingerprint)
    return Part(location, source.fingerprint, digest, source.modified_s, source.landed_s)


def _newest(times_s: Iterable[float | None]) -> float | None:
    return max((time_s for time_s in times_s if time_s is not None), default=None)


def part_digest(settings: Settings, location: str, fingerprint: str) -> str:
    """Return the digest under which the result of scanning a part with these settings is stored."""
    depends_on = (
        location,
        fingerprint,
        FORMAT,
        settings.index_symbols_limit,
        settings.max_record_bytes,
        settings.mapping,
    )
    return _digest(repr(depends_on))


def _with_options(fingerprint: str, settings: Settings) -> str:
    """Extend a fingerprint by the bot files, and the settings that shape the output."""
    options = (
        FORMAT,
        settings.top_symbols_limit,
        settings.min_confidence,
        settings.index_symbols_limit,
        settings.gzip_level,
        settings.max_record_bytes,
        settings.mapping,
    )
    bots = bots_fingerprint(settings.bots_dir) if settings.bots_dir else "none"
    return f"{fingerprint}+bots-{bots}+options-{_digest(repr(options))[:16]}"


def _digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:32]
