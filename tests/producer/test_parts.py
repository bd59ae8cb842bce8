"""Parts: a symbol stays in its part, only parts that have changed are replaced, and a run sees each symbol once."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optimizer import Settings, optimize
from optimizer.errors import SourceMissing, SourceTorn
from optimizer.models import Report
from optimizer.producer import Written, write_rolling
from optimizer.producer.parts import CHANGING_NAME, part_of
from tests.support.killed_producer import RECORDS_WRITTEN, KilledProducer
from tests.support.rolling_files import a_record

RECORDS: dict[str, Any] = {f"S{number}": a_record(confidence=number / 100) for number in range(100)}
BOTS: dict[str, Any] = {"one": {"equity": 1, "positions": []}}


def content(directory: Path) -> dict[str, dict[str, Any]]:
    """The JSON of each file by its name."""
    return {path.name: json.loads(gzip.decompress(path.read_bytes())) for path in sorted(directory.iterdir())}


def states(directory: Path) -> dict[str, tuple[int, int, bytes]]:
    """Inode, time of modification and bytes of each file, which show whether it was replaced or touched."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) for path in directory.iterdir()}


def counts(written: Written) -> tuple[int, int]:
    return written.files_written, written.files_unchanged


def test_each_symbol_is_in_the_part_of_its_hash(tmp_path: Path) -> None:
    """Each symbol is in the part of its hash, and bots are in a part of their own.

    The assignment is a contract: another one would show a symbol twice while parts are replaced.
    """
    assert [part_of(symbol, 64) for symbol in ("AAPL", "MSFT", "BRK.B", "Ünïcode", "")] == [28, 59, 44, 60, 0]
    written = write_rolling(tmp_path / "brain", RECORDS, bots=BOTS, parts=7)
    assert counts(written) == (8, 0)
    files = content(tmp_path / "brain")
    assert files.pop("part-bots.json.gz") == {"bots": BOTS}
    assert list(files) == [f"part-0{number}.json.gz" for number in range(7)]
    for number, records in enumerate(files.values()):
        assert records == {symbol: record for symbol, record in RECORDS.items() if part_of(symbol, 7) == number}


@pytest.mark.parametrize("level", [1, 2])
def test_only_parts_that_have_changed_are_replaced(tmp_path: Path, level: int) -> None:
    """Only parts that have changed are replaced, also if they are written again with another gzip level.

    The others keep inode and time, so that a run takes their stored results.
    """
    directory = tmp_path / "brain"
    write_rolling(directory, RECORDS, bots=BOTS, parts=16, level=level)
    before = states(directory)
    assert counts(write_rolling(directory, RECORDS, bots=BOTS, parts=16)) == (0, 17)
    assert states(directory) == before
    assert counts(write_rolling(directory, RECORDS, bots=BOTS, parts=16, level=3)) == (0, 17)
    assert states(directory) == before

    changed = RECORDS | {"S7": a_record(confidence=0.071)}
    assert counts(write_rolling(directory, changed, bots=BOTS, parts=16, level=level)) == (1, 16)
    after = states(directory)
    assert {name for name in after if after[name] != before[name]} == {f"part-{part_of('S7', 16):02}.json.gz"}
    assert counts(write_rolling(directory, changed, bots={"one": {"equity": 2}}, parts=16, level=level)) == (1, 16)


def test_a_part_that_is_damaged_is_replaced(tmp_path: Path) -> None:
    """A part that is empty, cut, longer, has another bit or byte, or is a gzip of other content is replaced."""
    directory = tmp_path / "brain"
    write_rolling(directory, RECORDS, parts=2)
    part = directory / "part-01.json.gz"
    good = part.read_bytes()
    rng = random.Random(1)
    damaged = [b"", good[:10], good[:-1], good[:-9] + b"12345678", good + b"x", gzip.compress(b"{}")]
    for _ in range(20):
        at = rng.randrange(len(good))
        damaged.append(good[:at] + bytes([good[at] ^ 1 << rng.randrange(8)]) + good[at + 1 :])
    for data in damaged:
        part.write_bytes(data)
        assert counts(write_rolling(directory, RECORDS, parts=2)) == (1, 1)
        assert part.read_bytes() == good


