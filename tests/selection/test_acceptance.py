"""Bad data never replaces good data: which inputs a run refuses, which it publishes, and what it then reports."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import redis
from hypothesis import event, given
from hypothesis import strategies as st

from optimizer import Settings, SnapshotReader, optimize
from optimizer.cache.keys import Keys
from optimizer.cache.pointer import Pointer
from optimizer.cli.report import describe
from optimizer.errors import NoBots, NoRecords, RollingError, TooManyRejected
from optimizer.models import Bot, Record, Reject, Rejected, RejectReason, Report, Units
from optimizer.reader.reports import describe_rejected
from optimizer.selection.acceptance import check_plausible
from optimizer.selection.result import ScanResult
from optimizer.selection.top_n import Selection
from optimizer.snapshots.format import MANIFEST_NAME, decode_manifest, encode_manifest
from optimizer.snapshots.store import snapshot_store
from tests.support.published_state import no_scan, old_pointer, runs_of
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.rolling_files import a_record, local, write_json, write_raw
from tests.support.sources import GOOD, GOOD_BOTS, WAYS, Source, bot
from tests.support.web_apps import asking

# ---- the rule


A_BOT = Bot(name="", enabled=True, equity=1.0, pnl_today=None, position_count=0, positions=(), last_updated=None)


def result_of(records: Units, of_input: Units, of_files: Units) -> ScanResult:
    """Return the result of a scan that saw these numbers of records, of bots in the input, and of bot files."""
    result = ScanResult(Selection(10))
    for number in range(records.seen):
        is_bad = number < records.rejected
        bad = Reject(RejectReason.CONFIDENCE, f"S{number}", f"byte {number}", "confidence is 99, expected ...")
        result.take(bad if is_bad else Record(f"S{number}", 1.0, 0.5, 1.0))
    for units, take in ((of_input, result.take), (of_files, result.take_bot_file)):
        for number in range(units.seen):
            name = f"bot {number}"
            bad = Reject(RejectReason.BOT, name, f"byte {number}", "equity is 'x', expected a finite number")
            take(bad if number < units.rejected else msgspec.structs.replace(A_BOT, name=name))
    return result


def some_units(most: int) -> st.SearchStrategy[Units]:
    """Generate how many units of a kind were seen, at most `most`, and how many of them were rejected."""
    return st.integers(0, most).flatmap(lambda seen: st.integers(0, seen).map(lambda rejected: Units(seen, rejected)))


@given(
    records=some_units(12),
    of_input=some_units(6),
    of_files=some_units(6),
    limit=st.one_of(st.sampled_from([0.0, 50.0, 100.0, 100 / 3]), st.floats(0, 100)),
    accept=st.booleans(),
)
def test_what_is_refused_follows_from_the_counts(
    records: Units, of_input: Units, of_files: Units, limit: float, accept: bool
) -> None:
    """An input is refused if it has no usable record, if all bots of one place are rejected, or too large a share.

    No usable record is `NoRecords`; bots of the input, or bot files, of which none can be used are `NoBots`; a share of
    rejected records or bots above the limit is `TooManyRejected`. `accept` lets any input with a usable record through.
    """
    bots = Units(of_input.seen + of_files.seen, of_input.rejected + of_files.rejected)
    expected: type[RollingError] | None = None
    if records.rejected == records.seen:
        expected = NoRecords
    elif accept:
        expected = None
    elif any(units.seen > 0 and units.rejected == units.seen for units in (of_input, of_files)):
        expected = NoBots
    elif any(units.seen and Fraction(100 * units.rejected, units.seen) > limit for units in (records, bots)):
        expected = TooManyRejected
    event(expected.__name__ if expected else "published")

    result = result_of(records, of_input, of_files)
    if expected is None:
        check_plausible(result, input_name="a.json", bots_dir="bots", max_rejected_percent=limit, accept=accept)
        return
    with pytest.raises(expected, match="the old snapshots stay"):
        check_plausible(result, input_name="a.json", bots_dir="bots", max_rejected_percent=limit, accept=accept)


@given(some_units(12), some_units(6))
def test_a_version_says_what_it_leaves_out_unless_that_is_nothing(records: Units, bots: Units) -> None:
    """Bots and records of which some were rejected give a sentence each, with the numbers of rejected and seen ones."""
    sentences = describe_rejected(Rejected(records, bots))
    assert [sentence.split()[:4] for sentence in sentences] == [
        [str(units.rejected), "of", str(units.seen), kind]
        for kind, units in (("bots", bots), ("records", records))
        if units.rejected
    ]


def test_what_is_not_known_is_not_told() -> None:
    """A version of an older release, whose rejects are not known, gives no sentence about them."""
    assert describe_rejected(None) == []


# ---- runs

BAD_BOT = bot(positions=[{"symbol": "AAPL", "qty": "1"}])
PERCENT = {f"S{number:03}": a_record(confidence=number) for number in range(101)}


@pytest.fixture(params=WAYS)
def source(request: pytest.FixtureRequest, settings: Settings) -> Source:
    """A source with a good version that is published, for each way to make a run."""
    made = Source.made(settings, request.param)
    made.write(GOOD)
    assert made.run(made.settings).status == "success"
    return made


ALL_BOTS_BAD = dict.fromkeys(GOOD_BOTS, BAD_BOT)
REFUSED: dict[str, tuple[dict[str, Any], type[RollingError], str]] = {
    "every bot bad": (
        {**GOOD, "bots": ALL_BOTS_BAD},
        NoBots,
        r"no bot there can be used \(5 rejected\).*'b0' \(.*byte \d.*qty is '1'.*--accept",
    ),
    "bots in a list": ({**GOOD, "bots": list(GOOD_BOTS.values())}, NoBots, r"expected an object, got an array"),
    "three of five bots bad": (
        {**GOOD, "bots": {**GOOD_BOTS, "b0": BAD_BOT, "b1": BAD_BOT, "b2": BAD_BOT}},
        TooManyRejected,
        r"3 of 5 bots \(60\.0 %\).*ROLLING_MAX_REJECTED_PERCENT=50 .*3 x BotInvalid, first 'b\d' \(.*qty is '1'",
    ),
    "confidences from 0 to 100": (
        {**PERCENT, "bots": GOOD_BOTS},
        TooManyRejected,
        r"99 of 101 records \(98\.0 %\).*99 x ConfidenceInvalid, first 'S002' \(.*confidence is 2, expected .*--accept",
    ),
    "all symbols gone": ({"S1": {}, "S2": {}, "bots": GOOD_BOTS}, NoRecords, r"holds no usable record"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_data_fail_the_run_and_the_old_version_stays(source: Source, redis_server: RedisServer, case: str) -> None:
    """A run over bad data fails, at each tick until the input is corrected, and the old version stays.

    The error has the share that is rejected, the first reject of each reason, and what to do.
    """
    content, error, says = REFUSED[case]
    before = source.published(redis_server)
    source.write(content)

    for _ in range(2):
        with pytest.raises(error, match=says):
            source.run(source.settings)
        assert source.published(redis_server) == before
        failed = runs_of(redis_server, "engine")[0]
        assert (failed.status, failed.error) == ("failed", error.__name__)

    source.write(GOOD)
    assert source.run(source.settings).status == "success"


@pytest.mark.parametrize("case", [name for name, (_, error, _) in REFUSED.items() if error is not NoRecords])
def test_accept_lets_an_input_through_once(source: Source, case: str) -> None:
    """`accept` publishes what can be used of an input, once: another bad input is refused again.

    The next tick finds the accepted input unchanged, and reports what is left out.
    """
    source.write(REFUSED[case][0])

    accepted = source.run(source.settings, accept=True)

    assert (accepted.status, accepted.cache) == ("success", "published")
    assert accepted.rejected is not None
    assert accepted.stats is not None
    assert accepted.stats.bots_rejected == accepted.rejected.bots.rejected
    assert accepted.stats.bots_seen == accepted.rejected.bots.seen
    after = optimize(source.settings, progress=no_scan)
    assert (after.status, after.version, after.rejected) == ("unchanged", accepted.version, accepted.rejected)

    source.write({**REFUSED[case][0], "ONE MORE": a_record()})
    with pytest.raises(REFUSED[case][1]):
        source.run(source.settings)


def test_accept_publishes_no_empty_set_of_records(source: Source, redis_server: RedisServer) -> None:
    """`accept` does not publish an input without a usable record, since there would be nothing to show."""
    before = source.published(redis_server)
    source.write({"S1": {}, "S2": {}, "bots": GOOD_BOTS})
    with pytest.raises(NoRecords):
        source.run(source.settings, accept=True)
    assert source.published(redis_server) == before


def test_what_is_rejected_below_the_limit_is_told_wherever_the_version_is_read(
    source: Source, redis_server: RedisServer
) -> None:
    """Rejects below the limit are reported wherever the version is read.

    That is in the manifest, in the pointer in Redis, by readers of either, and in the reports of ticks that confirm it.
    """
    source.write({**GOOD, "BAD": a_record(confidence=7), "bots": {**GOOD_BOTS, "b2": BAD_BOT}})
    expected = Rejected(records=Units(3, 1), bots=Units(5, 1))

    report = source.run(source.settings)

    assert report.rejected == expected
    assert report.stats is not None
    assert (report.stats.bots_seen, report.stats.bots_rejected, report.stats.bots_processed) == (5, 1, 4)
    manifest = snapshot_store(source.settings.output_dir).read_manifest()
    assert manifest is not None
    assert manifest.rejected == expected
    with redis_server.client as client:
        pointer = Pointer.from_hash(client.hgetall(Keys("engine").current))
    assert pointer is not None
    assert pointer.manifest.rejected == expected
    assert optimize(source.settings, progress=no_scan).rejected == expected
    for where in (
        replace(source.settings, output_dir=Path("nowhere")),  # Redis alone, as most routers have it
        replace(source.settings, redis_url="redis://127.0.0.1:1/0"),
    ):
        reader = SnapshotReader.from_settings(where)
        assert reader.manifest().rejected == reader.portfolio().rejected == expected
        reader.close()


# ---- what counts


def publish(settings: Settings, content: Any) -> Report:
    """Write the content as the input, and make one run over it without Redis."""
    write_json(settings.input, content)
    return optimize(settings, use_cache=False)


def test_what_is_no_reject_does_not_count(settings_without_redis: Settings) -> None:
    """Records of low confidence and repeated symbols are not counted as rejected.

    Members of a map that are not objects are not counted at all.
    """
    records = [a_record(symbol="A", confidence=0.1), *(a_record(symbol="B") for _ in range(9))]
    report = publish(replace(settings_without_redis, max_rejected_percent=0), records)
    assert report.rejected == Rejected(Units(10, 0), Units(0, 0))
    members = {"AAPL": a_record(), "count": 1, "at": "now", "list": [1], "none": None}
    assert publish(settings_without_redis, members).rejected == Rejected(Units(1, 0), Units(0, 0))


def test_records_that_are_too_large_count(settings_without_redis: Settings) -> None:
    """Records that are too large count as rejected, like any others."""
    huge = a_record(assignment="x" * 2_000)
    with pytest.raises(TooManyRejected, match=r"2 of 3 records.*2 x RecordTooLarge, first 'A' .*MAX_RECORD_BYTES"):
        publish(
            replace(settings_without_redis, max_record_bytes=1_024),
            {"A": huge, "B": huge, "C": {"confidence": 1, "prediction": 1, "price": 1}},
        )


def test_half_is_not_more_than_half(settings_without_redis: Settings) -> None:
    """By default one bad record of two is accepted, and two of three are not.

    With a limit of 0, one of two is refused; with a limit of 100, 500 of 501 are accepted.
    """
    good, bad = a_record(), a_record(confidence=7)
    assert publish(settings_without_redis, {"A": good, "B": bad}).status == "success"
    with pytest.raises(TooManyRejected):
        publish(settings_without_redis, {"A": good, "B": bad, "C": bad})
    with pytest.raises(TooManyRejected, match="ROLLING_MAX_REJECTED_PERCENT=0 "):
        publish(replace(settings_without_redis, max_rejected_percent=0), {"A": good, "B": bad})
    all_but_one = {"A": good, **{f"B{number}": bad for number in range(500)}}
    assert publish(replace(settings_without_redis, max_rejected_percent=100), all_but_one).status == "success"


def test_bots_that_are_not_there_are_no_rejects(settings_without_redis: Settings) -> None:
    """An input without bots is published after one with bots, since an engine may switch all bots off."""
    publish(settings_without_redis, GOOD)
    report = publish(settings_without_redis, {**GOOD, "bots": {}})
    assert report.stats is not None
    assert (report.status, report.stats.bots_processed) == ("success", 0)


def test_bot_files_that_are_all_broken_fail_the_run_though_the_input_has_bots(
    settings_without_redis: Settings, tmp_path: Path
) -> None:
    """The bots of the input and the bot files are checked separately: if none of one kind can be used, the run fails.

    So usable bots in the input do not hide a directory of broken files. One usable file is enough.
    """
    bots_dir = tmp_path / "bots"
    settings = replace(settings_without_redis, bots_dir=bots_dir)
    write_raw(bots_dir / "x.json", b'{"equity": "1"}')
    content = {**GOOD, "bots": {**GOOD_BOTS, "b0": BAD_BOT}}
    with pytest.raises(
        NoBots, match=rf"^{bots_dir}: no bot .*\(1 rejected\).* 'x' \({bots_dir}/x\.json\): equity is '1'"
    ):
        publish(settings, content)
    write_json(bots_dir / "y.json", bot())
    assert publish(settings, content).rejected == Rejected(Units(2, 0), Units(7, 2))
    with pytest.raises(NoBots, match=r"rolling_brain\.json\.gz: no bot .*\(5 rejected\)"):
        publish(settings, {**GOOD, "bots": ALL_BOTS_BAD})


def test_the_setting_of_one_source_is_its_own() -> None:
    """The limit may be set for one source alone, like every other setting."""
    environ = {
        "ROLLING_SOURCES": "a=/a.json; b=/b.json",
        "ROLLING_OUTPUT_DIR": "/out",
        "ROLLING_MAX_REJECTED_PERCENT": "20",
        "ROLLING_B__MAX_REJECTED_PERCENT": "2.5",
    }
    assert [one.max_rejected_percent for one in Settings.every_from_env(environ)] == [20, 2.5]


# ---- releases


def _forget_rejects(client: redis.Redis, keys: Keys) -> None:
    """Replace the pointer by one of a release that counted no rejects."""
    pointer = Pointer.from_hash(cast("dict[bytes, bytes]", client.hgetall(keys.current)))
    assert pointer is not None
    old = old_pointer(msgspec.structs.replace(pointer.manifest, rejected=None), pointer.checked_at)
    client.delete(keys.current)
    client.hset(keys.current, mapping=cast("Any", old))


def test_what_an_older_release_wrote_is_read(settings: Settings, redis_server: RedisServer) -> None:
    """A manifest and a pointer of an older release, which lack the rejects, are read, and readers report `None`."""
    source = Source(settings, run=optimize, parted=False)
    source.write(GOOD)
    optimize(source.settings)
    path = (local(source.settings.output_dir) / MANIFEST_NAME).resolve()
    old = json.loads(path.read_bytes())
    del old["rejected"]
    path.write_text(json.dumps(old))
    with redis_server.client as client:
        _forget_rejects(client, Keys("engine"))

    away = replace(source.settings, redis_url="redis://127.0.0.1:1/0")
    for where, origin in ((source.settings, "redis"), (away, "files")):
        reader = SnapshotReader.from_settings(where)
        state = reader.manifest()
        assert (state.rejected, state.origin) == (None, origin)
        reader.close()
    manifest = decode_manifest(json.dumps(old).encode())
    assert manifest is not None
    assert decode_manifest(encode_manifest(manifest)) == manifest
    report = optimize(source.settings, progress=no_scan)
    assert (report.status, report.rejected) == ("unchanged", None)


def test_a_set_that_knows_nothing_of_rejects_is_published_again(settings: Settings, redis_server: RedisServer) -> None:
    """If Redis has lost the version of an older release, its set is published again.

    The pointer then lacks the numbers of rejects too.
    """
    source = Source(settings, run=optimize, parted=False)
    source.write(GOOD)
    optimize(source.settings)
    path = (local(source.settings.output_dir) / MANIFEST_NAME).resolve()
    old = json.loads(path.read_bytes())
    path.write_text(json.dumps({**old, "rejected": None}))
    with redis_server.client as client:
        client.flushdb()
        assert optimize(source.settings).cache == "republished"
        pointer = Pointer.from_hash(client.hgetall(Keys("engine").current))
    assert pointer is not None
    assert pointer.manifest.rejected is None


@pytest.mark.parametrize("sees_files", [True, False])
def test_a_pointer_that_says_nothing_of_rejects_does_not_hide_what_is_known(
    settings: Settings, redis_server: RedisServer, sees_files: bool
) -> None:
    """If the pointer lacks the rejects, readers with the files report them, and all readers once a run has repaired it.

    A worker of an older release may have published such a pointer.
    """
    source = Source(settings, run=optimize, parted=False)
    source.write({**GOOD, "bots": {**GOOD_BOTS, "b2": BAD_BOT}})
    left_out = optimize(source.settings).rejected
    assert left_out is not None
    with redis_server.client as client:
        _forget_rejects(client, Keys("engine"))
    seen = source.settings if sees_files else replace(source.settings, output_dir=local(settings.input).parent / "none")
    with closing(SnapshotReader.from_settings(seen)) as reader, asking(seen) as web:
        assert reader.manifest().rejected == (left_out if sees_files else None)
        assert (web.get("/page").json()["summary"]["rejected"] is not None) == sees_files

        assert optimize(source.settings, progress=no_scan).cache == "republished"

        reader.refresh()
        assert (reader.manifest().rejected, reader.bots().rejected) == (left_out, left_out)
        wait_until(lambda: web.get("/page").json()["summary"]["rejected"] is not None, what="the page to say it")


def test_most_bots_without_a_known_field_are_told_in_one_sentence(settings_without_redis: Settings) -> None:
    """If most bots have no value in a field that is read, one sentence names the setting and the command for it.

    Their number is in the manifest and in the report. It is 0 once the fields are mapped, and half of the bots give no
    sentence.
    """
    foreign = {f"b{number}": {"active": True, "balance": 10.5 + number} for number in range(3)}
    report = publish(settings_without_redis, {**GOOD, "bots": {**foreign, "own": bot()}})

    assert report.rejected == Rejected(Units(2, 0), Units(4, 0, 3))
    (sentence,) = describe_rejected(report.rejected)
    assert sentence == (
        "3 of 4 bots have no value in any field that is read; if theirs have other names, set ROLLING_BOT_FIELDS, "
        "which is suggested by: rolling-optimizer inspect"
    )
    assert f"\n  {sentence}" in describe(report)
    manifest = snapshot_store(settings_without_redis.output_dir).read_manifest()
    assert manifest is not None
    assert manifest.rejected == report.rejected

    mapped = replace(settings_without_redis, bot_fields="enabled=active; equity=balance")
    assert publish(mapped, {**GOOD, "bots": foreign}).rejected == Rejected(Units(2, 0), Units(3, 0))
    half = {"b0": foreign["b0"], "own": bot()}
    counted = publish(settings_without_redis, {**GOOD, "bots": half}).rejected
    assert counted == Rejected(Units(2, 0), Units(2, 0, 1))
    assert describe_rejected(counted) == []


@pytest.mark.parametrize(
    ("content", "error"), [({"S1": {}, "S2": {}}, NoRecords), ({**GOOD, "S3": {}, "S4": {}, "S5": {}}, TooManyRejected)]
)
def test_an_input_that_does_not_fit_leads_to_inspect(
    settings_without_redis: Settings, content: Any, error: type[RollingError]
) -> None:
    """The error for an input that does not fit names the command `inspect`, which shows its content and what to set."""
    with pytest.raises(error, match="what to set so that it is read, is shown by: rolling-optimizer inspect"):
        publish(settings_without_redis, content)
