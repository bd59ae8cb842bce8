"""From the environment to the variables of each source, as text: secrets out of files, several sources one by one.

`settings.py` reads what comes out: for each source the variables that a process with this one source would have. Other
variables may begin as ours do: those that Kubernetes sets for a Service, and those of a program that we are part of.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Final

from optimizer.errors import SettingsInvalid
from optimizer.storage.location import redact_url

__all__ = [
    "FILE_SUFFIX",
    "PREFIX",
    "SECRETS",
    "SOURCES_VARIABLE",
    "SOURCE_NAME",
    "variables_by_source",
    "variables_of",
    "with_secrets",
    "without_service_links",
    "without_sources",
]

_log = logging.getLogger(__name__)

PREFIX: Final = "ROLLING_"
SOURCE_NAME: Final = re.compile(r"(?!\.+$)[A-Za-z0-9._-]+")  # `.` and `..` are other directories
DEFAULT_OUTPUT_DIR: Final = "data"

# What may stand in a file that the variable with the suffix names.
SECRETS: Final = ("ROLLING_REDIS_URL", "ROLLING_BROKER_URL", "ROLLING_TRIGGER_TOKEN")
FILE_SUFFIX: Final = "_FILE"

SOURCES_VARIABLE: Final = "ROLLING_SOURCES"
# `ROLLING_INTRADAY__INTERVAL_S` is the interval of the source `intraday` alone.
OWN_MARK: Final = "__"
# What a source is, by `ROLLING_SOURCES`; and what the fleet, or the web service, has once.
OF_A_SOURCE: Final = ("ROLLING_INPUT", "ROLLING_SOURCE")
NOT_OWN: Final = (*OF_A_SOURCE, "ROLLING_BROKER_URL", "ROLLING_TRIGGER_TOKEN", "ROLLING_FLOWER_URL")

# What Kubernetes sets in each pod for each Service of its namespace; `_PORT` alone is told by its value.
_SERVICE_LINK: Final = re.compile(r"\w+_SERVICE_(HOST|PORT(_\w+)?)|\w+_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?")
_SERVICE_PORT: Final = re.compile(r"(tcp|udp|sctp)://")

# One letter that is wrong, missing, doubled or swapped leaves at least this much alike, in the shortest name as well.
NEARLY: Final = 0.8


def variables_by_source(environ: Mapping[str, str], known: Collection[str], *, strict: bool) -> list[dict[str, str]]:
    """Our variables, for each source in turn as if there were no other; an empty variable counts as not set.

    Args:
        environ: The environment.
        known: Our variables, as one source has them.
        strict: Whether a name that is nearly one of ours is an error; otherwise, like any other unknown name, it is a
            warning.

    Raises:
        SettingsInvalid: `ROLLING_SOURCES`, what goes with it, a name, or a file with a secret cannot be used.
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
    """The environment with the secrets that files hold, as Docker and Kubernetes hand them in, in their variables.

    Raises:
        SettingsInvalid: A file cannot be read or holds nothing, or the variable is set as well.
    """
    found = dict(environ)
    for variable in SECRETS:
        path = found.pop(variable + FILE_SUFFIX, "")
        if not path:
            continue
        if found.get(variable):
            raise SettingsInvalid(f"{variable} and {variable}{FILE_SUFFIX} are both set; leave one of them out")
        try:
            found[variable] = Path(path).read_text("utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise SettingsInvalid(f"{variable}{FILE_SUFFIX}={path!r} cannot be read: {reason}") from None
        if not found[variable]:
            raise SettingsInvalid(f"{variable}{FILE_SUFFIX}={path!r} is empty")
    return found


def without_service_links(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without what Kubernetes sets beside a Service, such as `X_SERVICE_HOST` or `X_PORT=tcp://...`."""
    return {
        name: text
        for name, text in environ.items()
        if not (_SERVICE_LINK.fullmatch(name) or (name.endswith("_PORT") and _SERVICE_PORT.match(text)))
    }


def without_sources(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without what `ROLLING_SOURCES` and its companions say, for a run over a file that is named."""
    return {name: text for name, text in environ.items() if name != SOURCES_VARIABLE and not is_of_one_source(name)}


def is_of_one_source(variable: str) -> bool:
    """Whether a variable sets something for one of several sources."""
    return variable.startswith(PREFIX) and OWN_MARK in variable


def variables_of(variable: str, source: str) -> list[str]:
    """The variables that may say what `variable` says, for one source."""
    own = f"{PREFIX}{_in_variable(source)}{OWN_MARK}{variable.removeprefix(PREFIX)}"
    return [variable, own, *([SOURCES_VARIABLE] if variable in OF_A_SOURCE else [])]


def _parse_sources(text: str) -> dict[str, str]:
    """The inputs by their sources' names, of `brain=/data/rolling_brain.json.gz; intraday=/data/intraday/*.json.gz`."""
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
    """A source's name as it stands in a variable's."""
    return re.sub(r"[^A-Z0-9]", "_", source.upper())


def _is_known(variable: str, name: str, known: Collection[str], *, strict: bool) -> bool:
    """Whether what a variable sets is a setting: its own name, or the end of one that is for one of several sources.

    Raises:
        SettingsInvalid: It is none, and nearly one.
    """
    if name in known:
        return True
    nearest, is_near = _nearest(name, known)
    if strict and is_near:
        every = ", ".join(sorted([*known, SOURCES_VARIABLE]))
        raise SettingsInvalid(f"{variable} is not a setting, is {nearest} meant? The settings are {every}")
    _warn(f"{variable} is not a setting, and is passed over; the nearest is {nearest}")
    return False


def _nearest(variable: str, known: Collection[str]) -> tuple[str, bool]:
    """The setting whose name is most like this one, and whether it may be a misspelling of it."""
    wholes = {name.removeprefix(PREFIX): name for name in (*known, SOURCES_VARIABLE)}
    own_name = variable.removeprefix(PREFIX).upper().removesuffix(FILE_SUFFIX)
    for name in (own_name, own_name.rpartition(OWN_MARK)[2]):  # it may be meant for one of several sources
        best = difflib.get_close_matches(name, wholes, n=1, cutoff=0.0)[0]
        if difflib.SequenceMatcher(None, best, name).ratio() >= NEARLY:
            return wholes[best], True
        for whole, setting in wholes.items():
            if name and whole.rpartition("_")[0] == name:  # `ROLLING_REDIS` for `ROLLING_REDIS_URL`
                return setting, True
    return wholes[best], False


@cache
def _warn(message: str) -> None:
    """Warn once a process: the environment is read at each run."""
    _log.warning("[RollingOptimizer] ⚠️ %s", message)
