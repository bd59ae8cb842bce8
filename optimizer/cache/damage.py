"""Damaged keys of a source: deleted, with one warning each that names the key, and made again by what writes them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import cast

import redis

from optimizer.cache.keys import KeyType
from optimizer.cache.scripts import DELETE_UNUSABLE

__all__ = ["delete_unusable", "warn_of_damage"]

_log = logging.getLogger(__name__)


def delete_unusable(client: redis.Redis, types: Mapping[str, KeyType]) -> None:
    """Delete each of these keys that has another type than it should, or never expires though it should."""
    arguments = [text for key_type in types.values() for text in (key_type.type, "1" if key_type.expires else "0")]
    for problem in cast("list[bytes]", client.eval(DELETE_UNUSABLE, len(types), *types, *arguments)):
        warn_of_damage(problem.decode("utf-8", "replace"))


def warn_of_damage(problem: str) -> None:
    """Log what was damaged."""
    _log.warning("[RollingOptimizer] damaged in Redis, and replaced: %s", problem)
