"""The sample writer: files as a prediction engine writes them, the same for the same seed."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from optimizer.cli.dev.sample import DEBUG_NOTES, SHAPES, Shape, write_sample
from optimizer.models import Bot, Record
from optimizer.source.opener import open_input_file
from tests.support.command import rolling_optimizer
from tests.support.engines import scan

SYMBOLS = 30

CHUNK_BYTES = 64 * 1024


@pytest.fixture(params=[(shape, indent) for shape in SHAPES for indent in (False, True)], ids=str)
def sample(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Shape, Path]:
    """A small sample of each shape, in one line and indented."""
    shape, indent = request.param
    path = tmp_path / "sample.json.gz"
    write_sample(path, symbols=SYMBOLS, points=5, bots=5, shape=shape, indent=indent)
    return shape, path


def roots(path: Path) -> list[Any]:
    """The JSON texts of a file."""
    text = gzip.decompress(path.read_bytes()).decode()
    return list(_texts(text))


def _texts(text: str) -> Iterator[Any]:
    decoder = json.JSONDecoder()
    while text := text.lstrip():
        root, end = decoder.raw_decode(text)
        yield root
        text = text[end:]


def records_of(shape: Shape, values: list[Any]) -> list[dict[str, Any]]:
    """The records, read with `json.loads`."""
    if shape == "lines":
        return values
    (root,) = values
    if shape == "array":
        return list(root)
    inside = root["predictions"] if shape == "sections" else root
    return [body for name, body in inside.items() if isinstance(body, dict) and not name.startswith("_")]


def test_it_is_valid_json(sample: tuple[Shape, Path]) -> None:
    """A sample of each shape is valid JSON for `json.loads`, with all its records under different symbols."""
    shape, path = sample

    records = records_of(shape, roots(path))

    assert len({record["symbol"] for record in records}) == len(records) == SYMBOLS
    assert all(len(record["history"]) == 5 and len(record["features"]) == 64 for record in records)


def test_lines_are_one_record_each(tmp_path: Path) -> None:
    """NDJSON that is not indented has a record a line."""
    write_sample(tmp_path / "s.json", symbols=7, points=2, shape="lines")

    lines = (tmp_path / "s.json").read_text().splitlines()

    assert [len(json.loads(line)["history"]) for line in lines] == [2] * 7


def test_it_holds_text_that_could_mislead_a_pruner(sample: tuple[Shape, Path]) -> None:
    """A sample has debug text with quotes, brackets and backslashes, and nested containers, some of them empty."""
    shape, path = sample

    records = records_of(shape, roots(path))

    notes = [note for record in records for note in (record["debug"], *record["trace"])]
    assert all(any(note.startswith(kind) for note in notes) for kind in DEBUG_NOTES)
    assert all(mark in "".join(notes) for mark in ('"', "\\", "}}]]", "{{[[", "NaN"))
    assert records[0]["curves"]["empty"] == []
    assert records[0]["scenarios"][0]["legs"] == {"a": {"b": {"c": [0]}}}


def test_the_optimizer_reads_all_of_it(sample: tuple[Shape, Path]) -> None:
    """Every record and bot is read, none is rejected, and each is what `json.loads` reads."""
    shape, path = sample
    expected = {record["symbol"]: record for record in records_of(shape, roots(path))}

    with open_input_file(path) as source:
        values = list(scan(source.chunks(CHUNK_BYTES), max_record_bytes=1 << 20))

    records = [item for item in values if isinstance(item, Record)]
    bots = [item for item in values if isinstance(item, Bot)]
    assert len(values) == len(records) + len(bots)
    assert {record.symbol: (record.prediction, record.confidence, record.last_price) for record in records} == {
        symbol: (one["prediction"], one["confidence"], one["last_price"]) for symbol, one in expected.items()
    }
    assert len(bots) == (5 if shape in ("map", "sections") else 0)
    assert {len(bot.positions) > 0 for bot in bots} <= {True, False}
    assert sum(bot.position_count for bot in bots) > 0 or not bots


def test_bots_have_positions_in_every_form(tmp_path: Path) -> None:
    """Bots have positions as a list, as a map and as a bare number, and some of them are short."""
    write_sample(tmp_path / "s.json", symbols=1, points=0, bots=9)

    bots = json.loads((tmp_path / "s.json").read_text())["_bots"]

    assert {type(bot["positions"]) for bot in bots.values()} == {list, dict, int}
    listed = [one for bot in bots.values() if isinstance(bot["positions"], list) for one in bot["positions"]]
    assert {one["quantity"] > 0 for one in listed} == {True, False}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_seed_gives_the_same_bytes(tmp_path: Path, shape: Shape) -> None:
    """The same arguments give the same bytes, and another seed gives others."""
    one, same, other = (tmp_path / name for name in ("one.json", "same.json", "other.json"))

    sizes = [write_sample(path, symbols=5, points=3, shape=shape, seed=seed) for path, seed in ((one, 4), (same, 4))]
    write_sample(other, symbols=5, points=3, shape=shape, seed=5)

    assert one.read_bytes() == same.read_bytes()
    assert sizes == [one.stat().st_size] * 2
    assert one.read_bytes() != other.read_bytes()


def test_the_name_decides_on_compression(tmp_path: Path) -> None:
    """A file is gzipped if its name ends with `.gz`, and plain otherwise, with the same JSON.

    The returned size is the size of the JSON.
    """
    plain, packed = tmp_path / "deep" / "s.json", tmp_path / "deep" / "s.json.gz"

    sizes = [write_sample(path, symbols=3, points=3) for path in (plain, packed)]

    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes()
    assert sizes == [plain.stat().st_size] * 2
    assert sorted(path.name for path in plain.parent.iterdir()) == ["s.json", "s.json.gz"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("symbols", [0, 1])
def test_the_smallest_samples(tmp_path: Path, shape: Shape, symbols: int) -> None:
    """A sample with no or one record, without points and bots, is valid JSON too."""
    path = tmp_path / "s.json.gz"
    write_sample(path, symbols=symbols, points=0, bots=0, shape=shape)

    assert len(records_of(shape, roots(path))) == symbols


def test_symbols_differ(tmp_path: Path) -> None:
    """A sample of 2,000 records has 2,000 different symbols, each of three letters or more."""
    write_sample(tmp_path / "s.json", symbols=2_000, points=0, bots=0)

    with open_input_file(tmp_path / "s.json") as source:
        names = [
            item.symbol
            for item in scan(source.chunks(CHUNK_BYTES), max_record_bytes=1 << 20)
            if isinstance(item, Record)
        ]

    assert len(set(names)) == len(names) == 2_000
    assert all(len(name) >= 3 and name.isalpha() for name in names)


# ---- the command


@pytest.mark.slow
def test_sample_writes_what_run_reads(tmp_path: Path) -> None:
    """`run` reads a file that `sample` has written, also without gzip and with indentation."""
    made = rolling_optimizer(
        tmp_path, "sample", "in/big.json", "--symbols", 50, "--points", 5, "--shape", "lines", "--indent"
    )
    done = rolling_optimizer(tmp_path, "run", "--no-cache", "--json", "--input", "in/big.json", "--output-dir", "out")

    assert "in/big.json: " in made.stdout
    assert json.loads(done.stdout)["stats"]["records_seen"] == 50


def test_sample_says_where_it_cannot_write(tmp_path: Path) -> None:
    """If `sample` cannot write, it exits with 1 and an error of one line that names the path."""
    (tmp_path / "file").touch()
    done = rolling_optimizer(tmp_path, "sample", "file/big.json")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: file: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_sample_replaces_no_file_without_force(tmp_path: Path) -> None:
    """`sample` replaces an existing file, which may be the user's own, only with `--force`."""
    own = tmp_path / "rolling_brain.json.gz"
    own.write_bytes(b"theirs")

    refused = rolling_optimizer(tmp_path, "sample", own.name, "--symbols", 3)
    left = own.read_bytes()
    forced = rolling_optimizer(tmp_path, "sample", own.name, "--symbols", 3, "--force")

    assert (refused.returncode, left) == (1, b"theirs")
    assert refused.stderr == f"Error: {own.name} exists: choose another path, or replace it with --force\n"
    assert (forced.returncode, len(records_of("map", roots(own)))) == (0, 3)


def test_progress_counts_records(tmp_path: Path) -> None:
    """Progress only rises, in at least four steps, and ends at the number of records."""
    told: list[tuple[int, int]] = []
    write_sample(tmp_path / "s.json", symbols=499, points=1, progress=lambda done, total: told.append((done, total)))

    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert len(told) >= 4
    assert {total for _, total in told} == {499}
    assert told[-1][0] == 499
