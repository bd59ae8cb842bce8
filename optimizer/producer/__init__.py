"""What a prediction engine calls: write a rolling file so that it is never seen half written, and is fast to read.

It imports neither Celery nor Redis.
"""

from __future__ import annotations

from optimizer.producer.result import Written
from optimizer.producer.rolling import write_rolling

__all__ = ["Written", "write_rolling"]
