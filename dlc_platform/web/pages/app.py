"""The lab's pages as one application, behind the gate: `dlc-platform serve` runs it."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn
from sqlalchemy.exc import DBAPIError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from dlc_platform.errors import MachineFault, PlatformError
from dlc_platform.orchestration import web_access
from dlc_platform.version import __version__
from dlc_platform.web.gate import HEALTH, Gate, Rules, host_of
from dlc_platform.web.pages import data, session, sessions
from dlc_platform.web.pages.data import registered_file
from dlc_platform.web.pages.documentation import documentation
from dlc_platform.web.pages.lab import PagesLab
from dlc_platform.web.pages.look import HERE, unable
from dlc_platform.web.pages.previews import Previews


def pages(lab: PagesLab) -> Starlette:
    """The pages of a lab, for whoever is let in."""
    app = Starlette(
        routes=[
            Route(HEALTH, lambda _: JSONResponse({"dlc_platform_version": __version__})),
            *sessions.routes,
            *session.routes,
            *data.routes,
            documentation(),
            Mount("/static", StaticFiles(directory=HERE / "static")),
        ],
        exception_handlers={
            PlatformError: _told,
            DBAPIError: _database_away,
            HTTPException: _unknown,
            Exception: _broken,
        },
        lifespan=_lifespan,
    )
    app.state.lab = lab
    app.state.previews = Previews(lab, registered_file)
    return app


@asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    yield
    await run_in_threadpool(app.state.lab.close)


def serve(home: Path, port: int, read_only: bool, dagster_url: str | None = None) -> None:
    """Serve the pages on 127.0.0.1 until the process is told to end.

    Raises
    ------
    PlatformError
        When the token can be neither read nor made.
    """
    rules = Rules(web_access.token_of(home, read_only), frozenset(map(host_of, web_access.hosts())), read_only)
    app = Gate(pages(PagesLab(home, read_only, dagster_url)), rules)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", server_header=False, access_log=False)


def _told(request: Request, error: Exception) -> Response:
    assert isinstance(error, PlatformError)
    status = 503 if isinstance(error, MachineFault) else 404
    if request.url.path.startswith(("/videos/", "/poses/", "/pictures/")) or request.url.path.endswith(".json"):
        return JSONResponse({"problem": error.problem, "remedy": error.remedy}, status)
    return unable(request, error, status)


def _database_away(request: Request, error: Exception) -> Response:
    logging.getLogger(__name__).warning("The database does not answer: %s", error)
    told = MachineFault("the lab's database does not answer", "Wait a minute and load this page again")
    return _told(request, told)


def _unknown(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return unable(
        request, PlatformError("there is no such page", "Go on from one of the pages above"), error.status_code
    )


def _broken(request: Request, error: Exception) -> Response:
    logging.getLogger(__name__).error("%s could not be drawn", request.url.path, exc_info=error)
    told = PlatformError("this page cannot be drawn", "The log of the page server says why")
    return unable(request, told, 500)
