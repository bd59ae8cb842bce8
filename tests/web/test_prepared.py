"""Responses that are held: how many, and of how many bytes."""

from __future__ import annotations

import pytest

from optimizer.web.prepared import HELD_BYTES, HeldResponses, Prepared


def a_response(size: int, gz: bytes | None = None) -> Prepared:
    """A response with a body of this size."""
    return Prepared(bytes(size), "etag", [], gz=gz, per_request_headers=list)


@pytest.mark.parametrize("gz", [None, bytes(HELD_BYTES // 4)], ids=["plain", "both forms"])
def test_the_oldest_go_where_there_are_too_many_bytes(gz: bytes | None) -> None:
    """What a client asks for may be long: up to 120 versions in which all of 10,000 records change."""
    held = HeldResponses(64)
    response = a_response(HELD_BYTES // 4, gz)
    for request in range(10):
        held.hold(request, response)
        held.hold(request, response)  # made by two requests at the same time
    kept = 4 if gz is None else 2
    assert [request for request in range(10) if held.get(request)] == list(range(10 - kept, 10))


def test_the_newest_is_held_whatever_its_size() -> None:
    """Clients that follow ask for the same; it is small ones that it takes the place of."""
    held = HeldResponses(64)
    held.hold("small", a_response(1))
    held.hold("large", a_response(HELD_BYTES + 1))
    assert (held.get("small"), held.get("large") is None) == (None, False)
    held.clear()
    for request in range(64):
        held.hold(request, a_response(1))
    assert held.get("large") is None
    assert held.get(0) is not None
    held.hold(64, a_response(1))
    assert held.get(0) is None
