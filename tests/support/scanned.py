"""The items of rolling files written by hand in tests; each file is scanned whole and in small chunks."""

from __future__ import annotations

import pytest

from optimizer.errors import SourceMalformed
from optimizer.models import Bot, Record, Reject
from optimizer.scan.decoder import Item
from optimizer.scan.scanner import scan as scan_all
from optimizer.selection.result import ScanResult
from optimizer.selection.top_n import Selection
from tests.support.engines import current, scan

__all__ = ["GOOD", "LIMIT", "SHAPES", "bot", "items", "malformed_at", "record", "reject", "scan_result", "shown"]

LIMIT = 1 << 20
GOOD = '"prediction":1.5,"confidence":0.9,"last_price":3'


def items(text: str | bytes, *, limit: int = LIMIT) -> list[Item]:
    data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    whole = list(scan([data], max_record_bytes=limit))
    assert list(scan((data[i : i + 7] for i in range(0, len(data), 7)), max_record_bytes=limit)) == whole
    return whole


def record(text: str | bytes) -> Record:
    """The one record of a file."""
    (item,) = items(text)
    assert isinstance(item, Record), item
    return item


def scan_result(chunks: list[bytes]) -> ScanResult:
    """Return the result of a scan."""
    result = ScanResult(Selection(10))
    for item in scan_all(chunks, current(), max_record_bytes=LIMIT):
        result.take(item)
    return result


def reject(text: str | bytes) -> Reject:
    """The one reject of a file."""
    (item,) = items(text)
    assert isinstance(item, Reject), item
    return item


def bot(body: str) -> Bot | Reject:
    """Return the decoded bot, or its reject."""
    (item,) = items(f'{{"bots":{{"b":{body}}}}}')
    assert isinstance(item, Bot | Reject), item
    return item


def malformed_at(text: str | bytes) -> tuple[int, str]:
    """Return the byte offset and the message of the error; check that small chunks give the same message."""
    data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    with pytest.raises(SourceMalformed) as caught:
        list(scan([data], max_record_bytes=LIMIT))
    with pytest.raises(SourceMalformed) as again:
        list(scan((data[i : i + 1] for i in range(len(data))), max_record_bytes=LIMIT))
    message = str(caught.value)
    assert str(again.value) == message
    assert message.startswith("malformed JSON at byte ")
    return int(message.split()[4].rstrip(":").replace(",", "")), message


def shown(scanned: list[Item]) -> list[str]:
    return [
        item.symbol if isinstance(item, Record) else item.name if isinstance(item, Bot) else item.reason.value
        for item in scanned
    ]


# A record in each of the four shapes; `%s` is replaced by members of the record.
SHAPES = {
    "map": '{"A":{%s}}',
    "section map": '{"predictions":{"A":{%s}}}',
    "section array": '{"symbols":[{"symbol":"A",%s}]}',
    "array": '[{"symbol":"A",%s}]',
    "lines": '{"symbol":"A",%s}',
}
