"""Redis URLs: one spelling in, those of redis-py and of kombu out; and URLs of all kinds as they may be shown.

The two libraries agree on `redis://` and `rediss://` but not on Unix sockets, and both pass a query that they do not
know on to their constructors. So a URL is read once, strictly, and written again for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

__all__ = ["TLS_FILES", "RedisUrl"]

SCHEMES: Final = {"redis": "redis", "rediss": "rediss", "unix": "unix", "redis+socket": "unix"}
# Of the query, what each kind of URL may say.
SOCKET_QUERY: Final = frozenset({"db", "virtual_host", "password"})
TLS_FILES: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
# What weakens TLS has one spelling: of `ssl_check_hostname=no` redis-py makes "off", kombu "on".
TLS_WORDS: Final = {"ssl_cert_reqs": ("required", "none"), "ssl_check_hostname": ("true", "false")}
TLS_QUERY: Final = frozenset({*TLS_FILES, *TLS_WORDS})


@dataclass(frozen=True)
class RedisUrl:
    """A Redis server and a database of it; `login` is `user:password@`, escaped as it came, or empty."""

    scheme: str
    login: str
    place: str  # host and port, or the socket's path
    database: int
    tls: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, url: str) -> RedisUrl:
        """Read a URL.

        Raises:
            ValueError: What is wrong with it, without a piece of the password.
        """
        try:
            parts = urlsplit(url)
            usable_port = parts.port != 0
        except ValueError:  # its text may quote a piece of the password
            usable_port = False
        if not usable_port:
            raise ValueError("has no readable host and port; in a password, '/', '?' and '#' are written %2F, %3F, %23")
        scheme = SCHEMES.get(parts.scheme)
        if scheme is None:
            raise ValueError(f"does not begin with one of {', '.join(f'{name}://' for name in SCHEMES)}")
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        known = SOCKET_QUERY if scheme == "unix" else TLS_QUERY if scheme == "rediss" else frozenset()
        unknown = query.keys() - known
        if unknown:
            raise ValueError(
                f"has {', '.join(sorted(unknown))} in its query, which is not one of {sorted(known) or '-'}"
            )
        for name, value in query.items():
            if name in TLS_WORDS and value not in TLS_WORDS[name]:
                raise ValueError(f"has {name}={value!r}, which is not {' or '.join(TLS_WORDS[name])}")
            if name in TLS_FILES and not value:
                raise ValueError(f"has {name} without a file")
        login, at, host = parts.netloc.rpartition("@")
        if scheme == "unix":
            if "password" in query:
                login, at = f":{quote(query['password'], safe='')}", "@"
            database = query.get("db") or query.get("virtual_host") or "0"
            if host or len(parts.path) < len("/x"):
                raise ValueError("names no socket; write unix:///path/to/redis.sock")
            return cls(scheme, login + at, parts.path, _database(database))
        if not host:
            raise ValueError("names no host")
        return cls(scheme, login + at, host, _database(parts.path.strip("/") or "0"), tuple(sorted(query.items())))

    def for_redis_py(self) -> str:
        """The URL as `redis.Redis.from_url` takes it."""
        if self.scheme == "unix":
            return f"unix://{self.login}{self.place}?db={self.database}"
        query = f"?{urlencode(self.tls)}" if self.tls else ""
        return f"{self.scheme}://{self.login}{self.place}/{self.database}{query}"

    def for_kombu(self) -> str:
        """The URL as Celery takes it for broker and results, without what `tls_for_kombu` says."""
        if self.scheme == "unix":
            return f"redis+socket://{self.login}{self.place}?virtual_host={self.database}"
        return f"{self.scheme}://{self.login}{self.place}/{self.database}"

    def tls_for_kombu(self) -> dict[str, str | bool] | None:
        """What Celery takes as `broker_use_ssl` and `redis_backend_use_ssl`; `None` without TLS.

        Not in the URL: of its query Flower reads nothing, and the result backend not whether host names are checked.
        """
        if self.scheme != "rediss":
            return None
        hostname = dict(self.tls).get("ssl_check_hostname", "true") == "true"
        return {"ssl_cert_reqs": "required"} | dict(self.tls) | {"ssl_check_hostname": hostname}

    def tls_files(self) -> dict[str, str]:
        """The files that TLS needs, under their names in the query."""
        return {name: value for name, value in self.tls if name in TLS_FILES}


def _database(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f"names the database {text!r}, which is not a number")
    return int(text)
