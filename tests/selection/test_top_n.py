"""Selecting the best records gives the result of `sorted`, in memory that does not grow."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from optimizer.models import Record, rank
from optimizer.selection.top_n import Selection, _SymbolCount, top
from tests.support.examples import examples

# Few symbols and confidences, so that both repeat and tie.
confidences = st.sampled_from([0.0, -0.0, 0.25, 0.5, 0.5, 0.75, 1.0]) | st.floats(0, 1)
symbols = st.text("ABCé😀", max_size=2)
records = st.builds(
    Record, symbol=symbols, confidence=confidences, prediction=st.floats(-1, 1), last_price=st.floats(1, 2)
)


def selected(stream: list[Record], limit: int) -> Selection:
    selection = Selection(limit)
    for record in stream:
        selection.add(record)
    return selection


def best_of_each(stream: list[Record]) -> list[Record]:
    """Return each symbol's first record of highest confidence, ranked: `max` and `sorted` keep the first of equals."""
    names = {record.symbol for record in stream}
    best = [max((one for one in stream if one.symbol == name), key=lambda one: one.confidence) for name in names]
    return sorted(best, key=lambda record: (-record.confidence, record.symbol))


class TestSelection:
    """Selecting the top n equals sorting all records and taking the first n."""

    @hypothesis_settings(max_examples=examples(500))
    @given(st.lists(records, max_size=60), st.integers(1, 12))
    def test_it_is_sorted_and_cut(self, stream: list[Record], limit: int) -> None:
        """For any stream, the result is the best record of each symbol, sorted, and of these the first `limit`."""
        assert selected(stream, limit).ranked() == best_of_each(stream)[:limit]

    @given(st.lists(records, max_size=40, unique_by=lambda one: (one.symbol, one.confidence)), st.data())
    def test_the_order_of_the_stream_does_not_matter(self, stream: list[Record], data: st.DataObject) -> None:
        """Any order of the stream gives the same result if no symbol comes twice with the same confidence."""
        limit = data.draw(st.integers(1, 10))

        assert selected(data.draw(st.permutations(stream)), limit).ranked() == selected(stream, limit).ranked()

    @given(st.lists(records, max_size=60), st.integers(1, 5))
    def test_duplicates_are_counted(self, stream: list[Record], limit: int) -> None:
        """Every record whose symbol came before is counted as a duplicate, also below the cutoff."""
        assert selected(stream, limit).duplicates == len(stream) - len({record.symbol for record in stream})

    @given(st.lists(records, max_size=60), st.integers(1, 12), st.integers(0, 12), confidences)
    def test_top_filters_by_confidence(self, stream: list[Record], limit: int, fewer: int, minimum: float) -> None:
        """`top` gives the same for the ranked records as for all records.

        These are the records of at least the minimum confidence, and no more than the limit.
        """
        shown = max(1, limit - fewer)

        best = top(selected(stream, limit).ranked(), limit=shown, min_confidence=minimum)

        assert best == [record for record in best_of_each(stream) if record.confidence >= minimum][:shown]

    def test_at_equal_confidence_the_earlier_stays(self) -> None:
        """A later record of a symbol replaces the earlier one only if its confidence is higher."""
        first, again, better = (
            Record("A", number, confidence, 1.0) for number, confidence in enumerate((0.5, 0.5, 0.6))
        )

        assert selected([first, again], 5).ranked() == [first]
        assert selected([first, again, better], 5).ranked() == [better]
        assert selected([better, first], 5).ranked() == [better]

    def test_exactly_the_minimum_counts(self) -> None:
        """A record with exactly the minimum confidence is shown; one with the next float below it is not."""
        at, below = Record("A", 1.0, 0.5, 1.0), Record("B", 1.0, 0.49999999999999994, 1.0)

        assert top([at, below], limit=5, min_confidence=0.5) == [at]

    def test_symbols_rank_by_code_point(self) -> None:
        """Records of equal confidence are in the order of their symbols' code points, not of a locale."""
        stream = [Record(symbol, 1.0, 0.5, 1.0) for symbol in ("é", "Z", "a", "", "😀", "A")]

        assert [record.symbol for record in selected(stream, 10).ranked()] == ["", "A", "Z", "a", "é", "😀"]
        assert rank(stream[0]) == (-0.5, "é")

    @pytest.mark.parametrize("rising", [True, False])
    def test_memory_does_not_grow(self, *, rising: bool) -> None:
        """At most twice the limit is held, for any number of records in any order."""
        selection = Selection(10)
        held = 0
        for number in range(5_000):
            confidence = (number if rising else 5_000 - number) / 5_000
            selection.add(Record(f"S{number}", 1.0, confidence, 1.0))
            held = max(held, len(selection._best))

        assert held <= 20
        assert len(selection.ranked()) == 10


class TestSymbolCount:
    """The number of symbols that occurred before."""

    @given(st.lists(st.lists(st.text(max_size=2))))
    def test_it_counts_like_a_set(self, batches: list[list[str]]) -> None:
        """The repeats are the symbols that a set would already have, however they are spread over calls."""
        count = _SymbolCount(1_000_000)
        for batch in batches:
            count.add(batch)

        stream = [symbol for batch in batches for symbol in batch]
        assert count.repeats() == len(stream) - len(set(stream))

    def test_repeats_cost_no_memory(self) -> None:
        """A million symbols of which ten are different take less than 2 MB.

        That is what their hashes take between two clean-ups, so an endless stream of them takes no more.
        """
        count = _SymbolCount(1_000_000)
        for _ in range(100):
            count.add([f"S{number % 10}" for number in range(10_000)])

        assert sum(sys.getsizeof(hashes) for hashes in count._hashes) < 2_000_000
        assert count.repeats() == 999_990

    def test_memory_a_symbol(self) -> None:
        """300,000 different symbols take less than 16 bytes each."""
        count = _SymbolCount(1_000_000)
        count.add([f"S{number}" for number in range(300_000)])

        assert sum(sys.getsizeof(hashes) for hashes in count._hashes) < 16 * 300_000
        assert count.repeats() == 0

    def test_it_stops_growing(self) -> None:
        """Beyond its limit of symbols nothing is counted any more, what was counted stays, and memory is below 2 MB."""
        count = _SymbolCount(3_000)
        names = [f"S{number}" for number in range(100_000)]
        count.add(names[:500])
        count.add(names)
        count.add(names)

        assert count.repeats() == 500
        assert sum(sys.getsizeof(hashes) for hashes in count._hashes) < 2_000_000
