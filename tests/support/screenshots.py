"""Make the screenshots of the dashboard for the pages in `docs/`: `python -m tests.support.screenshots`.

They show a day's work on a small scale: an engine that rewrites its file, runs that publish it, a run that failed, and
an API that serves the result. The font that the page prefers is required: `apt-get install fonts-inter`.
"""

from __future__ import annotations

import io
import random
import subprocess
import tempfile
from contextlib import chdir, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from PIL import Image
from playwright.sync_api import expect

from optimizer.config.settings import Settings
from optimizer.errors import SourceMalformed
from optimizer.pipeline.run import optimize
from tests.support.browser import TOKEN, Watched, Web, chromium
from tests.support.redis_servers import RedisServer
from tests.support.rolling_files import write_json, write_raw

DOCS: Final = Path(__file__).parents[2] / "docs"
RUNS: Final = 72
SYMBOLS: Final = 900
# fmt: off
TICKERS: Final = [
    "AAPL", "MSFT", "NVDA", "AMZN", "GOOGL", "META", "TSLA", "AVGO", "BRK.B", "JPM", "LLY", "UNH",
    "XOM", "MA", "COST", "HD", "PG", "NFLX", "JNJ", "ABBV", "BAC", "CRM", "ORCL", "MRK",
    "CVX", "AMD", "PEP", "LIN", "WMT", "ADBE", "ACN", "TMO", "MCD", "CSCO",
]
BOTS: Final = [
    "momentum-us", "mean-revert", "pairs-tech", "breakout-eu", "carry-fx", "vol-short",
    "grid-btc", "trend-us", "stat-arb", "news-nlp", "gap-fade", "rotation",
]
# fmt: on
# Name of the picture: address in the page, width, height, pixels per point, color scheme, whole page or not.
SHOTS: Final = {
    "dashboard-light": ("", 1440, 1000, 1, "light", True),
    "dashboard-dark": ("", 1440, 1000, 1, "dark", False),
    "dashboard-phone": ("", 375, 812, 2, "light", False),
    "dashboard-symbol": ("#/symbol/AAPL", 1440, 560, 1, "light", False),
}
MAX_BYTES: Final = 300_000


def main() -> None:
    """Make all screenshots in `docs/`."""
    found = subprocess.run(["fc-match", "Inter"], capture_output=True, text=True, check=True).stdout
    assert '"Inter"' in found, f"no font Inter but {found}"
    with tempfile.TemporaryDirectory() as name, chdir(name):  # so that the pictures show no path of this machine
        directory = Path()
        server = RedisServer(directory / "redis")
        server.start()
        try:
            settings = Settings(input=Path("data/rolling_brain.json.gz"), output_dir=Path("data"), redis_url=server.url)
            _work(settings)
            variables = {"ROLLING_TRIGGER_TOKEN": TOKEN, "ROLLING_FLOWER_URL": "http://127.0.0.1:5555/"}
            with Web(directory, settings, **variables) as web:
                _shoot(web.url)
        finally:
            server.kill()


def _work(settings: Settings) -> None:
    """Do some runs: most publish, some find nothing new, one fails."""
    engine = _Engine()
    for number in range(RUNS):
        if number % 7 != 3:
            write_json(settings.input, engine.tick())
        if number == RUNS - 17:
            write_raw(settings.input, b'{"AAPL": {"confidence": 0.97, "prediction": 2e}}')
        with suppress(SourceMalformed):
            optimize(settings)
    write_json(settings.input, engine.tick())
    optimize(replace(settings, interval_s=30.0))


def _shoot(url: str) -> None:
    with chromium() as browser:
        for name, (address, width, height, density, scheme, whole) in SHOTS.items():
            watched = Watched(
                browser,
                url + address,
                viewport={"width": width, "height": height},
                device_scale_factor=density,
                color_scheme=scheme,
                reduced_motion="reduce",
            )
            page = watched.open()
            expect(page.locator("#predictions")).to_have_attribute("aria-rowcount", "301")
            expect(page.locator("#errors pre")).to_have_count(1)
            expect(page.locator("#connection-text")).to_have_text("Connected")
            expect(page.locator("#changes-position")).to_have_text("1 of 50")
            if address:
                expect(page.locator("#symbol-charts svg")).to_have_count(2)
            path = DOCS / f"{name}.png"
            with Image.open(io.BytesIO(page.screenshot(full_page=whole))) as picture:
                # With 256 colors a file has a third of the bytes, without a visible difference.
                picture.convert("RGB").quantize(256, kmeans=1, dither=Image.Dither.NONE).save(path, optimize=True)
            watched.close()
            size = path.stat().st_size
            print(f"{path}: {size / 1000:.0f} KB")
            assert size < MAX_BYTES
            assert watched.complaints == []


class _Engine:
    """A prediction engine with state: prices change by small random steps, and predictions follow from them."""

    def __init__(self) -> None:
        self._rng = random.Random(7)
        others = ("".join(self._rng.choices("ABCDEFGHIKLMNOPRSTUVWXYZ", k=4)) for _ in iter(int, 1))
        self._prices = {name: self._rng.uniform(20, 700) for name in TICKERS}
        while len(self._prices) < SYMBOLS:
            self._prices.setdefault(next(others), self._rng.uniform(5, 300))
        self._equity = {name: self._rng.uniform(2e4, 3e5) for name in BOTS}
        self._pnl = {name: self._rng.gauss(400, 1_100) for name in BOTS}
        self._held = {name: self._rng.sample(TICKERS, self._rng.randrange(1, 7)) for name in BOTS}

    def tick(self) -> dict[str, Any]:
        """Return the next content of the file."""
        records = {name: self._record(name, rank) for rank, name in enumerate(self._prices)}
        for name in self._rng.sample(sorted(self._prices)[200:], self._rng.randrange(1, 9)):
            records[name]["confidence"] = 1.4
        return {"predictions": records, "bots": {name: self._bot(name, number) for number, name in enumerate(BOTS)}}

    def _record(self, name: str, rank: int) -> dict[str, Any]:
        rng = self._rng
        self._prices[name] *= 1 + rng.gauss(0, 0.002)
        last = self._prices[name]
        move = rng.gauss(0, 0.02)
        return {
            "prediction": round(last * (1 + move), 4),
            "confidence": round(max(0.05, 0.995 - rank * 0.0012 - rng.random() * 0.05), 4),
            "last_price": round(last, 4),
            "sentiment": "bullish" if move > 0.006 else "bearish" if move < -0.006 else "neutral",
            "target_price": round(last * (1 + 2 * move), 2),
            "stop_loss": round(last * (1 - move), 2),
            "timestamp": _ago(rng.randrange(30)),
            "history": [{"close": round(last, 2)} for _ in range(40)],
        }

    def _bot(self, name: str, number: int) -> dict[str, Any]:
        self._pnl[name] += self._rng.gauss(0, 20)
        return {
            "enabled": number % 6 != 4,
            "equity": round(self._equity[name] + self._pnl[name], 2),
            "pnl_today": round(self._pnl[name], 2),
            "positions": [
                {
                    "symbol": symbol,
                    "qty": -60 if number == 5 else 10 * (1 + number),
                    "avg": round(self._prices[symbol], 2),
                }
                for symbol in self._held[name]
            ],
            "last_updated": _ago(self._rng.randrange(60)),
        }


def _ago(seconds: int) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


if __name__ == "__main__":
    main()
