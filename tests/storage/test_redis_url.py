"""A Redis URL is parsed once and written for redis-py and kombu, and both understand it alike."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import redis
from celery import Celery

from optimizer import Settings, optimize
from optimizer.cache.client import ping
from optimizer.storage.location import PUBLIC_OPTIONS, redact_url
from optimizer.storage.redis_url import SOCKET_QUERY, TLS_FILES, TLS_QUERY, RedisUrl
from tests.support.fleet import Fleet
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.rolling_files import a_record, write_json


@pytest.mark.parametrize(
    ("url", "for_redis_py", "for_kombu"),
    [
        ("redis://h", "redis://h/0", "redis://h/0"),
        ("redis://u:p%2F@h:1/3", "redis://u:p%2F@h:1/3", "redis://u:p%2F@h:1/3"),
        ("redis://[::1]:7/2", "redis://[::1]:7/2", "redis://[::1]:7/2"),
        ("rediss://:p@h:1/0", "rediss://:p@h:1/0?ssl_check_hostname=true", "rediss://:p@h:1/0"),
        (
            "rediss://h?ssl_cert_reqs=none",
            "rediss://h/0?ssl_cert_reqs=none&ssl_check_hostname=false",
            "rediss://h/0",
        ),
        ("unix:///r.sock", "unix:///r.sock?db=0", "redis+socket:///r.sock?virtual_host=0"),
        ("unix://:p@/r.sock?db=4", "unix://:p@/r.sock?db=4", "redis+socket://:p@/r.sock?virtual_host=4"),
        ("redis+socket:///r.sock?virtual_host=4", "unix:///r.sock?db=4", "redis+socket:///r.sock?virtual_host=4"),
        (
            "unix:///r.sock?password=a%26b&db=1",
            "unix://:a%26b@/r.sock?db=1",
            "redis+socket://:a%26b@/r.sock?virtual_host=1",
        ),
    ],
)
def test_a_url_is_written_for_each_library(url: str, for_redis_py: str, for_kombu: str) -> None:
    """A URL is written once for redis-py and once for kombu, with the same database, login and socket."""
    parsed = RedisUrl.parse(url)
    assert (parsed.for_redis_py(), parsed.for_kombu()) == (for_redis_py, for_kombu)


@pytest.mark.parametrize(
    ("query", "certificates", "hostname", "files"),
    [
        ("", ssl.CERT_REQUIRED, True, {}),
        ("?ssl_ca_certs=%2Fca.pem", ssl.CERT_REQUIRED, True, {"ssl_ca_certs": "/ca.pem"}),
        ("?ssl_cert_reqs=required&ssl_check_hostname=true", ssl.CERT_REQUIRED, True, {}),
        ("?ssl_check_hostname=false", ssl.CERT_REQUIRED, False, {}),
        ("?ssl_cert_reqs=none", ssl.CERT_NONE, False, {}),
        ("?ssl_certfile=c&ssl_keyfile=k", ssl.CERT_REQUIRED, True, {"ssl_certfile": "c", "ssl_keyfile": "k"}),
    ],
)
def test_tls_means_the_same_to_all(
    query: str, certificates: ssl.VerifyMode, hostname: bool, files: dict[str, str]
) -> None:
    """redis-py, the broker and the result backend check certificates and host names unless the URL says otherwise."""
    url = RedisUrl.parse(f"rediss://h{query}")
    celery = Celery(set_as_current=False)
    celery.conf.update(broker_use_ssl=url.tls_for_kombu(), redis_backend_use_ssl=url.tls_for_kombu())
    celery.conf.update(broker_url=url.for_kombu(), result_backend=url.for_kombu())

    with celery.connection() as connection:
        pools = [redis.ConnectionPool.from_url(url.for_redis_py()), celery.backend.client.connection_pool]
        options = [pool.connection_kwargs for pool in pools] + [connection.transport_options | connection.ssl]
    names = ("ssl_cert_reqs", "ssl_check_hostname", *TLS_FILES)
    made = [redis.SSLConnection(**{name: option[name] for name in names if name in option}) for option in options]

    assert [option.cert_reqs for option in made] == [certificates] * 3
    assert [option.check_hostname for option in made] == [hostname] * 3
    assert [{name: option[name] for name in files} for option in options] == [files] * 3


@pytest.mark.parametrize(
    "url",
    ["redis://:a%26b@h:7/3", "unix://:a%26b@/r.sock?db=3", "redis+socket:///r.sock?password=a%26b&virtual_host=3"],
)
def test_redis_py_reads_password_and_database(url: str) -> None:
    """redis-py reads password and database from the URL that is written for it; the library itself is the oracle.

    A worker in a test below shows that kombu reads its own spelling.
    """
    options = redis.ConnectionPool.from_url(RedisUrl.parse(url).for_redis_py()).connection_kwargs
    assert (options["password"], options["db"]) == ("a&b", 3)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://h/x", "database 'x'"),
        ("redis://h?foo=bar", "foo in its query"),
        ("redis://h?socket_timeout=x", "socket_timeout in its query"),
        ("redis://h?decode_responses=True", "decode_responses in its query"),
        ("redis://h?db=1", "db in its query"),
        ("redis://h?ssl_ca_certs=ca.pem", "ssl_ca_certs in its query"),
        ("rediss://h?ssl_check_hostname=", "ssl_check_hostname='', which is not true or false"),
        ("rediss://h?ssl_check_hostname=no", "ssl_check_hostname='no', which is not true or false"),
        ("rediss://h?ssl_cert_reqs=None", "ssl_cert_reqs='None', which is not required or none"),
        ("rediss://h?ssl_cert_reqs=optional", "ssl_cert_reqs='optional', which is not required or none"),
        ("rediss://h?ssl_ca_certs=", "ssl_ca_certs without a file"),
        ("unix://", "names no socket"),
        ("unix://host/r.sock", "names no socket"),
        ("unix:///r.sock?db=-1", "database '-1'"),
        ("redis://", "names no host"),
        ("redis://h:port", "no readable host and port"),
        ("redis://h1,h2", "names several hosts; begin it with"),
        ("redis+sentinel://h1:1,h2:x/m", "no readable host and port"),
        ("redis+sentinel://h1,,h2/m", "names no host between two commas"),
        ("redis+sentinel://h1,h2", "names no master; write redis.sentinel://host:26379,host2:26379/mymaster/0"),
        ("sentinel://h1:26379/0", "names no master"),
        ("redis+sentinel://h/m/x", "database 'x'"),
        ("sentinel://h1:26379/0;sentinel://h2:26379/0", "has ';' in it; write commas between Sentinels"),
        ("redis+sentinel://h/m?ssl_ca_certs=ca.pem", "ssl_ca_certs in its query"),
        ("redis+cluster://h?sentinel_password=p", "sentinel_password in its query"),
        ("redis+cluster://h/1", "names '/1' after its nodes; a cluster has database 0 alone"),
        ("amqp://h", "does not begin with one of"),
    ],
)
def test_what_a_library_would_stumble_over_is_refused(url: str, said: str) -> None:
    """A URL that a library cannot use is refused when it is parsed.

    The error names the option, instead of a traceback from a constructor later.
    """
    with pytest.raises(ValueError, match=said):
        RedisUrl.parse(url)


def test_sentinels_are_written_for_each_library() -> None:
    """Celery gets a URL for each Sentinel, and the master's name and the Sentinels' login beside them as options.

    redis-py gets a URL for each too, and both spellings of the URL mean the same.
    """
    url = RedisUrl.parse("redis+sentinel://u:p%2F@h1,[::1]:7/my-master/3?sentinel_password=s%26&sentinel_username=w")
    assert url == RedisUrl.parse(
        "sentinel://u:p%2F@h1:26379,[::1]:7/my-master/3?sentinel_username=w&sentinel_password=s%26"
    )
    assert url.nodes() == [("h1", 26379), ("::1", 7)]
    assert [one.for_redis_py() for one in url.servers()] == ["redis://u:p%2F@h1:26379/3", "redis://u:p%2F@[::1]:7/3"]
    assert url.for_kombu() == "sentinel://u:p%2F@h1:26379/3;sentinel://u:p%2F@[::1]:7/3"
    own_login = {"username": "w", "password": "s&"}
    assert url.options_for_kombu({"socket_timeout": 2}) == {
        "master_name": "my-master",
        "sentinel_kwargs": own_login | {"socket_timeout": 2},
    }
    tls = RedisUrl.parse("rediss+sentinel://h/m?ssl_ca_certs=ca.pem").options_of_sentinels()
    assert tls == {"ssl": True, "ssl_cert_reqs": "required", "ssl_ca_certs": "ca.pem", "ssl_check_hostname": True}


def test_the_nodes_of_a_cluster_have_one_login() -> None:
    """Each node of a cluster has the URL's login and options of TLS, and database 0."""
    url = RedisUrl.parse("rediss+cluster://:p@h1,h2:7?ssl_cert_reqs=none")
    assert url.nodes() == [("h1", 6379), ("h2", 7)]
    query = "ssl_cert_reqs=none&ssl_check_hostname=false"
    assert [one.for_redis_py() for one in url.servers()] == [
        f"rediss://:p@{one}/0?{query}" for one in ("h1:6379", "h2:7")
    ]


