"""Content negotiation and conditional requests by RFC 9110, from the raw bytes of headers."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from functools import lru_cache
from typing import Final

__all__ = [
    "GZIP",
    "IDENTITY",
    "ZSTD",
    "choose_encoding",
    "http_date",
    "is_not_modified_since",
    "matches_etag",
    "takes_gzip",
]

# Content codings, in ascending order of preference.
IDENTITY: Final = 0
GZIP: Final = 1
ZSTD: Final = 2

_ENTITY_TAG: Final = re.compile(rb'(?:W/)?("[^"]*")')
_CODING: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9a-z]+)(?:;q=([01](?:\.[0-9]{0,3})?))?")


# Real headers are a tenth of this. A longer one counts as missing: values are cached here, and a server other than ours
# may not limit the size of a header.
MAX_HEADER_BYTES: Final = 256


def choose_encoding(accept_encoding: bytes, *, zstd: bool = True) -> int:
    """Return the best coding for a client: of those with the highest weight, the first of `ZSTD`, `GZIP`, `IDENTITY`.

    By the standard, a missing header (here: empty) and `*` allow everything. But a client that does not name zstd may
    not be able to decode it, and one that names nothing may not be able to inflate gzip either.

    Args:
        accept_encoding: The value of the header.
        zstd: Whether zstd is available.
    """
    return _choose(accept_encoding, zstd) if len(accept_encoding) <= MAX_HEADER_BYTES else IDENTITY


def takes_gzip(accept_encoding: bytes) -> bool:
    """Whether gzip is acceptable, with at least the weight of `identity`."""
    return choose_encoding(accept_encoding, zstd=False) == GZIP


@lru_cache(maxsize=512)
def _choose(accept_encoding: bytes, zstd: bool) -> int:
    weights: dict[bytes, float] = {}
    for item in accept_encoding.lower().replace(b" ", b"").replace(b"\t", b"").split(b","):
        match = _CODING.fullmatch(item)
        if match:
            weights[match[1]] = float(match[2] or 1)
    everything = weights.get(b"*", 0.0)
    gzip = max(weights.get(b"gzip", -1.0), weights.get(b"x-gzip", -1.0))
    gzip = everything if gzip < 0 else gzip
    # `identity` is acceptable unless it is excluded, but it outweighs others only if the header names it.
    identity = weights.get(b"identity", 0.0)
    named = weights.get(b"zstd", 0.0) if zstd else 0.0
    if named > 0 and named >= max(gzip, identity):
        return ZSTD
    return GZIP if gzip > 0 and gzip >= identity else IDENTITY


def matches_etag(if_none_match: bytes, etag: bytes) -> bool:
    """Whether a list of entity tags, or `*`, contains this one, by the standard's weak comparison."""
    if if_none_match == etag:
        return True
    return if_none_match.strip() == b"*" or etag in _ENTITY_TAG.findall(if_none_match)


def is_not_modified_since(if_modified_since: bytes, last_modified_s: int) -> bool:
    """Whether the time is not after the date of the header; an invalid date counts as a missing one."""
    if len(if_modified_since) > MAX_HEADER_BYTES:
        return False
    since_s = _seconds(if_modified_since)
    return since_s is not None and last_modified_s <= since_s


@lru_cache(maxsize=512)
def _seconds(date: bytes) -> float | None:
    try:
        since = parsedate_to_datetime(date.decode("ascii"))
        return (since if since.tzinfo else since.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):  # also for bad UTF-8, and for numbers out of range
        return None


def http_date(seconds: float) -> bytes:
    """Format a date for HTTP."""
    return format_datetime(datetime.fromtimestamp(int(seconds), UTC), usegmt=True).encode()
