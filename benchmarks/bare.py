"""The limit for the web: a bare Starlette endpoint that returns the same bytes from memory, under the same server."""

from __future__ import annotations

import sys
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

__all__ = ["main"]


def main(directory: Path, port: int) -> None:
    """Serve each file of a directory under its name; a name that ends in `.304` is answered by that status."""
    bodies = {path.name: path.read_bytes() for path in directory.iterdir()}

    def route(name: str, body: bytes) -> Route:
        status = 304 if name.endswith(".304") else 200
        headers = {"etag": '"bare"', "content-encoding": "gzip"} if name.endswith((".gz", ".304")) else {}

        async def endpoint(_request: Request) -> Response:
            return Response(body, status, headers, "application/json")

        return Route(f"/{name}", endpoint)

    app = Starlette(routes=[route(name, body) for name, body in bodies.items()])
    uvicorn.run(app, port=port, log_level="warning", access_log=False, server_header=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
