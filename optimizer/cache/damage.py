"""Damaged keys of a source: deleted, with one warning each that names the key, and made again by what writes them."""

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
    """Delete each of these keys of a source that has another type than it should, or never expires though it should."""
    arguments = [text for key_type in types.values() for text in (key_type.type, "1" if key_type.expires else "0")]
    for problem in cast("list[bytes]", client.eval(DELETE_UNUSABLE, len(types), *types, *arguments)):
        warn_of_damage(problem.decode("utf-8", "replace"), source)


def warn_of_damage(problem: str, source: str) -> None:
    """Log what was damaged."""
    _log.warning("damaged in Redis, and replaced: %s", problem, source=source)
