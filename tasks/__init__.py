"""The stand-alone deployment: `celery -A tasks worker`, `celery -A tasks beat`, `celery -A tasks flower`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optimizer.celery.app import app as app

__all__ = ["app"]


def __getattr__(name: str) -> object:
    """Import the app on first use: a router that imports `tasks.sender` and sends nothing needs no Celery."""
    if name == "app":
        from optimizer.celery.app import app  # noqa: PLC0415

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
