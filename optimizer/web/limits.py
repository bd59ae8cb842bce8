"""The limits of connections and listeners of a process, derived from its limit of descriptors at each use."""

from __future__ import annotations

import resource
from typing import Final

__all__ = ["RETRY_AFTER_S", "connection_limit", "listener_limit"]

# Descriptors needed for other purposes: Redis, files, the event loop, standard streams.
RESERVED_DESCRIPTORS: Final = 64
# Retry-After of each 503.
RETRY_AFTER_S: Final = 5


def connection_limit() -> int | None:
    """Return how many connections leave descriptors for files and Redis; `None` for any number."""
    limit = _descriptor_limit()
    return None if limit is None else max(1, limit - RESERVED_DESCRIPTORS)


def listener_limit() -> int | None:
    """Return how many connections may be listeners, which stay; a quarter of the descriptors is for other requests."""
    limit = _descriptor_limit()
    return None if limit is None else max(1, limit * 3 // 4 - RESERVED_DESCRIPTORS)


def _descriptor_limit() -> int | None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft
