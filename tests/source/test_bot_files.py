"""The bots directory: which files are bots, and how a file that cannot be used is reported."""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from optimizer import Report, Settings, optimize
from optimizer.errors import NoBots
from optimizer.models import Bot, Position, Reject, RejectReason
from optimizer.scan.scanner import scan_bot
from optimizer.snapshots.format import FILE_NAMES
from optimizer.source.bot_files import bots_fingerprint, read_bots
from optimizer.source.input_file import InputFile
from tests.support.published_state import as_unprivileged
from tests.support.rolling_files import a_record, local, touch_later, write_json, write_raw

LIMIT = 4_096
PARSE = partial(scan_bot, max_record_bytes=LIMIT)


def read(bots_dir: Path) -> tuple[dict[str, Bot], dict[str, Reject]]:
    """The bots of a directory by name, and the rejects by the name of their file."""
    items = list(read_bots(bots_dir, PARSE))
    bots = {item.name: item for item in items if isinstance(item, Bot)}
    rejects = {Path(item.where).name: item for item in items if isinstance(item, Reject)}
    assert len(bots) + len(rejects) == len(items)
    return bots, rejects


def bots_shown(settings: Settings) -> dict[str, Any]:
    """The bots in the published snapshot, by name."""
    value = json.loads(gzip.decompress((local(settings.output_dir) / FILE_NAMES["bots"]).read_bytes()))
    bots: dict[str, Any] = value["bots"]
    return bots


def rejects_of(report: Report) -> list[Reject]:
    """Every reject that a report names."""
    return [reject for tally in report.rejects for reject in tally.first]


@pytest.fixture
def settings_with_bots(settings_without_redis: Settings, tmp_path: Path) -> Settings:
    """Settings with an empty bots directory, and a good input."""
    bots_dir = tmp_path / "bots"
    bots_dir.mkdir()
    write_json(settings_without_redis.input, {"AAPL": a_record()})
    return replace(settings_without_redis, bots_dir=bots_dir)


def test_a_bot_is_named_after_its_file(tmp_path: Path) -> None:
    """The file's stem is the bot's name, plain or gzipped, with dots, spaces and letters of any script."""
    for name in ("alpha.json", "beta.json.gz", "v1.2 test.json", "Ünï-🚀.json.gz"):
        write_json(tmp_path / name, {"enabled": True, "equity": 1.5})

    bots, rejects = read(tmp_path)

    assert list(bots) == ["alpha", "beta", "v1.2 test", "Ünï-🚀"]
    assert rejects == {}


def test_every_field_of_a_bot_is_read(tmp_path: Path) -> None:
    """All fields of a bot and of its positions are read; anything that is nested deeper is not."""
    bot = {
        "enabled": True,
        "equity": 1_000,
        "pnl_today": -2.5,
        "positions": [
            {"symbol": "AAPL", "qty": 2, "avg": 99.5, "fills": [{"price": 99.5}] * 1_000},
            {"symbol": "B", "quantity": -1},
        ],
        "last_updated": 1795000000,
    }
    write_json(tmp_path / "alpha.json", bot)

    positions = (Position("AAPL", 2.0, 99.5), Position("B", -1.0, None))
    assert read(tmp_path) == ({"alpha": Bot("alpha", True, 1000.0, -2.5, 2, positions, 1795000000)}, {})  # noqa: FBT003


def test_other_files_are_no_bots(tmp_path: Path) -> None:
    """Hidden files, files still being written and files of another kind are ignored."""
    for name in (".alpha.json", "alpha.json.partial", "notes.txt", "beta.jsonl", "json"):
        write_json(tmp_path / name, {})

    assert read(tmp_path) == ({}, {})


def test_not_a_number_is_null(tmp_path: Path) -> None:
    """`NaN` and `Infinity`, which Python writes, are read as null, and the bot counts."""
    write_raw(tmp_path / "alpha.json", b'{"equity": NaN, "pnl_today": -Infinity, "positions": 3, "enabled": true}')

    assert read(tmp_path) == ({"alpha": Bot("alpha", True, None, None, 3, (), None)}, {})  # noqa: FBT003


