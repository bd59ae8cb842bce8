"""How many connections and listeners a process may have: fewer than descriptors, whose limit is read at each use."""

from __future__ import annotations

import resource
from typing import Final

__all__ = ["RETRY_AFTER_S", "connection_limit", "listener_limit"]

# What a process needs besides its connections: Redis, files, the event loop, standard streams.
RESERVED_DESCRIPTORS: Final = 64
# Retry-After of each 503.
RETRY_AFTER_S: Final = 5


def connection_limit() -> int | None:
    """How many connections there may be, so that files can be opened and Redis asked; `None` for any number."""
    limit = _descriptor_limit()
    return None if limit is None else max(1, limit - RESERVED_DESCRIPTORS)


def listener_limit() -> int | None:
    """How many of them may be listeners, which stay connected: a quarter of the descriptors is for other requests."""
    limit = _descriptor_limit()
    return None if limit is None else max(1, limit * 3 // 4 - RESERVED_DESCRIPTORS)


def _descriptor_limit() -> int | None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft
