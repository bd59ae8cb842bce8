"""One frozen value with every setting, read from `ROLLING_*` variables.

Functions get a `Settings`, or the two numbers that they need, and never look at the environment. Units are in the
names: seconds `_s`, bytes `_bytes`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, cast, get_args

from optimizer.errors import SettingsInvalid
from optimizer.urls import RedisUrl, redact_url

__all__ = [
    "ENGINES",
    "PREFIX",
    "SOURCES_VARIABLE",
    "EngineName",
    "Settings",
    "is_of_one_source",
    "variable_name",
    "variables_of",
]

PREFIX: Final = "ROLLING_"

EngineName = Literal["auto", "native", "ijson"]
ENGINES: Final[tuple[EngineName, ...]] = get_args(EngineName)

SOURCES_VARIABLE: Final = f"{PREFIX}SOURCES"
# `ROLLING_INTRADAY__INTERVAL_S` is the interval of the source `intraday` alone.
OWN_MARK: Final = "__"
# What the fleet, or the web service, has once.
NOT_OWN: Final = ("INPUT", "SOURCE", "BROKER_URL", "TRIGGER_TOKEN", "FLOWER_URL")
# The queue of scans is `rolling.scan`, and that of a source `rolling.SOURCE`.
RESERVED_NAMES: Final = ("scan",)

_SOURCE_NAME = re.compile(r"[A-Za-z0-9._-]+")
_FILE_ENDINGS = re.compile(r"(\.jsonl?|\.ndjson)?(\.gz|\.zst)?$")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every setting, checked. The README's table says what each is for."""

    input: Path = Path("data/rolling_brain.json.gz")
    output_dir: Path = Path("data")
    bots_dir: Path | None = None
    source: str = ""  # by default the input file's stem
    redis_url: str = field(default="redis://localhost:6379/0", repr=False)  # may hold a password, like the next
    broker_url: str = field(default="", repr=False)  # by default the same as redis_url
    top_symbols_limit: int = 300
    min_confidence: float = 0.5
    index_symbols_limit: int = 10_000
    interval_s: float = 30.0
    startup_delay_s: float = 5.0
    gzip_level: int = 6
    max_record_bytes: int = 1_048_576
    engine: EngineName = "auto"
    trigger_token: str = field(default="", repr=False)  # a secret; without it nobody can start a run over HTTP
    flower_url: str = ""

    def __post_init__(self) -> None:
        if not self.source:
            object.__setattr__(self, "source", _FILE_ENDINGS.sub("", self.input.name) or self.input.name)
        if not self.broker_url:
            object.__setattr__(self, "broker_url", self.redis_url)
        self._check_numbers()
        # The index holds the top symbols too.
        object.__setattr__(self, "index_symbols_limit", max(self.index_symbols_limit, self.top_symbols_limit))
        self._check_names()
        self._check_urls()

    @classmethod
    def from_env(cls, environ: Mapping[str, str], source: str | None = None) -> Settings:
        """Read the settings from a mapping such as `os.environ`; an empty variable counts as not set.

        Args:
            environ: The variables.
            source: Which of several sources (`ROLLING_SOURCES`); may be left out where there is one.

        Raises:
            SettingsInvalid: A value cannot be used, or a variable with our prefix is not one of ours: a misspelt
                name that is ignored costs more than one that is refused. Or there is no such source.
        """
        every = cls.every_from_env(environ)
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
    def every_from_env(cls, environ: Mapping[str, str]) -> list[Settings]:
        """The settings of every source, in their order: one, or those of `ROLLING_SOURCES`.

        Raises:
            SettingsInvalid: As above.
        """
        given = {name: text for name, text in environ.items() if name.startswith(PREFIX) and text}
        sources = given.pop(SOURCES_VARIABLE, None)
        if sources is None:
            return [cls(**_read(cls, given))]
        for field_name in ("input", "source"):
            if variable_name(field_name) in given:
                raise SettingsInvalid(
                    f"{variable_name(field_name)} and {SOURCES_VARIABLE} are both set; one source has the former, "
                    "several have the latter alone"
                )
        inputs = _parse_sources(sources)
        own: dict[str, dict[str, str]] = {name: {} for name in inputs}
        for variable in filter(is_of_one_source, list(given)):
            stem, _, field_name = variable.removeprefix(PREFIX).partition(OWN_MARK)
            owners = [name for name in inputs if _in_variable(name) == stem]
            if not owners or field_name in NOT_OWN:
                stems = ", ".join(f"{PREFIX}{_in_variable(name)}{OWN_MARK}..." for name in inputs)
                raise SettingsInvalid(f"{variable} is not a setting of one source; those begin with {stems}")
            for name in owners:
                own[name][PREFIX + field_name] = given[variable]
            del given[variable]
        common = _read(cls, given)
        output_dir = common.get("output_dir", cls.output_dir)
        return [
            cls(
                **{
                    **common,
                    "output_dir": output_dir / name,
                    **_read(cls, own[name]),
                    "source": name,
                    "input": location,
                }
            )
            for name, location in inputs.items()
        ]

    def redacted(self) -> dict[str, str]:
        """Every setting as text under its variable's name, passwords in URLs as `***`."""
        shown = {variable_name(field.name): getattr(self, field.name) for field in fields(self)}
        return {name: _redact(name, "" if value is None else str(value)) for name, value in shown.items()}

    def _check_numbers(self) -> None:
        for name, low, high in (
            ("top_symbols_limit", 1, 1_000_000),
            ("index_symbols_limit", 1, 1_000_000),
            ("min_confidence", 0, 1),
            ("interval_s", 0.1, 86_400),
            ("startup_delay_s", 0, 86_400),
            ("gzip_level", 1, 9),
            ("max_record_bytes", 1_024, 1 << 30),
        ):
            value = getattr(self, name)
            if not low <= value <= high:  # NaN is not either
                raise SettingsInvalid(f"{variable_name(name)}={value} is not between {low:,} and {high:,}")

    def _check_names(self) -> None:
        if not _SOURCE_NAME.fullmatch(self.source):
            raise SettingsInvalid(
                f"{variable_name('source')}={self.source!r} may hold letters, digits, '.', '_' and '-' only: it is "
                f"part of every Redis key; by default it is made from {variable_name('input')}={str(self.input)!r}"
            )
        if self.source in RESERVED_NAMES:
            raise SettingsInvalid(f"{variable_name('source')}={self.source!r} is the name of the queue for scans")
        if self.engine not in ENGINES:
            raise SettingsInvalid(f"{variable_name('engine')}={self.engine!r} is not one of {', '.join(ENGINES)}")

    def _check_urls(self) -> None:
        if self.flower_url and not self.flower_url.startswith(("http://", "https://")):  # a page makes a link of it
            raise SettingsInvalid(f"{variable_name('flower_url')}={self.flower_url!r} does not begin with http(s)://")
        if "@" in self.flower_url.partition("://")[2].partition("/")[0]:
            raise SettingsInvalid(
                f"{variable_name('flower_url')} holds a user or a password, and /status shows it to everybody; "
                "leave them out"
            )
        for name in ("redis_url", "broker_url"):
            url = getattr(self, name)
            try:
                RedisUrl.parse(url)
            except ValueError as error:
                raise SettingsInvalid(f"{variable_name(name)}={redact_url(url)!r} {error}") from None