BROKEN: dict[str, tuple[bytes, str]] = {
    "malformed.json": (b'{"equity": one}', "SourceMalformed: malformed JSON at byte 11"),
    "torn.json": (b'{"equity": 1, "positions": [', "SourceTorn"),
    "empty.json": (b"", "expected one JSON object"),
    "array.json": (b'[{"equity": 1}]', "expected one JSON object"),
    "number.json": (b"1", "expected one JSON object"),
    "two.json": (b"{} {}", "expected one JSON object"),
    "huge.json": (json.dumps({"note": "x" * LIMIT}).encode(), f"over ROLLING_MAX_RECORD_BYTES={LIMIT:,}"),
    "enabled.json": (b'{"enabled": "yes"}', "enabled is 'yes', expected true or false"),
    "equity.json": (b'{"equity": "1"}', "equity is '1', expected a finite number"),
    "positions.json": (b'{"positions": "AAPL"}', "positions is 'AAPL', expected a list, a map or a count"),
    "position.json": (
        b'{"positions": [{"symbol": "AAPL", "qty": {}}]}',
        "position 'AAPL': qty is {}, expected a finite number",
    ),
    "updated.json": (b'{"last_updated": true}', "last_updated is True, expected text or seconds"),
    "utf8.json": (b'{"last_updated": "\xff"}', "last_updated is not valid text"),
    "deep.json": (b'{"x": ' + b"[" * 1_000 + b"]" * 1_000 + b"}", "nested deeper than 1,000"),
}


def test_a_broken_bot_file_is_named_and_the_others_count(settings_with_bots: Settings) -> None:
    """Each reject has the file and the reason; the one good bot among broken ones is published."""
    assert settings_with_bots.bots_dir is not None
    bots_dir = settings_with_bots.bots_dir
    for name, (data, _) in BROKEN.items():
        write_raw(bots_dir / name, data)
    (bots_dir / "torn-gzip.json.gz").write_bytes(gzip.compress(b'{"equity": 1}')[:-3])
    (bots_dir / "no-gzip.json.gz").write_bytes(b"\x1f\x8b junk")
    (bots_dir / "directory.json").mkdir()
    write_json(bots_dir / "zeta.json", {"equity": 1})

    bots, rejects = read(bots_dir)

    assert list(bots) == ["zeta"]
    expected = {name: says for name, (_, says) in BROKEN.items()} | {
        "torn-gzip.json.gz": "SourceTorn",
        "no-gzip.json.gz": "SourceTorn",
        "directory.json": "SourceUnreadable",
    }
    assert rejects.keys() == expected.keys()
    for name, says in expected.items():
        reject = rejects[name]
        assert says in reject.details, name
        assert (reject.reason, reject.name, reject.where) == (
            RejectReason.BOT,
            name.removesuffix(".gz").removesuffix(".json"),
            str(bots_dir / name),
        )

    settings = replace(settings_with_bots, max_record_bytes=LIMIT, max_rejected_percent=95)
    report = optimize(settings, use_cache=False)
    assert report.status == "success"
    assert list(bots_shown(settings_with_bots)) == ["zeta"]
    assert [(tally.reason, tally.count) for tally in report.rejects] == [(RejectReason.BOT, len(expected))]
    assert [reject.where for reject in rejects_of(report)] == [str(bots_dir / name) for name in sorted(expected)[:3]]


def test_a_name_that_is_no_unicode_is_rejected(settings_with_bots: Settings) -> None:
    """A bot file whose name is not valid UTF-8 is rejected; the run and the other bots are unaffected.

    A file name may be any bytes, not all of which JSON can represent.
    """
    assert settings_with_bots.bots_dir is not None
    try:
        write_json(settings_with_bots.bots_dir / os.fsdecode(b"caf\xe9.json"), {"equity": 1})
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    write_json(settings_with_bots.bots_dir / "zeta.json", {"equity": 1})

    report = optimize(settings_with_bots, use_cache=False)

    assert list(bots_shown(settings_with_bots)) == ["zeta"]
    (reject,) = rejects_of(report)
    assert reject.where.endswith("caf�.json")
    assert "not valid UTF-8" in reject.details
    assert optimize(settings_with_bots, use_cache=False).status == "unchanged"


@pytest.mark.parametrize("made", [False, True], ids=["missing", "a file"])
def test_a_directory_that_cannot_be_listed_fails_the_run(
    settings_without_redis: Settings, tmp_path: Path, made: bool
) -> None:
    """A bots directory that is missing, or is a file, is `NoBots`, since the number of bots in it is unknown.

    The error names the setting to check. Once the directory is there, a run succeeds without a new input.
    """
    settings = replace(settings_without_redis, bots_dir=tmp_path / "bots")
    if made:
        (tmp_path / "bots").write_text("")
    write_json(settings.input, {"AAPL": a_record(), "bots": {"alpha": {}}})

    with pytest.raises(NoBots, match=rf"^{tmp_path}/bots: .*cannot be listed.*check ROLLING_BOTS_DIR"):
        optimize(settings, use_cache=False)

    (tmp_path / "bots").unlink(missing_ok=True)
    write_json(tmp_path / "bots" / "beta.json", {})
    assert optimize(settings, use_cache=False).status == "success"
    assert list(bots_shown(settings)) == ["alpha", "beta"]


