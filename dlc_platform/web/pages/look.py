"""The drawing of pages: templates, figures and times in words, and the page for what cannot be had.

What a page shows is decided in its own module.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse

from dlc_platform.errors import PlatformError
from dlc_platform.identity import short
from dlc_platform.text.words import counted, lasting, rounded, sized
from dlc_platform.version import __version__

HERE = Path(__file__).parent
#: Scripts, styles, pictures and data of this server, and nothing of any other; no script in a page itself.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'"
)
#: What people are told of the state of a session.
STATE_WORDS = {"good": "good", "to_look_at": "to look at", "failed": "failed", "waiting": "waiting"}

_templates = Environment(loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined)


def page(request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """A page from a template, which sees the values, the request and the lab."""
    lab = request.app.state.lab
    text = _templates.get_template(template).render(
        request=request, lab=lab, version=__version__, now=datetime.now().astimezone(), **values
    )
    return HTMLResponse(text, status, {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"})


def unable(request: Request, error: PlatformError, status: int = 404) -> HTMLResponse:
    """The page of what a person asked for and cannot have: what is wrong, and what to do."""
    return page(request, "unable.html", status, problem=error.problem, remedy=error.remedy)


def with_query(request: Request, **changes: str | None) -> str:
    """The address of this page with other filters; None takes one away, and any change begins at the first page."""
    query: dict[str, str] = {name: value for name, value in request.query_params.items() if name != "before"}
    for name, value in changes.items():
        if value is None:
            query.pop(name, None)
        else:
            query[name] = value
    return request.url.path + (f"?{urlencode(query)}" if query else "")


def moment(when: datetime | None) -> str:
    """A time as the lab's own clock shows it, with the date where it is not today."""
    if when is None:
        return "unknown"
    own = when.astimezone()
    today = datetime.now().astimezone().date()
    clock = f"{own:%H:%M}"
    if own.date() == today:
        return f"today, {clock}"
    if own.date() == today - timedelta(days=1):
        return f"yesterday, {clock}"
    return f"{own.day} {own:%b %Y}, {clock}"


def percent(fraction: float | None) -> str:
    """A fraction as a percentage; "unknown" if it is not known."""
    return "unknown" if fraction is None or fraction != fraction else f"{100 * fraction:.0f} %"


def _known(row: Mapping[str, Any], name: str) -> bool:
    value = row.get(name)
    return value is not None and value == value


_templates.filters |= {
    "counted": counted,
    "lasting": lambda seconds: "unknown" if seconds is None else lasting(seconds / 3600),
    "moment": moment,
    "percent": percent,
    "rounded": lambda value: "unknown" if value is None or value != value else rounded(value),
    "short": short,
    "sized": sized,
    "state_words": STATE_WORDS.__getitem__,
}
_templates.globals["with_query"] = with_query
_templates.tests["known"] = _known
