"""A fixture: a Redis with the users that are shipped."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest

from tests.support.acl_users import ROLES, acl_of, password
from tests.support.redis_servers import RedisServer
from tests.support.whole_fleet import UrlOf


@pytest.fixture
def guarded(tmp_path: Path, own_redis: RedisServer) -> UrlOf:
    """Start a Redis with the users of `docs/redis-acl.conf`; return a function that gives the URL of a role."""
    (tmp_path / "redis-acl.conf").write_text(acl_of(ROLES))

    def url_of(role: str) -> str:
        return f"redis://{role}:{quote(password(role), safe='')}@127.0.0.1:{own_redis.port}/0"

    own_redis.url = url_of("admin")
    # DEBUG is off by default for all users; here it is on, so that it is the ACL that refuses it.
    own_redis.start("--include", str(tmp_path / "redis-acl.conf"), "--enable-debug-command", "yes")
    return url_of