def test_a_directory_that_may_not_be_listed_is_a_reject() -> None:
    """A directory without permission to list it is one reject, with the reason and the setting to check.

    Its fingerprint changes when it can be listed.
    """
    with tempfile.TemporaryDirectory(prefix="rolling-") as path:  # other users may not enter pytest's directories
        bots_dir = Path(path)
        write_json(bots_dir / "alpha.json", {})
        bots_dir.chmod(0)
        with as_unprivileged():
            bots, rejects = read(bots_dir)
            before = bots_fingerprint(bots_dir)
        bots_dir.chmod(0o755)
        assert bots == {}
        assert "Permission denied; check ROLLING_BOTS_DIR" in rejects[bots_dir.name].details
        assert bots_fingerprint(bots_dir) != before


def test_a_bot_file_that_is_written_to_while_it_is_read_is_torn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bot file that is written to while it is read is rejected: its content may be half old and half new."""
    write_json(tmp_path / "alpha.json", {"equity": 1})
    os.utime(tmp_path / "alpha.json", (0, 0))
    chunks = InputFile.chunks

    def chunks_and_a_writer(input_file: InputFile, chunk_bytes: int) -> Iterator[bytes]:
        yield from chunks(input_file, chunk_bytes)
        local(input_file.path).write_text('{"equity": 2}')

    monkeypatch.setattr(InputFile, "chunks", chunks_and_a_writer)

    bots, rejects = read(tmp_path)

    assert bots == {}
    assert "was written to while it was read" in rejects["alpha.json"].details


def test_a_bot_file_wins_over_the_section(settings_with_bots: Settings) -> None:
    """A bot file replaces the bot of its name in the input's section, which is older; a broken file does not."""
    assert settings_with_bots.bots_dir is not None
    section = {"alpha": {"equity": 1}, "beta": {"equity": 2}, "gamma": {"equity": 3}}
    write_json(settings_with_bots.input, {"AAPL": a_record(), "bots": section})
    write_json(settings_with_bots.bots_dir / "beta.json", {"equity": 20})
    write_raw(settings_with_bots.bots_dir / "gamma.json", b"{")
    write_json(settings_with_bots.bots_dir / "delta.json", {"equity": 40})

    optimize(settings_with_bots, use_cache=False)

    equities = {name: bot["equity"] for name, bot in bots_shown(settings_with_bots).items()}
    assert equities == {"alpha": 1, "beta": 20, "gamma": 3, "delta": 40}


def test_positions_of_files_count_in_the_portfolio(settings_with_bots: Settings) -> None:
    """Holdings are summed over all bots, from the input and from bot files."""
    assert settings_with_bots.bots_dir is not None
    section = {"alpha": {"positions": {"AAPL": {"qty": 2, "avg": 100}}}}
    write_json(settings_with_bots.input, {"AAPL": a_record(), "bots": section})
    write_json(settings_with_bots.bots_dir / "beta.json.gz", {"positions": [{"symbol": "AAPL", "qty": 2, "avg": 50}]})

    optimize(settings_with_bots, use_cache=False)

    data = (local(settings_with_bots.output_dir) / FILE_NAMES["portfolio"]).read_bytes()
    assert json.loads(gzip.decompress(data))["holdings"] == [{"symbol": "AAPL", "qty": 4, "avg": 75}]


def test_a_file_deleted_since_the_listing_is_no_reject(tmp_path: Path) -> None:
    """A bot file that is deleted after the listing is no reject: its bot was switched off during the run."""
    for name in ("alpha", "beta", "gamma"):
        write_json(tmp_path / f"{name}.json", {})
    items = read_bots(tmp_path, PARSE)

    first = next(items)
    (tmp_path / "beta.json").unlink()

    assert isinstance(first, Bot)
    assert [item.name for item in items] == ["gamma"]


def test_the_fingerprint_changes_with_every_bot_file(tmp_path: Path) -> None:
    """The fingerprint changes with each change of a bot file, also of one after a dangling link in the listing.

    It stays equal while nothing changes, and does not depend on files of another kind.
    """
    seen = [bots_fingerprint(tmp_path / "bots")]

    def changed() -> bool:
        seen.append(bots_fingerprint(tmp_path / "bots"))
        assert seen[-1] == bots_fingerprint(tmp_path / "bots")
        return seen[-1] not in seen[:-1]

    (tmp_path / "bots").mkdir()
    assert changed()
    write_json(tmp_path / "bots" / "beta.json", {"equity": 1})
    assert changed()
    (tmp_path / "bots" / "alpha.json").symlink_to("nowhere")
    assert changed()
    write_json(tmp_path / "bots" / "beta.json", {"equity": 2})
    assert changed()
    touch_later(tmp_path / "bots" / "beta.json")
    assert changed()
    (tmp_path / "bots" / "beta.json").rename(tmp_path / "bots" / "gamma.json")
    assert changed()
    write_json(tmp_path / "bots" / os.fsdecode(b"\xff.json"), {})
    assert changed()
    (tmp_path / "bots" / "notes.txt").write_text("")
    assert not changed()
