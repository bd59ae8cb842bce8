"""Accept-Encoding and the conditional headers, by the letter of RFC 9110."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.web.negotiate import (
    GZIP,
    IDENTITY,
    ZSTD,
    choose_encoding,
    http_date,
    is_not_modified_since,
    matches_etag,
    takes_gzip,
)


@pytest.mark.parametrize(
    ("header", "gzip"),
    [
        ("", False),
        ("gzip", True),
        ("GZIP", True),
        ("x-gzip", True),
        ("gzip, deflate, br, zstd", True),
        ("br;q=1.0, gzip;q=0.8, *;q=0.1", True),
        ("gzip;q=0", False),
        ("gzip;q=0.000", False),
        ("gzip;q=0.001", True),
        ("gzip ; q=0.5", True),
        ("*", True),
        ("*;q=0", False),
        ("*;q=0, gzip", True),
        ("*, gzip;q=0", False),
        ("identity", False),
        ("identity;q=1, gzip;q=0.5", False),
        ("identity;q=0.5, gzip;q=0.5", True),
        ("identity;q=0, gzip;q=0.1", True),
        ("deflate, br", False),
        ("notgzip", False),
        ("gzip;q=2", False),
        ("gzip;q=junk", False),
        ("gzip;level=9", False),
        (",, gzip ,,", True),
        ("\xff\x00", False),
    ],
)
def test_gzip_is_sent_to_those_who_take_it(header: str, gzip: bool) -> None:
    """Weights decide whether gzip is sent, a weight of 0 excludes it, and an entry that cannot be read is ignored."""
    assert takes_gzip(header.encode("latin-1")) is gzip


@pytest.mark.parametrize(
    ("header", "encoding"),
    [
        ("", IDENTITY),
        ("gzip, deflate, br, zstd", ZSTD),
        ("zstd", ZSTD),
        ("ZSTD ; q=0.3", ZSTD),
        ("zstd;q=0.5, gzip;q=0.5", ZSTD),
        ("zstd;q=0.5, gzip", GZIP),
        ("zstd;q=0, gzip;q=0.1", GZIP),
        ("zstd;q=0", IDENTITY),
        ("zstd;q=0.5, identity", IDENTITY),
        ("zstd;q=0.5, identity;q=0.5", ZSTD),
        ("identity;q=0, zstd;q=0.001", ZSTD),
        ("zstd;q=0.9, *", GZIP),
        ("*", GZIP),
        ("*, gzip;q=0", IDENTITY),
        ("*;q=0, zstd", ZSTD),
        ("zstd;q=2", IDENTITY),
        ("zstd;level=3", IDENTITY),
        ("xzstd, gzip", GZIP),
    ],
)
def test_zstd_is_sent_to_clients_that_name_it(header: str, encoding: int) -> None:
    """The encoding zstd is sent only to clients that name it, not for `*` alone, and is first among equal weights.

    If it is not offered, gzip or the plain body is chosen as without it.
    """
    assert choose_encoding(header.encode()) == encoding
    assert choose_encoding(header.encode(), zstd=False) in (GZIP, IDENTITY)
    assert (choose_encoding(header.encode(), zstd=False) == GZIP) is takes_gzip(header.encode())


@given(st.dictionaries(st.sampled_from(["zstd", "gzip", "identity"]), st.integers(0, 1_000), min_size=1))
def test_no_coding_is_chosen_that_another_outweighs(weights: dict[str, int]) -> None:
    """The chosen encoding has the highest weight, and not the weight 0.

    If none is left, the plain body is sent, which is better than no response.
    """
    header = ", ".join(f"{name};q={weight / 1_000:.3f}" for name, weight in weights.items())
    chosen = {ZSTD: "zstd", GZIP: "gzip", IDENTITY: "identity"}[choose_encoding(header.encode())]
    if chosen != "identity":
        assert weights[chosen] == max(weights.values()) > 0
    else:
        assert all(weights.get(name, 0) <= weights.get("identity", 0) for name in ("zstd", "gzip"))


@given(st.binary(max_size=60))
def test_no_header_is_an_error(header: bytes) -> None:
    """Clients send anything, so no bytes in a header raise an exception."""
    takes_gzip(header)
    choose_encoding(header)
    matches_etag(header, b'"x"')
    is_not_modified_since(header, 0)


@pytest.mark.parametrize(
    ("header", "matches"),
    [
        ('"abc"', True),
        ('W/"abc"', True),
        ("*", True),
        (" * ", True),
        ('"x", "abc"', True),
        ('"x",W/"abc" , "y"', True),
        ('"a,b", "abc"', True),
        ('"x"', False),
        ('"ab"', False),
        ('"abc', False),
        ("abc", False),
        ('"xabc"', False),
        ('""', False),
        ('"abc-plain"', False),
    ],
)
def test_a_list_of_etags_names_ours_or_not(header: str, matches: bool) -> None:
    """An ETag matches in a list, as a weak one, and by `*`; parts of it and malformed ones do not match."""
    assert matches_etag(header.encode(), b'"abc"') is matches


def test_dates_are_http_dates() -> None:
    """Dates are written in HTTP's format, and read in all three formats of the standard; any other text is no date."""
    assert http_date(784111777.9) == b"Sun, 06 Nov 1994 08:49:37 GMT"
    for same in (b"Sun, 06 Nov 1994 08:49:37 GMT", b"Sunday, 06-Nov-94 08:49:37 GMT", b"Sun Nov  6 08:49:37 1994"):
        assert is_not_modified_since(same, 784111777)
        assert not is_not_modified_since(same, 784111778)
    assert not is_not_modified_since(b"yesterday", 0)


@pytest.mark.parametrize(
    "date",
    [
        b"Mon, 01 Jan 2020 00:00:00 +99999999999999",
        b"Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
        b"Mon, 01 Jan 2020 99999999999999999999:00:00 GMT",
    ],
)
def test_a_date_that_no_calendar_has_counts_as_none(date: bytes) -> None:
    """A date with impossible numbers counts as no date, and raises no exception."""
    assert is_not_modified_since(date, 0) is False


def test_what_a_client_sends_is_not_kept_without_bound() -> None:
    """A header of a megabyte counts as missing, and is not kept in memory."""
    tracemalloc.start()
    try:
        for number in range(20):
            assert takes_gzip(b"gzip, x%d%b" % (number, b"a" * 1_000_000)) is False
            assert is_not_modified_since(b"%d%b" % (number, b"a" * 1_000_000), 0) is False
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert kept < 1_000_000
