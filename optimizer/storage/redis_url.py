"""Redis URLs: parse one spelling, write the spellings of redis-py and of kombu.

The two libraries agree on `redis://` and `rediss://` but not on Unix sockets and Sentinels, and both pass an unknown
query on to their constructors. So a URL is parsed once, strictly, and written for each:

    redis://host:6379/0, unix:///path/to/redis.sock                   a server
    redis+sentinel://host:26379,host2:26379/mymaster/0                the master that Sentinels name
    redis+cluster://host:6379,host2:6379                              nodes of a cluster, for the cache alone

With `rediss` in place of `redis` all connections have TLS. User and password are those of the data servers.

Errors: `ValueError` with the reason, without any part of the password.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, quote, urlencode, urlsplit

__all__ = ["CLUSTER_AS_BROKER", "TLS_FILES", "RedisUrl", "reason_of"]

CLUSTER_AS_BROKER: Final = (
    "Celery cannot use a cluster as its broker; set ROLLING_BROKER_URL to a Redis that is none, or to Sentinels"
)

# redis-py's "Error 111 connecting to HOST:PORT. Connection refused.", and its text if the cause is less specific.
_CONNECTING: Final = re.compile(r"Error (?:(?P<first>.+?) )?connecting to \S+\.(?: (?P<reason>.+)\.)?", re.DOTALL)

SCHEMES: Final = {
    "redis": "redis",
    "rediss": "rediss",
    "unix": "unix",
    "redis+socket": "unix",
    "redis+sentinel": "redis+sentinel",
    "rediss+sentinel": "rediss+sentinel",
    "sentinel": "redis+sentinel",  # Celery's scheme, with a separate URL for each Sentinel
    "redis+cluster": "redis+cluster",
    "rediss+cluster": "rediss+cluster",
}
DEFAULT_PORTS: Final = {"sentinel": 26379, "cluster": 6379}
# The options that the query of each kind of URL may have.
SOCKET_QUERY: Final = frozenset({"db", "virtual_host", "password"})
TLS_FILES: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
# An option that weakens TLS has one spelling: `ssl_check_hostname=no` means "off" to redis-py and "on" to kombu.
TLS_WORDS: Final = {"ssl_cert_reqs": ("required", "none"), "ssl_check_hostname": ("true", "false")}
TLS_QUERY: Final = frozenset({*TLS_FILES, *TLS_WORDS})
SENTINEL_QUERY: Final = frozenset({"sentinel_username", "sentinel_password"})
END_OF_NETLOC: Final = re.compile("[/?#]")
# The names that Sentinel accepts.
MASTER: Final = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True)
class RedisUrl:
    """A Redis server and a database on it; `login` is `user:password@`, still escaped, or empty."""

    scheme: str
    login: str
    place: str  # host and port, or several separated by commas for Sentinels and cluster nodes; or the socket's path
    database: int
    tls: tuple[tuple[str, str], ...] = ()
    master: str = ""  # the master's name, for Sentinels
    sentinel_login: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, url: str) -> RedisUrl:
        """Parse a URL.

        Raises:
            ValueError: It cannot be used; the message holds no piece of the password.
        """
        scheme, parts = _split(url)
        base, kind = _kind(scheme)
        query = _checked_query(parts.query, base, kind)
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
        path = parts.path.strip("/")
        tls = tuple(sorted((name, value) for name, value in query.items() if name in TLS_QUERY))
        if not kind and "," in host:
            raise ValueError("names several hosts; begin it with redis+sentinel:// or redis+cluster://")
        if not kind:
            return cls(scheme, login + at, host, _database(path or "0"), tls)
        place = ",".join(_with_port(each, DEFAULT_PORTS[kind]) for each in host.split(","))
        if kind == "cluster":
            if path not in ("", "0"):
                raise ValueError(f"names {parts.path!r} after its nodes; a cluster has database 0 alone")
            return cls(scheme, login + at, place, 0, tls)
        master, _, database = path.partition("/")
        if not MASTER.fullmatch(master) or master.isdecimal():
            raise ValueError(f"names no master; write {scheme}://host:26379,host2:26379/mymaster/0")
        own = tuple((name.partition("_")[2], query[name]) for name in sorted(SENTINEL_QUERY & query.keys()))
        return cls(scheme, login + at, place, _database(database or "0"), tls, master, own)

    @property
    def is_cluster(self) -> bool:
        """Whether it names nodes of a cluster."""
        return _kind(self.scheme)[1] == "cluster"

    @property
    def moves(self) -> bool:
        """Whether the server's address has to be requested from Sentinels or cluster nodes."""
        return bool(_kind(self.scheme)[1])

    def servers(self) -> list[RedisUrl]:
        """The Sentinels, the nodes of a cluster, or the server itself, each as the URL of a server."""
        if not self.moves:
            return [self]
        base = replace(self, scheme=_kind(self.scheme)[0], master="", sentinel_login=())
        return [replace(base, place=place) for place in self.place.split(",")]

    def nodes(self) -> list[tuple[str, int]]:
        """Host and port of each Sentinel or node of a cluster."""
        parts = [urlsplit(f"//{place}") for place in self.place.split(",")]
        return [(str(part.hostname), int(part.port or 0)) for part in parts]

    def for_redis_py(self) -> str:
        """Return the URL of a server in the form of `redis.Redis.from_url`."""
        if self.scheme == "unix":
            return f"unix://{self.login}{self.place}?db={self.database}"
        tls = dict(self.tls) | {"ssl_check_hostname": str(self._checks_hostname).lower()} if self.is_tls else {}
        query = f"?{urlencode(tls)}" if tls else ""
        return f"{self.scheme}://{self.login}{self.place}/{self.database}{query}"

    def for_kombu(self) -> str:
        """Return the URL in Celery's form for broker and results, without the options of `tls_for_kombu`.

        For Sentinels it is one URL each, separated by `;`, used together with `options_for_kombu`.
        """
        if self.scheme == "unix":
            return f"redis+socket://{self.login}{self.place}?virtual_host={self.database}"
        if self.master:
            return ";".join(f"sentinel://{self.login}{place}/{self.database}" for place in self.place.split(","))
        return f"{self.scheme}://{self.login}{self.place}/{self.database}"

    def tls_for_kombu(self) -> dict[str, str | bool] | None:
        """The value of Celery's `broker_use_ssl` and `redis_backend_use_ssl`; `None` without TLS.

        It is not in the URL, because Flower ignores the query and the result backend ignores `ssl_check_hostname`.
        """
        if not self.is_tls:
            return None
        return {"ssl_cert_reqs": "required"} | dict(self.tls) | {"ssl_check_hostname": self._checks_hostname}

    def options_for_kombu(self, timeouts: Mapping[str, float]) -> dict[str, Any]:
        """Return Celery's transport options of broker and results that go with the URL; only Sentinels need any.

        Args:
            timeouts: The timeouts of connections to Sentinels; kombu would set none.
        """
        if not self.master:
            return {}
        return {"master_name": self.master, "sentinel_kwargs": self.options_of_sentinels() | dict(timeouts)}

    def options_of_sentinels(self) -> dict[str, Any]:
        """Return the options of a connection to a Sentinel: its login, and the TLS options of the data servers."""
        tls = self.tls_for_kombu()
        return {**dict(self.sentinel_login), **({"ssl": True, **tls} if tls else {})}

    @property
    def is_tls(self) -> bool:
        """Whether its connections have TLS."""
        return self.scheme.startswith("rediss")

    @property
    def _checks_hostname(self) -> bool:
        """Whether the certificate must be for this host, which redis-py before 6 only checks on request.

        If the certificate is not checked, the name is not either: redis-py before 6 refuses that combination.
        """
        options = dict(self.tls)
        return options.get("ssl_cert_reqs") != "none" and options.get("ssl_check_hostname", "true") == "true"

    def tls_files(self) -> dict[str, str]:
        """The files that TLS needs, by their option's name."""
        return {name: value for name, value in self.tls if name in TLS_FILES}


