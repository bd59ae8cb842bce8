"""Fixtures: the broker that teams use in place of Redis, and a directory of a team."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from optimizer.config.settings import Settings
from tests.support.rabbitmq import RabbitServer, rabbitmq_executable
from tests.support.rolling_files import a_record, write_json
from tests.support.team import Team


@pytest.fixture(scope="session")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer]:
    """A RabbitMQ that is up. Without one, tests are skipped on a laptop and fail in CI, which has to have it."""
    try:
        rabbitmq_executable()
    except FileNotFoundError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    server = RabbitServer(tmp_path_factory.mktemp("rabbitmq") / "server")
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def team(tmp_path: Path, settings: Settings) -> Iterator[Team]:
    """A team's directory, without files, and an input of two records."""
    write_json(settings.input, {"AAPL": a_record(), "MSFT": a_record(confidence=0.9)})
    directory = tmp_path / "team"
    directory.mkdir()
    with Team(directory, replace(settings, interval_s=1)) as team:
        yield team
