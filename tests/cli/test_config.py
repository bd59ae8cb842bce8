"""`rolling-optimizer config` prints the settings without secrets, and checks both Redis servers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command import rolling_optimizer
from tests.support.compose import ROOT
from tests.support.redis_servers import RedisServer


@pytest.mark.slow
def test_config_shows_settings_redacted_and_asks_both_redis(data: Path, redis_server: RedisServer) -> None:
    """`config` prints the settings and whether cache and broker respond; passwords are in neither table nor errors."""
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
    """`config` warns of a broker that may evict, since an eviction would lose messages."""
    with redis_server.client as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            done = rolling_optimizer(data, "config", ROLLING_REDIS_URL=redis_server.url)
        finally:
            client.config_set("maxmemory-policy", "noeviction")
    assert "may evict messages (maxmemory-policy allkeys-lru)" in done.stdout


@pytest.mark.slow
def test_config_imports_the_guard(data: Path, redis_server: RedisServer) -> None:
    """`config` imports the guard as the process of a run does, here from a directory of PYTHONPATH.

    A guard that cannot be imported is reported in the one line that has all other errors.
    """
    (data / "shop").mkdir()
    (data / "shop/shop_guards.py").write_text("def check(new, current):\n    return None\n")
    found = {"ROLLING_REDIS_URL": redis_server.url, "PYTHONPATH": f"{ROOT}:{data / 'shop'}"}
    good = rolling_optimizer(data, "config", ROLLING_GUARD="shop_guards:check", **found)
    bad = rolling_optimizer(data, "config", ROLLING_GUARD="shop_guards:chekc", **found)
    both = rolling_optimizer(data, "config", ROLLING_GUARD="nowhere:check", ROLLING_REDIS_URL="redis://127.0.0.1:1/0")

    assert good.returncode == 0, good.stderr
    assert "guard: shop_guards:check is imported" in good.stdout
    assert (bad.returncode, bad.stderr.count("\n")) == (1, 1)
    assert "SettingsInvalid: ROLLING_GUARD=shop_guards:chekc cannot be imported: AttributeError: " in bad.stderr
    assert f"cache: {redis_server.url} answers" in bad.stdout
    assert (both.returncode, both.stderr.count("\n")) == (1, 1)
    assert "redis://127.0.0.1:1/0" in both.stderr
    assert "ROLLING_GUARD=nowhere:check cannot be imported: ModuleNotFoundError: " in both.stderr
