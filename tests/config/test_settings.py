"""Settings: every variable is read and checked, errors name the variable, passwords are never shown."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.config.environment import _warn
from optimizer.config.settings import Settings, variable_name
from optimizer.errors import SettingsInvalid
from optimizer.storage.location import Url, redact_url

# For each setting, a value that is not its default.
GIVEN: dict[str, tuple[str, object]] = {
    "input": ("in/engine.json.gz", Path("in/engine.json.gz")),
    "output_dir": ("out", Path("out")),
    "bots_dir": ("bots", Path("bots")),
    "source": ("my-source_1.x", "my-source_1.x"),
    "redis_url": ("rediss://cache:6380/1", "rediss://cache:6380/1"),
    "broker_url": ("redis://broker/2", "redis://broker/2"),
    "top_symbols_limit": ("50", 50),
    "min_confidence": ("0.25", 0.25),
    "max_rejected_percent": ("12.5", 12.5),
    "min_records": ("1000", 1000),
    "max_drop_percent": ("12.5", 12.5),
    "guard": ("shop.guards:check", "shop.guards:check"),
    "keep_versions": ("5", 5),
    "index_symbols_limit": ("500", 500),
    "update_records_limit": ("50", 50),
    "update_queue_limit": ("70", 70),
    "interval_s": ("12.5", 12.5),
    "startup_delay_s": ("0", 0.0),
    "max_input_age_s": ("600", 600.0),
    "gzip_level": ("9", 9),
    "max_record_bytes": ("2048", 2048),
    "engine": ("ijson", "ijson"),
    "fields": ("prediction=score; +sector", "prediction=score; +sector"),
    "bot_fields": ("equity=balance.total", "equity=balance.total"),
    "position_fields": ("quantity=size", "quantity=size"),
    "trigger_token": ("a secret", "a secret"),
    "flower_url": ("https://flower.internal/", "https://flower.internal/"),
    "log_format": ("json", "json"),
    "traces": ("on", "on"),
}


class TestFromEnv:
    """Reading settings from the environment."""

    def test_every_setting_is_tested_here(self) -> None:
        """The table `GIVEN` has every field of `Settings`, each with a value that is not the default."""
        assert set(GIVEN) == {field.name for field in fields(Settings)}
        assert all(getattr(Settings(), name) != value for name, (_, value) in GIVEN.items())

    @pytest.mark.parametrize("name", GIVEN)
    def test_every_variable_is_read(self, name: str) -> None:
        """`ROLLING_` and the field's name in capitals sets that field, and no other."""
        text, value = GIVEN[name]

        settings = Settings.from_env({variable_name(name): text})

        assert getattr(settings, name) == value
        assert type(getattr(settings, name)) is type(value)
        derived = {"input": {"source"}, "redis_url": {"broker_url"}}.get(name, set())
        changed = {
            field.name for field in fields(Settings) if getattr(settings, field.name) != getattr(Settings(), field.name)
        }
        assert changed == {name} | derived

    def test_all_at_once(self) -> None:
        """All settings can be set together."""
        settings = Settings.from_env({variable_name(name): text for name, (text, _) in GIVEN.items()})

        assert {field.name: getattr(settings, field.name) for field in fields(Settings)} == {
            name: value for name, (_, value) in GIVEN.items()
        }

    def test_defaults(self) -> None:
        """Unset and empty variables give the defaults; variables with another prefix are ignored."""
        assert Settings.from_env({}) == Settings()
        assert Settings.from_env({variable_name(name): "" for name in GIVEN}) == Settings()
        assert Settings.from_env({"PATH": "/bin", "rolling_input": "x", "XROLLING_INPUT": "y"}) == Settings()

    @pytest.mark.parametrize(
        ("variable", "meant"),
        [
            ("ROLLING_INPT", "ROLLING_INPUT"),
            ("ROLLING_Input", "ROLLING_INPUT"),
            ("ROLLING_REDIS", "ROLLING_REDIS_URL"),
            ("ROLLING_OUTPUT", "ROLLING_OUTPUT_DIR"),
            ("ROLLING_INTERVAL", "ROLLING_INTERVAL_S"),
            ("ROLLING_SORUCES", "ROLLING_SOURCES"),
            ("ROLLING_REDIS_URL_FIL", "ROLLING_REDIS_URL"),
            ("ROLLING_INPUT_FILE", "ROLLING_INPUT"),
            ("ROLLING_BRAIN__INTERVAL_S", "ROLLING_INTERVAL_S"),
        ],
    )
    def test_misspelt_variables_are_refused_in_processes_of_our_own(
        self, caplog: pytest.LogCaptureFixture, variable: str, meant: str
    ) -> None:
        """In processes of our own, a misspelt variable is an error that names the setting that is meant, and no other.

        In other processes (not `strict`) a warning names that setting, and the defaults apply.
        """
        expected = rf"{variable} is not a setting\. Did you mean {meant}\? All settings are in docs/configuration\.md$"
        with pytest.raises(SettingsInvalid, match=expected):
            Settings.from_env({variable: "1"}, strict=True)
        assert caplog.records == []
        _warn.cache_clear()
        assert Settings.from_env({variable: "1"}) == Settings()
        (warning,) = caplog.records
        said = warning.getMessage()
        assert warning.levelname == "WARNING"
        assert said.endswith(f"{variable} is not a setting, and is passed over; the nearest is {meant}")

    @pytest.mark.slow
    def test_any_letter_that_is_wrong_makes_a_misspelling(self) -> None:
        """A name with a letter missing, doubled, swapped or replaced is refused, at every position of every name."""
        known = {variable_name(name) for name in GIVEN} | {"ROLLING_SOURCES"}
        for name in known:
            for at in range(len("ROLLING_"), len(name)):
                before, letter, after = name[:at], name[at], name[at + 1 :]
                for wrong in (
                    before + after,
                    before + 2 * letter + after,
                    before + "X" + after,
                    before + after[:1] + letter + after[1:],
                ):
                    if wrong not in known:
                        with pytest.raises(SettingsInvalid, match=f"{wrong} is not a setting"):
                            Settings.from_env({wrong: "1"}, strict=True)

    @pytest.mark.parametrize("strict", [False, True])
    @pytest.mark.parametrize(
        "variable", ["ROLLING_WINDOW", "ROLLING_", "ROLLING_LOG_LEVEL", "ROLLING_BATCH_SIZE", "ROLLING_A__B"]
    )
    def test_what_is_set_for_another_program_is_passed_over_with_one_warning(
        self, caplog: pytest.LogCaptureFixture, variable: str, strict: bool
    ) -> None:
        """A variable with our prefix that resembles no setting gives one warning per process, without its value.

        It is no error, since a backend may have variables with our prefix.
        """
        _warn.cache_clear()
        for _ in range(3):
            assert Settings.from_env({variable: "S3CRET"}, strict=strict) == Settings()
        said = [record.getMessage() for record in caplog.records]
        assert len(said) == 1
        assert f"{variable} is not a setting, and is passed over; the nearest is ROLLING_" in said[0]
        assert "S3CRET" not in said[0]

    @pytest.mark.parametrize("strict", [False, True])
    def test_what_kubernetes_sets_beside_a_service_is_passed_over(
        self, caplog: pytest.LogCaptureFixture, strict: bool
    ) -> None:
        """Variables that Kubernetes sets in every pod for a Service are ignored without a warning.

        A Service named `rolling-redis`, or named like a setting, gives them our prefix.
        """
        links: dict[str, str] = {}
        for service in ("ROLLING_REDIS", "ROLLING", "ROLLING_INPUT", "ROLLING_A__B", "ROLLING_WEB_2"):
            links |= {
                f"{service}_SERVICE_HOST": "10.0.0.1",
                f"{service}_SERVICE_PORT": "6379",
                f"{service}_SERVICE_PORT_HTTP_ALT": "6379",
                f"{service}_PORT": "tcp://10.0.0.1:6379",
                f"{service}_PORT_6379_TCP": "tcp://10.0.0.1:6379",
                f"{service}_PORT_6379_TCP_PROTO": "tcp",
                f"{service}_PORT_6379_TCP_PORT": "6379",
                f"{service}_PORT_6379_TCP_ADDR": "10.0.0.1",
                f"{service}_PORT_53_UDP": "udp://10.0.0.1:53",
            }
        assert Settings.from_env(links, strict=strict) == Settings()
        assert [one.source for one in Settings.every_from_env({**SEVERAL, **links}, strict=strict)] == [
            "brain",
            "intraday",
        ]
        assert not caplog.records

    @pytest.mark.parametrize(
        ("variable", "text"),
        [
            ("ROLLING_TOP_SYMBOLS_LIMIT", "many"),
            ("ROLLING_TOP_SYMBOLS_LIMIT", "3.5"),
            ("ROLLING_TOP_SYMBOLS_LIMIT", "0"),
            ("ROLLING_TOP_SYMBOLS_LIMIT", "-1"),
            ("ROLLING_TOP_SYMBOLS_LIMIT", "1000001"),
            ("ROLLING_TOP_SYMBOLS_LIMIT", "1" + "0" * 400),
            ("ROLLING_TOP_SYMBOLS_LIMIT", "1" * 5_000),
            ("ROLLING_INDEX_SYMBOLS_LIMIT", "0x10"),
            ("ROLLING_INDEX_SYMBOLS_LIMIT", "0"),
            ("ROLLING_MIN_CONFIDENCE", "nan"),
            ("ROLLING_MIN_CONFIDENCE", "1.01"),
            ("ROLLING_MIN_CONFIDENCE", "-0.1"),
            ("ROLLING_MIN_CONFIDENCE", "50%"),
            ("ROLLING_MAX_REJECTED_PERCENT", "50%"),
            ("ROLLING_MAX_REJECTED_PERCENT", "nan"),
            ("ROLLING_MAX_REJECTED_PERCENT", "100.1"),
            ("ROLLING_MAX_REJECTED_PERCENT", "-1"),
            ("ROLLING_INTERVAL_S", "0"),
            ("ROLLING_INTERVAL_S", "inf"),
            ("ROLLING_INTERVAL_S", "30s"),
            ("ROLLING_STARTUP_DELAY_S", "-1"),
            ("ROLLING_STARTUP_DELAY_S", "nan"),
            ("ROLLING_GZIP_LEVEL", "0"),
            ("ROLLING_GZIP_LEVEL", "10"),
            ("ROLLING_MAX_RECORD_BYTES", "1023"),
            ("ROLLING_MAX_RECORD_BYTES", "1MB"),
            ("ROLLING_ENGINE", "magic"),
            ("ROLLING_SOURCE", "a{b}"),
            ("ROLLING_SOURCE", "a:b"),
            ("ROLLING_SOURCE", "a\n"),
            ("ROLLING_REDIS_URL", "localhost:6379"),
            ("ROLLING_REDIS_URL", "http://localhost"),
            ("ROLLING_REDIS_URL", "redis://[::1"),
            ("ROLLING_REDIS_URL", "redis://host:port"),
            ("ROLLING_BROKER_URL", "amqp://guest@localhost"),
            ("ROLLING_BROKER_URL", "redis://host:70000"),
        ],
    )
    def test_bad_values_are_named(self, variable: str, text: str) -> None:
        """A value that cannot be used is refused with an error that has the variable and the value."""
        with pytest.raises(SettingsInvalid) as caught:
            Settings.from_env({variable: text})

        assert str(caught.value).startswith(f"{variable}=")
        assert repr(text)[1:40].rstrip("'") in str(caught.value)

    @pytest.mark.parametrize(
        ("variable", "text"),
        [
            ("ROLLING_TOP_SYMBOLS_LIMIT", "10000"),
            ("ROLLING_MIN_CONFIDENCE", "0"),
            ("ROLLING_MIN_CONFIDENCE", "1"),
            ("ROLLING_MAX_REJECTED_PERCENT", "0"),
            ("ROLLING_MAX_REJECTED_PERCENT", "100"),
            ("ROLLING_INTERVAL_S", "0.1"),
            ("ROLLING_INTERVAL_S", "86400"),
            ("ROLLING_GZIP_LEVEL", "1"),
            ("ROLLING_MAX_RECORD_BYTES", "1024"),
            ("ROLLING_MAX_RECORD_BYTES", str(1 << 30)),
            ("ROLLING_REDIS_URL", "unix:///run/redis.sock?db=1"),
            ("ROLLING_REDIS_URL", "redis://[::1]:6379/0"),
            ("ROLLING_BROKER_URL", "redis+socket:///run/redis.sock"),
        ],
    )
    def test_the_ends_of_ranges_are_good(self, variable: str, text: str) -> None:
        """The limits of a range are inclusive, and a value that is allowed is taken as it is given."""
        name = variable.removeprefix("ROLLING_").lower()
        default = getattr(Settings(), name)

        value = getattr(Settings.from_env({variable: text}), name)

        assert value == type(default)(text) != default


