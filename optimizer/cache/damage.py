"""Delete damaged keys of a source, with a warning that names each; the code that writes a key creates it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import redis

from optimizer.cache.keys import KeyType
from optimizer.cache.scripts import DELETE_UNUSABLE
from optimizer.log import SourceLog

__all__ = ["delete_unusable", "warn_of_damage"]

_log = SourceLog(__name__)


def delete_unusable(client: redis.Redis, types: Mapping[str, KeyType], source: str) -> None:
    """Delete those of these keys that have the wrong type, or no expiry though they should expire."""
    arguments = [text for key_type in types.values() for text in (key_type.type, "1" if key_type.expires else "0")]
    for problem in cast("list[bytes]", client.eval(DELETE_UNUSABLE, len(types), *types, *arguments)):
        warn_of_damage(problem.decode("utf-8", "replace"), source)


def warn_of_damage(problem: str, source: str) -> None:
    """Log a damaged key or value."""
    _log.warning("damaged in Redis, and replaced: %s", problem, source=source)
