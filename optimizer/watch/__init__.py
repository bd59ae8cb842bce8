"""Runs that begin when the input has landed: detects a change, checks that the file is complete, and sends a run."""

from __future__ import annotations

from optimizer.errors import require

require("optimizer.watch", "watch", "celery", "kombu", "watchfiles")  # before any of them is imported

from optimizer.watch.watcher import Watcher

__all__ = ["Watcher"]
