"""The connection of worker, beat, Flower and senders to the broker: retries forever, and drops unusable messages.

Invariant: no message ends a process. A message that cannot be decoded or dispatched is removed from its queue (and from
kombu's unacknowledged messages, which would be restored), logged in one line without its content, and counted; the next
message is handled as usual. All messages pass through `Transport._deliver`, and no error of their handlers leaves it.

Errors of Redis itself are raised: they are not caused by a message, and Celery reconnects; after error replies it does
so because `broker_channel_error_retry` is set.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import Any, Final

import kombu.connection
import msgspec
from kombu.exceptions import InconsistencyError, OperationalError
from kombu.transport import redis
from redis.exceptions import DataError, RedisError

from optimizer.celery.envelope import MessageInvalid, check_command, check_envelope
from optimizer.log import SourceLog
from optimizer.models import UNDECODABLE

__all__ = ["Connection", "dropped"]

_log = SourceLog(__name__)

# By default Celery waits two seconds longer each time, up to 30, without a setting for that: after a minute without the
# broker, a worker would miss the next 15 s or more.
RECONNECT_AFTER_S: Final = 0.5
RECONNECT_AFTER_AT_MOST_S: Final = 2.0 if kombu.VERSION >= (5, 7) else 2.0 - RECONNECT_AFTER_S  # older ones add it

# kombu's list includes KeyError, so it would treat a message that lacks a field as a lost connection.
BROKER_ERRORS: Final = (RedisError, OSError, OperationalError, InconsistencyError)

# Messages that this process has dropped, by queue, as `celery -A tasks inspect stats` shows them.
dropped: Final = Counter[str]()


class QoS(redis.QoS):
    """Keeps the messages that are not acknowledged yet."""

    def restore_unacked(self, client: Any = None) -> None:
        """Return them to their queues, unless the connection is lost.

        If it is, they stay in kombu's hash `unacked`, from which a worker returns them after the visibility timeout.
        kombu fails if a connection is closed twice, with an AttributeError or an AssertionError that Celery does not
        treat as a lost connection: in about one of 150 restarts of Redis the worker ended, if a message had arrived and
        was not acknowledged yet.
        """
        try:
            if self.channel.connection.client is not None:
                super().restore_unacked(client)  # type: ignore[no-untyped-call]
        finally:
            self._delivered.clear()


class Channel(redis.Channel):
    """Reads messages of queues and of pub/sub channels, whether they are JSON or not."""

    QoS = QoS

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[no-untyped-call]
        except (ValueError, TypeError, RecursionError):  # it has left the queue, and was not stored as unacknowledged
            _drop("a queue", "it is no JSON")
            return True

    def _handle_message(self, client: Any, response: Any) -> dict[str, Any]:
        payload: dict[str, Any] = super()._handle_message(client, response)  # type: ignore[no-untyped-call]
        if isinstance(payload["data"], bytes):
            try:
                msgspec.json.decode(payload["data"])
            except UNDECODABLE:
                _drop("a channel", "it is no JSON")
                payload["data"] = None  # which kombu ignores
        return payload


class Transport(redis.Transport):
    """Delivers messages that follow the schema."""

    Channel = Channel

    def _deliver(self, message: Any, queue: str) -> None:
        try:
            check_envelope(message)
            if queue.endswith(".pidbox") and not queue.endswith(".reply.celery.pidbox"):
                check_command(message)
            super()._deliver(message, queue)  # type: ignore[no-untyped-call]
        except Exception as error:  # a message can make kombu and Celery raise anything; the consumer has to go on
            if isinstance(error, BROKER_ERRORS) and not isinstance(error, DataError):
                raise
            self._reject(message)
            _drop(queue, _reason(error))

    def _reject(self, message: Any) -> None:
        """Remove a message from the unacknowledged ones: otherwise it would be returned to its queue."""
        if isinstance(message, dict) and isinstance(properties := message.get("properties"), dict):
            tag = properties.get("delivery_tag")
            if isinstance(tag, str):
                for channel in self.channels:
                    with suppress(KeyError):  # it came through another channel
                        channel.qos.get(tag)
                        channel.basic_reject(tag, requeue=False)


class SentinelChannel(Channel, redis.SentinelChannel):
    """The channel over the master that Sentinels name."""


class SentinelTransport(Transport, redis.SentinelTransport):
    """The same over the master that Sentinels name."""

    Channel = SentinelChannel


class Connection(kombu.connection.Connection):
    """A connection that tries its broker every two seconds while the broker is away."""

    def get_transport_cls(self) -> type[Transport]:
        """The transport: settings allow only Redis, and its Sentinels."""
        return SentinelTransport if self.transport_cls == "sentinel" else Transport

    def ensure_connection(self, *arguments: Any, **options: Any) -> Any:
        """Connect; wait for the broker if it is away."""
        pace = {
            "interval_start": RECONNECT_AFTER_S,
            "interval_step": RECONNECT_AFTER_S,
            "interval_max": RECONNECT_AFTER_AT_MOST_S,
        }
        return super().ensure_connection(*arguments, **(pace | options))  # type: ignore[no-untyped-call]


def _drop(queue: str, reason: str) -> None:
    dropped[queue] += 1
    _log.warning("⚠️ a message of %s was dropped: %s", queue, reason)


def _reason(error: Exception) -> str:
    """Return why a message was dropped, without its content, which other packages' exceptions may quote."""
    if isinstance(error, MessageInvalid):
        return str(error)
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = "" if trace is None else f" in {trace.tb_frame.f_code.co_qualname}, line {trace.tb_lineno}"
    return f"{type(error).__name__}{where}"
