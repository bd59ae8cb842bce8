"""OpenTelemetry spans of a run and its steps, and of a reader's refresh.

    with span("scan", source="brain") as scanning:
        ...
        scanning.set(records=3)

They are off until `enable` is called, as `ROLLING_TRACES=on` does; while off, a span costs a microsecond, and nothing
is imported. This package only uses OpenTelemetry's API. The tracer provider of the process decides where spans go;
without one they are dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from optimizer.errors import require

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer, TracerProvider

__all__ = ["PREFIX", "Step", "check_installed", "enable", "span"]

# The prefix of the names of spans and of their attributes.
PREFIX: Final = "rolling."

_tracer: Tracer | None = None


class Step:
    """The current span, for attributes that are only known at its end."""

    def __init__(self, span: Span | None = None) -> None:
        self._span = span

    def set(self, **attributes: str | float | None) -> None:
        """Set attributes; those that are None are left out."""
        if self._span is not None:
            self._span.set_attributes(_prefixed(attributes))


def check_installed() -> None:
    """Check that OpenTelemetry's API is installed.

    Raises:
        ExtraMissing: It is not.
    """
    require("ROLLING_TRACES=on", "otel", "opentelemetry")


def enable(provider: TracerProvider | None = None) -> None:
    """Make spans from now on, in the whole process; a second call changes nothing.

    Args:
        provider: The tracer provider; by default the process's, which may be set later.

    Raises:
        ExtraMissing: OpenTelemetry's API is not installed.
    """
    global _tracer  # noqa: PLW0603 - as OpenTelemetry's own provider, one for the process
    if _tracer is None:
        check_installed()
        from opentelemetry.trace import get_tracer  # noqa: PLC0415 - an extra, of 3 MB

        _tracer = get_tracer("rolling-optimizer", tracer_provider=provider)


@contextmanager
def span(name: str, **attributes: str | float | None) -> Iterator[Step]:
    """Make a span for a block, if tracing is enabled; an exception that leaves the block is recorded as its error."""
    if _tracer is None:
        yield _NO_STEP
        return
    with _tracer.start_as_current_span(PREFIX + name, attributes=_prefixed(attributes)) as made:
        yield Step(made)


def _prefixed(attributes: dict[str, str | float | None]) -> dict[str, str | float]:
    return {PREFIX + name: value for name, value in attributes.items() if value is not None}


_NO_STEP: Final = Step()
