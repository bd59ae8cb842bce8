"""The stand-alone app with its own settings: what the command `rolling-optimizer` starts and sends to.

    celery -A optimizer.celery.standalone worker

Its settings are made from the `ROLLING_*` variables alone: a module that is called `celeryconfig` or `tasks` in the
working directory belongs to another program, and is not imported.
"""

from optimizer.celery.app import create_app

__all__ = ["app"]

app = create_app()
