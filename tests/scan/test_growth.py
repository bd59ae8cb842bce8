"""The time of a scan grows linearly with its input, and its peak memory depends on its record limit and chunks only.

Twice the input may take less than three times the CPU time, by the best of up to five rounds. Chunks have 4 KB, so
that copying or searching earlier bytes again with each chunk shows. The record limit is far above the size of the input
when time is measured, so that no record is given up for its length.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterator
from typing import Final

import pytest

from optimizer.errors import RollingError
from tests.support.engines import current, scan
from tests.support.positions import FIELDS, PLACES, RECORD

# Without coverage, whose own cost would be measured too.
pytestmark = [pytest.mark.slow, pytest.mark.no_cover, pytest.mark.usefixtures("engine")]

CHUNK_BYTES: Final = 4_096
MB: Final = 1_000_000
SIZE_MB: Final = 2.0
DENSE_MB: Final = 0.05
# In linear time the ratio is 2; if everything is copied again with each chunk it is 4.
MOST_RATIO: Final = 3.0
# The peak is several times the record limit of 64 KB, plus the kernel's buffers, and below the 2 MB of the input. In
# Python a chunk may become as many fragments as it has bytes. Dense input is traced object by object, so there is half
# as much of it.
LIMIT_BYTES: Final = 64 << 10
MOST_PEAK_MB: Final = {"native": 1.5, "ijson": 1.0}
DENSE_CHUNK_BYTES: Final = 25_000
MOST_DENSE_PEAK_MB: Final = {"native": 1.85, "ijson": 3.0}

# Each case: the opening text, the text that is repeated, the closing text.
LONG: Final = {
    "blanks": (b"", b" \n", b"1"),
    "a string": (b'"', b"x", b'"'),
    "escapes": (b'"', b"\\n", b'"'),
    "a number": (b"", b"12", b""),
}
DENSE: Final = {
    "numbers": (b"[", b"1,", b"1]"),
    "texts": (b"[", b'"a",', b"1]"),
    "arrays": (b"[", b"[],", b"[]]"),
    "full arrays": (b"[", b"[1],", b"[]]"),
    "objects": (b"[", b"{},", b"[]]"),
    "members": (b"{", b'"a":1,', b'"a":1}'),
    "members' arrays": (b"{", b'"a":[],', b'"a":[]}'),
    "members' objects": (b"{", b'"a":{},', b'"a":{}}'),
    "both": (b"[", b"{},[],", b"1]"),
}
GAPS: Final = {
    "after a comma": (b'{"A":%s,' % RECORD, b'"B":%s}' % RECORD),
    "before a comma": (b'{"A":%s' % RECORD, b',"B":%s}' % RECORD),
    "after a key": (b'{"A"', b":%s}" % RECORD),
    "after a colon": (b'{"A":', b"%s}" % RECORD),
    "in an array": (b'[{"symbol":"A",%s},' % FIELDS, b'{"symbol":"B",%s}]' % FIELDS),
    "in a section": (b'{"predictions":{"A":%s,' % RECORD, b'"B":%s}}' % RECORD),
    "in a section's array": (b'{"predictions":[{"symbol":"A",%s},' % FIELDS, b'{"symbol":"B",%s}]}' % FIELDS),
    "between lines": (b'{"symbol":"A",%s}' % FIELDS, b'{"symbol":"B",%s}' % FIELDS),
    "in a line": (b'{"x":1,', b'"symbol":"B",%s}' % FIELDS),
    "in a record": (b'{"A":{%s,' % FIELDS, b'"x":1}}'),
}
KEYS: Final = {
    "of a record": (b'{"A":%s,"' % RECORD, b'":%s}' % RECORD),
    "of a value": (b'{"', b'":1,"B":%s}' % RECORD),
    "in a section": (b'{"predictions":{"', b'":%s}}' % RECORD),
    "of a bot": (b'{"bots":{"', b'":{}}}'),
    "in a record": (b'{"A":{"', b'":1,%s}}' % FIELDS),
    "in a bot": (b'{"bots":{"b":{"', b'":1}}}'),
    "in what is discarded": (b'{"A":{%s,"x":{"' % FIELDS, b'":1}}}'),
    "in a line": (b'{"', b'":1,"symbol":"A",%s}' % FIELDS),
}
CASES: Final = {
    **{f"blanks {name}": (before, b" \n", after) for name, (before, after) in GAPS.items()},
    **{f"a key {name}": (before, b"k", after) for name, (before, after) in KEYS.items()},
    **{
        f"{name}, {place}": (before + opening, filler, closing + after)
        for name, (opening, filler, closing) in LONG.items()
        for place, (before, after) in PLACES.items()
        if place != "root key" and name != "blanks"
    },
}
DENSE_CASES: Final = {
    f"{name}, {place}": (PLACES[place][0] + opening, filler, closing + PLACES[place][1])
    for name, (opening, filler, closing) in DENSE.items()
    for place in ("whole", "root member")
} | {"roots": (b"", b"{}1[]", b""), "lines": (b"", b'{"symbol":"A"}', b""), "atoms": (b"", b"1 ", b"")}


def chunks(case: tuple[bytes, bytes, bytes], megabytes: float, chunk_bytes: int) -> Iterator[bytes]:
    opening, filler, closing = case
    block = filler * (chunk_bytes // len(filler))
    yield opening
    for _ in range(int(megabytes * MB) // len(block)):
        yield block
    yield closing


def scan_all(case: tuple[bytes, bytes, bytes], megabytes: float, limit: int, chunk_bytes: int = CHUNK_BYTES) -> float:
    """Scan the whole case and return the CPU seconds, also if the scan fails."""
    started = time.process_time()
    try:
        for _ in scan(chunks(case, megabytes, chunk_bytes), max_record_bytes=limit):
            pass
    except RollingError:
        pass
    return time.process_time() - started


def ratio(case: tuple[bytes, bytes, bytes], megabytes: float) -> float:
    """Return how many times longer a scan of twice the input takes, by the best of up to five rounds."""
    best = [1e9, 1e9]
    for _ in range(5):
        for place in (0, 1):
            best[place] = min(best[place], scan_all(case, megabytes * (1 + place), 1 << 30))
        if best[1] < MOST_RATIO * max(best[0], 0.005):
            break
    return best[1] / max(best[0], 0.005)


@pytest.mark.parametrize("name", CASES)
def test_twice_as_long_takes_twice_as_long(name: str) -> None:
    """One string, number, key or run of blanks of 4 MB takes less than three times the CPU time of one of 2 MB."""
    assert ratio(CASES[name], SIZE_MB) < MOST_RATIO


@pytest.mark.parametrize("name", DENSE_CASES)
def test_twice_as_many_take_twice_as_long(name: str) -> None:
    """Twice as many values of a few bytes each take less than three times the CPU time."""
    assert ratio(DENSE_CASES[name], DENSE_MB) < MOST_RATIO


@pytest.mark.parametrize("name", CASES)
def test_the_peak_does_not_follow_what_is_sent(name: str) -> None:
    """The peak memory of a scan is a few times its record limit and its chunk, for 2 MB of anything."""
    assert peak_mb(CASES[name], SIZE_MB, CHUNK_BYTES) < MOST_PEAK_MB[current().name]


@pytest.mark.parametrize("name", DENSE_CASES)
def test_the_peak_of_what_is_dense_is_that_of_its_chunk(name: str) -> None:
    """The peak memory of many small values in one chunk is bounded, though a chunk may give an object for each byte."""
    most_mb = MOST_DENSE_PEAK_MB[current().name]
    assert peak_mb(DENSE_CASES[name], DENSE_CHUNK_BYTES / MB, DENSE_CHUNK_BYTES) < most_mb


def peak_mb(case: tuple[bytes, bytes, bytes], megabytes: float, chunk_bytes: int) -> float:
    """Return the most memory, in MB, that a scan has allocated at once."""
    scan_all(case, 0.01, LIMIT_BYTES)
    tracemalloc.start()
    try:
        scan_all(case, megabytes, LIMIT_BYTES, chunk_bytes)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return peak / MB
