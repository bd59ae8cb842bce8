"""A user's program, as `mypy --strict` sees it beside the installed wheel: one function for each part of the interface.

`assert_type` also fails if a value is `Any`. Nothing here may need a comment that silences the checker.
"""

from __future__ import annotations

import os
from typing import Literal, assert_type

from fastapi import FastAPI

import optimizer.web
from optimizer import (
    Answer,
    AsyncSnapshotReader,
    BotSummary,
    Holding,
    Record,
    Report,
    RollingError,
    Settings,
    Snapshot,
    SnapshotMissing,
    SnapshotReader,
    State,
    errors,
    optimize,
)
from optimizer.models import BotsSnapshot, PortfolioSnapshot, PredictionsSnapshot, Rejected


def read() -> str:
    """Read with the threaded reader."""
    reader = SnapshotReader.from_env()
    try:
        page = reader.predictions()
    except SnapshotMissing as error:
        return str(error)
    assert_type(page, Snapshot[PredictionsSnapshot])
    assert_type(page.gz, bytes)
    assert_type(page.rejected, Rejected | None)
    assert_type(reader.bots(), Snapshot[BotsSnapshot])
    assert_type(reader.bots().value.bots["b1"], BotSummary)
    assert_type(reader.portfolio(), Snapshot[PortfolioSnapshot])
    assert_type(reader.portfolio().value.holdings, list[Holding])
    assert_type(reader.manifest(), State)
    assert_type(reader.symbol("AAPL"), Answer[Record | None])
    assert_type(reader.top(10, 300).value, list[Record])
    assert_type(reader.runs(5, status="success"), list[Report])
    reader.close()
    return f"{page.version} {page.origin} {page.age_s + 1.0} {not page.stale} {page.etag}"


async def read_in_a_loop() -> list[Record]:
    """Read with the asyncio reader."""
    async with AsyncSnapshotReader.from_settings(Settings()) as reader:
        assert_type(await reader.predictions(), Snapshot[PredictionsSnapshot])
        assert_type(await reader.bots(), Snapshot[BotsSnapshot])
        assert_type(await reader.portfolio(), Snapshot[PortfolioSnapshot])
        assert_type((await reader.symbol("AAPL")).value, Record | None)
        assert_type(await reader.runs(), list[Report])
        return (await reader.top(3)).value


def use_fields(record: Record, bot: BotSummary, holding: Holding) -> None:
    """Use what pages show: each field has its own type."""
    assert_type(record.symbol, str)
    assert_type(record.prediction, float)
    assert_type(record.confidence, float)
    assert_type(record.last_price, float)
    assert_type(record.sentiment, str)
    assert_type(record.target_price, float | None)
    assert_type(record.stop_loss, float | None)
    assert_type(record.timestamp, str | int | float | None)
    assert_type(bot.equity, float | None)
    assert_type(bot.positions, int)
    assert_type(holding.qty, float)


def serve() -> FastAPI:
    """Include the router in an app."""
    settings = Settings.from_env(os.environ)
    app = FastAPI()
    app.include_router(optimizer.web.make_router(settings), prefix="/api")
    app.include_router(optimizer.web.router)
    app.mount("/rolling", optimizer.web.create_app(settings))
    return app


class Sender:
    """A trigger of the user's own."""

    def send(self, *, force: bool, accept: bool, source: str) -> str:
        """Send a run."""
        return f"{source} {force} {accept}"

    def state(self, run_id: str) -> optimizer.web.RunState:
        """Return the state of a run."""
        return optimizer.web.RunState(run_id, "pending")


def serve_with_a_trigger() -> FastAPI:
    """Serve with a trigger that fits the protocol, which needs no base class."""
    trigger: optimizer.web.Trigger = Sender()
    return optimizer.web.create_app(Settings(trigger_token="a token"), trigger=trigger, sources=["brain"])


def run() -> int:
    """Do a run, and handle its errors."""
    try:
        report = optimize(Settings.from_env({"ROLLING_INPUT": "brain.json.gz"}), force=True, use_cache=False)
    except (errors.SourceMissing, errors.TooManyRejected) as error:
        print(error)
        return 1
    except RollingError:
        raise
    assert_type(report, Report)
    assert_type(report.status, Literal["success", "unchanged", "skipped", "failed"])
    return report.stats.records_seen if report.stats is not None else 0
