"""Writing a rolling file: a run reads the given records, and the old file stays until the new one is whole."""

from __future__ import annotations

import gzip
import json
import math
import os
import random
import stat
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from optimizer import Settings, optimize
from optimizer.errors import InputUnwritable, RecordUnwritable, SettingsInvalid
from optimizer.producer import write_rolling
from optimizer.snapshots.store import snapshot_store
from tests.support.examples import examples
from tests.support.killed_producer import RECORDS_WRITTEN, KilledProducer
from tests.support.rolling_files import a_record

SYMBOLS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
PRICES = st.floats(1e-3, 1e9)
RECORDS = st.dictionaries(
    SYMBOLS.filter(lambda symbol: not symbol.startswith("_") and symbol not in ("bots", "predictions", "symbols")),
    st.builds(
        a_record,
        prediction=PRICES,
        confidence=st.floats(0, 1),
        last_price=PRICES,
        target_price=st.none() | PRICES,
        sentiment=SYMBOLS,
        debug=st.recursive(st.none() | st.floats(allow_nan=False, allow_infinity=False) | SYMBOLS, st.lists),
    ),
    min_size=1,
)
BOTS = st.none() | st.dictionaries(SYMBOLS, st.fixed_dictionaries({"equity": PRICES, "enabled": st.booleans()}))


def read(path: Path) -> Any:
    """The JSON in a file, inflated and decoded by Python's own modules."""
    return json.loads(gzip.decompress(path.read_bytes()))


def shown_by_a_run(pattern: Path, directory: Path) -> tuple[dict[str, Any], list[str]]:
    """The records and the names of bots that a run publishes."""
    settings = Settings(
        input=pattern,
        output_dir=directory / "out",
        min_confidence=0.0,
        top_symbols_limit=1_000,
        index_symbols_limit=1_000,
    )
    report = optimize(settings, use_cache=False)
    assert report.stats is not None
    assert report.stats.records_rejected == report.stats.duplicates == 0
    snapshots = snapshot_store(settings.output_dir).read_set()
    assert snapshots is not None
    contents = {kind: json.loads(gzip.decompress(data)) for kind, data in snapshots.payloads.items()}
    return {record["symbol"]: record for record in contents["predictions"]["predictions"]}, sorted(
        contents["bots"]["bots"]
    )


@hypothesis_settings(max_examples=examples(30))
@given(RECORDS, BOTS, st.booleans(), st.sampled_from([0, 1, 3]))
def test_a_run_shows_what_was_written(
    records: dict[str, Any], bots: dict[str, Any] | None, by_symbol: bool, parts: int
) -> None:
    """A run shows each written record and bot once, from a mapping or a list, in one file or in parts.

    Writing the same again makes the same bytes.
    """
    given = records if by_symbol else [{"symbol": symbol} | record for symbol, record in records.items()]
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary, "brain" if parts else "brain.json.gz")
        written = write_rolling(path, iter(given) if isinstance(given, list) else given, bots=bots, parts=parts)
        assert written.records == len(records)
        files = sorted(path.iterdir()) if parts else [path]
        assert written.file_bytes == sum(file.stat().st_size for file in files)
        assert written.json_bytes == sum(len(gzip.decompress(file.read_bytes())) for file in files)
        content = [file.read_bytes() for file in files]
        shown, names = shown_by_a_run(path / "*.json.gz" if parts else path, Path(temporary))
        for symbol, record in records.items():
            assert shown.pop(symbol)["prediction"] == record["prediction"]
        assert not shown
        assert names == sorted(bots or {})
        again = write_rolling(path, given, bots=bots, parts=parts)
        assert [file.read_bytes() for file in files] == content
        assert again.files_written == (0 if parts else 1)


def test_the_shapes_of_the_json(tmp_path: Path) -> None:
    """A mapping is written as a map by symbol, and any other iterable as the section `predictions`.

    There is one record a line, and bots come at the end, if they are given.
    """
    path = tmp_path / "brain.json.gz"
    records = {"AAPL": a_record(), "MSFT": a_record(confidence=0.5)}
    write_rolling(path, records)
    assert read(path) == records
    assert len(gzip.decompress(path.read_bytes()).splitlines()) == 2
    write_rolling(path, records, bots={"one": {"equity": 1}})
    assert read(path) == records | {"bots": {"one": {"equity": 1}}}
    assert list(read(path)) == [*records, "bots"]

    @dataclass
    class ADataclass:
        symbol: str
        prediction: float

    class AStruct(msgspec.Struct):
        symbol: str
        prediction: float

    write_rolling(path, (kind("AAPL", 1.5) for kind in (ADataclass, AStruct)), bots={})
    assert read(path) == {"predictions": [{"symbol": "AAPL", "prediction": 1.5}] * 2, "bots": {}}
    assert list(read(path)) == ["predictions", "bots"]
    assert len(gzip.decompress(path.read_bytes()).splitlines()) == 3
    no_records: list[Any] = [{}, []]
    for empty in no_records:
        write_rolling(path, empty)
        assert not read(path).get("predictions")


