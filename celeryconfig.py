"""Celery's settings for `celery -A tasks`: the service's own; assign below the import to replace some."""

from optimizer.celery.config import *  # noqa: F403 - Celery reads a module's names