class TestSecretFiles:
    """A secret may be in a file, as Docker and Kubernetes provide it."""

    @pytest.mark.parametrize("name", ["redis_url", "broker_url", "trigger_token"])
    @pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
    def test_the_value_is_read_from_the_file(self, tmp_path: Path, name: str, ending: str) -> None:
        """A secret is read from the file that its `_FILE` variable names, without the newline that editors append."""
        text, value = GIVEN[name]
        (tmp_path / "secret").write_text(text + ending, newline="")

        settings = Settings.from_env({f"{variable_name(name)}_FILE": str(tmp_path / "secret"), variable_name(name): ""})

        assert getattr(settings, name) == value

    def test_the_variable_and_its_file_are_refused(self, tmp_path: Path) -> None:
        """A secret that is given both directly and as a file is refused: it would be a guess which of them counts."""
        with pytest.raises(SettingsInvalid, match="ROLLING_REDIS_URL and ROLLING_REDIS_URL_FILE are both set"):
            Settings.from_env({"ROLLING_REDIS_URL": "redis://a", "ROLLING_REDIS_URL_FILE": str(tmp_path / "missing")})

    @pytest.mark.parametrize(
        ("data", "said"),
        [(None, "cannot be read: No such file"), (b"\xff", "cannot be read: not UTF-8"), (b"\n", "is empty")],
    )
    def test_a_file_without_a_secret_is_named(self, tmp_path: Path, data: bytes | None, said: str) -> None:
        """A secret file that is missing, empty or not UTF-8 is an error that names the file and the reason.

        With a default instead, the process would use another server.
        """
        path = tmp_path / "secret"
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(SettingsInvalid, match=f"ROLLING_TRIGGER_TOKEN_FILE='{path}' {said}"):
            Settings.from_env({"ROLLING_TRIGGER_TOKEN_FILE": str(path)})

    def test_what_a_file_holds_is_not_shown(self, tmp_path: Path) -> None:
        """An error about a URL from a secret file hides the password, as it does for a URL from the environment."""
        path = tmp_path / "secret"
        path.write_text("redis://:secret@host/x")
        with pytest.raises(SettingsInvalid, match=r"ROLLING_BROKER_URL='redis://:[*]{3}@host/x' names the database"):
            Settings.from_env({"ROLLING_BROKER_URL_FILE": str(path)})

    def test_no_other_setting_has_one(self) -> None:
        """A `_FILE` variable for a setting that is no secret is refused: only secrets may be in files."""
        with pytest.raises(SettingsInvalid, match="ROLLING_SOURCE_FILE is not a setting"):
            Settings.from_env({"ROLLING_SOURCE_FILE": "x"}, strict=True)


