"""What a prediction engine calls: to write a rolling file, or to publish records at once, without a scan.

Celery is imported by the first `publish`, which sends a task; an engine that writes files does without.
"""

from __future__ import annotations

from optimizer.producer.result import Written
from optimizer.producer.rolling import write_rolling
from optimizer.producer.updates import Accepted, publish

__all__ = ["Accepted", "Written", "publish", "write_rolling"]
