"""One frozen value with every setting, read from `ROLLING_*` variables.

Functions get a `Settings`, or the two numbers that they need, and never read the environment. Units are in the names:
seconds `_s`, bytes `_bytes`.

Errors: `SettingsInvalid`, with the variable, its value with secrets redacted, and what to do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field, fields
from itertools import takewhile
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, get_args

from optimizer.config.environment import (
    PREFIX,
    SOURCE_NAME,
    SOURCES_VARIABLE,
    names_as_set,
    reworded,
    variables_by_source,
)
from optimizer.config.field_map import parse_mapping
from optimizer.config.tracing import check_installed
from optimizer.errors import ExtraMissing, SettingsInvalid
from optimizer.models.field_map import InputMapping
from optimizer.storage.location import Location, Url, is_pattern, parse_location, redact_url
from optimizer.storage.redis_url import CLUSTER_AS_BROKER, RedisUrl

__all__ = ["ENGINES", "MOST_KEPT_VERSIONS", "EngineName", "Settings", "logs_json", "variable_name"]

EngineName = Literal["auto", "native", "ijson"]
ENGINES: Final[tuple[EngineName, ...]] = get_args(EngineName)

LogFormat = Literal["text", "json"]
LOG_FORMATS: Final[tuple[LogFormat, ...]] = get_args(LogFormat)

Switch = Literal["off", "on"]
SWITCHES: Final[tuple[Switch, ...]] = get_args(Switch)

MOST_KEPT_VERSIONS: Final = 1_000

# `rolling.scan` is the queue of scans, `rolling.updates` of updates, and the queue of a source is `rolling.SOURCE`.
RESERVED_NAMES: Final = ("scan", "updates")

_GUARD = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_FILE_ENDINGS = re.compile(r"(\.jsonl?|\.ndjson)?(\.gz|\.zst)?$")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every setting, checked. `docs/configuration.md` says what each is for."""

    input: Location = Path("data/rolling_brain.json.gz")
    output_dir: Location = Path("data")
    bots_dir: Path | None = None
    source: str = ""  # by default the input file's stem
    redis_url: str = field(default="redis://localhost:6379/0", repr=False)  # may hold a password, like the next
    broker_url: str = field(default="", repr=False)  # by default the same as redis_url
    top_symbols_limit: int = 300
    min_confidence: float = 0.5
    max_rejected_percent: float = 50.0
    min_records: int = 0  # guards: off by default
    max_drop_percent: float = 100.0
    guard: str = ""  # package.module:function
    keep_versions: int = 2
    index_symbols_limit: int = 10_000
    update_records_limit: int = 1_000  # in one call
    update_queue_limit: int = 10_000  # accepted and waiting
    interval_s: float = 30.0
    startup_delay_s: float = 5.0
    max_input_age_s: float = 0.0  # 0: an input of any age will do
    gzip_level: int = 6
    max_record_bytes: int = 1_048_576
    engine: EngineName = "auto"
    fields: str = ""  # where the input has the fields of records, of bots and of positions
    bot_fields: str = ""
    position_fields: str = ""
    trigger_token: str = field(default="", repr=False)  # a secret; without it no run can be started over HTTP
    flower_url: str = ""
    log_format: LogFormat = "text"  # of processes that are ours
    traces: Switch = "off"
    names: InitVar[Mapping[str, str]] = MappingProxyType({})  # what the user has set in place of a variable

    def __post_init__(self, names: Mapping[str, str]) -> None:
        object.__setattr__(self, "names", names)
        if not self.source:
            object.__setattr__(self, "source", _source_name(self.input))
        if not self.broker_url:
            object.__setattr__(self, "broker_url", self.redis_url)
        self._check_numbers()
        # The index holds the top symbols too.
        object.__setattr__(self, "index_symbols_limit", max(self.index_symbols_limit, self.top_symbols_limit))
        self._check_urls()
        self._check_names()
        _ = self.mapping  # a mistake is refused now

    @classmethod
    def from_env(
        cls,
        environ: Mapping[str, str],
        source: str | None = None,
        *,
        strict: bool = False,
        names: Mapping[str, str] = MappingProxyType({}),
    ) -> Settings:
        """Read the settings from a mapping such as `os.environ`; an empty variable counts as not set.

        Args:
            environ: The variables.
            source: Which of several sources (`ROLLING_SOURCES`); may be left out where there is one.
            strict: Whether a name that is nearly one of ours is an error, as in our own processes: a misspelt name
                that is ignored costs more than one that is refused. In a program that uses this package it is a
                warning. Any other name with our prefix is a warning in both, since it may belong to that program.
            names: What the user has set in place of a variable, such as an option of a command; errors name it.

        Raises:
            SettingsInvalid: A value cannot be used, a name is misspelt, or there is no such source.
        """
        return cls.one_of(cls.every_from_env(environ, strict=strict, names=names), source)

    @staticmethod
    def one_of(every: Sequence[Settings], source: str | None) -> Settings:
        """Select the settings of one source by its name, which may be left out where there is one.

        Raises:
            SettingsInvalid: There is no such source.
        """
        if source is None and len(every) == 1:
            return every[0]
        for settings in every:
            if settings.source == source:
                return settings
        names = ", ".join(settings.source for settings in every)
        if source is None:
            raise SettingsInvalid(f"{SOURCES_VARIABLE} names several sources; say which is meant: {names}")
        raise SettingsInvalid(f"source={source!r} is not one of those that are configured: {names}")

    @classmethod
    def every_from_env(
        cls, environ: Mapping[str, str], *, strict: bool = False, names: Mapping[str, str] = MappingProxyType({})
    ) -> list[Settings]:
        """Read the settings of every source: of the only one, or of each in `ROLLING_SOURCES` in its order.

        Raises:
            SettingsInvalid: As above.
        """
        known = [variable_name(field.name) for field in fields(cls)]
        every = []
        for given in variables_by_source(environ, known, strict=strict):
            as_set = {**names_as_set(environ, given.get("ROLLING_SOURCE", ""), known), **names}
            try:
                every.append(cls(**_read(given), names=as_set))
            except SettingsInvalid as error:
                raise SettingsInvalid(reworded(str(error), as_set)) from None
        taken: dict[str, str] = {}
        for settings in every:
            other = taken.setdefault(str(settings.output_dir), settings.source)
            if other != settings.source:
                raise SettingsInvalid(
                    f"the sources {other} and {settings.source} both have {variable_name('output_dir')}="
                    f"{settings.output_dir}; each needs one of its own"
                )
        return every

    def broker(self) -> RedisUrl:
        """The broker of the stand-alone Celery app; runs and readers without Celery need none.

        Raises:
            SettingsInvalid: It is a cluster.
        """
        broker = RedisUrl.parse(self.broker_url)
        if broker.is_cluster:
            variable = variable_name("redis_url" if self.broker_url == self.redis_url else "broker_url")
            raise SettingsInvalid(f"{variable}={redact_url(self.broker_url)!r}: {CLUSTER_AS_BROKER}")
        return broker

    @property
    def mapping(self) -> InputMapping:
        """Where the input has its fields: `fields`, `bot_fields` and `position_fields`, parsed.

        Raises:
            SettingsInvalid: One of them has a mistake; only while the settings are made.
        """
        return parse_mapping(self.fields, self.bot_fields, self.position_fields)

    def reworded(self, text: str) -> str:
        """Return a message with what the user has set, such as `ROLLING_SOURCES`, in place of variables."""
        return reworded(text, self.names_as_set)

    @property
    def names_as_set(self) -> Mapping[str, str]:
        """What the user has set in place of a variable; no setting itself, but kept by `dataclasses.replace`."""
        names: Mapping[str, str] = vars(self)["names"]
        return names

    @property
    def time_limit_s(self) -> float:
        """How long a run may take, in seconds: ten intervals, and a minute at least."""
        return max(60.0, 10 * self.interval_s)

    def redacted(self) -> dict[str, str]:
        """Every setting as text under its variable's name, passwords in URLs as `***`."""
        shown = {variable_name(field.name): getattr(self, field.name) for field in fields(self)}
        return {name: _redact(name, "" if value is None else str(value)) for name, value in shown.items()}

    def _check_numbers(self) -> None:
        for name, low, high in (
            ("top_symbols_limit", 1, 1_000_000),
            ("index_symbols_limit", 1, 1_000_000),
            ("update_records_limit", 1, 100_000),
            ("update_queue_limit", 1, 1_000_000),
            ("min_confidence", 0, 1),
            ("max_rejected_percent", 0, 100),
            ("min_records", 0, 1_000_000_000),
            ("max_drop_percent", 0, 100),
            ("keep_versions", 2, MOST_KEPT_VERSIONS),
            ("interval_s", 0.1, 86_400),
            ("startup_delay_s", 0, 86_400),
            ("max_input_age_s", 0, 31_536_000),
            ("gzip_level", 1, 9),
            ("max_record_bytes", 1_024, 1 << 30),
        ):
            value = getattr(self, name)
            if not low <= value <= high:  # NaN is not either
                raise SettingsInvalid(f"{variable_name(name)}={value} is not between {low:,} and {high:,}")

    def _check_names(self) -> None:
        if not self.source:
            raise SettingsInvalid(f"{variable_name('input')}={str(self.input)!r} names no file")
        if not SOURCE_NAME.fullmatch(self.source):
            raise SettingsInvalid(
                f"{variable_name('source')}={self.source!r} may hold letters, digits, '.', '_' and '-' only: it is "
                f"part of every Redis key; by default it is made from {variable_name('input')}={str(self.input)!r}"
            )
        if self.source in RESERVED_NAMES:
            made = f". By default it is made from {variable_name('input')}={str(self.input)!r}"
            raise SettingsInvalid(
                f"{variable_name('source')}={self.source!r} is the name of the queue for {self.source}; set another"
                f"{made if self.source == _source_name(self.input) else ''}"
            )
        if self.guard and not _GUARD.fullmatch(self.guard):
            raise SettingsInvalid(
                f"{variable_name('guard')}={self.guard!r} is not package.module:function, such as shop.guards:check"
            )
        for name, allowed in (("engine", ENGINES), ("log_format", LOG_FORMATS), ("traces", SWITCHES)):
            value = getattr(self, name)
            if value not in allowed:
                raise SettingsInvalid(f"{variable_name(name)}={value!r} is not one of {', '.join(allowed)}")
        if self.traces == "on":
            try:
                check_installed()
            except ExtraMissing as error:
                raise SettingsInvalid(str(error)) from None

    def _check_urls(self) -> None:
        if self.flower_url and not self.flower_url.startswith(("http://", "https://")):  # a page makes a link of it
            raise SettingsInvalid(f"{variable_name('flower_url')}={self.flower_url!r} does not begin with http(s)://")
        if "@" in self.flower_url.partition("://")[2].partition("/")[0]:
            raise SettingsInvalid(
                f"{variable_name('flower_url')} holds a user or a password, and /status shows it to every client; "
                "leave them out"
            )
        for name in ("input", "output_dir"):
            location = getattr(self, name)
            try:
                if isinstance(location, Url):
                    from optimizer.storage.object_store import check_url  # noqa: PLC0415 - only for a URL

                    check_url(location, is_output=name == "output_dir")
            except ValueError as error:  # without the URL, which may hold a password
                raise SettingsInvalid(f"{variable_name(name)} {error}") from None
        for name in ("redis_url", "broker_url"):
            url = getattr(self, name)
            try:
                _check_redis_url(url)
            except ValueError as error:
                raise SettingsInvalid(f"{variable_name(name)}={redact_url(url)!r} {error}") from None


