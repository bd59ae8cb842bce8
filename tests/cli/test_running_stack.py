"""The file with the addresses of a running `up`: valid while it runs, for its own user only, behind a lock."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest

from optimizer.cli.dev.failure import StackFailed
from optimizer.cli.dev.running_stack import announcing, stack_variables

URLS = {"ROLLING_REDIS_URL": "redis://127.0.0.1:7000/0", "ROLLING_BROKER_URL": "redis://127.0.0.1:7001/0"}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The directory in which a stack keeps its files."""
    return tmp_path / ".up"


def test_it_is_told_from_when_redis_answers_until_the_stack_ends(directory: Path) -> None:
    """The addresses are found from when the stack announces them until it ends.

    A file that an earlier stack has left is ignored.
    """
    assert stack_variables({}, directory) == {}
    for _ in range(2):
        with announcing(directory) as announce:
            assert stack_variables({}, directory) == {}
            announce({**URLS, "ROLLING_INPUT": "brain.json.gz"})
            assert stack_variables({}, directory) == URLS
        assert stack_variables({}, directory) == {}


@pytest.mark.parametrize("name", ["ROLLING_REDIS_URL", "ROLLING_BROKER_URL", "ROLLING_REDIS_URL_FILE"])
def test_the_environment_comes_first(directory: Path, name: str) -> None:
    """If a variable names one of the two servers, the stack is not used; an empty variable names none."""
    with announcing(directory) as announce:
        announce(URLS)
        assert stack_variables({name: "given"}, directory) == {}
        assert stack_variables({name: ""}, directory) == URLS


def test_one_stack_runs_in_a_directory(directory: Path) -> None:
    """A second stack in a directory is refused, and the first continues to be found."""
    with announcing(directory) as announce:
        announce(URLS)
        with pytest.raises(StackFailed, match="another `rolling-optimizer up` runs in "), announcing(directory):
            pytest.fail("two stacks in one directory")
        assert stack_variables({}, directory) == URLS


def test_a_command_that_looks_is_waited_for(directory: Path) -> None:
    """A stack that starts waits for a command that reads the file, which holds the lock for a moment only.

    Such a command is not taken for another stack.
    """
    with announcing(directory):
        pass
    descriptor = os.open(directory / "stack.json", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    threading.Timer(0.05, os.close, [descriptor]).start()

    with announcing(directory) as announce:
        announce(URLS)
        assert stack_variables({}, directory) == URLS


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_passed_over(directory: Path) -> None:
    """A file that belongs to another user is neither read nor written.

    That user could name a Redis of their own in it, or read the password of this one.
    """
    with announcing(directory) as announce:
        announce(URLS)
        os.chown(directory / "stack.json", 65_534, -1)
        assert stack_variables({}, directory) == {}
    with pytest.raises(StackFailed, match=r"stack\.json belongs to another user"), announcing(directory):
        pytest.fail("it was written")


def test_no_link_is_followed(directory: Path, tmp_path: Path) -> None:
    """A link in place of the file is an error and not followed, since its target would be emptied."""
    directory.mkdir()
    (tmp_path / "theirs").write_text("kept")
    (directory / "stack.json").symlink_to(tmp_path / "theirs")

    with pytest.raises(StackFailed, match=r"stack\.json cannot be written"), announcing(directory):
        pytest.fail("it was written")
    assert (tmp_path / "theirs").read_text() == "kept"


def test_a_command_does_not_wait_for_a_pipe_in_place_of_the_file(directory: Path) -> None:
    """A pipe in place of the file counts as no stack, and reading does not wait for it.

    In a directory in which other users write, it would block every command there.
    """
    directory.mkdir()
    os.mkfifo(directory / "stack.json")

    assert stack_variables({}, directory) == {}