class TestTlsFiles:
    """The files that a `rediss://` URL names must exist."""

    @pytest.mark.parametrize("option", ["ssl_ca_certs", "ssl_certfile", "ssl_keyfile"])
    def test_a_file_that_is_not_there_is_named(self, tmp_path: Path, option: str) -> None:
        """A `rediss://` URL that names a missing file is refused at the start, with the file and the reason."""
        with pytest.raises(SettingsInvalid, match=f"names {option}='{tmp_path}/no.pem': No such file"):
            Settings(redis_url=f"rediss://h?{option}={tmp_path}/no.pem")


class TestDerived:
    """Defaults that depend on other settings."""

    @pytest.mark.parametrize(
        ("name", "source"),
        [
            ("rolling_brain.json.gz", "rolling_brain"),
            ("rolling.json", "rolling"),
            ("rolling.jsonl.zst", "rolling"),
            ("rolling.ndjson", "rolling"),
            ("rolling.gz", "rolling"),
            ("rolling.v2.json.gz", "rolling.v2"),
            ("rolling", "rolling"),
            (".json", ".json"),
        ],
    )
    def test_the_source_is_the_files_stem(self, name: str, source: str) -> None:
        """The source is named after the input's file, without the endings of format and compression."""
        assert Settings(input=Path("some/dir", name)).source == source

    def test_the_broker_is_the_cache(self) -> None:
        """The URL of the broker is the URL of the cache unless it is set."""
        assert Settings(redis_url="redis://a/1").broker_url == "redis://a/1"
        assert Settings(redis_url="redis://a/1", broker_url="redis://b/2").broker_url == "redis://b/2"

    def test_a_file_name_that_is_no_source_name_says_so(self) -> None:
        """A file name that cannot be a source's name is refused with `ROLLING_SOURCE`, the variable to set."""
        with pytest.raises(SettingsInvalid, match="ROLLING_SOURCE='bö se'"):
            Settings(input=Path("bö se.json"))

    def test_it_is_frozen(self) -> None:
        """A value cannot be changed after it was checked."""
        with pytest.raises(FrozenInstanceError):
            Settings().source = "other"  # type: ignore[misc]


