"""Prometheus's text format.

prometheus_client is not used: its registry is for values that a process counts itself, and also exports those of the
web server. These values were counted by other processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple

__all__ = ["MEDIA_TYPE", "Metric", "expose"]

MEDIA_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_ESCAPES: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


class Metric(NamedTuple):
    """A metric: its name without the prefix, what it is, and its values, each with its labels."""

    name: str
    help: str
    samples: Sequence[tuple[Mapping[str, str], float]]
    kind: Literal["gauge", "counter"] = "gauge"


def expose(metrics: Iterable[Metric]) -> str:
    """Return the text of all metrics; samples with the same name are adjacent, as the format requires."""
    families: dict[str, list[str]] = {}
    for metric in metrics:
        heading = [f"# HELP rolling_{metric.name} {metric.help}", f"# TYPE rolling_{metric.name} {metric.kind}"]
        lines = families.setdefault(metric.name, heading)
        for labels, value in metric.samples:
            shown = ",".join(f'{label}="{text.translate(_ESCAPES)}"' for label, text in labels.items())
            number = int(value) if float(value).is_integer() else value
            lines.append(f"rolling_{metric.name}{{{shown}}} {number}")
    return "".join(f"{line}\n" for lines in families.values() for line in lines)
