"""Guards in real runs: what a user's guard may do, and that the old version stays when a guard refuses."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from optimizer import Settings, SnapshotReader, optimize
from optimizer.cache.client import CacheClient
from optimizer.cache.keys import Keys
from optimizer.errors import GuardRefused, RunTimedOut, SettingsInvalid
from optimizer.models import VersionContent
from optimizer.pipeline.background import ScheduledRuns
from optimizer.pipeline.guard import load_guard
from optimizer.snapshots.format import FILE_NAMES, MANIFEST_NAME
from tests.support.published_state import no_scan, runs_of, symbols_shown
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.rolling_files import a_record, local, write_json
from tests.support.sources import GOOD, GOOD_BOTS, WAYS, Source

WORSE: dict[str, Any] = {"AAPL": a_record(), "bots": GOOD_BOTS}
OTHER: dict[str, Any] = {"AAPL": a_record(confidence=0.6), "bots": GOOD_BOTS}

MODULE = """
import sys
import threading
import time

from optimizer.errors import GuardRefused

calls = []
released = threading.Event()


class Odd(BaseException):
    def __str__(self):
        raise ValueError


class OddRefusal(Odd, GuardRefused):
    pass


class Array:  # as one of NumPy, which has no truth
    def __eq__(self, other):
        return self

    def __bool__(self):
        raise ValueError

    def __repr__(self):
        raise ValueError


def fine(new, current):
    calls.append((new, current))


def empty(new, current):
    return ""


def text(new, current):
    return f"{len(new.predictions.predictions)} of {len(current.predictions.predictions)}"


def blank(new, current):
    return "  "


def long(new, current):
    return "\\ud800" + "x" * 100_000


def refused(new, current):
    raise GuardRefused("the market is closed")


def failing(new, current):
    return 1 / 0


def leaving(new, current):
    sys.exit(0)


def odd(new, current):
    raise Odd


def odd_refusal(new, current):
    raise OddRefusal


def array(new, current):
    return Array()


def true(new, current):
    return True


async def later(new, current):
    return None


def greedy(new, current):
    for content in (new, current):
        content.predictions.predictions.clear()
        content.bots.bots.clear()
        content.portfolio.holdings.clear()


def hanging(new, current):
    calls.append(threading.current_thread())
    released.wait(60)


