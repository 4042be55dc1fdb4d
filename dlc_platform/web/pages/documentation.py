"""The documentation of the installed version, so that a lab without internet reads that of what it runs."""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

import dlc_platform.docs
from dlc_platform.errors import PlatformError
from dlc_platform.web.pages.look import unable

_SITE = Path(dlc_platform.docs.__file__).parent / "site"


def documentation() -> BaseRoute:
    """The site below /docs; of a working copy, what to do to have it."""
    return Mount("/docs", StaticFiles(directory=_SITE, html=True) if _SITE.is_dir() else _not_built())


def _not_built() -> ASGIApp:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        told = PlatformError(
            "this is a working copy, whose documentation is not built",
            "`uv run mkdocs serve --config-file dlc_platform/docs/mkdocs.yml` shows it; a wheel brings it along",
        )
        response: Response = unable(Request(scope), told)
        await response(scope, receive, send)

    return answer
