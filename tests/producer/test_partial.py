"""Temporary files that one producer makes while another one removes abandoned files."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from optimizer.errors import InputUnwritable
from optimizer.producer import write_rolling
from optimizer.producer.partial import partial


@pytest.mark.parametrize("is_directory", [False, True])
def test_one_that_is_removed_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_directory: bool
) -> None:
    """A temporary file or directory that is removed before it is locked is made again.

    Another producer takes it for abandoned at that moment. The path that is yielded exists, and is gone afterwards.
    """
    flock = fcntl.flock
    removed: list[Path] = []

    def too_late(descriptor: int, operation: int) -> None:
        if not removed:
            (path,) = tmp_path.iterdir()
            path.rmdir() if is_directory else path.unlink()
            removed.append(path)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", too_late)
    with partial(tmp_path, "brain", is_directory=is_directory) as path:
        assert removed
        assert path not in removed
        assert path.is_dir() == is_directory
        with partial(tmp_path, "brain") as other:
            assert path.exists()
            assert other.exists()
    assert not list(tmp_path.iterdir())


def test_a_failure_names_the_file_and_not_the_one_before_the_rename(tmp_path: Path) -> None:
    """The error for a name that is a little too long for the temporary file names the final file."""
    path = tmp_path / f"{'a' * 240}.json.gz"
    with pytest.raises(InputUnwritable, match="File name too long") as raised:
        write_rolling(path, {})
    assert str(raised.value).startswith(f"{path} cannot be written")
