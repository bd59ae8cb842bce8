"""The functions that a prediction engine calls to write a rolling file, or to publish records without a scan.

The first `publish` imports Celery, to send a task; an engine that only writes files does not need it.
"""

from __future__ import annotations

from optimizer.producer.result import Written
from optimizer.producer.rolling import write_rolling
from optimizer.producer.updates import Accepted, publish

__all__ = ["Accepted", "Written", "publish", "write_rolling"]
