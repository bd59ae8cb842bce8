"""The age of the input, and the time from its landing until readers could see its version, in each run's report."""

from __future__ import annotations

import os
import time
from contextlib import closing
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

import pytest

from optimizer import Settings, SnapshotReader, optimize
from optimizer.cache.clocks import seconds_of, text_of
from optimizer.models import Record, Report
from optimizer.pipeline.distributed import merge_parts
from optimizer.pipeline.drain import apply_updates
from optimizer.pipeline.updates import enqueue
from optimizer.storage.location import Url
from tests.support.distributed_runs import dispatched, run_here, scan_all
from tests.support.published_state import NEW, OLD, once, run_old, runs_of
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.rolling_files import a_record, local, write_json
from tests.support.s3_server import S3Server
from tests.support.web_server import serving

HOUR_S = 3_600


def land(path: Path, value: object, *, age_s: float) -> None:
    """Rename a file into place that was last written `age_s` seconds ago."""
    write_json(path.with_name("written.json.gz"), value)
    written_s = time.time() - age_s
    os.utime(path.with_name("written.json.gz"), (written_s, written_s))
    path.with_name("written.json.gz").rename(path)


# A file's times are the kernel's last tick (at least 100 a second), so they may be before the clock's time.
KERNEL_TICK_S = 0.01


def written_s(report: Report) -> float:
    """The time at which the input was written, computed from a report; it should be exact to the millisecond."""
    assert report.input_age_s is not None
    return seconds_of(report.timestamp) - report.input_age_s


def published_after_s(report: Report, *, began_s: float) -> float:
    """Return a report's `published_after_s`, checked to be rounded to milliseconds and not negative.

    It is also at most the time since `began_s`, after which the input landed.
    """
    assert report.published_after_s is not None
    assert 0 <= report.published_after_s <= time.time() - began_s + KERNEL_TICK_S
    assert round(report.published_after_s, 3) == report.published_after_s
    return report.published_after_s


def test_the_age_counts_from_the_last_write_and_the_publish_from_the_rename(
    settings: Settings, redis_server: RedisServer
) -> None:
    """The input's age counts from its last write, and the time until the publish from its rename into place.

    If an engine took an hour to move its file, that is an old input which was published at once.
    """
    began_s = time.time()
    land(local(settings.input), OLD, age_s=HOUR_S)
    stat = local(settings.input).stat()

    first, again = optimize(settings), optimize(settings)

    for report in (first, again):
        assert written_s(report) == pytest.approx(stat.st_mtime, abs=0.002)
        assert HOUR_S <= (report.input_age_s or 0) < HOUR_S + 60
    published_after_s(first, began_s=began_s)
    assert (again.status, again.published_after_s) == ("unchanged", None)
    assert runs_of(redis_server, settings.source) == [again, first]


def test_the_time_until_the_publish_has_the_scan_in_it(settings_without_redis: Settings) -> None:
    """The time until the publish includes the scan, also without Redis, where readers see the files."""
    settings, began_s = settings_without_redis, time.time()
    write_json(settings.input, OLD)
    landed_s = local(settings.input).stat().st_ctime

    def pass_time() -> None:
        wait_until(lambda: time.time() > landed_s + 0.5, what="half a second")

    report = optimize(settings, use_cache=False, progress=once(pass_time))

    assert published_after_s(report, began_s=began_s) >= 0.5
    assert (report.input_age_s or 0) >= 0.5


def test_an_input_of_a_clock_that_is_ahead_is_new(settings_without_redis: Settings) -> None:
    """An input that was written in the future, by a clock that is ahead, has an age of 0 and was published after 0 s.

    Negative times would be nonsense.
    """
    settings = settings_without_redis
    land(local(settings.input), OLD, age_s=-HOUR_S)

    report = optimize(settings, use_cache=False)

    assert (report.input_age_s, report.published_after_s) == (0, 0)


def test_equal_content_is_published_when_it_is_confirmed(settings: Settings) -> None:
    """A new file with equal content keeps the version and counts as published when the run confirms it.

    From then on the version stands for the new file, and the report has that file's age.
    """
    first = run_old(settings)
    began_s = time.time()
    land(local(settings.input), OLD, age_s=HOUR_S)

    report = optimize(settings)

    assert (report.status, report.version) == ("success", first.version)
    assert (report.input_age_s or 0) >= HOUR_S
    published_after_s(report, began_s=began_s)


def test_an_input_that_is_scanned_again_by_force_was_published_before(settings: Settings) -> None:
    """The report of a forced scan of an unchanged input has its age, and no time until the publish.

    The time since the input's landing would say nothing about the service.
    """
    run_old(settings)

    report = optimize(settings, force=True)

    assert (report.status, report.published_after_s) == ("success", None)
    assert report.input_age_s is not None


def test_a_run_that_publishes_nothing_has_no_time(settings: Settings) -> None:
    """The report of a skipped run has neither age nor time until the publish, since it has read nothing."""
    run_old(settings)
    assert optimize(settings, tick=7).input_age_s is not None
    skipped = optimize(settings, tick=7)
    assert (skipped.status, skipped.input_age_s, skipped.published_after_s) == ("skipped", None, None)