class TestFlowerUrl:
    """The URL of Flower, to which the dashboard links."""

    @pytest.mark.parametrize("url", ["javascript:alert(1)", "flower:5555", "//flower"])
    def test_it_is_a_web_address(self, url: str) -> None:
        """A URL that is not `http://` or `https://` is refused: it cannot be followed, and a script must not be."""
        with pytest.raises(SettingsInvalid, match="ROLLING_FLOWER_URL="):
            Settings(flower_url=url)

    @pytest.mark.parametrize(
        "url", ["http://ops:secret@flower:5555/", "https://secret@flower", "http://:secret@flower"]
    )
    def test_it_names_no_user(self, url: str) -> None:
        """A URL with a user or a password is refused, since the page would show it; an `@` in the path is allowed."""
        with pytest.raises(SettingsInvalid, match="ROLLING_FLOWER_URL holds a user or a password") as caught:
            Settings(flower_url=url)
        assert "secret" not in str(caught.value)
        Settings(flower_url="http://flower/@home")


class TestUrls:
    """Input and output may be URLs: of an object store, and the input also of a web server."""

    def test_they_are_taken_from_the_environment(self) -> None:
        """URLs are read from the environment, and the source is named after the object's stem; `file://` is a path."""
        settings = Settings.from_env(
            {"ROLLING_INPUT": "s3://bucket/deep/engine.json.gz", "ROLLING_OUTPUT_DIR": "s3://out/"}
        )
        assert (settings.input, settings.output_dir) == (Url("s3://bucket/deep/engine.json.gz"), Url("s3://out/"))
        assert settings.source == "engine"
        assert Settings.from_env({"ROLLING_INPUT": "file:///srv/a.json"}).input == Path("/srv/a.json")

    @pytest.mark.parametrize(
        "url",
        [
            "s3://user:secret@bucket/a.json",
            "s3://secret@bucket/a.json",
            "s3://user:sec/ret@bucket/a.json",
            "ftp://user:secret@host:21/a",
        ],
    )
    @pytest.mark.parametrize("variable", ["ROLLING_INPUT", "ROLLING_OUTPUT_DIR"])
    def test_no_password_in_them(self, variable: str, url: str) -> None:
        """A URL with a user or a password is refused, since it would be in logs and reports.

        The message omits the password and says where credentials belong.
        """
        with pytest.raises(
            SettingsInvalid, match=rf"{variable} holds a user or a password; .*AWS_ACCESS_KEY"
        ) as raised:
            Settings.from_env({variable: url})
        assert "sec" not in str(raised.value).replace("AWS_SECRET_ACCESS_KEY", "")

    @pytest.mark.parametrize("url", ["s3://bucket/a@b.json", "s3://bucket/a:b@c.json"])
    def test_an_at_sign_in_a_key_is_no_user(self, url: str) -> None:
        """An `@` in a key is accepted, since keys may hold any character."""
        assert str(Settings.from_env({"ROLLING_INPUT": url, "ROLLING_SOURCE": "a"}).input) == url

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            (
                "s4://bucket/a.json",
                "begins with s4://, which is none of s3://, .*https://; anything else is a local path",
            ),
            ("reference://a.json", "begins with reference://, which is none of"),
            ("cached://a.json", "begins with cached://, which is none of"),
            ("dir://a", "begins with dir://, which is none of"),
            ("memory://a", "begins with memory://, which is none of"),
            ("S3://bucket/a.json", "does not begin with s3://, which seems"),
            ("s3:/bucket/a.json", "does not begin with s3://, which seems"),
            ("https:/host/a.json", "does not begin with https://, which seems"),
            (
                "simplecache::memory://o",
                "is a chain of URLs .simplecache::...., which is not followed; write the store's",
            ),
            ("filecache::s3://bucket/a", "is a chain of URLs"),
            ("file://data/a.json", "does not name an absolute path; write file:///"),
            ("FILE:///data/a.json", "does not name an absolute path; write file:///"),
            ("s3://", "names no bucket after s3://"),
            ("s3:///a.json", "names no bucket after s3://"),
            ("s3://bucket/a.json?X-Amz-Signature=secret", "has a query, which s3:// has not; a presigned or SAS URL"),
            ("https://", "names no host after https://"),
            ("https://host:port/a.json", "has no readable host and port"),
            ("https://host/a b.json", "holds a space"),
            ("https://host/ä.json", "holds a space, a letter that is not ASCII"),
            ("https://host/*.json.gz", "looks like a pattern, and a web server cannot be asked"),
            ("https://host/[ab].json.gz?sig=secret", "looks like a pattern"),
        ],
    )
    def test_what_cannot_be_used_is_refused(self, text: str, said: str) -> None:
        """A URL that cannot be used is refused with the variable and what can be used, but without its secrets.

        So no URL becomes a local directory by mistake.
        """
        with pytest.raises(SettingsInvalid, match=f"ROLLING_INPUT {said}") as raised:
            Settings.from_env({"ROLLING_INPUT": text})
        assert "secret" not in str(raised.value)
        if not text.lower().startswith("http"):
            with pytest.raises(SettingsInvalid, match=f"ROLLING_OUTPUT_DIR {said}"):
                Settings.from_env({"ROLLING_OUTPUT_DIR": text})

    @pytest.mark.parametrize("url", ["http://host/out", "https://host:8443/out?sig=secret"])
    def test_a_web_server_is_no_output(self, url: str) -> None:
        """The URL of a web server is refused as output, because it cannot be written to."""
        with pytest.raises(
            SettingsInvalid, match=r"ROLLING_OUTPUT_DIR begins with https?://, where nothing can be"
        ) as e:
            Settings.from_env({"ROLLING_OUTPUT_DIR": url})
        assert "secret" not in str(e.value)

    @pytest.mark.parametrize(
        ("url", "source"),
        [
            ("https://host/deep/brain.json.gz?X-Amz-Signature=a/b.json", "brain"),
            ("http://[::1]:8000/brain.json#part", "brain"),
            ("https://host:8443/brain.zst?e=a@b", "brain"),
            ("s3://bucket/deep/part-?.json", "deep"),
        ],
    )
    def test_the_sources_name_is_made_without_the_query(self, url: str, source: str) -> None:
        """The source's name does not include the query of a web URL, so a new signature does not change the source.

        In a store's key a question mark is a wildcard.
        """
        assert Settings.from_env({"ROLLING_INPUT": url}).source == source

    @pytest.mark.parametrize(
        ("environ", "said"),
        [
            ({"ROLLING_BOTS_DIR": "https://host/bots?sig=SECRET"}, "https://host/bots?***"),
            ({"ROLLING_SOURCES": "https://host/a.json?sig=SECRET"}, "https://host/a.json?***"),
            ({"ROLLING_INPUT": "https://host/ä?sig=SECRET"}, "ROLLING_INPUT holds"),
            ({"ROLLING_INPUT": "https://host/.gz?sig=SECRET", "ROLLING_ENGINE": "x"}, "ROLLING_ENGINE='x'"),
            ({"ROLLING_INPUT": "https://host/b(1).gz?sig=SECRET"}, "'https://host/b(1).gz?***'"),
            ({"ROLLING_REDIS_URL": "redis://host?token=SECRET"}, "redis://host?token=***"),
            ({"ROLLING_INTERVAL_S": "https://host/a?sig=SECRET"}, "https://host/a?***"),
        ],
    )
    def test_no_error_shows_a_query(self, environ: dict[str, str], said: str) -> None:
        """An error hides the query of a URL, whichever variable has the URL."""
        with pytest.raises(SettingsInvalid) as caught:
            Settings.every_from_env(environ)
        assert said in str(caught.value)
        assert "SECRET" not in str(caught.value)

    @pytest.mark.parametrize("missing", ["fsspec", "s3fs"])
    def test_a_missing_package_is_named(self, missing: str) -> None:
        """If a package that URLs need is missing, the error has the command that installs it."""
        program = (
            f"import sys; sys.modules[{missing!r}] = None; from optimizer.config.settings import Settings; "
            "Settings.from_env({'ROLLING_INPUT': 's3://bucket/a.json'})"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert "SettingsInvalid: ROLLING_INPUT needs a package that is not installed" in done.stderr
        assert "pip install 'rolling-optimizer[remote]'" in done.stderr

    def test_bots_are_local(self) -> None:
        """A bots directory by URL is refused, since it is listed and read file by file."""
        with pytest.raises(SettingsInvalid, match=r"ROLLING_BOTS_DIR='s3://bucket/bots' is not a local path"):
            Settings.from_env({"ROLLING_BOTS_DIR": "s3://bucket/bots"})

    def test_without_them_nothing_is_imported_for_them(self) -> None:
        """Without URLs, `fsspec` is not imported: a run on local files does not pay for a client of object stores."""
        program = "import sys, optimizer.pipeline.run as p; p.Settings(); sys.exit('fsspec' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


class TestRedaction:
    """Passwords are never shown."""

    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            ("redis://localhost:6379/0", "redis://localhost:6379/0"),
            ("redis://user@host/0", "redis://user@host/0"),
            ("redis://:secret@host:6379/0", "redis://:***@host:6379/0"),
            ("redis://user:secret@host:6379/0?db=2", "redis://user:***@host:6379/0?db=2"),
            ("rediss://user:se:cr@et@host", "rediss://user:***@host"),
            ("redis://user:sec/ret?#x@host/0", "redis://user:***@host/0"),
            ("redis://:secret@[::1", "redis://:***@[::1"),
            ("unix:///run/redis.sock?password=secret&db=1", "unix:///run/redis.sock?password=***&db=1"),
            (":secret@host:6379/0", "***@host:6379/0"),
            ("redis:/user:secret@host", "***@host"),
            ("redis://host?db=1&password=secret", "redis://host?db=1&password=***"),
            ("redis://u:secret@host?password=secret#x", "redis://u:***@host?password=***#x"),
            ("rediss://h?ssl_ca_certs=/ca.pem&token=secret", "rediss://h?ssl_ca_certs=/ca.pem&token=***"),
            ("https://host/a.json.gz?X-Amz-Signature=secret&a=b", "https://host/a.json.gz?***"),
            ("https://host/a.json#secret", "https://host/a.json#***"),
            ("https://host?secret", "https://host?***"),
            ("HTTPS://host/a?secret", "HTTPS://host/a?***"),
            ("http://[::1]:8000/a@b.json", "http://***@b.json"),
            ("https://host:8443/a.json", "https://host:8443/a.json"),
            ("https://user:secret@host/a", "https://***@host/a"),
            ("https://secret@host/a", "https://***@host/a"),
            ("https://user:sec/ret@host/a?b", "https://***@host/a?***"),
            ("https://user:sec?ret@host/a", "https://***?***"),
            ("https://host:8443/x?email=a@b&sig=secret", "https://***?***"),
            ("https://host/x?email=a@b&sig=secret", "https://host/x?***"),
            ("s3://bucket/a?sig=secret&b=secret", "s3://bucket/a?sig=***&b=***"),
            ("s3://bucket/part-?.json", "s3://bucket/part-?.json"),
            ("s3://bucket/a:b@c.json", "s3://bucket/a:b@c.json"),
            ("s3://secret@bucket/a", "s3://***@bucket/a"),
            ("s3://key:sec/ret@bucket/a", "s3://key:***@bucket/a"),
            ("brain=https://host/a?sig=secret", "brain=https://host/a?***"),
            ("filecache::https://u:secret@host/a?sig=secret", "filecache::https://***@host/a?***"),
        ],
    )
    def test_by_hand(self, url: str, shown: str) -> None:
        """Everything at the position of a password, a token or the query of a web URL is `***`."""
        assert redact_url(url) == shown

    @given(st.text("ab/:?#@%&=[]é ", min_size=1, max_size=8))
    def test_whatever_the_password(self, middle: str) -> None:
        """No character in a password, escaped or not, exposes any part of it."""
        shown = redact_url(f"redis://user:sec{middle}ret@host:6379/0")

        assert shown == "redis://user:***@host:6379/0"

    def test_all_settings_redacted(self) -> None:
        """`redacted` shows every setting under its variable's name, with `***` for passwords and tokens."""
        shown = Settings(
            redis_url="redis://:secret@a", broker_url="redis://u:secret@b", bots_dir=None, trigger_token="secret"
        ).redacted()

        assert set(shown) == {variable_name(name) for name in GIVEN}
        assert "secret" not in str(shown)
        assert (shown["ROLLING_REDIS_URL"], shown["ROLLING_BOTS_DIR"]) == ("redis://:***@a", "")
        assert (shown["ROLLING_TRIGGER_TOKEN"], Settings().redacted()["ROLLING_TRIGGER_TOKEN"]) == ("***", "")

    def test_a_repr_shows_none(self) -> None:
        """The repr of settings hides passwords, tokens and signatures, since a traceback or a log line may show it."""
        url = Url("https://host/a.json?sig=secret")
        shown = repr(
            Settings(input=url, redis_url="redis://:secret@a", broker_url="redis://u:secret@b", trigger_token="secret")
        )
        assert str(url) in shown
        assert "secret" not in shown
        assert "interval_s=30.0" in shown

    @pytest.mark.parametrize("url", ["amqp://u:secret@host", "redis://u:secret@[::1", "redis://:sec/ret@host"])
    def test_errors_show_none(self, url: str) -> None:
        """An error about a URL hides its password too."""
        with pytest.raises(SettingsInvalid, match="ROLLING_BROKER_URL") as caught:
            Settings(broker_url=url)

        assert "sec" not in str(caught.value).replace("'/', '?' and '#'", "")
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None


