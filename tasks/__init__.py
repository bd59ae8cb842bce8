"""The stand-alone deployment: `celery -A tasks worker`, `celery -A tasks beat`, `celery -A tasks flower`.

Its settings are in `celeryconfig.py`.
"""

from optimizer.celery import create_app

__all__ = ["app"]

app = create_app("celeryconfig")