@pytest.mark.slow
@pytest.mark.parametrize("parts", [0, 4])
def test_memory_does_not_grow_with_the_records(tmp_path: Path, parts: int) -> None:
    """Writing 100 MB of JSON, which is encoded faster than compressed, takes less than 25 MB of memory.

    That is no more than the members that may wait for compression.
    """
    text = random.Random(1).randbytes(50_000).hex()
    tracemalloc.start()
    try:
        write_rolling(
            tmp_path / "brain",
            ({"symbol": f"S{number}", "t": text} for number in range(1_000)),
            parts=parts,
            level=3,
            threads=1,
        )
        assert tracemalloc.get_traced_memory()[1] < 25e6
    finally:
        tracemalloc.stop()


def broken() -> Iterator[dict[str, Any]]:
    """Records of an engine that fails at the end."""
    yield from ({"symbol": f"S{number}"} | a_record() for number in range(100))
    raise LookupError("the model is gone")


@pytest.mark.parametrize("parts", [0, 4])
def test_after_a_failure_the_old_files_stay_and_no_other_is_left(tmp_path: Path, parts: int) -> None:
    """After a failed write the old files stay, and no other file is left.

    Tried are a record and bots that cannot be written, an iterator that fails, and reserved names as symbols.
    """
    path = tmp_path / "brain.json.gz"
    write_rolling(path, {"AAPL": a_record()}, parts=parts)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(LookupError, match="the model is gone"):
        write_rolling(path, broken(), parts=parts)
    with pytest.raises(RecordUnwritable, match="'MSFT': confidence is nan"):
        write_rolling(path, {"AAPL": a_record(prediction=2), "MSFT": a_record(confidence=math.nan)}, parts=parts)
    with pytest.raises(RecordUnwritable, match="'one': equity is inf"):
        write_rolling(path, {"AAPL": a_record(prediction=2)}, bots={"one": {"equity": math.inf}}, parts=parts)
    for name in ("bots", "_bots", "predictions", "symbols", "_meta"):
        with pytest.raises(RecordUnwritable, match=f"'{name}' cannot be a symbol.*argument `bots`"):
            write_rolling(path, {"AAPL": a_record(prediction=2), name: {}}, parts=parts)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_what_cannot_be_written_to_is_explained(tmp_path: Path) -> None:
    """The error for a path or an argument that cannot be used explains the problem.

    Tried are a missing directory, a directory for a file and the other way round, a URL, a pattern, records and bots of
    a wrong type, and wrong numbers.
    """
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    for arguments, parts, message in (
        (tmp_path / "none" / "brain.json.gz", 0, "none cannot be written: No such file .* Make the directory first"),
        (tmp_path / "none" / "brain", 2, "brain cannot be written: No such file .* Make the directory first"),
        (tmp_path / "directory", 0, "directory is a directory: give the file's name, or `parts`"),
        (tmp_path / "file", 2, "file cannot be written: File exists; .* A file is where a directory has to be"),
        (tmp_path / "file" / "brain.json.gz", 0, "Not a directory; .* A file is where a directory has to be"),
    ):
        with pytest.raises(InputUnwritable, match=message):
            write_rolling(arguments, {}, parts=parts)
    for path in ("s3://bucket/brain.json.gz", "https://example.com/brain.json.gz"):
        with pytest.raises(SettingsInvalid, match=f"{path} is a URL, and only local files are written"):
            write_rolling(path, {})
    with pytest.raises(SettingsInvalid, match="is a pattern; give `path` the directory"):
        write_rolling(tmp_path / "*.json.gz", {}, parts=2)
    for records in ("AAPL", b"{}", 5, None):
        with pytest.raises(SettingsInvalid, match=f"records is {type(records).__name__}, and neither"):
            write_rolling(tmp_path / "a.json.gz", records)  # type: ignore[arg-type]
    with pytest.raises(SettingsInvalid, match="bots is list, and no mapping by name"):
        write_rolling(tmp_path / "a.json.gz", {}, bots=[])  # type: ignore[arg-type]
    with pytest.raises(RecordUnwritable, match="record 2 "):
        write_rolling(tmp_path / "a.json.gz", [{"symbol": "A"}, {}])
    for wrong in ({"parts": -1}, {"parts": 4097}, {"parts": True}, {"level": 4}, {"level": "1"}, {"threads": 0}):
        (name,) = wrong
        with pytest.raises(SettingsInvalid, match=f"{name}={wrong[name]!r} is not a whole number"):
            write_rolling(tmp_path / "brain", {}, **wrong)


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    """Writing to a link keeps the link and replaces its target.

    The temporary file is made beside the target, on whose disk it has to be.
    """
    (tmp_path / "disk").mkdir()
    link = tmp_path / "brain.json.gz"
    link.symlink_to(tmp_path / "disk" / "real.json.gz")
    write_rolling(link, {"AAPL": a_record()})
    assert link.is_symlink()
    assert read(tmp_path / "disk" / "real.json.gz")["AAPL"]