number = 7
"""


@pytest.fixture
def guards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A user's module `shop_guards` in a directory where Python finds it, beside modules whose import fails."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop/shop_guards.py").write_text(MODULE)
    (tmp_path / "shop/shop_broken.py").write_text("raise SystemExit('not here')\n")
    (tmp_path / "shop/shop_interrupted.py").write_text("raise KeyboardInterrupt\n")
    monkeypatch.syspath_prepend(str(tmp_path / "shop"))
    import shop_guards  # type: ignore[import-not-found]  # noqa: PLC0415 - it is there now

    yield shop_guards
    shop_guards.released.set()
    for name in ("shop_guards", "shop_broken"):
        sys.modules.pop(name, None)


@pytest.fixture(params=WAYS)
def source(request: pytest.FixtureRequest, settings: Settings) -> Source:
    """A source with a published good version, once for each way to make a run."""
    made = Source.made(settings, request.param)
    made.write(GOOD)
    made.run(made.settings)
    return made


SET: list[tuple[dict[str, Any], str]] = [
    ({"min_records": 2}, r"1 usable records, fewer than ROLLING_MIN_RECORDS=2 asks for"),
    ({"max_drop_percent": 49.9}, r"1 usable records are 50 % fewer than the 2 of version \d+, and .*PERCENT=49\.9 "),
    ({"guard": "shop_guards:text"}, r"ROLLING_GUARD=shop_guards:text refuses: 1 of 2; the old snapshots stay"),
]


@pytest.mark.usefixtures("guards")
@pytest.mark.parametrize(("values", "says"), SET, ids=["records", "drop", "own"])
def test_a_refused_version_is_shown_nowhere_until_it_is_accepted(
    source: Source, redis_server: RedisServer, values: dict[str, Any], says: str
) -> None:
    """If a guard refuses, files, Redis and readers keep the old version, and the next run is refused again.

    `accept` publishes this one input; the next input is checked again.
    """
    settings = replace(source.settings, **values)
    before = source.published(redis_server)
    with closing(SnapshotReader.from_settings(settings)) as reader:
        version = reader.manifest().version
        source.write(WORSE)
        for _ in range(2):
            with pytest.raises(GuardRefused, match=says):
                source.run(settings)
            assert source.published(redis_server) == before
            assert (runs_of(redis_server, "engine")[0].status, runs_of(redis_server, "engine")[0].error) == (
                "failed",
                "GuardRefused",
            )
        assert reader.manifest().version == version
        assert len(reader.predictions().value.predictions) == 2

    accepted = source.run(settings, accept=True)

    assert (accepted.status, accepted.cache) == ("success", "published")
    assert symbols_shown(settings) == ["AAPL"]
    assert optimize(settings, progress=no_scan).status == "unchanged"
    source.write(OTHER)
    if "max_drop_percent" in values:  # now compared with the version that was accepted
        assert source.run(settings).status == "success"
    else:
        with pytest.raises(GuardRefused):
            source.run(settings)


@pytest.mark.parametrize(
    ("name", "says", "traceback"),
    [
        ("shop_guards:refused", "ROLLING_GUARD=shop_guards:refused refuses: the market is closed; the old", ""),
        ("shop_guards:blank", "refuses: no reason is given; the old", ""),
        ("shop_guards:failing", "failed, and so refuses: ZeroDivisionError: division by zero; the log", "1 / 0"),
        ("shop_guards:leaving", "failed, and so refuses: SystemExit: 0; the log", "sys.exit(0)"),
        ("shop_guards:odd", "failed, and so refuses: Odd: its message cannot be shown; the log", "raise Odd"),
        ("shop_guards:odd_refusal", "refuses: its message cannot be shown; the old", ""),
        ("shop_guards:array", "returned <Array instance at ", ""),
        ("shop_guards:true", "returned True, and so refuses; return None to pass", ""),
        ("shop_guards:later", "is an async function, and so refuses", ""),
        ("shop_guards:number", "ROLLING_GUARD=shop_guards:number is not a function: 7", "SettingsInvalid"),
        ("shop_guards:none", "ROLLING_GUARD=shop_guards:none cannot be imported: AttributeError: ", "AttributeError"),
        ("shop_none:none", "cannot be imported: ModuleNotFoundError: No module named 'shop_none'; it has", "shop_none"),
        (
            "shop_interrupted:none",
            "cannot be imported: KeyboardInterrupt: no reason is given; the old",
            "KeyboardInterrupt",
        ),
        ("shop_broken:none", "cannot be imported: SystemExit: not here; it has to be in an installed", "SystemExit"),
    ],
)
@pytest.mark.usefixtures("guards")
def test_a_guard_refuses_in_whatever_way_it_does_not_pass(
    settings: Settings, caplog: pytest.LogCaptureFixture, name: str, says: str, traceback: str
) -> None:
    """A guard that returns neither None nor empty text refuses: the error names it and says what to do.

    If it raises an error other than `GuardRefused`, or is not a function that can be imported, the log has the
    traceback.
    """
    write_json(settings.input, GOOD)
    optimize(settings)
    write_json(settings.input, WORSE)
    with pytest.raises(GuardRefused) as refusal:
        optimize(replace(settings, guard=name))
    assert says in str(refusal.value)
    assert str(refusal.value).startswith(f"{settings.input}: ROLLING_GUARD={name} ")
    assert "rolling-optimizer run --accept" in str(refusal.value)
    assert (traceback in caplog.text) if traceback else not caplog.text
    assert ("Traceback (most recent call last)" in caplog.text) == bool(traceback)


def test_what_a_guard_says_fits_into_a_report(settings: Settings, guards: Any, redis_server: RedisServer) -> None:
    """A guard's reason of 100,000 characters, one of them a lone surrogate, is cut to 1,024 valid ones."""
    assert guards
    write_json(settings.input, GOOD)
    with pytest.raises(GuardRefused, match=r"refuses: \?x{1000,1023}\.\.\.; the old"):
        optimize(replace(settings, guard="shop_guards:long"))
    assert runs_of(redis_server, settings.source)[0].error == "GuardRefused"