def _read(given: Mapping[str, str]) -> dict[str, Any]:
    """Convert variables to the values of fields."""
    readers = {variable_name(field.name): (field.name, _READERS[str(field.type)]) for field in fields(Settings)}
    values: dict[str, Any] = {}
    for variable, text in given.items():
        name, read = readers[variable]
        try:
            values[name] = read(text)
        except ValueError:
            raise SettingsInvalid(f"{variable}={redact_url(text)!r} is not {_EXPECTED[read]}") from None
    return values


def _source_name(location: Location) -> str:
    """The default name of a source: the stem of a file, or the last directory of a pattern without wildcards."""
    if is_pattern(location):
        path = location.path if isinstance(location, Url) else str(location)
        before = takewhile(lambda part: not is_pattern(Path(part)), path.split("/"))
        named = [part for part in before if part.strip(".")]
        return named[-1] if named else "parts"
    return _FILE_ENDINGS.sub("", location.name) or location.name


def _check_redis_url(url: str) -> None:
    for option, path in RedisUrl.parse(url).tls_files().items():
        try:
            Path(path).open("rb").close()
        except OSError as error:  # TLS itself would say no more than "No such file or directory"
            raise ValueError(f"names {option}={path!r}: {error.strerror}") from None


def logs_json(environ: Mapping[str, str]) -> bool:
    """Whether this process logs JSON: read before the settings, since what is wrong with them is logged, too."""
    return environ.get(variable_name("log_format")) == "json"


def variable_name(field_name: str) -> str:
    """The environment variable of a field: `interval_s` is `ROLLING_INTERVAL_S`."""
    return PREFIX + field_name.upper()


def _redact(variable: str, text: str) -> str:
    if variable.endswith("_TOKEN"):
        return "***" if text else ""
    return redact_url(text) if variable.endswith("_URL") else text


def _local_path(text: str) -> Path:
    location = parse_location(text)
    if isinstance(location, Url):
        raise ValueError  # noqa: TRY004 - of the text; the reader of settings explains it
    return location


_READERS: Final[dict[str, Callable[[str], Any]]] = {
    "Location": parse_location,
    "Path | None": _local_path,
    "str": str,
    "int": int,
    "float": float,
    # Whether it is one of the words is checked with the rest.
    "EngineName": str,
    "LogFormat": str,
    "Switch": str,
}
_EXPECTED: Final[dict[Callable[[str], Any], str]] = {
    int: "a whole number",
    float: "a number",
    _local_path: "a local path",
}
