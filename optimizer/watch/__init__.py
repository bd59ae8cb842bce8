"""Runs that begin when the input has landed: what changed, whether it is whole, and the sending of a run for it."""

from __future__ import annotations

from optimizer.errors import require

require("optimizer.watch", "watch", "celery", "kombu", "watchfiles")  # before the first import of one

from optimizer.watch.watcher import Watcher

__all__ = ["Watcher"]
