"""`rolling-optimizer config`: settings without secrets, and both Redis servers."""

from __future__ import annotations

from pathlib import Path

from tests.support.command import rolling_optimizer
from tests.support.redis_servers import RedisServer


def test_config_shows_settings_redacted_and_asks_both_redis(data: Path, redis_server: RedisServer) -> None:
    """Passwords never show, neither in the table nor in an error."""
    good = rolling_optimizer(data, "config", ROLLING_REDIS_URL=redis_server.url, ROLLING_TOP_SYMBOLS_LIMIT="7")
    bad = rolling_optimizer(data, "config", ROLLING_REDIS_URL="redis://ops:s3cret@127.0.0.1:1/0")

    assert good.returncode == 0
    assert "ROLLING_TOP_SYMBOLS_LIMIT     7 " in good.stdout
    assert f"cache: {redis_server.url} answers" in good.stdout
    assert f"broker: {redis_server.url} answers" in good.stdout
    assert bad.returncode == 1
    assert "redis://ops:***@127.0.0.1:1/0" in bad.stderr
    assert "s3cret" not in bad.stdout + bad.stderr


def test_config_warns_of_a_broker_that_may_evict(data: Path, redis_server: RedisServer) -> None:
    """An eviction would lose messages."""
    with redis_server.client as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            done = rolling_optimizer(data, "config", ROLLING_REDIS_URL=redis_server.url)
        finally:
            client.config_set("maxmemory-policy", "noeviction")
    assert "may evict messages (maxmemory-policy allkeys-lru)" in done.stdout
