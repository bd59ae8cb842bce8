"""Write a rolling file as a prediction engine writes it, for demos, tests and benchmarks.

Like real records, each has data that pages never show: a history of objects, 64 features, debug text with quotes,
brackets and backslashes inside strings, curves, nested scenarios. Memory does not depend on the size: records are
assembled from pools of text, which are made once from the seed. A pool is many times longer than deflate's 32 KiB
window and each record starts at another position in it, so the file compresses about 3:1, as real files do.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final, Literal, cast, get_args

from isal import igzip

__all__ = ["SHAPES", "Shape", "write_sample"]

Shape = Literal["map", "sections", "array", "lines"]
SHAPES: Final[tuple[Shape, ...]] = get_args(Shape)

# igzip level 1 compresses about 300 MB of JSON a second, so that most of the time goes to generating the text.
DEFLATE_LEVEL: Final = 1
POOL_ROWS: Final = 4096
TOLD_TEXTS: Final = 100
START_EPOCH_S: Final = 1_760_000_000
SENTIMENTS: Final = ("bullish", "bearish", "neutral")
DEBUG_NOTES: Final = (
    'weights at C:\\models\\lstm\\v7 say "strong buy" {confidence: 0.9} [kept]',
    'regex \\d+[.,]\\d{2} matched "}"; stack: [{"step": 1}, {"step": 2}]',
    "unbalanced }}]]{{[[ on purpose, and a backslash at the end \\",
    'NaN, Infinity and "-Infinity" inside a string are text',
)


def write_sample(
    path: Path,
    *,
    symbols: int = 2000,
    points: int = 240,
    bots: int = 12,
    shape: Shape = "map",
    seed: int = 1,
    indent: bool = False,
    lean: bool = False,
    nan: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write a rolling file to `path`, gzipped if the name ends in `.gz`, else plain.

    Args:
        path: The file to write; its directory is created. The file is renamed to `path` when it is complete.
        symbols: Number of records.
        points: History objects in each record, about 105 bytes each; the rest of a record is about 3.5 KB.
        bots: Number of bots in the `bots` section, which the shapes `array` and `lines` do not have.
        shape: How the records are laid out.
        seed: The same arguments and seed give the same bytes of JSON.
        indent: Pretty-print with two spaces a level, one member a line.
        lean: The rest of a record is about 1.1 KB.
        progress: Called with the number of records written, and of all records.
        nan: Write target price and stop loss of each record as `NaN` and `-Infinity`, as Python does.

    Returns:
        The number of bytes of JSON written, before compression.
    """
    rng = random.Random(seed)  # noqa: S311 - made-up prices are no secrets
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with _open_for_writing(partial, compress=path.suffix == ".gz") as sink:
            json_bytes = 0
            maker = _RecordMaker(points, rng, indent=indent, lean=lean, nan=nan)
            for number, text in enumerate(_texts(symbols, bots, shape, maker, rng, indent=indent)):
                data = text.encode()
                if progress is not None and number % TOLD_TEXTS == 0:
                    progress(min(number, symbols), symbols)
                sink.write(data)
                json_bytes += len(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return json_bytes


def _open_for_writing(path: Path, *, compress: bool) -> IO[bytes]:
    if not compress:
        return path.open("wb")
    return cast("IO[bytes]", igzip.open(path, "wb", compresslevel=DEFLATE_LEVEL))  # type: ignore[no-untyped-call]


def _texts(
    symbols: int, bots: int, shape: Shape, maker: _RecordMaker, rng: random.Random, *, indent: bool
) -> Iterator[str]:
    """Yield the file's text in pieces, one record at a time."""
    gap = "\n" if indent else ""
    meta = '{"engine": "sample", "note": "no record: its name begins with an underscore", "runs": [1, 2, {"deep": []}]}'
    opening, closing, separator = {
        "map": (f'{{{gap}"_meta": {meta}, "timestamp": "{_iso(0)}", "count": {symbols}', f"{gap}}}\n", ", "),
        "sections": (f'{{{gap}"_meta": {meta}, "predictions": {{', f"}}{gap}}}\n", ", "),
        "array": (f"[{gap}", f"{gap}]\n", ", "),
        "lines": ("", "\n", "\n"),
    }[shape]
    yield opening
    if shape == "map":
        yield f', {gap}"_bots": {_bots(bots, rng)}'
    keyed = shape in ("map", "sections")
    for number in range(symbols):
        lead = separator if number or shape == "map" else ""
        yield f"{lead}{gap if shape != 'lines' else ''}{maker.record(number, keyed=keyed)}"
    if shape == "sections":
        yield f'}}, "bots": {_bots(bots, rng)}, "_model": {{"name": "lstm", "layers": [64, 64]'
    yield closing


class _RecordMaker:
    """Assembles records from pools that are made once."""

    def __init__(self, points: int, rng: random.Random, *, indent: bool, lean: bool, nan: bool) -> None:
        self._rng = rng
        self._points = points
        self._features, self._curve, self._notes_traced = (16, 22, 1) if lean else (64, 120, 6)
        self._scenarios = ("base",) if lean else ("base", "bull", "bear")
        self._nan = nan
        self._break = "\n    " if indent else " "
        row_break = ",\n      " if indent else ", "
        pair_break = ",\n        " if indent else ", "
        self._row_break = row_break
        self._history = [
            "{"
            + pair_break.join(
                (
                    f'"t": "{_iso(60 * row)}"',
                    f'"open": {rng.uniform(5, 900):.4f}',
                    f'"close": {rng.uniform(5, 900):.4f}',
                    f'"volume": {rng.randrange(10**7)}',
                    f'"signal": {rng.uniform(-1, 1):.6f}',
                )
            )
            + "}"
            for row in range(POOL_ROWS)
        ]
        self._numbers = [f"{rng.gauss(0, 3):.6f}" for _ in range(POOL_ROWS)]
        self._notes = [json.dumps(f"{note} #{rng.randrange(10**6)}") for note in DEBUG_NOTES for _ in range(64)]

    def record(self, number: int, *, keyed: bool) -> str:
        rng, gap = self._rng, "," + self._break
        symbol = _symbol(number)
        last = rng.uniform(2, 900)
        features = gap.join(
            f'"f{i:02d}": {value}' for i, value in enumerate(self._slice(self._numbers, self._features))
        )
        curve = ", ".join(self._slice(self._numbers, self._curve))
        history = self._row_break.join(self._slice(self._history, self._points))
        scenarios = ", ".join(
            f'{{"name": "{name}", "path": [[{rng.random():.4f}, [{rng.random():.4f}]], {{"p": {rng.random():.4f}}}], '
            f'"legs": {{"a": {{"b": {{"c": [{number}]}}}}}}}}'
            for name in self._scenarios
        )
        members = gap.join(
            (
                f'"symbol": "{symbol}"',
                f'"prediction": {last * rng.uniform(0.9, 1.1):.4f}',
                f'"history": [{history}]',
                f'"confidence": {rng.random():.4f}',
                f'"features": {{{features}}}',
                f'"last_price": {last:.4f}',
                f'"sentiment": "{rng.choice(SENTIMENTS)}"',
                f'"debug": {rng.choice(self._notes)}',
                f'"trace": [{", ".join(rng.choices(self._notes, k=self._notes_traced))}]',
                f'"curves": {{"equity": [{curve}], "empty": [], "none": {{}}}}',
                f'"scenarios": [{scenarios}]',
                f'"target_price": {"NaN" if self._nan else format(last * 1.05, ".4f")}',
                f'"stop_loss": {"-Infinity" if self._nan else format(last * 0.95, ".4f")}',
                f'"timestamp": "{_iso(number % 3600)}"',
            )
        )
        body = f"{{{self._break}{members}}}" if self._break != " " else f"{{{members}}}"
        return f'"{symbol}": {body}' if keyed else body

    def _slice(self, pool: list[str], count: int) -> list[str]:
        """Return `count` consecutive texts of the pool from a random start, wrapping around at its end."""
        start = self._rng.randrange(len(pool))
        taken = pool[start : start + count]
        while len(taken) < count:
            taken += pool[: count - len(taken)]
        return taken


def _symbol(number: int) -> str:
    """A ticker of three letters or more, different for every number."""
    letters = ""
    number += 26 * 27
    while number >= 0:
        letters = chr(ord("A") + number % 26) + letters
        number = number // 26 - 1
    return letters


def _bots(count: int, rng: random.Random) -> str:
    """The `bots` section: positions as a list, as a map and as a bare number, some of them short."""
    section: dict[str, object] = {}
    for number in range(count):
        held = [
            {
                "symbol": _symbol(rng.randrange(40)),
                "quantity": rng.choice((-1, 1, 1, 1)) * rng.randrange(1, 500),
                "avg_price": round(rng.uniform(2, 900), 4),
                "opened": {"by": "signal", "orders": [rng.randrange(10**6)]},
            }
            for _ in range(rng.randrange(1, 9))
        ]
        by_symbol = {str(position["symbol"]): position for position in held}
        positions: object = (held, by_symbol, len(held))[number % 3]
        section[f"bot-{number:02d}"] = {
            "enabled": number % 4 != 3,
            "equity": round(rng.uniform(1e3, 1e5), 2),
            "pnl_today": round(rng.gauss(0, 400), 2),
            "positions": positions,
            "strategy": {"name": "momentum", "parameters": [rng.random() for _ in range(8)]},
            "last_updated": _iso(number),
        }
    return json.dumps(section)


def _iso(offset_s: int) -> str:
    """A timestamp of November 2026, `offset_s` seconds after a fixed start."""
    days, second = divmod(START_EPOCH_S % 86_400 + offset_s, 86_400)
    return f"2026-11-{1 + days % 28:02d}T{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}Z"
