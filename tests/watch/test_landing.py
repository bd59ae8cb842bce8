"""When an input has landed, compared with what follows from the whole history of what was seen of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from optimizer.watch.landing import NEW_FILE_SHARE, Landing, Seen
from tests.support.examples import examples

REST_S = 1.0
NEW_FILE_REST_S = NEW_FILE_SHARE * REST_S
NAMES = ("a", "b", "c")

Look = tuple[float, dict[str, Seen]]

# The time until the next observation (multiples of 1/8 s, so that sums are exact), what happens to a file or to a run,
# and the name of the file.
STEPS = st.lists(
    st.tuples(
        st.integers(0, 10).map(lambda eighths: eighths / 8),
        st.sampled_from(("rename", "create", "truncate", "write", "delete", "nothing", "take", "give back")),
        st.sampled_from(NAMES),
    ),
    max_size=40,
)


@hypothesis_settings(max_examples=examples(400))
@given(STEPS)
def test_an_input_lands_when_all_its_files_rest(steps: list[tuple[float, str, str]]) -> None:
    """An input lands when it differs from the input that was taken and each file, present or lost, has rested.

    The expected time follows from all observations so far; an input with an empty file does not land.
    """
    landing = Landing(REST_S)
    files: dict[str, Seen] = {}
    looks: list[Look] = []
    taken: dict[str, str] | None = None
    now_s = 0.0
    for number, (pause_s, what, name) in enumerate(steps):
        if what == "rename":
            files[name] = Seen(f"version {number}", f"file {number}", is_whole=True)
        elif what == "create":
            files[name] = Seen(f"version {number}", f"file {number}", is_whole=False)
        elif what == "write" and name in files:
            files[name] = Seen(f"version {number}", files[name].file, is_whole=False)
        elif what == "truncate" and name in files:
            files[name] = Seen(f"version {number}", files[name].file, is_whole=False, is_empty=True)
        elif what == "delete":
            files.pop(name, None)
        elif what == "take" and looks:
            landing.take()
            taken = _versions(looks[-1][1])
        elif what == "give back":
            landing.give_back()
            taken = None
        looks.append((now_s, dict(files)))
        landing.observe(files, now_s)
        if not files:
            taken = None

        waits = files and _versions(files) != taken and not any(seen.is_empty for seen in files.values())
        expected = _lands_s(looks) if waits else None
        assert landing.lands_s == expected
        now_s += pause_s


def _versions(files: dict[str, Seen]) -> dict[str, str]:
    return {name: seen.version for name, seen in files.items()}


def _lands_s(looks: list[Look]) -> float:
    """Return when an input with these observations lands: the latest time that any file, present or lost, requires."""
    times = [float("-inf")]
    for at, (now_s, files) in enumerate(looks):
        before = looks[at - 1][1] if at else {}
        times += [now_s + REST_S for name in before if name not in files]
        for name, seen in files.items():
            last = all(later.get(name, seen).version == seen.version for _, later in looks[at:])
            stays = all(name in later for _, later in looks[at:])
            if last and stays and (name not in before or before[name].version != seen.version):
                new = at > 0 and (name not in before or before[name].file != seen.file)
                times.append(now_s + (0 if seen.is_whole else NEW_FILE_REST_S if new else REST_S))
    return max(times)


def file(version: str, *, file: str = "x", is_whole: bool = False) -> Seen:
    """A file as the watch has seen it."""
    return Seen(version, file, is_whole)


def test_a_renamed_file_lands_at_once() -> None:
    """A renamed file lands at once, also if the watch has just been started."""
    landing = Landing(REST_S)
    landing.observe({"a": file("1", is_whole=True)}, 5.0)
    assert landing.lands_s == 5.0
    landing.take()
    landing.observe({"a": file("2", file="y", is_whole=True)}, 6.0)
    assert landing.lands_s == 6.0


def test_a_file_that_is_written_in_place_lands_after_its_last_write() -> None:
    """A file that is written in place lands after a rest, which each change that is seen begins again."""
    landing = Landing(REST_S)
    landing.observe({}, 0.0)
    landing.observe({"a": file("1")}, 1.0)
    assert landing.lands_s == 1.0 + NEW_FILE_REST_S
    for tenth in range(1, 20):
        landing.observe({"a": file(f"1.{tenth}")}, 1.0 + tenth / 10)
        assert landing.lands_s == pytest.approx(1.0 + tenth / 10 + REST_S)


def test_a_run_that_has_read_nothing_is_sent_again() -> None:
    """After a run that has read nothing, the input waits for another run, without another rest."""
    landing = Landing(REST_S)
    landing.observe({"a": file("1", is_whole=True)}, 0.0)
    landing.take()
    assert landing.lands_s is None
    landing.give_back()
    assert landing.lands_s == 0.0


@pytest.mark.parametrize("rest_s", [0.1, 8.0])
def test_the_rest_of_a_new_file_is_in_proportion(rest_s: float) -> None:
    """A new file rests for a quarter of `--rest`.

    `--rest 8` is for an engine that pauses for seconds, and that may begin with a new file each time.
    """
    landing = Landing(rest_s)
    landing.observe({}, 0.0)
    landing.observe({"a": file("1")}, 1.0)
    assert landing.lands_s == 1.0 + rest_s / 4
