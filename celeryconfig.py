"""Celery's settings of this deployment: those of `optimizer.celery.config`, and below them what an operator changes.

Read once a process by the app in `optimizer/celery/app.py`. What is ours comes from `ROLLING_*` variables.
"""

from optimizer.celery.config import *  # noqa: F403 - Celery reads a module's names
