"""Celery's side: the app, its settings, the tasks, and senders. The only package that imports Celery."""

from __future__ import annotations

from optimizer.extras import require

require("optimizer.celery", "celery", "celery", "kombu")