def _read(cls: type[Settings], given: Mapping[str, str]) -> dict[str, Any]:
    """The fields that variables give."""
    readers = {variable_name(field.name): (field.name, _READERS[str(field.type)]) for field in fields(cls)}
    values: dict[str, Any] = {}
    for variable, text in given.items():
        if variable not in readers:
            known = ", ".join(sorted([*readers, SOURCES_VARIABLE]))
            raise SettingsInvalid(f"{variable} is not a setting; the settings are {known}")
        name, read = readers[variable]
        try:
            values[name] = read(text)
        except ValueError:
            raise SettingsInvalid(f"{variable}={text!r} is not {_EXPECTED[read]}") from None
    return values


def _parse_sources(text: str) -> dict[str, Path]:
    """The inputs by their sources' names, of `brain=/data/rolling_brain.json.gz; intraday=/data/intraday/*.json.gz`."""
    inputs: dict[str, Path] = {}
    for entry in filter(None, map(str.strip, text.split(";"))):
        name, equals, location = map(str.strip, entry.partition("="))
        if not (equals and location and _SOURCE_NAME.fullmatch(name)):
            raise SettingsInvalid(
                f"{SOURCES_VARIABLE}: {entry!r} is not a name, '=' and a file; names hold letters, digits, '.', '_' "
                "and '-'; several sources are divided by ';'"
            )
        if _in_variable(name) in map(_in_variable, inputs):
            raise SettingsInvalid(
                f"{SOURCES_VARIABLE}: {name!r} comes twice, or looks like another in a variable's name"
            )
        inputs[name] = Path(location)
    if not inputs:
        raise SettingsInvalid(f"{SOURCES_VARIABLE}={text!r} names no source")
    return inputs


def _in_variable(source: str) -> str:
    """A source's name as it stands in a variable's."""
    return re.sub(r"[^A-Z0-9]", "_", source.upper())


def variable_name(field_name: str) -> str:
    """The environment variable of a field: `interval_s` is `ROLLING_INTERVAL_S`."""
    return PREFIX + field_name.upper()


def is_of_one_source(variable: str) -> bool:
    """Whether a variable sets something for one of several sources."""
    return variable.startswith(PREFIX) and OWN_MARK in variable


def variables_of(variable: str, source: str) -> list[str]:
    """The variables that may say what `variable` says, for one source."""
    own = f"{PREFIX}{_in_variable(source)}{OWN_MARK}{variable.removeprefix(PREFIX)}"
    by_sources = [SOURCES_VARIABLE] if variable in (variable_name("input"), variable_name("source")) else []
    return [variable, own, *by_sources]


def _redact(variable: str, text: str) -> str:
    if variable.endswith("_TOKEN"):
        return "***" if text else ""
    return redact_url(text) if variable.endswith("_URL") else text


def _engine(text: str) -> EngineName:
    return cast("EngineName", text)  # checked with the rest


_READERS: Final[dict[str, Callable[[str], Any]]] = {
    "Path": Path,
    "Path | None": Path,
    "str": str,
    "int": int,
    "float": float,
    "EngineName": _engine,
}
_EXPECTED: Final[dict[Callable[[str], Any], str]] = {int: "a whole number", float: "a number"}