def test_the_number_of_parts_may_change(tmp_path: Path) -> None:
    """If the number of parts changes, parts and bots that are no longer written are removed; other files stay."""
    directory = tmp_path / "brain"
    directory.mkdir()
    (directory / "notes.txt").write_text("mine")
    for parts, bots in ((3, BOTS), (120, None), (2, BOTS), (2, None)):
        write_rolling(directory, RECORDS, bots=bots, parts=parts)
        assert (directory / "notes.txt").read_text() == "mine"
        (directory / "notes.txt").rename(tmp_path / "notes.txt")
        files = content(directory)
        (tmp_path / "notes.txt").rename(directory / "notes.txt")
        assert files.pop("part-bots.json.gz", None) == (bots and {"bots": bots})
        assert len(files) == parts
        assert {symbol: record for records in files.values() for symbol, record in records.items()} == RECORDS


@pytest.fixture
def parted(settings: Settings, tmp_path: Path) -> Settings:
    """Settings of a source whose parts the test writes."""
    return replace(settings, input=tmp_path / "brain" / "*.json.gz", index_symbols_limit=1_000, source="parted")


def shown(report: Report) -> tuple[int, int, int]:
    assert report.stats is not None
    return report.stats.records_seen, report.stats.duplicates, report.stats.parts_scanned


def test_a_run_scans_only_what_was_replaced(parted: Settings, tmp_path: Path) -> None:
    """A run scans only parts that were replaced; for the other parts it takes the results of the last run."""
    directory = tmp_path / "brain"
    write_rolling(directory, RECORDS, bots=BOTS, parts=16)
    assert shown(optimize(parted)) == (100, 0, 17)
    write_rolling(directory, RECORDS, bots=BOTS, parts=16)
    assert optimize(parted).status == "unchanged"
    write_rolling(directory, RECORDS | {"S7": a_record(confidence=0.071)}, bots=BOTS, parts=16)
    assert shown(optimize(parted)) == (100, 0, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("old", "new"), [(2, 2), (2, 3), (3, 2), (0, 2)])
def test_a_run_never_sees_a_set_that_is_not_whole(
    parted: Settings, tmp_path: Path, killed_producer: KilledProducer, old: int, new: int
) -> None:
    """After a producer is killed at any step, a run sees each symbol once, or fails and names the file that says why.

    The next write repairs everything. With the same number of parts some may be new and others old, and no run fails.
    """
    directory = tmp_path / "brain"
    step, died, failed, torn = 0, True, 0, 0
    while died:
        shutil.rmtree(directory, ignore_errors=True)
        if old:
            write_rolling(directory, RECORDS_WRITTEN, parts=old, bots={})
        step += 1
        died = killed_producer.dies_at(step, directory, parts=new, mark=7)
        try:
            stats = optimize(parted, force=True, use_cache=False).stats
        except SourceTorn as error:
            torn += 1
            failed += CHANGING_NAME in str(error)
        except SourceMissing:
            assert not old
        else:
            assert stats is not None
            assert (stats.records_seen, stats.duplicates) == (len(RECORDS_WRITTEN), 0)
        write_rolling(directory, RECORDS, parts=new, bots={})
        assert sorted(path.name for path in directory.iterdir()) == [
            *(f"part-0{number}.json.gz" for number in range(new)),
            "part-bots.json.gz",
        ]
    assert step > 10
    assert torn == failed
    assert bool(failed) == (old != new)


def test_the_assignment_does_not_depend_on_the_process() -> None:
    """A symbol has the same part in every process; Python's own hash of text depends on a seed."""
    code = "from optimizer.producer.parts import part_of; print(part_of('AAPL', 64))"
    for seed in ("0", "1"):
        environ = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
        assert done.stdout == "28\n"
