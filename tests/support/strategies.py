"""Hypothesis strategies for rolling files: values as a tree, written out as JSON in many spellings.

A tree is made of `None`, bool, int, float, str and list, of `Members` for objects, in which a name may come twice, and
of `Raw` for tokens that no JSON encoder writes: `NaN`, `1e999`, integers of 5,000 digits, half a surrogate pair.

Text that is not valid Unicode has lone surrogates in U+DC80..DCFF. They are written as escapes, or unchanged; if
unchanged, `surrogateescape` encodes them as invalid UTF-8.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from optimizer.config.field_map import parse_mapping
from optimizer.models.field_map import UNMAPPED, InputMapping, MappedField

__all__ = [
    "MAPPINGS",
    "MAPPING_TEXTS",
    "OVERLONG",
    "Members",
    "Raw",
    "Style",
    "cuts",
    "render",
    "rolling_bytes",
    "rolling_files",
    "styles",
]

# Longer than any limit the tests set; nothing else that these strategies make is near such a limit.
OVERLONG = 40_000


@dataclass(frozen=True)
class Raw:
    """A token that is written as it is."""

    text: str


class Members(list[tuple[str, Any]]):
    """An object as its members in order; a name may come twice."""


@dataclass(frozen=True)
class Style:
    """How a tree is written: white space, and how text is escaped (`ascii`, `utf-8`, or `all`: every character)."""

    item: str
    colon: str
    pad: str
    escapes: str


def render(value: Any, style: Style) -> str:
    """Write a tree as JSON."""
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, Members):
        members = style.item.join(f"{render(key, style)}{style.colon}{render(body, style)}" for key, body in value)
        return f"{{{style.pad}{members}{style.pad}}}"
    if isinstance(value, list):
        return f"[{style.pad}{style.item.join(render(element, style) for element in value)}{style.pad}]"
    if isinstance(value, str) and len(value) < OVERLONG and style.escapes == "all":
        units = value.encode("utf-16-be", "surrogatepass")
        return '"' + "".join(f"\\u{units[i] << 8 | units[i + 1]:04X}" for i in range(0, len(units), 2)) + '"'
    return json.dumps(value, ensure_ascii=style.escapes != "utf-8")


styles = st.builds(
    Style,
    item=st.sampled_from([",", ", ", ",\n  ", " ,\r\n\t"]),
    colon=st.sampled_from([":", ": ", "\n:\t"]),
    pad=st.sampled_from(["", " ", "\n    "]),
    escapes=st.sampled_from(["ascii", "utf-8", "all"]),
)

_NASTY = ['"', "\\", '\\"', "}]{[", '{"a": [', "/", "\\u0041", "é😀", "NaN", "-Infinity", "\x00\x1f\x7f", "\u2028", ""]
BAD_TEXTS = ["\udcff", "A\udc80", "\udced\udca0\udcbd"]


def _seldom_bad(chance: int) -> st.SearchStrategy[str]:
    return st.sampled_from(BAD_TEXTS if chance == 0 else _NASTY)


texts = st.one_of(st.sampled_from(_NASTY), st.text(max_size=8), st.integers(0, 9).flatmap(_seldom_bad))
_NOT_NUMBERS = [Raw("NaN"), Raw("Infinity"), Raw("-Infinity")]
_EXTREME = [Raw("1e999"), Raw("-1E+999"), Raw("1" * 5_000), Raw("-" + "9" * 400), Raw("1e-400"), Raw("-0.0")]

plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), texts)
discarded_scalars = st.one_of(plain, st.sampled_from([*_NOT_NUMBERS, *_EXTREME, Raw('"\\ud800"'), Raw('"\\uDC00x"')]))


def _members(values: st.SearchStrategy[Any], max_size: int = 3) -> st.SearchStrategy[Members]:
    return st.lists(st.tuples(texts, values), max_size=max_size).map(Members)


discarded = st.recursive(
    discarded_scalars, lambda inner: st.one_of(st.lists(inner, max_size=3), _members(inner)), max_leaves=6
)
containers = st.one_of(st.lists(discarded, max_size=3), _members(discarded))
no_objects = st.one_of(discarded_scalars, st.lists(discarded, max_size=2))

finite = st.one_of(
    st.integers(-(10**25), 10**25), st.floats(allow_nan=False, allow_infinity=False), st.sampled_from([0, 0.1, -2.5])
)
prices = st.one_of(st.floats(1e-9, 1e9), st.integers(1, 10**30))
# Few different values, so that many are equal; 0.5 and its neighbours are at the usual threshold.
confidences = st.one_of(
    st.sampled_from([0, 1, 0.25, 0.5, 0.5, 0.49999999999999994, 0.5000000000000001, 0.75, 0.75]), st.floats(0, 1)
)
bad_numbers = st.sampled_from([True, False, "0.9", "", "x", [], [1], Members(), Raw("1e999"), Raw("1" * 5_000)])
bad_confidences = st.one_of(bad_numbers, st.sampled_from([None, Raw("NaN"), -0.001, 1.001, 2, -(10**20), 10**30]))
bad_prices = st.one_of(bad_numbers, st.sampled_from([None, *_NOT_NUMBERS, 0, -1.5, Raw("-0.0"), Raw("1e-400")]))
bad_texts = st.sampled_from([True, 5, 0.5, [], ["bullish"], Members([("a", 1)])])
timestamps = st.one_of(st.none(), texts, st.integers(0, 2**70), st.floats(0, 1e12), st.just(Raw("NaN")))
# A handful, so that symbols repeat: in other records, in other sections, in bots.
symbols = st.one_of(
    st.sampled_from(["AAPL", "MSFT", "GOOG", "BRK/B", 'Q"Q', "É", "😀", "", "_hidden", "symbol"]), texts
)


# Strategies are made once, here, and not within the strategies that draw from them: Hypothesis checks each new one at
# its first use, which took a quarter of the time of an example.
_chances = {among: st.integers(0, among - 1) for among in (2, 3, 4, 8, 10, 16)}


def _one_in(draw: st.DrawFn, among: int) -> bool:
    return draw(_chances[among]) == 0


_optional_fields = [
    (name, st.one_of(values, st.sampled_from([None, Raw("NaN")])))
    for name, values in (("target_price", finite), ("stop_loss", finite), ("timestamp", timestamps))
]
_sentiments = st.one_of(texts, st.none())
_discarded_members = st.lists(
    st.tuples(texts.map(lambda text: f"x{text}"), st.one_of(discarded, containers)), max_size=3
)


@st.composite
def records(draw: st.DrawFn, symbol: Any = None) -> Members:
    """A record, valid in most cases, with discarded members between its fields, in any order."""
    fields: dict[str, Any] = {
        "prediction": draw(finite),
        "confidence": draw(confidences),
        "last_price": draw(prices),
    }
    if symbol is not None:
        fields["symbol"] = symbol
    elif _one_in(draw, 4):
        fields["symbol"] = draw(symbols)
    for name, values in _optional_fields:
        if draw(st.booleans()):
            fields[name] = draw(values)
    if draw(st.booleans()):
        fields["sentiment"] = draw(_sentiments)
    if _one_in(draw, 4):
        _move_price(draw, fields)
    if _one_in(draw, 3):
        _spoil(draw, fields)
    return Members(draw(st.permutations([*fields.items(), *draw(_discarded_members)])))


good_records = records()
_records_or_not = st.one_of(no_objects, good_records)


_no_last_prices = st.sampled_from([None, Raw("NaN"), Raw("-Infinity")])
_no_lasts = st.sampled_from([None, Raw("Infinity"), "unused?"])


def _move_price(draw: st.DrawFn, fields: dict[str, Any]) -> None:
    """Write the price as `price`; `last` and `last_price` have it too or something else, or the latter is missing."""
    price = fields.pop("last_price")
    fields["last_price"] = price if _one_in(draw, 4) else draw(_no_last_prices)
    fields["last"] = price if _one_in(draw, 4) else draw(_no_lasts)
    fields["price"] = price
    if draw(st.booleans()):
        del fields["last_price"]


_bad_strings = st.sampled_from(BAD_TEXTS)
_spoiled_fields: list[tuple[list[str], st.SearchStrategy[Any]]] = [
    (["confidence"], bad_confidences),
    (["prediction"], st.one_of(bad_numbers, st.sampled_from([None, *_NOT_NUMBERS]))),
    (["last_price"], bad_prices),
    (["sentiment"], bad_texts),
    (["target_price"], bad_numbers),
    (["stop_loss"], bad_numbers),
    (["timestamp"], st.sampled_from([True, [], [1], Members(), Raw("1e999"), Raw("1" * 5_000)])),
    (["symbol"], st.sampled_from([None, 7, True, [], Members(), Raw("NaN"), *BAD_TEXTS])),
    (["price", "last", "confidence", "sentiment"], _bad_strings),
    (["debug"], st.just("d" * OVERLONG)),
    (["k" * OVERLONG], st.just(1)),
]
_spoiled = st.sampled_from([(st.sampled_from(names), values) for names, values in _spoiled_fields])


def _spoil(draw: st.DrawFn, fields: dict[str, Any]) -> None:
    """Break a record in one of the possible ways."""
    names, values = draw(_spoiled)
    name = draw(names)
    if _one_in(draw, 4):
        fields.pop(name, None)
    else:
        fields[name] = draw(values)


_amounts = st.one_of(st.integers(-1_000, 1_000), st.integers(-(10**6), 10**6).map(lambda n: n / 1_000))
_amount_names = st.sampled_from(["quantity", "qty"])
_average_prices = st.one_of(st.none(), st.integers(1, 10**6).map(lambda n: n / 100), st.just(Raw("NaN")))
_average_price_names = st.sampled_from(["avg_price", "avg", "entry_price"])
_spoiled_in_positions = st.tuples(
    st.sampled_from(["quantity", "avg_price", "symbol"]), st.sampled_from([True, "5", Raw("1e999"), [], Members()])
)


@st.composite
def positions(draw: st.DrawFn, symbol: str | None) -> Any:
    """A position with an ordinary quantity, so that sums of quantities are exact in 60 digits."""
    fields: dict[str, Any] = {draw(_amount_names): draw(_amounts)}
    price = draw(_average_prices)
    fields[draw(_average_price_names)] = price
    if symbol is not None:
        fields["symbol"] = symbol
    if _one_in(draw, 16):
        name, value = draw(_spoiled_in_positions)
        fields[name] = value
    if _one_in(draw, 3):
        fields["opened"] = draw(containers)
    return Members(draw(st.permutations(list(fields.items()))))


_held_symbols = st.lists(symbols, max_size=4)
_shapes_of_positions = st.sampled_from(["none", "number", "array", "map"])
_enabled = st.sampled_from([True, False, True, None])
_equities = st.one_of(finite, st.none(), st.just(Raw("Infinity")))
_missing_in_bots = st.lists(
    st.sampled_from(["enabled", "equity", "pnl_today", "positions", "last_updated"]), max_size=1
)
_spoiled_in_bots = st.sampled_from(
    [
        ("enabled", 1),
        ("equity", "rich"),
        ("pnl_today", True),
        ("positions", -1),
        ("positions", 2.5),
        ("positions", [1]),
        ("last_updated", []),
        ("note", "n" * OVERLONG),
    ]
)


def _held(draw: st.DrawFn) -> Any:
    """The value of `positions` in a valid bot."""
    match draw(_shapes_of_positions):
        case "none":
            return None
        case "number":
            return draw(st.integers(0, 10))
        case "array":
            return [draw(positions(name)) for name in draw(_held_symbols)]
        case _:
            return Members((name, draw(positions(None))) for name in draw(_held_symbols))


@st.composite
def bots(draw: st.DrawFn) -> Any:
    """A bot, valid in most cases."""
    fields = {
        "enabled": draw(_enabled),
        "equity": draw(_equities),
        "pnl_today": draw(finite),
        "positions": _held(draw),
        "last_updated": draw(timestamps),
    }
    for name in draw(_missing_in_bots):
        del fields[name]
    if _one_in(draw, 8):
        name, value = draw(_spoiled_in_bots)
        fields[name] = value
    fields["strategy"] = draw(discarded)
    return Members(draw(st.permutations(list(fields.items()))))


_least_keyed = st.sampled_from([0, 2, 3])
_least_listed = st.sampled_from([0, 2, 4])


@st.composite
def keyed_records(draw: st.DrawFn, max_size: int = 7) -> Members:
    """Records under their symbols, some of them twice, and values that are not records."""
    members = Members()
    for symbol in draw(st.lists(symbols, min_size=draw(_least_keyed), max_size=max_size)):
        members.append((symbol, draw(_records_or_not if _one_in(draw, 10) else good_records)))
    if _one_in(draw, 10):
        members.append(("K" * OVERLONG, draw(_records_or_not)))
    return members


@st.composite
def listed_records(draw: st.DrawFn, max_size: int = 7) -> list[Any]:
    """Records that name their symbol themselves, and values that are not records."""
    result: list[Any] = []
    for symbol in draw(st.lists(symbols, min_size=draw(_least_listed), max_size=max_size)):
        is_none = _one_in(draw, 10) and draw(st.booleans())
        result.append(draw(no_objects if is_none else records(symbol)))
    return result


good_bots = bots()
_bots_or_not = st.one_of(no_objects, good_bots)
_no_bot_sections = no_objects | st.lists(_bots_or_not, max_size=2)
_bot_names = st.lists(st.sampled_from(["alpha", "beta", "gamma", 'd"\\', "é", BAD_TEXTS[0]]), max_size=3)


@st.composite
def bot_sections(draw: st.DrawFn) -> Any:
    """The value of a section `bots`."""
    if _one_in(draw, 10):
        return draw(_no_bot_sections)
    return Members((name, draw(_bots_or_not if name == "beta" else good_bots)) for name in draw(_bot_names))


_record_sections = st.lists(st.sampled_from(["predictions", "symbols", "predictions"]), max_size=2)
_bodies_of_record_sections = st.one_of(keyed_records(), listed_records(), discarded_scalars)
_named_bot_sections = st.lists(st.tuples(st.sampled_from(["bots", "_bots"]), bot_sections()), max_size=2)
_other_names = st.lists(
    st.sampled_from(["_meta", "_", "timestamp", "count", "confidence", "price", "symbol", BAD_TEXTS[1]]), max_size=3
)
_few_keyed_records = keyed_records(5)


@st.composite
def maps(draw: st.DrawFn) -> Members:
    """An object of shape 1, 2 or both: records by symbol, sections, and members that are neither, in any order."""
    members: list[tuple[str, Any]] = list(draw(_few_keyed_records))
    if draw(st.booleans()):
        members += [(name, draw(_bodies_of_record_sections)) for name in draw(_record_sections)]
    members += draw(_named_bot_sections)
    members += [(name, draw(discarded if name.startswith("_") else no_objects)) for name in draw(_other_names)]
    return Members(draw(st.permutations(members)))


# Values of ROLLING_FIELDS, ROLLING_BOT_FIELDS and ROLLING_POSITION_FIELDS: other names, divisors and extra fields;
# paths; paths with the names of sections in them; and other meanings for names that have one by default.
MAPPING_TEXTS: list[tuple[str, str, str]] = [
    ("prediction=score; confidence=certainty/100; last_price=close; +sector; +volume=v", "", ""),
    (
        "symbol=ticker; prediction=p.1d.y; confidence=p.1d.z/100; last_price=q.x; sentiment=q.s; timestamp=a.s; +v=p.v",
        "equity=balance.total; positions=account.holdings; enabled=on; last_updated=account.at.s",
        "quantity=size.amount; avg_price=cost/100; symbol=asset",
    ),
    (
        "prediction=predictions.1d.prediction; target_price=predictions.AAPL.x.y/0.01; +q=symbols.q; +last=bots.a.last",
        "pnl_today=bots.x",
        "",
    ),
    (
        "last_price=price; stop_loss=last.x; +timestamp2=timestamp; +price2=last_price",
        "",
        "quantity=qty; symbol=quantity.x",
    ),
]
MAPPINGS = [parse_mapping(*texts) for texts in MAPPING_TEXTS]

extra_values = st.one_of(
    plain, st.sampled_from(["x" * 1_024, "x" * 1_025, [], [1], Members(), Raw("1e999"), Raw("9" * 400), Raw("NaN")])
)
_no_object = st.sampled_from([None, 5, [], "x", [Members([("prediction", 1)])]])


@st.composite
def _relocated(draw: st.DrawFn, members: Members, items: Sequence[MappedField]) -> Members:
    """The members of a record, bot or position, moved to where a mapping says; members that it does not name stay."""
    by_name = {item.name: item for item in items}
    result = Members()
    for name, body in members:
        item = by_name.get(name)
        if item is None:
            result.append((name, body))
            continue
        is_number = isinstance(body, int | float) and not isinstance(body, bool)
        _put(result, item.path, body * item.divisor if is_number and item.divisor != 1 else body)
    objects = sorted({item.path[0] for item in items if len(item.path) > 1})
    if objects and _one_in(draw, 16):
        spoiled = draw(st.sampled_from(objects))
        return Members((name, draw(_no_object) if name == spoiled else body) for name, body in result)
    return Members(draw(st.permutations(result))) if draw(st.booleans()) else result


def _put(members: Members, path: Sequence[str], value: Any) -> None:
    for name in path[:-1]:
        inside = next((body for key, body in members if key == name and isinstance(body, Members)), None)
        if inside is None:
            inside = Members()
            members.append((name, inside))
        members = inside
    members.append((path[-1], value))


def _mapped(draw: st.DrawFn, value: Any, mapping: InputMapping, *, is_root: bool = True) -> Any:
    """A tree whose records, bots and positions are written as a mapping says."""
    if isinstance(value, Members):
        body = Members(
            (name, _mapped_bots(draw, body, mapping))
            if is_root and name in ("bots", "_bots")
            else (name, _mapped(draw, body, mapping, is_root=False))
            for name, body in value
        )
        if any(name == "prediction" for name, _ in body):
            for extra in mapping.records.extras:
                if draw(st.integers(0, 3)):
                    _put(body, extra.path, draw(extra_values))
        return draw(_relocated(body, mapping.records.fields))
    return [_mapped(draw, element, mapping, is_root=False) for element in value] if isinstance(value, list) else value


def _mapped_bots(draw: st.DrawFn, value: Any, mapping: InputMapping) -> Any:
    if not isinstance(value, Members):
        return value

    def position(body: Any) -> Any:
        return draw(_relocated(body, mapping.positions.fields)) if isinstance(body, Members) else body

    def held(body: Any) -> Any:
        if isinstance(body, Members):
            return Members((symbol, position(one)) for symbol, one in body)
        return [position(one) for one in body] if isinstance(body, list) else body

    def bot(body: Any) -> Any:
        if not isinstance(body, Members):
            return body
        written = Members((name, held(part) if name == "positions" else part) for name, part in body)
        return draw(_relocated(written, mapping.bots.fields))

    return Members((name, bot(body)) for name, body in value)


_shapes = st.sampled_from(["map", "array", "lines"])
_a_map, _a_list, _a_last_line = maps(), listed_records(), st.lists(no_objects, max_size=1)
_between = st.sampled_from(["\n", "\r\n", " "])
_leads = st.sampled_from(["", "", "\ufeff", " \n", "\ufeff\t"])
_ends = st.sampled_from(["", "\n"])


@st.composite
def rolling_files(draw: st.DrawFn, mapping: InputMapping = UNMAPPED) -> str:
    """The JSON of a rolling file in any of the four shapes, well formed wherever something is kept.

    Its fields are where the mapping says. Encode it with `surrogateescape`.
    """
    style = draw(styles)
    shape = draw(_shapes)
    if shape == "map":
        roots: Sequence[Any] = [draw(_a_map)]
    elif shape == "array":
        roots = [draw(_a_list)]
    else:
        roots = draw(_a_list)
        if _one_in(draw, 4):
            roots = [*roots, draw(_a_map), *draw(_a_last_line)]
    if mapping != UNMAPPED:
        roots = [_mapped(draw, root, mapping) for root in roots]
    between = draw(_between)
    return draw(_leads) + between.join(render(root, style) for root in roots) + draw(_ends)


# Bytes and tokens that are critical for a pruner.
_SOUP = [
    *(bytes((byte,)) for byte in b'{}[],:"\\ \n\r\t\x0c\x00\xff-NI1e.'),
    *(b'"symbol"', b'"predictions"', b'"bots"', b'"_x"', b'"confidence"', b'"prediction"', b'"last_price"', b'"A"'),
    *(b"NaN", b"-Infinity", b"Infinity", b"null", b"true", b"0.5", b"12", b"1e999", b"\xef\xbb\xbf", b"\xc3\xa9"),
    *(b'"p":{', b'"1d":{', b'"ticker":"B"', b'"quote"', b'"last":{"x"', b'"AAPL"', b'"x":', b'"bots":{"a":{'),
    *(b'":', b'\\"', b"\\\\", b'"\\ud800"', b"]}", b"[[", b"{{", b'{"', b'":{"', b"a" * 20, b" " * 20, b"1" * 20),
]
soup = st.lists(st.sampled_from(_SOUP), max_size=40).map(b"".join)
_little_soup = st.lists(st.sampled_from(_SOUP), max_size=2).map(b"".join)
_removed = st.sampled_from([0, 0, 1, 2, 10])


def _shortened(text: str) -> str:
    """Shorten overlong values: a third of the files would otherwise be too long, and be made in vain."""
    for letter in "dknK":
        text = text.replace(letter * OVERLONG, letter * 400)
    return text


@st.composite
def rolling_bytes(draw: st.DrawFn, mapping: InputMapping = UNMAPPED) -> bytes:
    """The bytes of a small rolling file, in most cases damaged somewhere, or a random sequence of critical tokens."""
    if _one_in(draw, 3):
        return draw(soup)
    text = draw(rolling_files(mapping).map(_shortened).filter(lambda text: len(text) < 6_000))
    data = text.encode("utf-8", "surrogateescape")
    for _ in range(draw(st.integers(0, 2))):
        begin = draw(st.integers(0, len(data)))
        data = data[:begin] + draw(_little_soup) + data[begin + draw(_removed) :]
    return data[: draw(st.integers(0, len(data)))] if _one_in(draw, 4) else data


@st.composite
def cuts(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """The same bytes in chunks, cut anywhere; some chunks are empty."""
    places = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
    return [data[begin:end] for begin, end in zip([0, *places], [*places, len(data)], strict=True)]