@pytest.mark.parametrize("distributed", [False, True], ids=["in one process", "by the fleet"])
def test_parts_are_as_old_as_the_newest(parted: Settings, distributed: bool) -> None:
    """An input of parts is as old as its newest part, as that was scanned.

    The fleet may find a newer part than was there when the run began.
    """
    began_s = time.time()

    def write_part(name: str, *, age_s: float) -> float:
        path = write_json(local(parted.input).parent / name, {name: a_record()})
        os.utime(path, (began_s - age_s, began_s - age_s))
        return began_s - age_s

    write_part("a.json", age_s=2 * HOUR_S)
    newest_s = write_part("b.json", age_s=HOUR_S)
    if distributed:
        assignment = dispatched(parted)
        newest_s = write_part("b.json", age_s=HOUR_S / 2)
        report = merge_parts(parted, assignment.token, scan_all(parted, assignment))
        again = run_here(parted)
    else:
        report, again = optimize(parted), optimize(parted)

    assert (report.status, again.status) == ("success", "unchanged")
    assert written_s(report) == pytest.approx(newest_s, abs=0.002)
    assert written_s(again) == pytest.approx(newest_s, abs=0.002)
    published_after_s(report, began_s=began_s)
    assert again.published_after_s is None


@pytest.mark.slow
def test_an_object_is_written_and_lands_when_it_is_put(
    settings_without_redis: Settings, s3: S3Server, tmp_path: Path
) -> None:
    """An object in S3 is written and lands when it is put.

    S3 gives whole seconds, so the age and the time until the publish may be up to a second too long.
    """
    place = s3.bucket / tmp_path.name / "rolling_brain.json.gz"
    settings, began_s = replace(settings_without_redis, input=place), time.time()
    s3.put(place, write_json(tmp_path / "a.json.gz", OLD).read_bytes())

    report = optimize(settings, use_cache=False)
    again = optimize(settings, use_cache=False)

    published_after_s(report, began_s=began_s - 1)
    assert began_s - 1 <= written_s(report) <= time.time()
    assert written_s(again) == pytest.approx(written_s(report), abs=0.002)


@pytest.mark.parametrize("dated", [True, False])
def test_a_page_is_as_old_as_its_server_says(settings_without_redis: Settings, tmp_path: Path, dated: bool) -> None:
    """An input on a web server is as old as its `Last-Modified` says; without that header, reports have no times."""
    modified_s = int(time.time()) - HOUR_S
    with serving() as pages:
        pages.data = write_json(tmp_path / "a.json.gz", NEW).read_bytes()
        pages.last_modified = formatdate(modified_s, usegmt=True) if dated else ""
        settings = replace(settings_without_redis, input=Url(f"{pages.url}/rolling_brain.json.gz"))
        report = optimize(settings, use_cache=False)
        again = optimize(settings, use_cache=False)

    assert (report.status, again.status) == ("success", "unchanged")
    if not dated:
        assert {report.input_age_s, report.published_after_s, again.input_age_s} == {None}
        return
    assert written_s(report) == pytest.approx(modified_s, abs=0.002)
    assert written_s(again) == pytest.approx(modified_s, abs=0.002)
    assert HOUR_S <= (report.published_after_s or 0) < HOUR_S + 60


def test_an_equal_object_that_is_put_again_is_of_an_engine_that_lives(settings: Settings, tmp_path: Path) -> None:
    """An input that is written again with equal content keeps its tag and its version, and gets the later time.

    The later time, which shows that the engine is alive, is in Redis and in the files, also after updates.
    """
    written_s = int(time.time()) - 3 * HOUR_S
    with serving() as pages:
        settings = replace(settings, input=Url(f"{pages.url}/rolling_brain.json.gz"))
        pages.data = write_json(tmp_path / "a.json.gz", NEW).read_bytes()
        pages.last_modified = formatdate(written_s, usegmt=True)
        report = optimize(settings)
        pages.last_modified = formatdate(written_s + HOUR_S, usegmt=True)
        again, third = optimize(settings), optimize(settings)
        assert (again.status, again.version, third.cache) == ("unchanged", report.version, "current")
        assert times_of_input(settings) == {text_of(written_s + HOUR_S)}

        enqueue(settings, [Record("NEWS", 1.0, 0.9, 1.0, timestamp=text_of(time.time()))], [])
        apply_updates(settings)
        pages.last_modified = formatdate(written_s + 2 * HOUR_S, usegmt=True)
        assert optimize(settings).status == "unchanged"
    assert times_of_input(settings) == {text_of(written_s + 2 * HOUR_S)}


def times_of_input(settings: Settings) -> set[str | None]:
    """The input's times in the manifests of a reader of Redis and of a reader of the files."""
    with closing(SnapshotReader.from_settings(settings)) as one, closing(reader_of_files(settings)) as other:
        return {one.manifest().input_at, other.manifest().input_at}


def reader_of_files(settings: Settings) -> SnapshotReader:
    """A reader whose Redis is away."""
    return SnapshotReader.from_settings(replace(settings, redis_url="redis://127.0.0.1:1/0"))
