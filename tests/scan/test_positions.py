"""Both engines agree, to the byte of an error, on short sequences of tokens in every place of a file, cut anywhere."""

from __future__ import annotations

import json
import random
from typing import Final

import pytest

from optimizer.scan.engine import Engine, choose_engine
from tests.scan.test_native_pruner import one_by_one, outcome
from tests.support.engines import require_engine
from tests.support.positions import PLACES, documents

# Without coverage, with which these take three times as long; other tests reach the same lines.
pytestmark = [pytest.mark.slow, pytest.mark.no_cover]

IJSON: Final = choose_engine("ijson")
# The shares of the sequences of three tokens with --long-life (hours find what minutes do not), and of two without.
LONG_SHARE, SHORT_SHARE = 0.3, 0.25


@pytest.fixture(scope="module", name="native")
def native_engine() -> Engine:
    """The native engine."""
    return require_engine("native")


def check(data: bytes, cuts: list[int], native: Engine) -> None:
    expected = outcome([data], IJSON)
    assert outcome([data], native) == expected, data
    for engine in (native, IJSON):
        assert outcome(one_by_one(data), engine) == expected, data
        for cut in cuts:
            assert outcome([data[:cut], data[cut:]], engine) == expected, (data, cut)


def refusal(data: bytes, engine: Engine) -> tuple[str, str] | None:
    """Return the class and the message of the error that a scan ends with, if any."""
    errors = [item for item in outcome([data], engine) if isinstance(item, tuple) and item[0].startswith("Source")]
    return errors[0] if errors else None


@pytest.mark.parametrize("place", PLACES)
def test_one_token_cut_everywhere(native: Engine, place: str) -> None:
    """Both engines agree on a document with one token in a place, wherever it is cut in two."""
    for data in documents(place, 1):
        check(data, list(range(1, len(data))), native)


@pytest.mark.parametrize("place", PLACES)
def test_two_and_three_tokens(native: Engine, place: str, rng: random.Random, pytestconfig: pytest.Config) -> None:
    """Both engines agree on a random share of all sequences of two and three tokens.

    Each document is read whole, byte by byte, and cut in two before the tokens and at a random byte from there on.
    """
    long = pytestconfig.getoption("--long-life")
    begin = len(PLACES[place][0])
    for length, share in ((2, 1.0 if long else SHORT_SHARE), (3, LONG_SHARE if long else 0.002)):
        for data in documents(place, length):
            if rng.random() < share:
                check(data, [rng.randint(begin, len(data)), begin], native)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"predictions":[{}]{', "byte 19: after key and value"),
        (b'{"predictions":[{}]{}}', "byte 19: after key and value"),
        (b'{"A":{"x":1} {"y":[', "byte 13: after key and value"),
        (b'{"A":{"x":1} {"y":[}', "byte 13: after key and value"),
        (b'{"A":1 "B', "byte 7: after key and value"),
        (b'{"bots":{}{"b":{"c":{"d":1}}}}', "byte 10: after key and value"),
    ],
)
def test_the_error_is_at_the_first_byte_that_may_not_stand_there(native: Engine, data: bytes, message: str) -> None:
    """A syntax error names the first byte that may not be there, whatever follows it and wherever the input is cut."""
    check(data, list(range(len(data))), native)
    refused = refusal(data, native)

    assert refused is not None
    assert refused[0] == "SourceMalformed"
    assert message in refused[1]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("length", [1, 2])
def test_what_json_loads_accepts_is_not_refused(native: Engine, place: str, length: int) -> None:
    """No document that `json.loads` accepts ends in an error.

    Documents with a lone surrogate are left out, since kept text has to be valid Unicode.
    """
    sound = 0
    for data in documents(place, length):
        try:
            if "\\ud800" in data.decode():
                continue
            for line in data.decode().split("\n"):
                json.loads(line)
        except ValueError:
            continue
        sound += 1
        assert refusal(data, native) is None, data
    assert sound