# ---- several sources

SEVERAL = {"ROLLING_SOURCES": "brain = /data/rolling_brain.json.gz; intraday=/data/intraday/*.json.gz;"}


def test_several_sources_have_names_inputs_and_output_directories_of_their_own() -> None:
    """Each source in `ROLLING_SOURCES` has its own name, input and output directory, in the order of the variable.

    Other settings apply to all sources.
    """
    brain, intraday = Settings.every_from_env({**SEVERAL, "ROLLING_OUTPUT_DIR": "/out", "ROLLING_INTERVAL_S": "5"})

    assert (brain.source, str(brain.input), str(brain.output_dir)) == (
        "brain",
        "/data/rolling_brain.json.gz",
        "/out/brain",
    )
    assert (intraday.source, str(intraday.input), str(intraday.output_dir)) == (
        "intraday",
        "/data/intraday/*.json.gz",
        "/out/intraday",
    )
    assert (brain.interval_s, intraday.interval_s) == (5, 5)
    assert Settings.from_env(SEVERAL, "intraday").source == "intraday"


def test_one_of_several_sources_may_have_settings_of_its_own() -> None:
    """A variable with a source's name in capitals and two underscores overrides the common value for that source."""
    environ = {**SEVERAL, "ROLLING_INTERVAL_S": "30", "ROLLING_INTRADAY__INTERVAL_S": "5"}
    environ |= {"ROLLING_BRAIN__BOTS_DIR": "/bots", "ROLLING_BRAIN__OUTPUT_DIR": "/elsewhere"}
    brain, intraday = Settings.every_from_env(environ)
    assert (brain.interval_s, intraday.interval_s) == (30, 5)
    assert (str(brain.bots_dir), intraday.bots_dir) == ("/bots", None)
    assert (str(brain.output_dir), str(intraday.output_dir)) == ("/elsewhere", "data/intraday")


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"ROLLING_INPUT": "x.json"}, "ROLLING_INPUT and ROLLING_SOURCES are both set"),
        ({"ROLLING_SOURCE": "x"}, "ROLLING_SOURCE and ROLLING_SOURCES are both set"),
        ({"ROLLING_SOURCES": " ; "}, "names no source"),
        ({"ROLLING_SOURCES": "brain"}, "'brain' is not a name, '=' and a file"),
        ({"ROLLING_SOURCES": "brain="}, "'brain=' is not a name"),
        ({"ROLLING_SOURCES": "a b=x"}, "'a b=x' is not a name"),
        ({"ROLLING_SOURCES": "a=x;a=y"}, "'a' comes twice"),
        ({"ROLLING_SOURCES": "a-b=x;a.b=y"}, "'a.b' comes twice, or looks like another"),
        ({"ROLLING_SOURCES": "scan=x"}, "'scan' is the name of the queue"),
        ({"ROLLING_SOURCES": "updates=x"}, "'updates' is the name of the queue"),
        ({"ROLLING_OTHER__INTERVAL_S": "5"}, "begin with ROLLING_BRAIN__..., ROLLING_INTRADAY__..."),
        ({"ROLLING_BRAIN__BROKER_URL": "redis://x"}, "ROLLING_BRAIN__BROKER_URL is not a setting of one source"),
        ({"ROLLING_SOURCES": "..=x"}, "'..=x' is not a name"),
        ({"ROLLING_SOURCES": "a__b=x"}, "'a__b' in a variable's name could not be told"),
        ({"ROLLING_SOURCES": "a-=x"}, "'a-' in a variable's name could not be told"),
        ({"ROLLING_BRAIN__OUTPUT_DIR": "o", "ROLLING_INTRADAY__OUTPUT_DIR": "o/"}, "brain and intraday both have"),
        ({"ROLLING_BRAIN__INTERVAL": "5"}, "is not a setting. Did you mean ROLLING_BRAIN__INTERVAL_S?"),
    ],
)
def test_sources_that_cannot_be_told_apart_are_refused(environ: dict[str, str], message: str) -> None:
    """Sources that are ambiguous or not valid are refused with the variable and what is allowed."""
    with pytest.raises(SettingsInvalid, match=re.escape(message)):
        Settings.every_from_env({**SEVERAL, **environ}, strict=True)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"ROLLING_INTRADAY__GZIP_LEVEL": "fast"}, "ROLLING_INTRADAY__GZIP_LEVEL='fast' is not a whole number"),
        ({"ROLLING_INTRADAY__GZIP_LEVEL": "11"}, "ROLLING_INTRADAY__GZIP_LEVEL=11 is not between"),
        ({"ROLLING_GZIP_LEVEL": "11", "ROLLING_INTRADAY__INTERVAL_S": "5"}, "ROLLING_GZIP_LEVEL=11 is not between"),
        ({"ROLLING_SOURCES": "brain=s3:/x"}, "ROLLING_SOURCES does not begin with s3://"),
        ({"ROLLING_SOURCES": "scan=x"}, "ROLLING_SOURCES='scan' is the name of the queue for scan; set another"),
    ],
)
def test_errors_name_what_was_set_for_one_of_several_sources(environ: dict[str, str], message: str) -> None:
    """An error names the source's own variable if that was set, and `ROLLING_SOURCES` for its input and its name."""
    with pytest.raises(SettingsInvalid, match=f"^{re.escape(message)}"):
        Settings.every_from_env({**SEVERAL, **environ})


