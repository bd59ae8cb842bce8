"""A fixture that starts services of real processes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.reliability.chaos.figures import Figures
from tests.reliability.chaos.service import Service, Start
from tests.support.redis_servers import RedisServer


@pytest.fixture
def start(tmp_path: Path, own_redis: RedisServer, rng: random.Random, figures: Figures) -> Iterator[Start]:
    """A function that starts a service; all of it is stopped when the test ends."""
    services: list[Service] = []

    def start_service(*, beats: int = 2, **options: Any) -> Service:
        service = Service(tmp_path, own_redis, rng, figures, **options)
        services.append(service)
        service.__enter__()
        service.start(beats=beats)
        return service

    yield start_service
    for service in services:
        service.__exit__()
