"""The app under uvicorn, in this process."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import uvicorn

from optimizer.settings import Settings
from optimizer.web.app import app_of
from optimizer.web.service import Service
from optimizer.web.trigger import Trigger

__all__ = ["serve"]

# For answers that are on their way; streams are ended before.
SHUTDOWN_S: Final = 5
BACKLOG: Final = 2_048


class _Server(uvicorn.Server):
    """A server that ends the streams of events when it is told to stop, since it would wait for them."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop in order on SIGINT and SIGTERM; uvicorn's own way would then end the process by that signal."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the streams, then do as uvicorn does."""
        self._service.hub.close()
        await super().shutdown(sockets)


def serve(
    settings: Settings, *, host: str, port: int, trigger: Trigger | None = None, started: Callable[[str], None]
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        settings: Where things are.
        host: The address to listen on.
        port: The port; 0 for one that is free.
        trigger: What sends runs to the fleet.
        started: Called with the URL, before the first request is taken.

    Raises:
        OSError: The address cannot be used.
    """
    service = Service(settings, trigger)
    config = uvicorn.Config(
        app_of(service),
        log_level="warning",
        access_log=False,  # a line a request would cost more than the request
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_S,
        lifespan="on",
    )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
        shown = f"[{host}]" if family == socket.AF_INET6 else host
        started(f"http://{shown}:{listener.getsockname()[1]}/")
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            runner.run(_Server(config, service).serve(sockets=[listener]))
