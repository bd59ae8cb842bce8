"""The cache of responses: how many it keeps, and of how many bytes."""

from __future__ import annotations

import pytest

from optimizer.web.prepared import CACHED_BYTES, Prepared, ResponseCache


def a_response(size: int, gz: bytes | None = None) -> Prepared:
    """A response with a body of this size."""
    return Prepared(bytes(size), "etag", [], gz=gz, per_request_headers=list)


@pytest.mark.parametrize("gz", [None, bytes(CACHED_BYTES // 4)], ids=["plain", "both forms"])
def test_the_oldest_go_where_there_are_too_many_bytes(gz: bytes | None) -> None:
    """The oldest responses are dropped when the cache has too many bytes, plain and gzipped bodies counted.

    A response may be long: up to 120 versions in which all of 10,000 records change.
    """
    cache = ResponseCache(64)
    response = a_response(CACHED_BYTES // 4, gz)
    for request in range(10):
        cache.store(request, response)
        cache.store(request, response)  # made by two requests at the same time
    kept = 4 if gz is None else 2
    assert [request for request in range(10) if cache.get(request)] == list(range(10 - kept, 10))


def test_the_newest_is_kept_whatever_its_size() -> None:
    """The newest response is kept whatever its size, since clients that follow request the same one.

    Older ones are dropped for it, and when there are more than 64.
    """
    cache = ResponseCache(64)
    cache.store("small", a_response(1))
    cache.store("large", a_response(CACHED_BYTES + 1))
    assert (cache.get("small"), cache.get("large") is None) == (None, False)
    cache.clear()
    for request in range(64):
        cache.store(request, a_response(1))
    assert cache.get("large") is None
    assert cache.get(0) is not None
    cache.store(64, a_response(1))
    assert cache.get(0) is None
