"""Expanding the name of an input to files: what a pattern matches, and what the error says if it matches none."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.config.settings import Settings
from optimizer.errors import SourceMissing
from optimizer.pipeline.run import optimize
from optimizer.snapshots.format import FILE_NAMES
from optimizer.source.opener import expand
from tests.support.published_state import NEW, OLD, as_unprivileged, symbols_shown
from tests.support.rolling_files import write_json


def test_a_file_that_is_there_wins_over_the_pattern(settings_without_redis: Settings, tmp_path: Path) -> None:
    """A file whose name looks like a pattern is one input; until it exists, its name is used as a pattern."""
    odd = tmp_path / "in" / "brain[ab].json.gz"
    settings = replace(settings_without_redis, input=odd, source="")
    write_json(tmp_path / "in" / "braina.json.gz", OLD)
    assert expand(odd) == [tmp_path / "in" / "braina.json.gz"]
    write_json(odd, NEW)
    assert expand(odd) == [odd]

    report = optimize(settings, use_cache=False)

    assert report.stats is not None
    assert (report.source, report.stats.parts) == ("in", 1)
    assert symbols_shown(settings) == ["NVDA", "MSFT"]


@given(st.lists(st.text("ab[]*?!-", min_size=1, max_size=5), min_size=1, max_size=4))
def test_whatever_is_there_is_found_under_its_name(pieces: list[str]) -> None:
    """A file is found by its name, and by a pattern, below directories of any names, also with wildcards in them."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, *pieces, "x[1].json")
        path.parent.mkdir(parents=True)
        path.write_bytes(b"{}")
        assert expand(path) == [path]
        assert expand(path.parent / "*.json") == [path]
        assert expand(path.parent / "x[[]1].json") == [path]


@pytest.mark.parametrize(
    ("there", "pattern", "said"),
    [
        ([], "no/such/*.json", "matches no file: the directory {}/no does not exist"),
        (["in/"], "in/*.json", "matches no file: the directory {}/in is empty"),
        (["in/a.txt"], "in/*.json", "matches no file: the directory {}/in is there and holds 1 other names: 'a.txt'"),
        (
            [f"in/{name}.txt" for name in "edcba"],
            "in/deep/**/*.json",
            "matches no file: the directory {}/in/deep does not exist",
        ),
        (
            [f"in/{name}.txt" for name in "edcba"],
            "in/[xyz].json",
            "the directory {}/in is there and holds 5 other names: 'a.txt', 'b.txt', 'c.txt', ...;",
        ),
        (["in/.a.json"], "in/*.json", "holds 1 other names: '.a.json'"),
        (
            [f"in/{FILE_NAMES['bots']}"],
            "in/*.gz",
            "matches only snapshots (bots_snapshot.json.gz), which are no input: the directory {}/in is there",
        ),
        (["in[1]/a.txt"], "in[1]/*.json", "the directory {}/in[1] is there and holds 1 other names: 'a.txt'"),
        (["file"], "file/*.json", "the directory {}/file cannot be listed: Not a directory"),
    ],
)
def test_a_pattern_without_a_match_says_where_it_looked(
    settings_without_redis: Settings, tmp_path: Path, there: list[str], pattern: str, said: str
) -> None:
    """The error for a pattern without a match has the directory, whether it exists, and what it holds instead.

    The directory is shown by its absolute path.
    """
    for name in there:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).write_bytes(b"")
    said = said.replace("{}/no does", "{}/no/such does")
    with pytest.raises(SourceMissing) as caught:
        optimize(replace(settings_without_redis, input=tmp_path / pattern, source="a"), use_cache=False)
    assert said.format(tmp_path) in str(caught.value)
    assert str(caught.value).endswith("; does the prediction engine write there?")


def test_a_relative_pattern_is_shown_with_the_workers_directory(
    settings_without_redis: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error for a relative pattern has the worker's directory, which is often another than its operator thinks."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        SourceMissing, match=rf"data/\*.json matches no file: the directory {tmp_path}/data does not exist"
    ):
        optimize(replace(settings_without_redis, input=Path("data/*.json")), use_cache=False)


def test_a_directory_that_may_not_be_listed_is_told(settings_without_redis: Settings) -> None:
    """The error says that a directory may not be listed, so that the directory does not look empty."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        locked = Path(directory, "in")
        locked.mkdir()
        locked.chmod(0o700 if os.geteuid() == 0 else 0)
        settings = replace(settings_without_redis, input=locked / "*.json", output_dir=Path(directory, "out"))
        settings.output_dir.mkdir()  # type: ignore[union-attr]
        settings.output_dir.chmod(0o777)  # type: ignore[union-attr]
        with as_unprivileged(), pytest.raises(SourceMissing, match=f"{locked} cannot be listed: Permission denied"):
            optimize(settings, use_cache=False)
