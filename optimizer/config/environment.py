"""Select the variables of each source from the environment, as text, and read secrets from files.

In: an environment. Out: for each source, the variables that a process with only this source would have, which
`settings.py` converts. Other variables may begin with the prefix too: Kubernetes sets some for a Service, and a program
that uses this package may have its own.

Errors: `SettingsInvalid`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Final

from optimizer.errors import SettingsInvalid
from optimizer.log import SourceLog
from optimizer.storage.location import redact_url

__all__ = [
    "FILE_SUFFIX",
    "PREFIX",
    "SECRETS",
    "SOURCES_VARIABLE",
    "SOURCE_NAME",
    "names_as_set",
    "reworded",
    "variables_by_source",
    "variables_of",
    "with_secrets",
    "without_service_links",
    "without_sources",
]

_log = SourceLog(__name__)

PREFIX: Final = "ROLLING_"
SOURCE_NAME: Final = re.compile(r"(?!\.+$)[A-Za-z0-9._-]+")  # `.` and `..` would be other directories
DEFAULT_OUTPUT_DIR: Final = "data"

# Variables whose value may be in a file, which the variable with the suffix names.
SECRETS: Final = ("ROLLING_REDIS_URL", "ROLLING_BROKER_URL", "ROLLING_TRIGGER_TOKEN")
FILE_SUFFIX: Final = "_FILE"

SOURCES_VARIABLE: Final = "ROLLING_SOURCES"
# `ROLLING_INTRADAY__INTERVAL_S` is the interval of the source `intraday` alone.
OWN_MARK: Final = "__"
# The settings that `ROLLING_SOURCES` makes for a source; and those that a fleet or web service has once for all
# sources.
OF_A_SOURCE: Final = ("ROLLING_INPUT", "ROLLING_SOURCE")
NOT_OWN: Final = (
    *OF_A_SOURCE,
    "ROLLING_BROKER_URL",
    "ROLLING_TRIGGER_TOKEN",
    "ROLLING_FLOWER_URL",
    "ROLLING_LOG_FORMAT",
    "ROLLING_TRACES",
)

# The variables that Kubernetes sets in each pod for each Service of its namespace; `_PORT` is recognised by its value.
_SERVICE_LINK: Final = re.compile(r"\w+_SERVICE_(HOST|PORT(_\w+)?)|\w+_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?")
_SERVICE_PORT: Final = re.compile(r"(tcp|udp|sctp)://")

_VARIABLE: Final = re.compile(rf"\b({PREFIX}[A-Z_]+)\b(=?)")

# Names that differ in one wrong, missing, doubled or swapped letter have at least this similarity, even the shortest.
NEARLY: Final = 0.8


def variables_by_source(environ: Mapping[str, str], known: Collection[str], *, strict: bool) -> list[dict[str, str]]:
    """Select the variables of each source, as if it were the only one; an empty variable counts as not set.

    Args:
        environ: The environment.
        known: The known variables, as they are for one source.
        strict: Whether a name that is similar to a known one is an error; otherwise, like any other unknown name, it is
            a warning.

    Raises:
        SettingsInvalid: `ROLLING_SOURCES`, a variable of one of its sources, a name, or a secret's file is not usable.
    """
    given = {
        name: text
        for name, text in with_secrets(without_service_links(environ)).items()
        if name.startswith(PREFIX) and text
    }
    sources = given.pop(SOURCES_VARIABLE, None)
    if sources is None:
        return [{name: text for name, text in given.items() if _is_known(name, name, known, strict=strict)}]
    for variable in OF_A_SOURCE:
        if variable in given:
            raise SettingsInvalid(
                f"{variable} and {SOURCES_VARIABLE} are both set; one source has the former, several have the latter"
            )
    inputs = _parse_sources(sources)
    own: dict[str, dict[str, str]] = {name: {} for name in inputs}
    for variable in filter(is_of_one_source, list(given)):
        stem, _, field_name = variable.removeprefix(PREFIX).partition(OWN_MARK)
        owner = next((name for name in inputs if _in_variable(name) == stem), None)
        if owner is not None and PREFIX + field_name not in NOT_OWN:
            text = given.pop(variable)
            if _is_known(variable, PREFIX + field_name, known, strict=strict):
                own[owner][PREFIX + field_name] = text
        elif owner is not None or (strict and _nearest(PREFIX + field_name, known)[1]):
            stems = ", ".join(f"{PREFIX}{_in_variable(name)}{OWN_MARK}..." for name in inputs)
            raise SettingsInvalid(f"{variable} is not a setting of one source; those begin with {stems}")
    given = {name: text for name, text in given.items() if _is_known(name, name, known, strict=strict)}
    output_dir = given.get("ROLLING_OUTPUT_DIR", DEFAULT_OUTPUT_DIR).rstrip("/")
    return [
        given
        | {"ROLLING_SOURCE": name, "ROLLING_INPUT": location, "ROLLING_OUTPUT_DIR": f"{output_dir}/{name}"}
        | own[name]
        for name, location in inputs.items()
    ]


def with_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment with the secrets from files, as Docker and Kubernetes provide them, in their variables.

    Raises:
        SettingsInvalid: A file cannot be read or holds nothing, or the variable is set as well.
    """
    values = dict(environ)
    for variable in SECRETS:
        path = values.pop(variable + FILE_SUFFIX, "")
        if not path:
            continue
        if values.get(variable):
            raise SettingsInvalid(f"{variable} and {variable}{FILE_SUFFIX} are both set; leave one of them out")
        try:
            values[variable] = Path(path).read_text("utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise SettingsInvalid(f"{variable}{FILE_SUFFIX}={path!r} cannot be read: {reason}") from None
        if not values[variable]:
            raise SettingsInvalid(f"{variable}{FILE_SUFFIX}={path!r} is empty")
    return values


def without_service_links(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without the variables of a Kubernetes Service: `X_SERVICE_HOST`, `X_PORT=tcp://...`."""
    return {
        name: text
        for name, text in environ.items()
        if not (_SERVICE_LINK.fullmatch(name) or (name.endswith("_PORT") and _SERVICE_PORT.match(text)))
    }


def without_sources(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without `ROLLING_SOURCES` and its sources' variables, for a run over a named file."""
    return {name: text for name, text in environ.items() if name != SOURCES_VARIABLE and not is_of_one_source(name)}


def is_of_one_source(variable: str) -> bool:
    """Whether a variable sets something for one of several sources."""
    return variable.startswith(PREFIX) and OWN_MARK in variable


def variables_of(variable: str, source: str) -> list[str]:
    """Return all variables that can set `variable` for one source."""
    own = f"{PREFIX}{_in_variable(source)}{OWN_MARK}{variable.removeprefix(PREFIX)}"
    return [variable, own, *([SOURCES_VARIABLE] if variable in OF_A_SOURCE else [])]


def names_as_set(environ: Mapping[str, str], source: str, known: Collection[str]) -> dict[str, str]:
    """Return the names under which the user has set the variables of one of several sources, if they differ.

    For the input, that is the name before `=`: `ROLLING_SOURCES: brain=FILE`.
    """
    if not environ.get(SOURCES_VARIABLE):
        return {}
    names = dict.fromkeys(OF_A_SOURCE, SOURCES_VARIABLE)
    own = {variable: variables_of(variable, source)[1] for variable in known if variable not in NOT_OWN}
    names |= {variable: name for variable, name in own.items() if environ.get(name)}
    return names | {"ROLLING_INPUT=": f"{SOURCES_VARIABLE}: {source}="}


def reworded(text: str, names: Mapping[str, str]) -> str:
    """Return a message with the names that the user has set in place of the variables."""

    def as_set(match: re.Match[str]) -> str:
        variable, equals = match.groups()
        return names.get(variable + equals) or names.get(variable, variable) + equals

    return _VARIABLE.sub(as_set, text) if names else text


def _parse_sources(text: str) -> dict[str, str]:
    """Parse `brain=/data/rolling_brain.json.gz; intraday=/data/intraday/*.json.gz` to inputs by source."""
    inputs: dict[str, str] = {}
    for entry in filter(None, map(str.strip, text.split(";"))):
        name, equals, location = map(str.strip, entry.partition("="))
        if not (equals and location and SOURCE_NAME.fullmatch(name)):
            raise SettingsInvalid(
                f"{SOURCES_VARIABLE}: {redact_url(entry)!r} is not a name, '=' and a file; names hold letters, digits, "
                "'.', '_' and '-'; several sources are divided by ';'"
            )
        if _in_variable(name) in map(_in_variable, inputs):
            raise SettingsInvalid(
                f"{SOURCES_VARIABLE}: {name!r} comes twice, or looks like another in a variable's name"
            )
        if OWN_MARK in f"{_in_variable(name)}_":
            raise SettingsInvalid(f"{SOURCES_VARIABLE}: {name!r} in a variable's name could not be told from its end")
        inputs[name] = location
    if not inputs:
        raise SettingsInvalid(f"{SOURCES_VARIABLE}={text!r} names no source")
    return inputs


def _in_variable(source: str) -> str:
    """Return a source's name as it is spelled in a variable."""
    return re.sub(r"[^A-Z0-9]", "_", source.upper())


def _is_known(variable: str, name: str, known: Collection[str], *, strict: bool) -> bool:
    """Whether a variable sets a setting; warn if not.

    Args:
        variable: The variable.
        name: The variable; for one of several sources, without the source's name.
        known: The known variables.
        strict: As above.

    Raises:
        SettingsInvalid: It does not, but its name is similar to one that does.
    """
    if name in known:
        return True
    nearest, is_near = _nearest(name, known)
    if strict and is_near:
        of_source = variable.removesuffix(name.removeprefix(PREFIX)) if name != variable else PREFIX
        raise SettingsInvalid(
            f"{variable} is not a setting. Did you mean {of_source}{nearest.removeprefix(PREFIX)}? All settings are "
            "in docs/configuration.md"
        )
    _warn(f"{variable} is not a setting, and is passed over; the nearest is {nearest}")
    return False


def _nearest(variable: str, known: Collection[str]) -> tuple[str, bool]:
    """Return the setting with the most similar name, and whether the variable may be a misspelling of it."""
    wholes = {name.removeprefix(PREFIX): name for name in (*known, SOURCES_VARIABLE)}
    own_name = variable.removeprefix(PREFIX).upper().removesuffix(FILE_SUFFIX)
    for name in (own_name, own_name.rpartition(OWN_MARK)[2]):  # it may be intended for one of several sources
        best = difflib.get_close_matches(name, wholes, n=1, cutoff=0.0)[0]
        if difflib.SequenceMatcher(None, best, name).ratio() >= NEARLY:
            return wholes[best], True
        for whole, setting in wholes.items():
            if name and whole.rpartition("_")[0] == name:  # `ROLLING_REDIS` for `ROLLING_REDIS_URL`
                return setting, True
    return wholes[best], False


@cache
def _warn(message: str) -> None:
    """Warn once per process, since the environment is read at each run."""
    _log.warning("⚠️ %s", message)
