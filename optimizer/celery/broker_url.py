"""The broker of a Celery app: compare it with a URL, and show it."""

from __future__ import annotations

from typing import Any

from celery import Celery
from kombu.connection import Connection

from optimizer.storage.redis_url import RedisUrl

__all__ = ["same_broker", "shown_broker"]


def same_broker(app: Celery, url: str) -> bool:
    """Whether a URL leads to an app's broker, or to one of its brokers, whatever the user in it."""
    configured = app.conf.broker_write_url or ""
    urls = configured if isinstance(configured, (list, tuple)) else configured.split(";")
    places = [_place(one) for one in urls]
    return any(_place(one) in places for one in _as_celery_has_it(url))


def shown_broker(app: Celery) -> str:
    """The URL of an app's broker, without its password."""
    with app.connection_for_write() as connection:
        return str(connection.as_uri())


def _as_celery_has_it(url: str) -> list[str]:
    """Return the URL, or for Sentinels the URLs of all of them."""
    try:
        parsed = RedisUrl.parse(url)
    except ValueError:
        return [url]
    return parsed.for_kombu().split(";") if parsed.master else [url]


def _place(url: str) -> tuple[Any, ...]:
    """Return the server of a URL, equal for all spellings."""
    try:
        parsed = RedisUrl.parse(url)
    except ValueError:
        return _place_by_kombu(url)
    has_port = parsed.scheme == "unix" or ":" in parsed.place.rpartition("]")[2]
    return parsed.scheme, parsed.place if has_port else f"{parsed.place}:6379", parsed.database


def _place_by_kombu(url: str) -> tuple[Any, ...]:
    try:
        info = Connection(url).info()  # type: ignore[no-untyped-call]
    except (KeyError, ImportError, ValueError):  # no such transport, or no URL
        return (url,)
    transport = str(info["transport"]).replace("pyamqp", "amqp")
    return transport, info["hostname"], info["port"], str(info["virtual_host"] or "").strip("/")
