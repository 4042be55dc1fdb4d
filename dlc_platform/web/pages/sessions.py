"""The list of sessions, with pictures: whose they are, where they stand, and how good their poses are."""

import json
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route

from dlc_platform.catalog.gallery import STATES, Wanted, session_cards
from dlc_platform.errors import PlatformError
from dlc_platform.pose.findings import Finding
from dlc_platform.web.pages.look import page

#: Sessions on one page.
_MOST = 24
_FILTERS = ("state", "subject", "camera", "model", "day", "search")


def sessions(request: Request) -> HTMLResponse:
    lab = request.app.state.lab
    wanted = _wanted(request)
    found = session_cards.rows(lab.engine, wanted, _MOST + 1)
    cards = [{**row, "says": _says(row)} for row in found[:_MOST]]
    more = None
    if len(found) > _MOST:
        last = cards[-1]
        query = {name: value for name in _FILTERS if (value := request.query_params.get(name))}
        more = f"{request.url.path}?" + urlencode(
            {**query, "before": json.dumps([last["registered_at"].isoformat(), last["session"]])}
        )
    return page(
        request,
        "cards.html" if "HX-Request" in request.headers else "sessions.html",
        cards=cards,
        more=more,
        counts=lab.counts(),
        choices=lab.choices(),
        wanted=wanted,
        states=STATES,
        filtered=any(getattr(wanted, name) for name in _FILTERS),
    )


def _wanted(request: Request) -> Wanted:
    given: dict[str, Any] = {name: request.query_params.get(name) or None for name in _FILTERS}
    if given["state"] not in (None, *STATES):
        raise PlatformError(f"there is no state {given['state']!r}", f"Choose among {', '.join(STATES)}")
    if given["day"] is not None:
        try:
            datetime.strptime(given["day"], "%Y-%m-%d")
        except ValueError:
            raise PlatformError(f"{given['day']!r} is no day", "Write it as 2026-11-30") from None
    if (before := request.query_params.get("before")) is not None:
        try:
            when, key = json.loads(before)
            given["before"] = (datetime.fromisoformat(when).isoformat(), str(key))
        except (ValueError, TypeError):
            raise PlatformError("this address does not say where to go on", "Begin at the first page") from None
    return Wanted(**given)


def _says(row: Any) -> str:
    """The reason why a session is not good, in the words of the check that found it; empty if there is none."""
    if row["reason"] is not None:
        return str(row["reason"])
    findings = [Finding(**finding) for finding in row["findings"] or ()]
    return str(min(findings, key=lambda found: found.level != "fail")) if findings else ""


def counts(request: Request) -> HTMLResponse:
    """The numbers above the list alone, for a page that stays open."""
    return page(request, "counts.html", counts=request.app.state.lab.counts())


routes = [Route("/sessions/counts", counts), Route("/", sessions), Route("/sessions", sessions)]
