"""The snapshots over HTTP: a router that a backend includes in one line, and a stand-alone app with a dashboard.

    import optimizer.web

    app.include_router(optimizer.web.router, prefix="/api")

It needs the extra `web`. The router follows the source of the `ROLLING_*` variables from the start of the app on.
`make_router` accepts other settings, an existing reader of the app, and a trigger; `make_routers` makes two routers, so
that probes and metrics can be included separately. For browsers of another origin:

    app.add_middleware(
        CORSMiddleware,
        allow_origins=["https://shop.example"],
        allow_headers=["If-None-Match"],
        expose_headers=optimizer.web.EXPOSED_HEADERS,
    )
"""

from __future__ import annotations

from typing import Final

from optimizer.errors import require

require("optimizer.web", "web", "fastapi")  # before any module of this package imports it

from fastapi import APIRouter

from optimizer.models import RunState
from optimizer.web.app import create_app
from optimizer.web.describe import EXPOSED_HEADERS
from optimizer.web.routes import Routers, make_router, make_routers
from optimizer.web.trigger import Trigger

__all__ = ["EXPOSED_HEADERS", "Routers", "RunState", "Trigger", "create_app", "make_router", "make_routers", "router"]

router: Final[APIRouter] = make_router()
