"""The tasks of the deployment under the names by which they are imported; the code is in `optimizer.celery.tasks`."""

from optimizer.celery.tasks import TASK_NAME, task_of
from tasks import app

__all__ = ["TASK_NAME", "merge_rolling_parts", "optimize_rolling_data", "scan_rolling_part", "update_predictions"]

optimize_rolling_data = task_of(app, TASK_NAME)
scan_rolling_part = task_of(app, "tasks.scan_rolling_part")
merge_rolling_parts = task_of(app, "tasks.merge_rolling_parts")
update_predictions = task_of(app, "tasks.update_predictions")
