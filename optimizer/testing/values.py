"""Values of a test in, the snapshots of a version out, as a run would publish them. No I/O.

Errors: `SettingsInvalid` with the place of the value, such as `predictions[3].confidence`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal, TypedDict, TypeVar

import msgspec

from optimizer.errors import SettingsInvalid
from optimizer.models import Bot, BotSummary, Holding, Origin, Record, Rejected, Rule, Units, rank, rules_of
from optimizer.selection.portfolio import summaries
from optimizer.snapshots.format import SnapshotSet
from optimizer.snapshots.successor import encode_next

__all__ = ["Content", "Kind", "Version", "content_of", "encode"]

Kind = Literal["predictions", "bots", "portfolio"]
T = TypeVar("T", bound=msgspec.Struct)

# Any level decodes to the same; tests publish often.
GZIP_LEVEL: Final = 1
# The defaults of bots and holdings.
BOT_DEFAULTS: Final = summaries([Bot("")])[""].to_dict()
HOLDING_DEFAULTS: Final = {"avg": None}


class Version(TypedDict, total=False):
    """The content of a version. Records, bots and holdings are structs of `optimizer.models`, or mappings of fields.

    `predictions`: the top records, in any order. `index`: further records, which `symbol` and `top` find. `bots`: by
    name. `portfolio`: holdings. `rejected`: what the version leaves out; by default nothing.

    `version`: its number, by default one more than the last. `generated_at`: ISO 8601 with a time zone, by default now.
    `age_s`: seconds since a run has confirmed it. `stale`: whether that is more than three intervals; without `age_s`
    it chooses the age. `origin`: `files` stands for a Redis that is away. `unreadable`: parts that neither Redis nor
    the files have any more.
    """

    predictions: Iterable[Record | Mapping[str, Any]]
    index: Iterable[Record | Mapping[str, Any]]
    bots: Mapping[str, BotSummary | Mapping[str, Any]]
    portfolio: Iterable[Holding | Mapping[str, Any]]
    rejected: Rejected | None
    version: int
    generated_at: str
    age_s: float
    stale: bool
    origin: Origin
    unreadable: Collection[Kind]


@dataclass(frozen=True)
class Content:
    """The values of a version, checked and in order."""

    predictions: Sequence[Record] = ()
    index: Sequence[Record] = ()  # without the predictions
    bots: Mapping[str, BotSummary] | None = None
    portfolio: Sequence[Holding] = ()


def content_of(version: Version, before: Content) -> Content:
    """Check the given values; the others are taken from the version before."""
    predictions, index, bots, portfolio = before.predictions, before.index, before.bots, before.portfolio
    if "predictions" in version:
        predictions = _records(version["predictions"], "predictions")
    if "index" in version:
        index = _records(version["index"], "index")
    if "bots" in version:
        if not isinstance(version["bots"], Mapping):
            raise SettingsInvalid(f"bots={version['bots']!r} has to be a mapping of names to bots")
        given = {
            name: _struct(BotSummary, bot, f"bots[{name!r}]", BOT_DEFAULTS) for name, bot in version["bots"].items()
        }
        bots = dict(sorted(given.items()))
    if "portfolio" in version:
        holdings = [
            _struct(Holding, holding, f"portfolio[{place}]", HOLDING_DEFAULTS)
            for place, holding in enumerate(version["portfolio"])
        ]
        _check_unique(holdings, "portfolio")
        portfolio = sorted(holdings, key=lambda holding: holding.symbol)
    _check_unique([*predictions, *index], "predictions and index")
    if predictions and index and rank(index[0]) < rank(predictions[-1]):
        raise SettingsInvalid(
            f"index: {index[0].symbol!r} comes before the prediction {predictions[-1].symbol!r} by confidence, then "
            "symbol; predictions are the best of the index"
        )
    return Content(predictions, index, bots, portfolio)


def encode(
    content: Content,
    version: Version,
    *,
    source: str,
    number: int,
    generated_at: str,
    before: SnapshotSet | None = None,
) -> SnapshotSet:
    """Encode the snapshots of a version; unchanged predictions, bots and portfolio keep their bytes."""
    if before is not None:  # without its index, so that each publish of a test makes a version, even with equal content
        before = SnapshotSet(
            before.manifest, {kind: before.payloads[kind] for kind in before.payloads if kind != "index"}
        )
    ranked, bots = [*content.predictions, *content.index], content.bots or {}
    nothing = Rejected(records=Units(seen=len(ranked)), bots=Units(seen=len(bots)))
    return encode_next(
        before,
        source=source,
        version=number,
        generated_at=generated_at,
        fingerprint=f"version {number}",
        ranked=ranked,
        predictions=list(content.predictions),
        bots=bots,
        holdings=list(content.portfolio),
        gzip_level=GZIP_LEVEL,
        rejected=version.get("rejected", nothing),
    )


def _records(values: Iterable[Record | Mapping[str, Any]], name: str) -> list[Record]:
    return sorted((_struct(Record, value, f"{name}[{place}]", {}) for place, value in enumerate(values)), key=rank)


def _check_unique(values: Iterable[Record | Holding], name: str) -> None:
    seen = set()
    for value in values:
        if value.symbol in seen:
            raise SettingsInvalid(f"{name}: the symbol {value.symbol!r} is there twice")
        seen.add(value.symbol)


@cache
def _fields_of(kind: type[msgspec.Struct]) -> tuple[dict[str, msgspec.structs.FieldInfo], dict[str, Rule]]:
    """Return the fields by their names in JSON, and the rules: both take long to find, for each of many values."""
    return {info.encode_name: info for info in msgspec.structs.fields(kind)}, rules_of(kind)


def _struct(kind: type[T], value: object, place: str, defaults: Mapping[str, Any]) -> T:
    """Check a value, given as a struct or as a mapping with the struct's fields."""
    if not isinstance(value, kind | Mapping):
        raise SettingsInvalid(f"{place} is {value!r}, and has to be a {kind.__name__} or a mapping with its fields")
    infos, rules = _fields_of(kind)
    if isinstance(value, Mapping):
        unknown = [str(name) for name in value if name not in infos]
        if unknown:
            known = ", ".join(infos)
            raise SettingsInvalid(f"{place}: a {kind.__name__} has no {', '.join(unknown)}; its fields are {known}")
        fields = {**defaults, **value}
    else:
        given = {name: getattr(value, info.name) for name, info in infos.items()}
        fields = {name: each for name, each in given.items() if each is not msgspec.UNSET}
    for name, each in fields.items():
        _check_field(each, infos[name], rules.get(infos[name].name), f"{place}.{name}")
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise SettingsInvalid(f"{place}: {error}") from None


def _check_field(value: object, info: msgspec.structs.FieldInfo, rule: Rule | None, place: str) -> None:
    """Check what a scan does of the input: the rule's limits, and that numbers are finite."""
    if isinstance(value, float) and not math.isfinite(value):
        raise SettingsInvalid(f"{place}={value!r} is not a finite number")
    if rule is not None and not (value is None and not info.required):
        try:
            msgspec.convert(value, rule.type)
        except msgspec.ValidationError as error:
            raise SettingsInvalid(f"{place}={value!r}: {error}") from None
