"""The app under uvicorn, in this process."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from optimizer.errors import require

require("optimizer.web.serve", "web", "uvicorn", "httptools")

import uvicorn

from optimizer.config.settings import Settings
from optimizer.web.app import create_app_of_many
from optimizer.web.protocol import LimitedProtocol
from optimizer.web.trigger import Trigger

__all__ = ["serve"]

# The time for responses that have begun; the hub ends the event streams.
SHUTDOWN_S: Final = 5
BACKLOG: Final = 2_048
CHECK_S: Final = 1
TICKS_A_SECOND: Final = 10  # uvicorn's


class _Server(uvicorn.Server):
    """A server whose process exits normally on a signal, and which closes connections that keep it waiting."""

    async def on_tick(self, counter: int) -> bool:
        """Check all connections about once a second: a timer for each would cost each request two calls."""
        if counter % (CHECK_S * TICKS_A_SECOND) == 0:
            for connection in list(self.server_state.connections):
                if isinstance(connection, LimitedProtocol):
                    connection.check(CHECK_S)
        return await super().on_tick(counter)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on SIGINT and SIGTERM; uvicorn would then raise the signal again, and the process would end by it."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def serve(
    every: Sequence[Settings], *, host: str, port: int, trigger: Trigger | None = None, started: Callable[[str], None]
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        every: The settings of each source.
        host: The address to listen on.
        port: The port; 0 for any free port.
        trigger: Sends runs to the fleet.
        started: Called with the URL, before the first request is accepted.

    Raises:
        OSError: The address cannot be used.
    """
    config = uvicorn.Config(
        create_app_of_many(every, trigger=trigger),
        http=LimitedProtocol,
        ws="none",
        log_config=None,  # keep the process's logging
        log_level="warning",
        access_log=False,  # logging a request would cost more than answering it
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
            runner.run(_Server(config).serve(sockets=[listener]))