def test_a_guard_sees_both_versions(settings: Settings, guards: Any) -> None:
    """A guard gets the new version and the current one, decoded as readers have them.

    At the first publish the current one is None; for an unchanged input the guard is not called.
    """
    settings = replace(settings, guard="shop_guards:fine")
    write_json(settings.input, GOOD)
    first = optimize(settings)
    optimize(settings)
    write_json(settings.input, WORSE)
    optimize(settings)
    (new, none), (newer, current) = guards.calls
    assert none is None
    assert isinstance(new, VersionContent)
    assert (new.version, new.generated_at, new.rejected) == (first.version, first.timestamp, first.rejected)
    assert new == current
    assert [record.symbol for record in newer.predictions.predictions] == ["AAPL"]
    assert list(newer.bots.bots) == list(GOOD_BOTS)
    with closing(SnapshotReader.from_settings(settings)) as reader:
        assert newer.predictions == reader.predictions().value


def test_a_guard_that_changes_what_it_is_given_changes_nothing(settings: Settings, guards: Any) -> None:
    """A guard that clears its arguments changes neither the snapshots nor the changes in the report."""
    assert guards
    plain = replace(settings, source="plain", output_dir=local(settings.output_dir) / "plain")
    greedy = replace(settings, source="greedy", output_dir=local(settings.output_dir) / "greedy")
    for content in (GOOD, WORSE):
        write_json(settings.input, content)
        reports = [optimize(plain), optimize(replace(greedy, guard="shop_guards:greedy" if content is WORSE else ""))]
    assert reports[0].changes == reports[1].changes is not None
    for kind in ("predictions", "bots", "portfolio", "index"):
        values = [
            msgspec.json.decode(gzip.decompress((local(one.output_dir) / FILE_NAMES[kind]).read_bytes()))
            for one in (plain, greedy)
        ]
        for value in values:
            del value["timestamp"]
        assert values[0] == values[1], kind


def test_empty_text_passes(settings: Settings, guards: Any) -> None:
    """A guard that returns empty text passes, as one that returns None does."""
    assert guards
    write_json(settings.input, GOOD)
    assert optimize(replace(settings, guard="shop_guards:empty")).status == "success"


# ---- the version before


def test_the_first_version_has_nothing_to_be_compared_with(settings: Settings) -> None:
    """The first version passes `max_drop_percent`, as there is none to compare it with; `min_records` still counts."""
    write_json(settings.input, WORSE)
    with pytest.raises(GuardRefused, match="fewer than ROLLING_MIN_RECORDS=2"):
        optimize(replace(settings, min_records=2))
    assert not (local(settings.output_dir) / MANIFEST_NAME).exists()
    assert optimize(replace(settings, max_drop_percent=0)).status == "success"
    with pytest.raises(GuardRefused):
        optimize(replace(settings, min_records=2), force=True)


@pytest.mark.parametrize("lost", ["files", "redis"])
def test_what_is_shown_is_compared_wherever_it_is(settings: Settings, redis_server: RedisServer, lost: str) -> None:
    """A new version is compared with the newest one of the files and Redis.

    That is in Redis alone after the directory was lost, and in the files alone after Redis was emptied.
    """
    settings = replace(settings, max_drop_percent=49)
    write_json(settings.input, GOOD)
    optimize(settings)
    if lost == "files":
        settings = replace(settings, output_dir=local(settings.output_dir) / "new")
    else:
        with redis_server.client as client:
            client.flushdb()
    write_json(settings.input, WORSE)
    with pytest.raises(GuardRefused, match="50 % fewer than the 2"):
        optimize(settings)