@pytest.mark.parametrize("parts", [0, 2])
def test_a_file_is_as_readable_as_what_it_replaces(tmp_path: Path, parts: int) -> None:
    """A file gets the mode of the one that it replaces, and its owner and group where they may be set.

    The worker may be another user. While it is written, the file is never more readable.
    """
    path = tmp_path / "brain.json.gz"
    modes: set[int] = set()

    def records(confidence: float) -> Iterator[dict[str, Any]]:
        modes.update(stat.S_IMODE(partial.stat().st_mode) for partial in tmp_path.rglob(".*.partial"))
        yield {"symbol": "AAPL"} | a_record(confidence=confidence)

    write_rolling(path, records(0.1), parts=parts)
    (file,) = [file for file in path.iterdir() if file.stat().st_size > 80] if parts else [path]
    assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~_umask()
    file.chmod(0o440)
    groups = [group for group in os.getgroups() if group != file.stat().st_gid] if os.geteuid() else [12_345]
    if groups:
        os.chown(file, -1, groups[0])
    before = file.stat()
    modes.clear()
    write_rolling(path, records(0.2), parts=parts)
    after = file.stat()
    assert after.st_ino != before.st_ino
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert modes == {0o700 if parts else 0o640}


def _umask() -> int:
    before = os.umask(0)
    os.umask(before)
    return before


@pytest.mark.parametrize("parts", [0, 2])
def test_the_time_of_modification_is_when_it_was_called(tmp_path: Path, parts: int) -> None:
    """A file's time of modification is the time of the call, and its ctime is later.

    So an update that is sent while records are taken is newer than the file, and the file has landed: ctime > mtime.
    """
    taken: list[float] = []

    def records() -> Iterator[dict[str, Any]]:
        time.sleep(0.05)
        taken.append(time.time())
        yield {"symbol": "AAPL"} | a_record()

    began = time.time()
    path = tmp_path / "brain.json.gz"
    write_rolling(path, records(), parts=parts)
    for file in path.iterdir() if parts else [path]:
        status = file.stat()
        assert began - 0.02 <= status.st_mtime < taken[0] <= status.st_ctime + 0.02


LIMITED = """
import resource, sys
from pathlib import Path
from optimizer.producer import write_rolling

resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
records = {f"S{number}": {"c": [(number * 7919 + at * at) % 10_007 for at in range(1_000)]} for number in range(300)}
try:
    write_rolling(Path(sys.argv[1]), records, parts=int(sys.argv[2]))
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("parts", [0, 3])
def test_a_full_disk_is_a_clear_error_and_the_old_file_stays(tmp_path: Path, parts: int) -> None:
    """On a full disk, simulated by a limit on file sizes, writing fails with a clear error.

    The old file stays, and the temporary file is removed.
    """
    path = tmp_path / "brain.json.gz"
    write_rolling(path, {"AAPL": a_record()}, parts=parts)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    done = subprocess.run([sys.executable, "-c", LIMITED, path, str(parts)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("InputUnwritable "), done.stdout
    assert "cannot be written: File too large; what was there before stays. Free space" in done.stdout
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


@pytest.mark.slow
def test_a_producer_that_is_killed_leaves_the_old_file_or_the_new_one(
    tmp_path: Path, killed_producer: KilledProducer
) -> None:
    """A producer that is killed at any step of writing one file leaves the old file or the new one, whole.

    The next producer removes the temporary file that it leaves.
    """
    path = tmp_path / "brain.json.gz"
    write_rolling(path, RECORDS_WRITTEN, bots={})
    shown = {0}
    step, died = 0, True
    while died:
        step += 1
        died = killed_producer.dies_at(step, path, mark=step)
        content = read(path)
        marks = {record["mark"] for name, record in content.items() if name != "bots"}
        assert len(content) == 1 + len(RECORDS_WRITTEN)
        assert len(marks) == 1
        assert marks <= shown | {step}
        shown = marks
        assert len(list(tmp_path.iterdir())) <= 2
    assert step > 10
    assert shown == {step}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_two_producers_at_once_both_end_whole(tmp_path: Path) -> None:
    """Of producers that write at once, none removes the file that another one is writing.

    Each file, and each set of parts, is of one producer and whole at the end, and no temporary file is left.
    """
    path = tmp_path / "brain.json.gz"

    def write(mark: int) -> None:
        for parts in (0, 3):
            records = {f"S{number}": {"mark": mark, "curve": list(range(2_000))} for number in range(50)}
            write_rolling(path if not parts else tmp_path / "parts", records, parts=parts, threads=1)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, range(30)))
    for file in (path, *(tmp_path / "parts").iterdir()):
        assert len({record["mark"] for record in read(file).values()}) <= 1
    assert len({record["mark"] for file in (tmp_path / "parts").iterdir() for record in read(file).values()}) == 1
    assert len(list((tmp_path / "parts").iterdir())) == 3
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "parts"]
