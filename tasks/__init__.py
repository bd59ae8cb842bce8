"""The fleet: `celery -A tasks worker`, `celery -A tasks beat`, `celery -A tasks flower`, and the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optimizer.celery.app import app as app

__all__ = ["app"]


def __getattr__(name: str) -> object:
    """The Celery app, made when it is first asked for: most commands do without Celery, which takes 8 MB and 0.3 s."""
    if name == "app":
        from optimizer.celery.app import app  # noqa: PLC0415

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
