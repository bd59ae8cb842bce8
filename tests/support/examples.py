"""The number of examples of a property test, where it differs from the profile's number."""

from __future__ import annotations

from hypothesis import settings

__all__ = ["FAST", "examples"]

FAST = "fast"  # the profile of `make test-fast`


def examples(count: int) -> int:
    """Return the count for the whole suite, or a tenth of it, but at least 5, for the fast tests."""
    return max(5, count // 10) if settings.get_current_profile_name() == FAST else count
