"""The units that `inspect` finds in an input of any shape: the same as in a run."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import event, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from optimizer.cli.inspection.paths import MOST_PATHS, VALUES_KEPT
from optimizer.cli.inspection.shape import InputShape, ShapeName, find_shape, layout_of
from optimizer.cli.inspection.units import Units
from optimizer.cli.inspection.walk import walk
from optimizer.models import Bot, Record, Reject, RejectReason
from optimizer.models.field_map import UNMAPPED, FieldMap
from optimizer.scan.engine import choose_engine
from optimizer.scan.layout import file_layout
from optimizer.scan.scanner import scan_items
from tests.support.examples import examples
from tests.support.scanned import LIMIT
from tests.support.strategies import Members, cuts, listed_records, maps, render, styles


def units_of(chunks: list[bytes]) -> tuple[InputShape, Units]:
    """The units of an input, read as inspect reads it."""
    shape = find_shape(walk(chunks, file_layout(UNMAPPED), max_unit_bytes=LIMIT))
    units = Units(FieldMap())
    for step in walk(chunks, layout_of(shape), max_unit_bytes=LIMIT):
        units.take(step, shape)
    return shape, units


@given(data=st.data())
@hypothesis_settings(max_examples=examples(300), deadline=None)
def test_inspect_finds_as_many_records_and_bots_as_a_run(data: st.DataObject) -> None:
    """In a JSON text of any shape, cut anywhere, `inspect` counts as many records and bots as a run.

    Records and bots that a run rejects count as well.
    """
    style = data.draw(styles)
    kind = data.draw(st.sampled_from(["map", "array", "lines"]))
    roots: list[Any] = [data.draw(maps())] if kind == "map" else [data.draw(listed_records())]
    if kind == "lines":  # each line is a record, or nothing
        roots = [root for root in roots[0] if not isinstance(root, list) or isinstance(root, Members)]
    text = "\n".join(render(root, style) for root in roots).encode("utf-8", "surrogateescape")
    items = list(scan_items([text], choose_engine("ijson"), max_record_bytes=LIMIT))
    shape, units = units_of(data.draw(cuts(text)))

    bots = [item for item in items if isinstance(item, Bot)]
    rejected_bots = [item for item in items if isinstance(item, Reject) and item.reason is RejectReason.BOT]
    event(f"{kind}: {shape.name}")
    if shape.name is ShapeName.LINES:  # each object is taken for a record; a run takes some of them for maps
        assert units.records.count == sum(isinstance(root, Members) for root in roots)
        assert sum(isinstance(item, Record) for item in items) <= units.records.count
    elif len(roots) == 1:  # after a map, further texts count only if they are maps too
        assert units.records.count + units.not_objects == len(items) - len(bots) - len(rejected_bots)
    assert len(bots) <= units.bots.count <= len(bots) + len(rejected_bots)


@pytest.mark.parametrize(
    ("text", "name", "sections", "unknown"),
    [
        ('{"A": {"x": 1}, "B": {"x": 2}}', ShapeName.MAP, (), ()),
        ('{"predictions": {"A": {"x": 1}}, "bots": {}}', ShapeName.SECTION, ("predictions",), ()),
        ('{"data": {"A": {"x": 1}, "B": {"x": 1}}, "meta": {"v": 1}}', ShapeName.SECTION, ("data",), ("data",)),
        ('{"results": [{"ticker": "A"}], "bots": {"b": {}}}', ShapeName.SECTION, ("results",), ("results",)),
        ('[{"symbol": "A"}]', ShapeName.ARRAY, (), ()),
        ('{"symbol": "A", "quote": {"close": 1}}', ShapeName.LINES, (), ()),
        ('{"quote": {"close": 1}, "symbol": "A"}', ShapeName.LINES, (), ()),
        ('{"ticker": "A", "quote": {"close": 1}}\n{"ticker": "B"}', ShapeName.LINES, (), ()),
        ('{"Ticker": "A", "px": 1}', ShapeName.LINES, (), ()),
        ('{"k": 1, "n": {"a": 1}}\n{"k": 2, "n": {"a": 1}}', ShapeName.LINES, (), ()),
        ('{"code": "ok", "data": [{"ticker": "A"}]}', ShapeName.SECTION, ("data",), ("data",)),
        ('{"asset": "equity", ' + ", ".join(f'"S{n}": {{"x": 1}}' for n in range(9)) + "}", ShapeName.MAP, (), ()),
        ('{"version": 3, "A": {"x": 1}}', ShapeName.MAP, (), ()),
        ('{"version": 3, "A": {"x": 1}}\nnull', ShapeName.MAP, (), ()),
        ("{}", ShapeName.NONE, (), ()),
        ("", ShapeName.NONE, (), ()),
        ("17", ShapeName.NONE, (), ()),
    ],
)
def test_the_shape_is_found_also_where_a_run_does_not_understand_it(
    text: str, name: ShapeName, sections: tuple[str, ...], unknown: tuple[str, ...]
) -> None:
    """The shape is also found, by a guess, if the records are in an unknown section or are lines without a symbol."""
    shape, _ = units_of([text.encode()])
    assert (shape.name, shape.sections, shape.unknown_sections) == (name, sections, unknown)


def test_records_of_an_unknown_section_are_counted_and_its_neighbours_are_not() -> None:
    """Records of an unknown section are counted, but not the object `meta` beside it, which a run would reject."""
    _, units = units_of([b'{"meta": {"v": 1}, "data": {"A": {"x": {"y": 1}}, "B": {"x": 1}}}'])
    assert units.records.count == 2
    assert list(units.records.paths) == [("x",), ("x", "y")]


def test_nested_objects_of_lines_are_seen() -> None:
    """Paths in nested objects of lines are found, since a mapping may name them.

    A run discards these objects in roots that are one record.
    """
    _, units = units_of([b'{"symbol": "A", "quote": {"close": 1.5}}\n{"symbol": "B", "quote": {"close": 2.5}}'])
    assert units.records.paths["quote", "close"].values == [1.5, 2.5]


def test_memory_is_bounded_by_the_number_of_paths_and_values() -> None:
    """The number of paths, the values for each path and their length are limited, so memory is bounded.

    A record beyond the size limit is only counted.
    """
    records = [f'"S{i}": {{"by_day": {{"d{i}": {i}, "e{i}": "{"x" * 5_000}"}}}}' for i in range(1_000)]
    huge = f'"H": {{"text": "{"h" * LIMIT}"}}'
    _, units = units_of([("{" + ", ".join([*records, huge]) + "}").encode()])

    assert units.records.count == 1_000
    assert units.too_large == 1
    assert len(units.records.paths) == MOST_PATHS
    assert units.records.paths_left_out == 2_001 - MOST_PATHS
    assert all(len(one.values) <= VALUES_KEPT for one in units.records.paths.values())
    assert max(len(v) for one in units.records.paths.values() for v in one.values if isinstance(v, str)) < 2_000
