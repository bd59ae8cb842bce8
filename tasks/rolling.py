"""The tasks of the deployment under the names by which they are imported; the code is in `optimizer.celery.tasks`."""

from optimizer.celery.tasks import (
    TASK_NAME,
    merge_rolling_parts,
    optimize_rolling_data,
    scan_rolling_part,
)

__all__ = ["TASK_NAME", "merge_rolling_parts", "optimize_rolling_data", "scan_rolling_part"]
