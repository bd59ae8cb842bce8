"""Chunks of JSON in, steps out: each unit and each value around the units, with its place. Pure.

Fragments come from the scan's pruner and structure from its parser, so the same bytes are valid JSON here and in a run,
and memory is bounded as in a run; but here the caller chooses how many levels of a unit are kept.

Errors: those of the scan, `SourceMalformed` and `SourceTorn`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from optimizer.scan.batch import BatchKind, EncodedBatch
from optimizer.scan.engine import AnyPruner, Engine, choose_engine
from optimizer.scan.fragment import Fragment, FragmentKind
from optimizer.scan.layout import FileLayout
from optimizer.scan.patterns import SPACE, STRING, compiled
from optimizer.scan.structure import Structure

__all__ = ["ENDS", "Step", "walk"]

UNIT: Final = "unit"
ENDS: Final = ("end_map", "end_array")

_TOKENS: Final = compiled(STRING + rb'|[{}\[\],:]|[ \t\n\r]++|[^ \t\n\r,:"{}\[\]]++')


class Step(NamedTuple):
    """One unit, or one value around the units; for these, the ends of containers are steps as well.

    `event` is `unit`, or the event of ijson. `level` is the number of containers around it, `section` the root's member
    that contains it, or that it is; `key` is its key, `None` in an array and for a root.
    """

    event: str
    level: int
    section: str
    key: str | None
    unit: Fragment | None = None


def walk(
    chunks: Iterable[bytes], layout: FileLayout, *, max_unit_bytes: int, engine: Engine | None = None
) -> Iterator[Step]:
    """Yield the steps of an input whose units are at the places of a layout.

    With the native engine, batches of records are skipped, at the speed of a scan. Without an engine, the pruner in
    Python is used, since only that can keep objects of any name.
    """
    structure = Structure()

    def pass_over(batch: EncodedBatch) -> bool:
        is_members = batch.kind is BatchKind.MEMBERS
        if structure.in_object != is_members or structure.last not in (b"{" if is_members else b"[", b","):
            return False
        structure.send_batch(members=is_members)
        return True

    pruner = (engine or choose_engine("ijson")).pruner(
        default=layout.default,
        members=layout.members,
        names=layout.names,
        max_unit_bytes=max_unit_bytes,
        on_batch=pass_over,
    )
    for fragment in _fragments(pruner, chunks):
        if fragment.kind is FragmentKind.UNIT:
            structure.send_unit(fragment.offset)
            yield _step(structure, UNIT, fragment)
            continue
        for match in _TOKENS.finditer(fragment.data):
            token = match.group()
            if structure.started or token[0] not in SPACE:
                structure.send(token, fragment.input_offset(match.start()))
                for event in structure.events():
                    yield _step(structure, event)
    structure.close()


def _step(structure: Structure, event: str, unit: Fragment | None = None) -> Step:
    level = len(structure.kinds)
    section = structure.keys[0] if structure.kinds[:1] == ["start_map"] else ""
    return Step(event, level, section, structure.key if level else None, unit)


def _fragments(pruner: AnyPruner, chunks: Iterable[bytes]) -> Iterator[Fragment]:
    for chunk in chunks:
        yield from pruner.feed(chunk)
    yield from pruner.close()
