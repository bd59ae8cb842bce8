"""Celery's settings of the stand-alone app, under Celery's own lowercase keys, made from the `ROLLING_*` variables.

Each value that differs from Celery's default has its reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from kombu.entity import Exchange, Queue

from optimizer.celery.schedule import SCAN_QUEUE, UPDATE_QUEUE, UPDATE_TASK, beat_entries, source_queue, time_limit_s
from optimizer.config.settings import Settings

__all__ = ["celery_settings"]

# A Sentinel that hangs must not delay a connection for long: the next one is asked.
SENTINEL_TIMEOUTS: Final = {"socket_timeout": 2, "socket_connect_timeout": 2}
# The same holds for a master whose host vanished: connections to it stay open, several commands in a row wait for it,
# and another is elected within seconds. With the values below for a single Redis, a worker took a minute or longer.
MASTER_TIMEOUTS: Final = {"socket_timeout": 3, "health_check_interval": 3}


def celery_settings(environ: Mapping[str, str]) -> dict[str, Any]:
    """Make Celery's settings.

    Raises:
        SettingsInvalid: A variable cannot be used.
    """
    every = Settings.every_from_env(environ)
    return {
        **_broker_and_results(every),
        **_messages(),
        **_queues(every),
        **_delivery(),
        **_runs(every),
        **_schedule(every),
        # ---- what Flower shows
        "worker_send_task_events": True,
        "task_send_sent_event": True,
        # ---- logs: stdout is not redirected, so that output of a library does not look like a log line
        "worker_redirect_stdouts": False,
        "timezone": "UTC",
        "enable_utc": True,
    }


def _broker_and_results(every: Sequence[Settings]) -> dict[str, Any]:
    """One Redis for both; it must not evict, so it may be separate from the cache."""
    broker = every[0].broker()
    url, tls, sentinels = broker.for_kombu(), broker.tls_for_kombu(), broker.options_for_kombu(SENTINEL_TIMEOUTS)
    result_expires_s = max(900, 2 * time_limit_s(every))
    return {
        # Three names, since `CELERY_BROKER_URL`, which may belong to another program, overrides the first.
        "broker_url": url,
        "broker_read_url": url,
        "broker_write_url": url,
        "result_backend": url,
        "broker_use_ssl": tls,
        "redis_backend_use_ssl": tls,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,  # forever: after the default of 100 attempts, worker and beat would end
        # Otherwise an error reply would end the worker: NOREPLICAS or MISCONF, until a replica or the disk is back.
        "broker_channel_error_retry": True,
        # Otherwise a publish on a dead connection would wait forever, and a blocked read for most of a minute.
        "broker_transport_options": {
            "visibility_timeout": 120,
            "socket_timeout": 30,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 25,
            **(MASTER_TIMEOUTS if sentinels else {}),
            **sentinels,
        },
        # Reporting progress must not delay a scan for long while Redis is away.
        "redis_socket_timeout": 5,
        "redis_socket_connect_timeout": 2,
        "result_backend_transport_options": {
            "visibility_timeout": 120,
            "retry_policy": {"max_retries": 2, "interval_start": 0.1, "interval_step": 0.2, "interval_max": 0.5},
            **sentinels,
        },
        "visibility_timeout": 120,
        # Kept until they have been read, but not so long that many accumulate.
        "result_expires": result_expires_s,
        "result_chord_expires": result_expires_s,  # a chord waits for its longest scan
    }


def _messages() -> dict[str, Any]:
    """JSON only, so that a message can never run code."""
    return {
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        "result_accept_content": ["json"],
        # Celery's consumer logs the content of messages that it cannot use, and ends at some.
        "worker_consumer": "optimizer.celery.consumer:Consumer",
    }


def _queues(every: Sequence[Settings]) -> dict[str, Any]:
    """One queue for each source, one for scans and one for updates; a worker without -Q consumes all of them.

    Each has its own exchange and routing key: by default all would share one, and each message would go to every queue.
    """
    names = [source_queue(settings.source) for settings in every]
    sources = [settings.source for settings in every]

    def route(name: str, _args: Sequence[Any], kwargs: Mapping[str, Any] | None, *_: Any, **__: Any) -> Any:
        """Route a run to the queue of its source, and an update to its queue, whatever program sends it."""
        if name == UPDATE_TASK:
            return {"queue": UPDATE_QUEUE}
        source = (kwargs or {}).get("source")  # not checked yet
        return {"queue": source_queue(source)} if source in sources else None

    return {
        "task_queues": [
            Queue(name, Exchange(name, type="direct"), routing_key=name)  # type: ignore[no-untyped-call]
            for name in (*names, SCAN_QUEUE, UPDATE_QUEUE)
        ],
        "task_default_queue": names[0],
        "task_routes": (route,),
    }


def _delivery() -> dict[str, Any]:
    """Early acks and no prefetching.

    kombu 5.7 ends a worker that holds an unacknowledged message when the connection to Redis drops, and a prefetched
    message is stranded until the visibility timeout. The next tick repeats a run that is lost.
    """
    return {"task_acks_late": False, "worker_prefetch_multiplier": 1, "worker_disable_prefetch": True}


def _runs(every: Sequence[Settings]) -> dict[str, Any]:
    """Two processes: one run of a source at a time is ensured by the lock.

    While one child scans, the other handles ticks and triggers; if several sources are single files, a run waits at
    most for one scan of each other source.
    """
    limit_s = time_limit_s(every)
    return {
        "worker_concurrency": 2,
        "task_track_started": True,
        "task_soft_time_limit": limit_s,
        "task_time_limit": limit_s + 30,
        "worker_max_tasks_per_child": 500,
        "worker_max_memory_per_child": 300_000,  # KiB of peak memory; a run takes under 100 MB, so this is a leak
        "worker_soft_shutdown_timeout": 20,
    }


def _schedule(every: Sequence[Settings]) -> dict[str, Any]:
    """Keep the schedule in memory.

    Its only state would be the time of the last run, which a new beat must not use: its first tick comes
    `startup_delay_s` after its start.
    """
    entries = beat_entries(every, {})
    for settings, entry in zip(every, entries.values(), strict=True):
        # In place of a message with a countdown (see `_delivery`), beat uses this as the time of the last run.
        entry["last_run_at"] = datetime.now(UTC) + timedelta(seconds=settings.startup_delay_s - settings.interval_s)
    intervals_s = [settings.interval_s for settings in every]
    return {
        "beat_scheduler": "celery.beat:Scheduler",
        "beat_max_loop_interval": min(5.0, *intervals_s),
        "beat_enable_remote_control": True,
        "beat_remote_control_max_tick_age": max(90.0, 3 * max(intervals_s)),
        "beat_schedule": entries,
    }
