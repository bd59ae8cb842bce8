"""Sends the heartbeats of workers and beats; `cache/heartbeats.py` stores them.

While it is connected to the broker, a worker sends every few seconds the queues that it consumes. A beat sends a
heartbeat each time that it has sent a run, so that one that hangs, or cannot reach the broker, does not count as
working. Both use a thread, so that a Redis that is slow or away delays nothing. A process that ends in order removes
its entry, and one that is restarted on the same host replaces the old entry, so that only missing processes are shown
as silent.
"""

from __future__ import annotations

import atexit
import socket
import threading
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

from celery.signals import after_task_publish, beat_init, worker_ready, worker_shutdown

from optimizer.cache.client import CacheClient
from optimizer.cache.heartbeats import Heartbeat, Heartbeats
from optimizer.celery.registration import Registration
from optimizer.celery.schedule import TASK_NAME
from optimizer.config.settings import Settings
from optimizer.errors import CacheUnavailable
from optimizer.log import SourceLog

__all__ = ["tell_heartbeats"]

WORKER_PERIOD_S: Final = 5.0
# The limit of a container, by which its processes are killed; `max` if there is none.
_CONTAINER_LIMIT: Final = Path("/sys/fs/cgroup/memory.max")
# A worker that has to end waits no longer than this for a Redis that is away.
LEAVE_S: Final = 2.0

_log = SourceLog(__name__)


def tell_heartbeats(registration: Registration) -> None:
    """Make the workers and the beats of an app send heartbeats from their start on."""
    app = registration.app

    def start_worker(sender: Any, **_: Any) -> None:
        if sender.app is app:
            _Worker(sender, registration.every_or_none()).start()

    def start_beat(sender: Any, **_: Any) -> None:
        if sender.app is app:
            _Beat(sender, registration.every_or_none()).start()

    worker_ready.connect(start_worker, weak=False)
    beat_init.connect(start_beat, weak=False)


class _Teller:
    """Sends heartbeats; a failure is logged once, until sending works again."""

    def __init__(self) -> None:
        self._is_failing = False

    def tell(self, settings: Settings, heartbeat: Heartbeat) -> None:
        try:
            with closing(_cache(settings)) as cache:
                Heartbeats(cache).tell(heartbeat)
        except CacheUnavailable as error:
            if not self._is_failing:
                text = "this %s cannot tell that it lives, so status and the page do not list it"
                _log.warning(text, heartbeat.kind, source=settings.source, error=error)
            self._is_failing = True
        else:
            self._is_failing = False

    def leave(self, every: Iterable[Settings], heartbeat: Heartbeat) -> None:
        """Remove the entries of this process, which ends in order, for all sources."""
        for settings in every:
            try:
                with closing(_cache(settings)) as cache:
                    Heartbeats(cache).leave(heartbeat)
            except CacheUnavailable:  # its entry will soon be overdue
                return


class _Worker(_Teller):
    def __init__(self, consumer: Any, every: Iterable[Settings]) -> None:
        super().__init__()
        self._consumer = consumer
        self._every = list(every)
        self._ended = threading.Event()

    def start(self) -> None:
        """Begin to send heartbeats, until the worker ends."""
        worker_shutdown.connect(self._leave, weak=False)
        threading.Thread(target=self._run, name="rolling-heartbeat", daemon=True).start()

    def _run(self) -> None:
        while not self._ended.is_set():
            self.tell_all()
            self._ended.wait(WORKER_PERIOD_S)

    def tell_all(self) -> None:
        """Send a heartbeat for each source, if the worker is connected to the broker."""
        if self._consumer.task_consumer is not None:
            heartbeat = self._heartbeat()
            for settings in self._every:
                self.tell(settings, heartbeat)

    def _heartbeat(self) -> Heartbeat:
        app = self._consumer.app
        limit_bytes = _memory_limit_bytes(app.conf.worker_max_memory_per_child or 0)
        queues = sorted(app.amqp.queues.consume_from)
        return Heartbeat("worker", str(self._consumer.hostname), WORKER_PERIOD_S, queues, limit_bytes)

    def _leave(self, **_: Any) -> None:
        """Remove the entry of a worker that ends in order."""
        self._ended.set()
        thread = threading.Thread(target=self._remove, daemon=True)
        thread.start()
        thread.join(LEAVE_S)

    def _remove(self) -> None:
        self.leave(self._every, self._heartbeat())


class _Beat(_Teller):
    def __init__(self, service: Any, every: Iterable[Settings]) -> None:
        super().__init__()
        self._app = service.app
        self._every = {settings.source: settings for settings in every}
        # Its `-n`, which Celery before 5.7 does not have. Without a process id, so that a restarted beat replaces its
        # entry.
        self._name = getattr(service, "hostname", None) or socket.gethostname()
        self._sent: SimpleQueue[tuple[Settings, str]] = SimpleQueue()
        self._has_ended = False

    def start(self) -> None:
        """Begin to send a heartbeat for each run that is sent."""
        after_task_publish.connect(self._on_sent, sender=TASK_NAME, weak=False)
        threading.Thread(target=self._run, name="rolling-heartbeat", daemon=True).start()
        atexit.register(self._leave)

    def _leave(self) -> None:
        after_task_publish.disconnect(self._on_sent, sender=TASK_NAME)
        self._has_ended = True
        self.leave(self._every.values(), Heartbeat("beat", self._name, 0.0))

    def _on_sent(self, body: Any, exchange: str, routing_key: str, **_: Any) -> None:
        settings = self._every.get(body[1].get("source"))
        if settings is not None:
            self._sent.put((settings, self._queue(exchange, routing_key)))

    def _queue(self, exchange: str, routing_key: str) -> str:
        """Return the queue to which a message was sent."""
        for name, queue in self._app.amqp.queues.items():
            if queue.routing_key == routing_key and queue.exchange.name == exchange:
                return str(name)
        return routing_key  # the default exchange's, which is the queue's name

    def _run(self) -> None:
        while True:
            settings, queue = self._sent.get()
            if self._has_ended:
                return
            self.tell(settings, Heartbeat("beat", self._name, settings.interval_s, [queue]))


def _memory_limit_bytes(child_kib: int) -> int | None:
    """Return the lowest memory limit of a worker's child process."""
    limits = [1024 * child_kib] if child_kib else []
    with suppress(OSError, ValueError):
        limits.append(int(_CONTAINER_LIMIT.read_text()))
    return min(limits, default=None)


def _cache(settings: Settings) -> CacheClient:
    return CacheClient(settings.redis_url, settings.source, settings.interval_s, is_kept=True)
