"""Options that several commands share, and the settings that come from options and the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import click

from optimizer.cli.dev.running_stack import stack_variables
from optimizer.config.environment import reworded, without_sources
from optimizer.config.settings import Settings, variable_name
from optimizer.errors import RollingError, SettingsInvalid
from optimizer.storage.location import redact_url

__all__ = [
    "accept_option",
    "describe_error",
    "environment",
    "every_or_usage_error",
    "settings_or_usage_error",
    "source_option",
    "sources_or_usage_error",
    "usage_errors",
]

# The key in a command's context for the options that the user has set in place of variables.
NAMES: Final = f"{__name__}.names"


def source_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--source`, for commands about one source."""
    return click.option("--source", metavar="NAME", help="Which of several sources. [ROLLING_SOURCES]")(command)


def accept_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--accept`, for commands that start a run."""
    text = "Publish this once, even if too much is rejected or a guard refuses."
    return click.option("--accept", is_flag=True, help=text)(command)


def settings_or_usage_error(source: str | None = None, **options: Any) -> Settings:
    """Read the settings from the environment, with options in place of variables; `None` leaves a variable as it is.

    If `input` is among the options, the sources of the environment are ignored.

    Raises:
        click.UsageError: A value cannot be used, or there is no such source.
    """
    with usage_errors():
        settings = Settings.from_env(_environ(options), source, strict=True, names=_names(options))
    click.get_current_context().meta[NAMES] = settings.names_as_set
    return settings


def sources_or_usage_error(source: str | None, **options: Any) -> list[Settings]:
    """Read the settings of one source, or of all, as above.

    Raises:
        click.UsageError: As above.
    """
    with usage_errors():
        environ, names = _environ(options), _names(options)
        if source is not None:
            return [Settings.from_env(environ, source, strict=True, names=names)]
        return Settings.every_from_env(environ, strict=True, names=names)


def every_or_usage_error(interval_s: float, source: str | None = None, **options: Any) -> list[Settings]:
    """Read the settings of one source, or of all, as above; each with this interval.

    Raises:
        click.UsageError: As above.
    """
    with usage_errors():
        every = sources_or_usage_error(source, **options)
        try:
            return [replace(settings, interval_s=interval_s) for settings in every]
        except SettingsInvalid as error:
            variable = f"{variable_name('interval_s')}={interval_s}"
            raise SettingsInvalid(str(error).replace(variable, f"--every {interval_s:g}")) from None


def _environ(options: Mapping[str, Any]) -> dict[str, str]:
    given = {variable_name(name): str(value) for name, value in options.items() if value is not None}
    environ = environment()
    return {**(without_sources(environ) if variable_name("input") in given else environ), **given}


def environment() -> Mapping[str, str]:
    """Return the environment, with the Redis of the stack that `up` runs in this directory, if one does.

    The use of that Redis is reported on stderr, and set for this process, since Celery's app and children read the
    environment too. A variable that sets the address of Redis has precedence.
    """
    found = stack_variables(os.environ)
    if found:
        urls = ", ".join(map(redact_url, found.values()))
        click.echo(f"rolling-optimizer: using the stack of `up` in this directory: {urls}", err=True)
        os.environ.update(found)
    return os.environ


def describe_error(error: RollingError) -> str:
    """Return the message of an error that ends a command, naming options in place of variables where they were used."""
    return reworded(str(error), click.get_current_context().meta.get(NAMES, {}))


def _names(options: Mapping[str, Any]) -> dict[str, str]:
    """Return the given options of the command, by variable; its argument is the input."""
    given = [name for name, value in options.items() if value is not None]
    opts = {parameter.name: parameter.opts[0] for parameter in click.get_current_context().command.params}
    return {variable_name(name): opts.get(name, "PATH") for name in given}


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn invalid settings into a usage error, which exits with status 2."""
    try:
        yield
    except SettingsInvalid as error:
        text = str(error).replace("say which is meant:", "say which is meant by --source:")
        raise click.UsageError(re.sub("^source=", "--source=", text)) from None
