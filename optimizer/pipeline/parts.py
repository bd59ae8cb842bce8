"""The input as a run sees it: one file, or the parts that a pattern names.

Both say by a fingerprint whether anything has changed, and give what they hold as a `ScanResult`. A part that has not
changed is not read again: what its last scan found is kept in Redis, under a digest of the part as it was then.

Errors: those of `Source`, and of the scan, with the path.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

import msgspec

from optimizer.cache.client import UNREADABLE
from optimizer.config.settings import Settings
from optimizer.errors import NoRecords, SourceError, SourceMissing
from optimizer.models import PartResult
from optimizer.pipeline.memory import peak_rss_mb
from optimizer.pipeline.session import Publisher
from optimizer.scan.engine import Engine
from optimizer.scan.scanner import scan, scan_bot
from optimizer.selection.result import ScanResult
from optimizer.selection.top_n import Selection
from optimizer.snapshots.format import SET_FILES
from optimizer.source.bot_files import bots_fingerprint, read_bots
from optimizer.source.input_file import InputFile
from optimizer.source.opener import expand, open_input_file, where_looked
from optimizer.source.read_ahead import read_ahead
from optimizer.storage.location import Location, parse_location

__all__ = [
    "Input",
    "Part",
    "Progress",
    "Scanned",
    "ScannedPart",
    "collect",
    "gather",
    "open_input",
    "parts_fingerprint",
    "read_kept",
    "scan_part",
]

# Compressed bytes read so far, and of how many.
Progress = Callable[[int, int], None]

# Part of every fingerprint: a new format of the snapshots makes them anew from an unchanged input. Part of every digest
# of a part, too: findings that an older release has kept are not found. 2: rejected bots are counted.
FORMAT: Final = 2
# What is kept is read once or twice, and soon: time counts more than bytes.
KEPT_GZIP_LEVEL: Final = 1

_FINDINGS: Final = msgspec.json.Decoder(PartResult)


class Part(msgspec.Struct, frozen=True):
    """One file of several, as it was at one moment; `digest` names what a scan of it finds under these settings."""

    location: str
    fingerprint: str
    digest: str


class ScannedPart(msgspec.Struct, frozen=True):
    """A part as it was scanned; what was found in it is kept under its digest."""

    part: Part
    input_bytes: int
    json_bytes: int
    peak_rss_mb: float


@dataclass
class Scanned:
    """What a scan has found, and of what; `began_s` in seconds since the epoch, memory in MB (10^6 bytes).

    `fingerprint` and `parts` (none where the input is one file) are those of what was read, which may be newer than
    what was there when the run began.
    """

    found: ScanResult
    fingerprint: str
    engine: str
    began_s: float
    parts: Sequence[Part] = ()
    parts_scanned: int = 0
    input_bytes: int = 0
    peak_rss_mb: float = 0.0

    def add_read(self, one: ScannedPart) -> None:
        """Count a part that was read."""
        self.parts_scanned += 1
        self.input_bytes += one.input_bytes
        self.found.json_bytes += one.json_bytes
        self.peak_rss_mb = max(self.peak_rss_mb, one.peak_rss_mb)


class Input(Protocol):
    """What a run reads: its fingerprint, and its parts where it has some."""

    fingerprint: str
    parts: Sequence[Part]

    def scan(self, engine: Engine, publisher: Publisher, progress: Progress | None, *, force: bool) -> Scanned:
        """Read everything to its checked end, but for parts that have not changed; with `force` those too."""

    def close(self) -> None:
        """Close what is open."""


def open_input(settings: Settings) -> Input:
    """The input of a source, as it is at this moment.

    Raises:
        SourceError: It, or a part of it, is not there or cannot be opened.
    """
    locations = expand(settings.input)
    return _File(settings) if locations == [settings.input] else _Parts(settings, locations)


class _File:
    """Open from the fingerprint to the end of the scan: both are of one file, whatever takes its place meanwhile."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._source = open_input_file(settings.input)
        self.fingerprint = _with_options(self._source.fingerprint, settings)
        self.parts: Sequence[Part] = ()

    def scan(self, engine: Engine, _publisher: Publisher, progress: Progress | None, *, force: bool) -> Scanned:  # noqa: ARG002 - of a file nothing is kept
        began_s = time.time()
        found = ScanResult(Selection(self._settings.index_symbols_limit))
        collect(self._settings, engine, self._source, found, progress)
        size_bytes = self._source.size_bytes
        if not found.json_bytes:
            raise NoRecords(
                f"{self._source.path} is empty ({size_bytes:,} bytes, 0 of JSON): 0 records seen, the old snapshots "
                "stay; is it still being written?"
            )
        _take_bot_files(self._settings, found)
        return Scanned(found, self.fingerprint, engine.name, began_s, parts_scanned=1, input_bytes=size_bytes)

    def close(self) -> None:
        self._source.close()


