"""`rolling-optimizer config`: shows the settings in force, and checks the guard and both Redis servers."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import click

from optimizer.cache.server_checks import check_broker, check_cache
from optimizer.cli.options import environment, usage_errors
from optimizer.config.environment import FILE_SUFFIX, variables_of
from optimizer.config.settings import Settings
from optimizer.errors import CacheUnavailable, SettingsInvalid
from optimizer.pipeline.guard import load_guard
from optimizer.storage.location import redact_url

__all__ = ["config"]


@click.command()
def config() -> None:
    """Show the settings in force, and check guard and Redis.

    Secrets are shown as ***. The guard is imported, and the commands that are needed are tried on both Redis servers.
    """
    with usage_errors():
        every = Settings.every_from_env(environment(), strict=True)
    for settings in every:
        if len(every) > 1:
            click.echo(f"source {settings.source}:")
        _show(settings)
    guards = _check_guards(every)
    try:
        _check_servers(every)
    except CacheUnavailable as error:
        raise CacheUnavailable("; ".join([str(error), *guards])) from None
    if guards:
        raise SettingsInvalid("; ".join(guards))


def _show(settings: Settings) -> None:
    shown = settings.redacted()
    width = max(map(len, shown))
    for name, value in shown.items():
        variables = variables_of(name, settings.source)
        in_file = os.environ.get(name + FILE_SUFFIX)
        origin = "environment" if any(map(os.environ.get, variables)) else "file" if in_file else "default"
        click.echo(f"{name:<{width}}  {value or '-':<40}  {origin}")


def _check_guards(every: Sequence[Settings]) -> list[str]:
    """Import each guard; return the errors of those that cannot be imported."""
    problems = []
    for name in dict.fromkeys(settings.guard for settings in every if settings.guard):
        try:
            load_guard(name)
        except SettingsInvalid as error:
            problems.append(str(error))
        else:
            click.echo(f"guard: {name} is imported, and called before a version is published")
    return problems


def _check_servers(every: Sequence[Settings]) -> None:
    """Check each cache and the broker.

    Raises:
        CacheUnavailable: At least one cannot be used; the others are still checked and shown.
    """
    checks: list[tuple[str, str, Callable[[str, str], list[str]], str]] = [
        *(("cache", settings.redis_url, check_cache, settings.source) for settings in every),
        ("broker", every[0].broker_url, check_broker, every[0].source),
    ]
    lines: list[str] = []
    roles_of: dict[str, dict[str, None]] = {}
    for role, url, check, source in checks:
        try:
            lines.append("; ".join([f"{role}: {redact_url(url)} answers", *check(url, source)]))
        except CacheUnavailable as error:
            roles_of.setdefault(str(error), {})[role] = None
    for line in dict.fromkeys(lines):  # several sources in one Redis have the same line
        click.echo(line)
    if roles_of:  # one Redis for both is named once
        raise CacheUnavailable("; ".join(f"{' and '.join(roles)}: {text}" for text, roles in roles_of.items()))
