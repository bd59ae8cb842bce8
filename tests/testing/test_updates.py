"""Updates of the readers in memory: what `update` accepts, rejects and refuses, and what the readers show then."""

from __future__ import annotations

import inspect
from contextlib import closing
from typing import Any

import pytest

from optimizer import Settings, testing
from optimizer.errors import CacheUnavailable, SettingsInvalid, UpdatesPending, UpdatesRefused
from optimizer.producer import publish

AAPL = {"symbol": "AAPL", "prediction": 101.5, "confidence": 0.75, "last_price": 100.0}
MSFT = AAPL | {"symbol": "MSFT", "confidence": 0.25}


def test_it_has_the_arguments_of_publish() -> None:
    """`update` has the same parameters as `publish`, so that it can replace it wherever that is called."""
    for reader in (testing.MemoryReader, testing.AsyncMemoryReader):
        _, *own = inspect.signature(reader.update).parameters.values()
        assert own == list(inspect.signature(publish).parameters.values())


def test_what_is_accepted_is_shown_and_what_is_rejected_is_named() -> None:
    """An update makes a version of its accepted records, ranked as a drain ranks them, and names the rejected ones.

    When the call returns, the change is held, and callbacks have returned.
    """
    with closing(testing.reader(predictions=[AAPL], index=[MSFT])) as reader:
        seen: list[int] = []
        reader.on_version(lambda state: seen.append(state.version))
        answer = reader.update([MSFT | {"confidence": 0.9}, AAPL | {"symbol": "BAD", "confidence": 7}], wait_s=1)
        assert (answer.records, answer.version) == (1, 2)
        assert [(reject.name, reject.where) for reject in answer.rejected] == [("BAD", "record 2")]
        assert [record.symbol for record in reader.predictions().value.predictions] == ["MSFT", "AAPL"]

        assert reader.update({"LOW": {"prediction": 1, "confidence": 0.1, "last_price": 1}}).version is None
        assert [record.symbol for record in reader.top(5).value] == ["MSFT", "AAPL", "LOW"]
        assert len(reader.predictions().value.predictions) == 2

        assert reader.update(remove=["AAPL", "NONE"]).removals == 2
        assert reader.symbol("AAPL").value is None
        assert [change.version for change in reader.changes(1).changes] == [2, 4]
        assert seen[-1] == 4


def test_an_older_record_changes_nothing() -> None:
    """An update with an older record than the shown one changes nothing if both have a time, as in a worker."""
    with closing(testing.reader(predictions=[AAPL | {"timestamp": 200}])) as reader:
        reader.update([AAPL | {"timestamp": 100, "prediction": 1.0}])
        assert reader.predictions().value.predictions[0].prediction == 101.5


def test_settings_are_those_of_production(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of fields and limits are taken from the variables, or from `settings`.

    A source other than the reader's is refused.
    """
    monkeypatch.setenv("ROLLING_FIELDS", "confidence=score/100; +sector")
    with closing(testing.reader(missing=True)) as reader:
        reader.publish()
        reader.update({"AAPL": {"prediction": 1, "score": 80, "last_price": 1, "sector": "Tech"}})
        (record,) = reader.predictions().value.predictions
        assert (record.confidence, record.extra["sector"]) == (0.8, "Tech")
        with pytest.raises(UpdatesRefused, match="more than 1 "):
            reader.update([AAPL, AAPL], settings=Settings(update_records_limit=1))
        with pytest.raises(SettingsInvalid, match="source='b' is not one of"):
            reader.update([AAPL], source="b")
        with pytest.raises(SettingsInvalid, match="of 'b', and this reader is of 'rolling_brain'"):
            reader.update([AAPL], settings=Settings(source="b"))


@pytest.mark.parametrize(
    ("version", "error"), [({"origin": "files"}, CacheUnavailable), ({"missing": True}, UpdatesPending)]
)
def test_what_hinders_an_update(version: dict[str, Any], error: type[Exception]) -> None:
    """An update fails if Redis is away or the source has no version; an update of rejects alone needs neither."""
    with closing(testing.reader(**version)) as reader:
        assert len(reader.update([5], wait_s=1).rejected) == 1
        with pytest.raises(error):
            reader.update([AAPL], wait_s=1)
