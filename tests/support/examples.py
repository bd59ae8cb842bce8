"""The number of examples of a property test that differs from the profile's."""

from __future__ import annotations

from hypothesis import settings

__all__ = ["FAST", "examples"]

FAST = "fast"  # the profile of `make test-fast`


def examples(count: int) -> int:
    """Return the count for the whole suite, a tenth of it for the fast one."""
    return max(5, count // 10) if settings.get_current_profile_name() == FAST else count