@pytest.mark.parametrize("scheme", ["redis+sentinel", "sentinel", "rediss+cluster"])
def test_passwords_of_sentinels_and_clusters_are_not_shown(scheme: str) -> None:
    """A redacted URL shows neither the password of the data servers nor the login of the Sentinels."""
    shown = redact_url(f"{scheme}://u:hidden1@h1,h2/m/0?sentinel_password=hidden2&sentinel_username=hidden3")
    assert "hidden" not in shown
    assert "h1,h2/m/0" in shown


def test_every_option_but_the_password_may_be_shown() -> None:
    """Redaction may show every option that the parser takes except the password.

    Redaction is in a layer below the parser, so it has its own list of the options that are no secrets.
    """
    assert set(PUBLIC_OPTIONS) == (TLS_QUERY | SOCKET_QUERY) - {"password"}


@pytest.mark.slow
def test_a_worker_runs_over_a_unix_socket_with_password_and_database(tmp_path: Path, own_redis: RedisServer) -> None:
    """Over a Unix socket, cache and broker use the same server, password and database, each in its own spelling.

    Database 0, which is not the one in the URL, stays empty.
    """
    socket = tmp_path / "r.sock"
    own_redis.start("--unixsocket", str(socket))
    with own_redis.client as client:
        client.config_set("requirepass", "a&b")
    url = f"unix://{socket}?password=a%26b&db=2"
    ping(url)
    settings = Settings(input=tmp_path / "in.json", output_dir=tmp_path / "out", source="socket", redis_url=url)
    write_json(settings.input, {"AAPL": a_record()})

    variables = {"ROLLING_SOURCE": "socket", "ROLLING_INTERVAL_S": "1", "ROLLING_STARTUP_DELAY_S": "0.5"}
    with Fleet(tmp_path, settings, **variables) as fleet:
        fleet.start_worker()
        fleet.start_beat()
        fleet.wait_for_runs(1, "success")
        # Files are written first: a refresh in between takes the version from them, and the next one from Redis.
        wait_until(lambda: fleet.reader.predictions().origin == "redis", what="the version in Redis")

    with redis.Redis(unix_socket_path=str(socket), password="a&b", db=0) as client:
        assert client.keys() == []
    assert optimize(settings).cache == "current"