class _Parts:
    def __init__(self, settings: Settings, locations: Sequence[Location]) -> None:
        self._settings = settings
        self.parts: Sequence[Part] = _look(settings, locations)
        self.fingerprint = parts_fingerprint(settings, self.parts)

    def scan(self, engine: Engine, publisher: Publisher, progress: Progress | None, *, force: bool) -> Scanned:
        scanned = Scanned(ScanResult(Selection(self._settings.index_symbols_limit)), "", engine.name, time.time())
        read: list[Part] = []
        publisher.keep_parts([part.digest for part in self.parts])

        def find(part: Part) -> PartResult:
            findings = None if force else read_kept(publisher, part)
            if findings is None:
                one, findings = scan_part(self._settings, engine, part.location, publisher, progress)
                scanned.add_read(one)
                part = one.part
            read.append(part)
            return findings

        gather(self._settings, self.parts, find, scanned.found)
        scanned.parts, scanned.fingerprint = read, parts_fingerprint(self._settings, read)
        return scanned

    def close(self) -> None:
        """Each part was closed where it was read."""


def gather(settings: Settings, parts: Sequence[Part], find: Callable[[Part], PartResult], found: ScanResult) -> None:
    """Put together what the parts hold, in the order of their names: it never depends on who scanned what when."""
    for part in parts:
        found.take_part(find(part), part.location)
    _take_bot_files(settings, found)


def scan_part(
    settings: Settings, engine: Engine, location: str, publisher: Publisher, progress: Progress | None
) -> tuple[ScannedPart, PartResult]:
    """Scan one part to its checked end, and keep what it holds.

    Raises:
        SourceError: It cannot be used.
    """
    found = ScanResult(Selection(settings.index_symbols_limit))
    with open_input_file(parse_location(location)) as source:
        collect(settings, engine, source, found, progress)
        part = _part(settings, source)
    findings = found.part_result()
    publisher.keep_part(part.digest, gzip.compress(msgspec.json.encode(findings), KEPT_GZIP_LEVEL))
    return ScannedPart(part, source.size_bytes, found.json_bytes, peak_rss_mb()), findings


def read_kept(publisher: Publisher, part: Part) -> PartResult | None:
    """What was found in a part; `None` where it was never scanned, or is gone."""
    data = publisher.part(part.digest)
    try:
        return None if data is None else _FINDINGS.decode(gzip.decompress(data))
    except UNREADABLE:  # the part itself is still there
        publisher.drop_part(part.digest)
        return None


def parts_fingerprint(settings: Settings, parts: Sequence[Part]) -> str:
    """What the snapshots of many parts depend on."""
    names = "".join(f"{part.location}\0{part.fingerprint}\n" for part in parts)
    return _with_options(f"{len(parts)}-parts-{_digest(names)}", settings)


def collect(
    settings: Settings, engine: Engine, source: InputFile, found: ScanResult, progress: Progress | None
) -> None:
    """Read one file to its checked end."""

    def counted(chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            found.json_bytes += len(chunk)
            if progress is not None:
                progress(source.position_bytes, source.size_bytes)
            yield chunk

    chunks = source.chunks(engine.chunk_bytes)
    try:
        with read_ahead(chunks) if engine.ahead else closing(chunks) as ahead:
            for item in scan(counted(ahead), engine, max_record_bytes=settings.max_record_bytes):
                found.take(item)
    except SourceError as error:
        source.check_unchanged()  # a file that was written to explains whatever else is wrong with it
        raise type(error)(f"{source.path}: {error}") from error
    source.check_unchanged()


def _take_bot_files(settings: Settings, found: ScanResult) -> None:
    """After the input: a bot file is newer than the section that names the same bot."""
    if settings.bots_dir is not None:
        for bot in read_bots(settings.bots_dir, partial(scan_bot, max_record_bytes=settings.max_record_bytes)):
            found.take_bot_file(bot)


def _look(settings: Settings, locations: Sequence[Location]) -> list[Part]:
    """Every part, of what the pattern names; snapshots, which often lie where the input does, are none."""
    parts = []
    snapshots = []
    for location in locations:
        if location.name in SET_FILES:
            snapshots.append(location.name)
            continue
        with open_input_file(location) as source:
            parts.append(_part(settings, source))
    if not parts:
        found = f"only snapshots ({', '.join(snapshots)}), which are no input" if snapshots else "no file"
        where = where_looked(settings.input)
        raise SourceMissing(f"{settings.input} matches {found}: {where}; does the prediction engine write there?")
    return parts


def _part(settings: Settings, source: InputFile) -> Part:
    depends_on = (str(source.path), source.fingerprint, FORMAT, settings.index_symbols_limit, settings.max_record_bytes)
    return Part(str(source.path), source.fingerprint, _digest(repr(depends_on)))


def _with_options(fingerprint: str, settings: Settings) -> str:
    """With the bot files, and the settings that shape the output."""
    options = (
        FORMAT,
        settings.top_symbols_limit,
        settings.min_confidence,
        settings.index_symbols_limit,
        settings.gzip_level,
        settings.max_record_bytes,
    )
    bots = bots_fingerprint(settings.bots_dir) if settings.bots_dir else "none"
    return f"{fingerprint}+bots-{bots}+options-{_digest(repr(options))[:16]}"


def _digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:32]