def _split(url: str) -> tuple[str, SplitResult]:
    """Return the scheme in its one spelling, and the pieces of a URL whose hosts and ports can be read."""
    if ";" in url and SCHEMES.get(url.partition(":")[0], "").endswith("+sentinel"):
        raise ValueError("has ';' in it; write commas between Sentinels: redis+sentinel://host,host2/mymaster/0")
    try:
        # Without its hosts: newer Pythons take several with an IPv6 address among them for one that is malformed.
        before, _, rest = url.partition("://")
        netloc = END_OF_NETLOC.split(rest, maxsplit=1)[0]
        parts = urlsplit(f"{before}://{rest.removeprefix(netloc)}")._replace(netloc=netloc)
        login, at, hosts = netloc.rpartition("@")
        is_usable = all(urlsplit(f"//{login}{at}{host}").port != 0 for host in _hosts(hosts, parts.scheme))
    except ValueError:  # its text may quote a piece of the password
        is_usable = False
    if not is_usable:
        raise ValueError("has no readable host and port; in a password, '/', '?' and '#' are written %2F, %3F, %23")
    scheme = SCHEMES.get(parts.scheme)
    if scheme is None:
        raise ValueError(f"does not begin with one of {', '.join(f'{name}://' for name in SCHEMES)}")
    return scheme, parts


def _hosts(text: str, scheme: str) -> list[str]:
    """The hosts of Sentinels or of a cluster, or the one of a server."""
    return text.split(",") if _kind(scheme)[1] else [text]


def _checked_query(text: str, base: str, kind: str) -> dict[str, str]:
    """Read a query, of which each option has to be known."""
    query = dict(parse_qsl(text, keep_blank_values=True))
    known = SOCKET_QUERY if base == "unix" else TLS_QUERY if base == "rediss" else frozenset()
    known |= SENTINEL_QUERY if kind == "sentinel" else frozenset()
    unknown = query.keys() - known
    if unknown:
        raise ValueError(f"has {', '.join(sorted(unknown))} in its query, which is not one of {sorted(known) or '-'}")
    for name, value in query.items():
        if name in TLS_WORDS and value not in TLS_WORDS[name]:
            raise ValueError(f"has {name}={value!r}, which is not {' or '.join(TLS_WORDS[name])}")
        if name in TLS_FILES and not value:
            raise ValueError(f"has {name} without a file")
    return query


def _kind(scheme: str) -> tuple[str, str]:
    """Divide a scheme into a server's own, and what the hosts are: `sentinel`, `cluster`, or empty for the server."""
    base, _, kind = SCHEMES.get(scheme, scheme).partition("+")
    return base, kind


def _with_port(host: str, port: int) -> str:
    if not host:
        raise ValueError("names no host between two commas")
    return host if urlsplit(f"//{host}").port else f"{host.rstrip(':')}:{port}"


def _database(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f"names the database {text!r}, which is not a number")
    return int(text)


def reason_of(error: BaseException) -> str:
    """What a Redis client says is wrong, without the address, which our messages have already."""
    text = str(error) or type(error).__name__
    match = _CONNECTING.fullmatch(text)
    return text if match is None else match["reason"] or match["first"] or "no connection"
