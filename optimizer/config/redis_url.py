"""Redis URLs: parse one spelling, write the spellings of redis-py and of kombu.

The two libraries agree on `redis://` and `rediss://` but not on Unix sockets, and both pass an unknown query on to
their constructors. So a URL is parsed once, strictly, and written for each.

Errors: `ValueError` with what is wrong, without any piece of the password.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

__all__ = ["TLS_FILES", "RedisUrl"]

SCHEMES: Final = {"redis": "redis", "rediss": "rediss", "unix": "unix", "redis+socket": "unix"}
# The options that the query of each kind of URL may have.
SOCKET_QUERY: Final = frozenset({"db", "virtual_host", "password"})
TLS_FILES: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
# An option that weakens TLS has one spelling: `ssl_check_hostname=no` means "off" to redis-py and "on" to kombu.
TLS_WORDS: Final = {"ssl_cert_reqs": ("required", "none"), "ssl_check_hostname": ("true", "false")}
TLS_QUERY: Final = frozenset({*TLS_FILES, *TLS_WORDS})


@dataclass(frozen=True)
class RedisUrl:
    """A Redis server and a database on it; `login` is `user:password@`, still escaped, or empty."""

    scheme: str
    login: str
    place: str  # host and port, or the socket's path
    database: int
    tls: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, url: str) -> RedisUrl:
        """Parse a URL.

        Raises:
            ValueError: It cannot be used; the message holds no piece of the password.
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
        tls = dict(self.tls) | {"ssl_check_hostname": str(self._checks_hostname).lower()} if self._is_tls else {}
        query = f"?{urlencode(tls)}" if tls else ""
        return f"{self.scheme}://{self.login}{self.place}/{self.database}{query}"

    def for_kombu(self) -> str:
        """The URL as Celery takes it for broker and results, without the options of `tls_for_kombu`."""
        if self.scheme == "unix":
            return f"redis+socket://{self.login}{self.place}?virtual_host={self.database}"
        return f"{self.scheme}://{self.login}{self.place}/{self.database}"

    def tls_for_kombu(self) -> dict[str, str | bool] | None:
        """The value of Celery's `broker_use_ssl` and `redis_backend_use_ssl`; `None` without TLS.

        It is not in the URL, because Flower ignores the query and the result backend ignores `ssl_check_hostname`.
        """
        if not self._is_tls:
            return None
        return {"ssl_cert_reqs": "required"} | dict(self.tls) | {"ssl_check_hostname": self._checks_hostname}

    @property
    def _is_tls(self) -> bool:
        return self.scheme == "rediss"

    @property
    def _checks_hostname(self) -> bool:
        """Whether the certificate must be for this host: redis-py before 6 does not check that unless it is told.

        Without a check of the certificate there is none of the name, which redis-py before 6 would refuse.
        """
        options = dict(self.tls)
        return options.get("ssl_cert_reqs") != "none" and options.get("ssl_check_hostname", "true") == "true"

    def tls_files(self) -> dict[str, str]:
        """The files that TLS needs, by their option's name."""
        return {name: value for name, value in self.tls if name in TLS_FILES}


def _database(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f"names the database {text!r}, which is not a number")
    return int(text)
