"""Celery's settings for `celery -A tasks`: the service's own; assign at the end to replace some."""

import os

from optimizer.celery.config import celery_settings

globals().update(celery_settings(os.environ))  # Celery reads a module's names
