"""The stand-alone app with its own settings, which the command `rolling-optimizer` starts and sends to.

    celery -A optimizer.celery.standalone worker

Its settings are made only from the `ROLLING_*` variables: a module named `celeryconfig` or `tasks` in the working
directory belongs to another program, and is not imported.
"""

from optimizer.celery.app import create_app

__all__ = ["app"]

app = create_app()