def test_a_version_of_an_older_release_is_compared_by_what_it_says(settings: Settings) -> None:
    """With a version of an older release only bots and holdings are compared.

    How many of its records were usable is not known.
    """
    settings = replace(settings, max_drop_percent=0)
    write_json(settings.input, GOOD)
    optimize(settings, use_cache=False)
    path = (local(settings.output_dir) / MANIFEST_NAME).resolve()
    old = msgspec.json.decode(path.read_bytes())
    del old["rejected"]
    path.write_bytes(msgspec.json.encode(old))
    write_json(settings.input, {**WORSE, "bots": {}})
    with pytest.raises(GuardRefused, match=r": 0 bots are 100 % fewer than the 5, 0 holdings are 100 % fewer"):
        optimize(settings, use_cache=False)
    write_json(settings.input, WORSE)
    assert optimize(settings, use_cache=False).status == "success"


def test_a_version_that_cannot_be_read_is_none_to_a_guard_and_its_numbers_count(
    settings: Settings, guards: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """If a file of the current version is damaged, the guard gets None for it, with a warning in the log.

    A refusal would keep the damaged version. Its manifest still has the counts, so `max_drop_percent` is checked.
    """
    write_json(settings.input, GOOD)
    optimize(settings, use_cache=False)
    (local(settings.output_dir) / FILE_NAMES["bots"]).resolve().write_bytes(b"damaged")
    write_json(settings.input, WORSE)
    settings = replace(settings, guard="shop_guards:fine")
    with pytest.raises(GuardRefused, match="50 % fewer"):
        optimize(replace(settings, max_drop_percent=10), use_cache=False)
    assert optimize(settings, use_cache=False).status == "success"
    assert [current for _, current in guards.calls] == [None]
    assert "the guard shop_guards:fine is told of no version before, for version 1" in caplog.text


# ---- time limits


def test_a_guard_that_hangs_ends_with_its_run_and_refuses_while_it_hangs(
    settings: Settings, guards: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run whose guard hangs ends at its time limit, also in a schedule's thread.

    There the run checks the limit itself. Until the guard returns, further runs are refused without calling it, so it
    never hangs twice.
    """
    monkeypatch.setattr(Settings, "time_limit_s", 0.5)
    write_json(settings.input, GOOD)
    reports: list[Any] = []
    hanging = replace(settings, guard="shop_guards:hanging", interval_s=0.1, startup_delay_s=0)
    runs = ScheduledRuns(hanging, on_report=reports.append)
    runs.start()
    wait_until(lambda: len(reports) >= 2, limit_s=20, what="two runs")
    runs.stop()
    assert runs.wait(10)
    assert reports[0].error == RunTimedOut.__name__
    assert reports[1].error == GuardRefused.__name__
    assert "has not returned since an earlier run was ended, and refuses until then" in reports[1].details
    assert len(guards.calls) == 1
    guards.released.set()
    guards.calls[0].join(10)
    assert optimize(hanging).status == "success"


@pytest.mark.parametrize("when", ["aborted", "lost"])
def test_a_run_that_may_not_publish_ends_though_its_guard_hangs(settings: Settings, guards: Any, when: str) -> None:
    """A run whose guard hangs ends without a publish if its process aborts it or its lock is lost.

    It notices the loss of the lock while it waits for the guard.
    """
    write_json(settings.input, GOOD)
    runs = ScheduledRuns(replace(settings, guard="shop_guards:hanging", startup_delay_s=0))
    runs.start()
    wait_until(lambda: bool(guards.calls), limit_s=10, what="the guard")
    if when == "lost":
        with CacheClient(settings.redis_url, settings.source, settings.interval_s).commands() as client:
            client.set(Keys(settings.source).lock, "another")
        runs.stop()
    else:
        runs.abort()
    assert runs.wait(10)
    assert not (local(settings.output_dir) / MANIFEST_NAME).exists()


def test_a_guard_is_imported_once(settings: Settings, guards: Any) -> None:
    """A guard is imported once, so its state between runs stays; a name that its module lacks is `SettingsInvalid`."""
    assert load_guard("shop_guards:fine") is load_guard("shop_guards:fine") is guards.fine
    with pytest.raises(SettingsInvalid, match="ROLLING_GUARD=shop_guards:x cannot be imported"):
        load_guard("shop_guards:x")
    write_json(settings.input, GOOD)
    for _ in range(2):
        optimize(replace(settings, guard="shop_guards:fine"), force=True)
    assert len(guards.calls) == 2
