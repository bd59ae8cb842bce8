"""Read the beginning of an input, and report its shape, its fields, and the settings to use.

It reads the beginning twice: for the shape, then for the records of that shape with their nested objects. It stops
after `MOST_RECORDS` records, `MOST_JSON_BYTES` of JSON or `MOST_STEPS` values around records. Memory is bounded
as in a scan, by `MOST_UNIT_BYTES` in place of the limit of a record.

Bots often come after all records. If the beginning has none, the file is searched for them with the engine of a scan,
at the speed of a run.

Errors: those of `source` and of the scan, with the path.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing, suppress
from typing import Final

from optimizer.cli.inspection.report import BOTS, POSITIONS, RECORDS, Inspection, report_on
from optimizer.cli.inspection.shape import InputShape, ShapeName, find_shape, layout_of
from optimizer.cli.inspection.units import Units
from optimizer.cli.inspection.walk import ENDS, Step, walk
from optimizer.config.settings import Settings
from optimizer.errors import SourceError
from optimizer.pipeline.parts import without_snapshots
from optimizer.scan.engine import Engine, choose_engine
from optimizer.scan.layout import BOT_SECTIONS, DEFAULT_NAMES, FileLayout, file_layout
from optimizer.source.input_file import InputFile
from optimizer.source.opener import expand, open_input_file
from optimizer.storage.location import Location

__all__ = ["MOST_RECORDS", "inspect_input"]

MOST_RECORDS: Final = 1_000
MOST_JSON_BYTES: Final = 256 << 20
CHUNK_BYTES: Final = 128 << 10
# The longest unit, nested objects included; longer ones are only counted.
MOST_UNIT_BYTES: Final = 16 << 20
# The limit of units and values around them: an input of nothing but plain values has one for every two bytes.
MOST_STEPS: Final = 100_000


def inspect_input(settings: Settings) -> Inspection:
    """Inspect the input of a source; if it has several files, the first ones.

    Raises:
        SourceError: It does not exist, cannot be read, or is not JSON.
    """
    locations = expand(settings.input)
    if locations != [settings.input]:
        locations = without_snapshots(settings.input, locations)
    units = Units(settings.mapping.bots)
    shapes: list[InputShape] = []
    for location in locations:
        if _is_enough(units):
            break
        shapes.append(_take_file(location, units, settings))
    shape = shapes[0]
    return Inspection(
        input=str(settings.input),
        files=len(locations),
        files_read=len(shapes),
        to_the_end=not _is_enough(units),
        rest=units.rest,
        json_bytes=units.json_bytes,
        shape=shape,
        records=report_on(RECORDS, settings.fields, units.records, keyed=units.records_have_keys),
        bots=report_on(BOTS, settings.bot_fields, units.bots, keyed=True),
        positions=report_on(POSITIONS, settings.position_fields, units.positions, keyed=units.positions_have_keys),
        not_objects=units.not_objects,
        too_large=units.too_large,
        listed_bots=units.listed_bots,
    )


def _is_enough(units: Units) -> bool:
    return units.records.count >= MOST_RECORDS or units.json_bytes >= MOST_JSON_BYTES or units.steps >= MOST_STEPS


def _take_file(location: Location, units: Units, settings: Settings) -> InputShape:
    """Collect the units of a file, as far as they are needed; return its shape."""
    mapping = settings.mapping
    with open_input_file(location) as file:
        try:
            with closing(_steps(file, Units(mapping.bots), file_layout(mapping))) as steps:
                shape = find_shape(steps, mapping)
            with closing(_steps(file, units, layout_of(shape))) as steps:
                for step in steps:
                    units.take(step, shape)
                    if _is_enough(units):
                        break
            if _is_enough(units) and shape.name in (ShapeName.MAP, ShapeName.SECTION) and not units.has_bots:
                units.rest = "was read for bots only"
                try:
                    _take_bots(file, units, shape, choose_engine(settings.engine))
                except SourceError as error:
                    file.check_unchanged()
                    units.rest = f"cannot be read for bots: {type(error).__name__}: {error}"
        except SourceError as error:
            file.check_unchanged()  # if the file was written to, that explains any other error
            raise type(error)(f"{file.path}: {error}") from error
        return shape


def _take_bots(file: InputFile, units: Units, shape: InputShape, engine: Engine) -> None:
    """Collect the bots of a file, wherever they are in it."""
    layout = layout_of(shape)._replace(names=DEFAULT_NAMES)
    with closing(file.chunks(engine.chunk_bytes)) as chunks:
        for step in walk(chunks, layout, max_unit_bytes=MOST_UNIT_BYTES, engine=engine):
            if step.section not in BOT_SECTIONS or step.level == 0:
                continue
            if step.level == 1 and step.event in ENDS:
                break
            units.take(step, shape)
            if units.bots.count >= MOST_RECORDS:
                break


class _Enough(Exception):
    """A limit of JSON was reached, perhaps without any record, so the rest is not read."""


def _steps(file: InputFile, units: Units, layout: FileLayout) -> Generator[Step]:
    """Yield the steps of a file, and count them and its bytes, up to its end or a limit."""

    def counted() -> Generator[bytes]:
        with closing(file.chunks(CHUNK_BYTES)) as chunks:
            for chunk in chunks:
                if units.json_bytes >= MOST_JSON_BYTES:
                    raise _Enough
                units.json_bytes += len(chunk)
                yield chunk

    chunks = counted()
    with closing(chunks), suppress(_Enough):
        for step in walk(chunks, layout, max_unit_bytes=MOST_UNIT_BYTES):
            units.steps += 1
            yield step
            if units.steps >= MOST_STEPS:
                raise _Enough