def test_what_was_set_is_named_after_a_change_of_the_settings_too() -> None:
    """After `dataclasses.replace`, settings still name the variables that were set; equality ignores these names."""
    brain = replace(Settings.from_env({**SEVERAL, "ROLLING_BRAIN__INTERVAL_S": "5"}, "brain"), gzip_level=1)
    text = "ROLLING_INPUT=x, ROLLING_INPUT, ROLLING_INTERVAL_S and ROLLING_INTERVAL"
    assert brain.reworded(text) == (
        "ROLLING_SOURCES: brain=x, ROLLING_SOURCES, ROLLING_BRAIN__INTERVAL_S and ROLLING_INTERVAL"
    )
    assert Settings().reworded(text) == text
    assert Settings(names={"ROLLING_INPUT": "--input"}) == Settings()


def test_an_input_that_names_no_file_is_refused() -> None:
    """An input that names no file is refused if the source's name would be made from it."""
    with pytest.raises(SettingsInvalid, match=r"^ROLLING_INPUT='/' names no file$"):
        Settings.from_env({"ROLLING_INPUT": "/"})


def test_which_of_several_sources_is_meant_has_to_be_said() -> None:
    """With several sources, one that is configured has to be named; a single source need not be named."""
    with pytest.raises(SettingsInvalid, match="say which is meant: brain, intraday"):
        Settings.from_env(SEVERAL)
    with pytest.raises(SettingsInvalid, match="source='other' is not one of those that are configured"):
        Settings.from_env(SEVERAL, "other")
    assert Settings.from_env({}, "rolling_brain") == Settings.from_env({})


@pytest.mark.parametrize(
    ("pattern", "source"),
    [
        ("/data/intraday/*.json.gz", "intraday"),
        ("/data/2026-??/*.json", "data"),
        ("*.json", "parts"),
        ("./*/x", "parts"),
    ],
)
def test_a_source_of_many_files_is_named_after_their_directory(pattern: str, source: str) -> None:
    """The source of a pattern is named after the nearest directory without wildcards, or `parts` if there is none."""
    assert Settings(input=Path(pattern)).source == source
