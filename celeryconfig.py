"""Celery's settings, under Celery's own lowercase keys. What is ours comes from `ROLLING_*` (`optimizer/settings.py`).

Each value that is not Celery's default has its reason. Read by `tasks/__init__.py`, once a process.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta

from optimizer.errors import SettingsInvalid
from optimizer.settings import Settings
from optimizer.urls import RedisUrl

try:
    _settings = Settings.from_env(os.environ)
except SettingsInvalid as _error:
    raise SystemExit(f"SettingsInvalid: {_error}") from None  # one line, where Celery would print a traceback
_celery_url = RedisUrl.parse(_settings.broker_url).for_kombu()

# ---- broker and results: one Redis; it must not evict, so it may be another than the cache
broker_url = _celery_url
result_backend = _celery_url
broker_connection_retry_on_startup = True
broker_connection_max_retries = None  # for ever: after the default of 100 worker and beat would end
# A publish on a dead connection would wait for ever, and a blocked read for most of a minute.
broker_transport_options = {
    "visibility_timeout": 120,
    "socket_timeout": 30,
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
    "health_check_interval": 25,
}
# Reporting progress must not hold up a scan for long when Redis is away.
redis_socket_timeout = 5
redis_socket_connect_timeout = 2
result_backend_transport_options = {
    "visibility_timeout": 120,
    "retry_policy": {"max_retries": 2, "interval_start": 0.1, "interval_step": 0.2, "interval_max": 0.5},
}
visibility_timeout = 120

# ---- messages: JSON only, so that a message can never run code
task_serializer = "json"
result_serializer = "json"
accept_content = ["json"]
result_accept_content = ["json"]

# ---- results: kept long enough to be read, not long enough to pile up
result_expires = 900

# ---- one source, one queue
task_default_queue = f"rolling.{_settings.source}"

# ---- delivery: early acks and no prefetching. kombu 5.7 ends a worker that holds an unacked message when Redis drops,
# and a prefetched message is stranded until the visibility timeout. A run that is lost is made again by the next tick.
task_acks_late = False
worker_prefetch_multiplier = 1
worker_disable_prefetch = True

# ---- runs: one at a time by the lock; the second child answers triggers meanwhile
worker_concurrency = 2
task_track_started = True
task_soft_time_limit = max(60, round(10 * _settings.interval_s))
task_time_limit = task_soft_time_limit + 30
worker_max_tasks_per_child = 500
worker_max_memory_per_child = 300_000  # KiB of peak memory; a run takes under 100 MB, so this is a leak
worker_soft_shutdown_timeout = 20

# ---- what Flower shows
worker_send_task_events = True
task_send_sent_event = True

# ---- the clock: the schedule is kept in memory. Its only state would be the time of the last run, and that says
# nothing that a new beat should act upon: its first tick comes startup_delay_s after its start.
beat_scheduler = "celery.beat:Scheduler"
beat_max_loop_interval = min(5.0, _settings.interval_s)
beat_enable_remote_control = True
beat_remote_control_max_tick_age = max(90.0, 3 * _settings.interval_s)
beat_schedule = {
    "optimize-rolling-data": {
        "task": "tasks.optimize_rolling_data",
        "schedule": _settings.interval_s,
        "kwargs": {"scheduled": True},
        # Inside `options`, where it counts: a tick that no worker took in time is dropped, so ticks never pile up.
        "options": {"expires": _settings.interval_s},
        # No countdown message: see delivery. To beat it looks as if the last run was this long ago.
        "last_run_at": datetime.now(UTC) + timedelta(seconds=_settings.startup_delay_s - _settings.interval_s),
    }
}

# ---- logs: stdout stays as it is, so that what a library prints is not taken for a log line
worker_redirect_stdouts = False
timezone = "UTC"
enable_utc = True
