"""A stand-alone app: the routes at the root, the dashboard at `/`, and a front that answers the busiest paths.

The front sends prepared responses, for a GET or HEAD of a path without a query, in a tenth of the time of routing;
FastAPI answers the rest. In `create_app` it is the innermost middleware, so it runs after those that are added to the
app; in the command it runs before FastAPI, which saves 3 us of 45 per request. An app that includes the router has no
front, which would bypass dependencies that the app may require of these routes (a login).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from typing import Final

from fastapi import APIRouter, FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from optimizer.config.settings import Settings
from optimizer.web.assets import load_assets
from optimizer.web.prepared import Prepared
from optimizer.web.problems import explain, problem
from optimizer.web.routes import router_of
from optimizer.web.service import Service
from optimizer.web.trigger import Trigger

__all__ = ["Front", "create_app", "create_app_of_many"]

SYMBOL_PREFIX: Final = "/predictions/"
HISTORY_SUFFIX: Final = "/history"
WHOLE: Final = {"/predictions": "predictions", "/bots": "bots", "/portfolio": "portfolio"}


class Front:
    """An ASGI middleware that sends prepared responses."""

    def __init__(self, app: ASGIApp, service: Service, assets: Mapping[str, Prepared]) -> None:
        self._app = app
        self._service = service
        self._assets = assets

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the prepared response for the path, or pass the request on."""
        if scope["type"] == "http" and scope["method"] in ("GET", "HEAD"):
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            # The query of the page's address is only read by its script, so the response is the same.
            response = self._assets.get(path) or (None if scope["query_string"] else self._find(path))
            if response is not None:
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _find(self, path: str) -> Prepared | None:
        pages = self._service.pages
        if pages is not None:
            kind = WHOLE.get(path)
            if kind is not None:
                return pages.whole(kind)
            # Only the undecoded path shows whether it is the history of a symbol.
            if path.startswith(SYMBOL_PREFIX) and not path.endswith(HISTORY_SUFFIX):
                return pages.symbol(path[len(SYMBOL_PREFIX) :])
            if path == "/page":
                return pages.whole_page
            if path == "/snapshot" and pages.whole_version is not None:
                return pages.whole_version
        return None


def create_app(
    settings: Settings | None = None, *, trigger: Trigger | None = None, sources: Sequence[str] = ()
) -> FastAPI:
    """Make the app of one source.

    Args:
        settings: The settings; by default `ROLLING_*` of the environment, read when the app starts, or in this call if
            there is a trigger.
        trigger: Sends runs to the fleet; used only if the settings have a `trigger_token`.
        sources: The names of all sources that are served at `/sources/NAME/`, this one included.
    """
    return _with_front(Service(settings), trigger, sources)


def _with_front(
    service: Service, trigger: Trigger | None, sources: Sequence[str], services: Sequence[Service] = ()
) -> FastAPI:
    app = _make_app(service, trigger, sources, services)
    app.add_middleware(Front, service=service, assets=load_assets())
    return app


def _make_app(
    service: Service, trigger: Trigger | None, sources: Sequence[str], services: Sequence[Service]
) -> FastAPI:
    # No /docs: FastAPI's page loads its scripts from another host. No redirects of slashes: they lead to the host in
    # the client's request.
    app = FastAPI(
        title="Rolling Optimizer",
        summary="Small, fresh snapshots from one big rolling file.",
        version=version("rolling-optimizer"),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.include_router(router_of(service, trigger, sources, services))
    app.add_exception_handler(HTTPException, _explain)
    app.add_exception_handler(Exception, _explain)
    return app


def create_app_of_many(every: Sequence[Settings], *, trigger: Trigger | None = None) -> Front:
    """Make the app that `rolling-optimizer web` serves: the first source at the root, and each at `/sources/NAME/`.

    Args:
        every: The settings of each source.
        trigger: Sends runs to the fleet.
    """
    names = [settings.source for settings in every]
    services = list(map(Service, every))
    first = _make_app(services[0], trigger, names, services)
    others = {service.settings.source: _with_front(service, trigger, names, services) for service in services[1:]}

    @asynccontextmanager
    async def follow_all(_app: FastAPI) -> AsyncIterator[None]:
        """Start and stop the other apps: the server does so only for the first."""
        async with AsyncExitStack() as stack:
            for app in others.values():
                await stack.enter_async_context(app.router.lifespan_context(app))
            yield

    first.include_router(APIRouter(lifespan=follow_all))
    front = Front(first, services[0], load_assets())
    mounted: dict[str, ASGIApp] = {names[0]: front, **others}
    for name, app in mounted.items():
        first.mount(f"/sources/{name}", app)
    return front


async def _explain(_request: Request, error: Exception) -> Response:
    # Other errors are bugs: the log has the traceback, and clients get no details.
    return explain(error) or problem(500, "an error of the server; its log says which")
