"""The gate before every page: who may ask a web server of the lab, from where, and in which way.

It is an ASGI application around another one. It knows nothing about that one, except which of Dagster's addresses
change anything. It refuses

* names that are not the lab's own, so that no other site gives itself the lab's address (DNS rebinding);
* pages of other origins, for each method and for WebSockets;
* requests without the token: from other accounts of the machine, and from programs that are not the lab's;
* changes by anything but a POST of JSON, which no foreign page can send unasked;
* every change, if the server is read-only.
"""

import hmac
import html
import ipaddress
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from graphql import DocumentNode, GraphQLError, OperationDefinitionNode, OperationType, parse
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dlc_platform.orchestration.web_access import TOKEN_PARAMETER

#: The address that tells that the server is alive, and its versions; programs that watch it ask without a token.
HEALTH = "/server_info"

#: The form of a browser's Host: no account, no path, and a port of digits.
_HOST = re.compile(r"([\w.-]+|\[[0-9a-fA-F:.]+\])(:\d+)?", re.A)
_LOCAL = frozenset({"127.0.0.1", "localhost", "[::1]"})
_JSON = "application/json"
_GRAPHQL = "/graphql"
#: The longest time for which browsers keep a cookie.
_COOKIE_SECONDS = 400 * 24 * 3600
#: Headers of each answer: no foreign page can frame or embed ours, or learn the address that a person came from.
_SECURITY_HEADERS = {
    "X-Frame-Options": "SAMEORIGIN",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_FRAMES = "frame-ancestors 'self'"
#: A page of our own without any other resource.
_BARE_PAGE = {"Content-Security-Policy": f"default-src 'none'; {_FRAMES}", "Cache-Control": "no-store"}


@dataclass(frozen=True)
class Rules:
    """The rules of admission.

    Parameters
    ----------
    token
        A request that carries it is let in.
    hosts
        Names under which the lab answers, besides the local names of this machine; as `host_of` gives them.
    read_only
        True to refuse every change.
    """

    token: str
    hosts: frozenset[str] = frozenset()
    read_only: bool = False

    @property
    def cookie(self) -> str:
        """The name of the cookie. Browsers share cookies between ports, so each token has a name of its own."""
        return f"dlc_platform_{sha256(self.token.encode()).hexdigest()[:12]}"


def host_of(name: str) -> str:
    """The host in a name as lab.yaml, an environment variable or a browser writes it, without scheme and port.

    Raises
    ------
    ValueError
        When the name holds no host.
    """
    host = urlsplit(name if "://" in name else f"//{name}").hostname
    if not host:
        raise ValueError(f"{name!r} names no host")
    return f"[{host}]" if ":" in host else host


class Gate:
    """The application behind the gate, for requests that the rules admit."""

    def __init__(self, app: ASGIApp, rules: Rules):
        self._app = app
        self._rules = rules
        self._hosts = _LOCAL | rules.hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            headers = Headers(scope=scope)
            if self._foreign(scope, headers) or not self._is_known(headers):
                # Closed before it is accepted, so that the browser gets the status 403.
                await send({"type": "websocket.close", "code": 1008})
            else:
                await self._app(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        answer = self._refusal(scope, headers)
        if answer is None and scope["method"] == "POST" and self._rules.read_only:
            body = await _read(receive)
            answer = _refusal_to_change(scope, body)
            receive = _again(body, receive)
        send = _with_security_headers(send)
        await (answer or self._app)(scope, receive, send)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        if reason := self._foreign(scope, headers):
            return _refused(reason)
        if scope["path"] == HEALTH and scope["method"] in ("GET", "HEAD"):
            return None
        address, tokens = _without_token(scope)
        if scope["method"] == "GET" and any(self._is_token(token) for token in tokens):
            return self._introduction(scope, address)
        if not self._is_known(headers):
            return _way_in(scope, headers, address, wrong=bool(tokens))
        return _refusal_of_the_way(scope, headers)

    def _foreign(self, scope: Scope, headers: Headers) -> str | None:
        """The reason why a request comes from another site; None if it does not."""
        host = _only(headers, "host")
        if host is None or not _HOST.fullmatch(host):
            return "the request does not say which host it is for"
        name = host_of(host)
        # A program that watches a container or a pod uses its address, which no site can give itself.
        if name not in self._hosts and not (scope["path"] == HEALTH and _is_address(name)):
            return (
                f"this lab does not answer under the name {name}; if it should, add it to web.hosts in lab.yaml, or to "
                "DLC_PLATFORM_WEB_HOSTS if that is set"
            )
        if "origin" in headers and not _is_origin(_only(headers, "origin"), host):
            return "the request comes from a page of another site"
        sites = set(headers.getlist("sec-fetch-site"))
        # A link that a person follows from elsewhere gets here; requests that a page makes by itself do not.
        is_link = (
            scope["type"] == "http"
            and scope["method"] == "GET"
            and _only(headers, "sec-fetch-mode") == "navigate"
            and _only(headers, "sec-fetch-dest") == "document"
        )
        if sites - {"none", "same-origin"} and not is_link:
            return "the request comes from a page of another site"
        return None

    def _is_known(self, headers: Headers) -> bool:
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self._is_token(token.strip()):
            return True
        return any(self._is_token(value) for name, value in _cookies(headers) if name == self._rules.cookie)

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._rules.token.encode())

    def _introduction(self, scope: Scope, address: str) -> Response:
        """The cookie for a browser that came with the token, and a redirect to the address without it."""
        answer = RedirectResponse(address, 303, {"Cache-Control": "no-store"})
        answer.set_cookie(
            self._rules.cookie,
            self._rules.token,
            max_age=_COOKIE_SECONDS,
            secure=scope["scheme"] == "https",
            httponly=True,
            samesite="strict",
        )
        return answer


_PAGE = '<!doctype html><meta charset="utf-8"><title>dlc_platform</title>{head}'
_HOW = (
    "<h1>Open this lab by the address that carries its token</h1>"
    "<p><code>dlc-platform up</code> printed it, and <code>dlc-platform ui HOME</code> prints it again. "
    "From then on this browser is known here, and addresses without the token work, too.</p>"
    '<p>If it is known already, <a href="{again}">open this page once more</a>.</p>'
)


def _without_token(scope: Scope) -> tuple[str, list[str]]:
    """The address of a request without its tokens, and the tokens."""
    parameters = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    rest = urlencode([one for one in parameters if one[0] != TOKEN_PARAMETER])
    # Two slashes at the beginning would name another host.
    path = quote("/" + scope["path"].lstrip("/"))
    return path + (f"?{rest}" if rest else ""), [value for name, value in parameters if name == TOKEN_PARAMETER]


def _way_in(scope: Scope, headers: Headers, address: str, wrong: bool) -> Response:
    """The answer to an unknown visitor: the way to get in; `wrong` if a token was given."""
    if scope["method"] != "GET" or "text/html" not in headers.get("accept", ""):
        return PlainTextResponse(
            "Refused: this lab needs its token, which is in the address that `dlc-platform up` prints.\n",
            401,
            {"WWW-Authenticate": "Bearer", "Cache-Control": "no-store"},
        )
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        # A link from elsewhere sends no cookie. A page that reloads itself does.
        return HTMLResponse(_PAGE.format(head='<meta http-equiv="refresh" content="0">'), 401, _BARE_PAGE)
    told = "<p>The token in this address is not the present token of this lab.</p>" if wrong else ""
    return HTMLResponse(_PAGE.format(head="") + told + _HOW.format(again=html.escape(address)), 401, _BARE_PAGE)


def _refusal_of_the_way(scope: Scope, headers: Headers) -> Response | None:
    """Refuse a request that is neither a GET nor a POST of JSON; None if it is one."""
    method = scope["method"]
    if method in ("GET", "HEAD"):
        # Dagster executes the parameter `query` of a GET, but shows browsers a page instead.
        if scope["path"].rstrip("/").endswith(_GRAPHQL) and "text/html" not in headers.get("accept", ""):
            return _refused("questions to /graphql must be asked by POST", 405)
        return None
    if method != "POST":
        return _refused(f"{method} is not used here", 405)
    kind = _only(headers, "content-type") or ""
    if kind.partition(";")[0].strip().lower() != _JSON:
        return _refused(f"a POST here must be {_JSON}", 415)
    return None


def _refusal_to_change(scope: Scope, body: bytes) -> Response | None:
    """Refuse a POST that would change anything; None if it only asks."""
    if scope["path"] != _GRAPHQL:
        return _refused("nothing can be changed here: this page is read-only")
    try:
        document = parse(json.loads(body)["query"])
    except (ValueError, TypeError, KeyError, RecursionError, GraphQLError):
        # Dagster would answer with the fault, but a request that cannot be read here is not passed on.
        return _refused("this is not GraphQL that can be read", 400)
    if _changes(document):
        message = "Nothing can be changed here: this page is read-only"
        return JSONResponse({"data": None, "errors": [{"message": message}]}, 403)
    return None


def _changes(document: DocumentNode) -> bool:
    return any(
        isinstance(one, OperationDefinitionNode) and one.operation == OperationType.MUTATION
        for one in document.definitions
    )


def _refused(why: str, status: int = 403) -> Response:
    return PlainTextResponse(f"Refused: {why}.\n", status, {"Cache-Control": "no-store"})


def _only(headers: Headers, name: str) -> str | None:
    """The value of a header that is present exactly once."""
    values = headers.getlist(name)
    return values[0] if len(values) == 1 else None


def _is_origin(origin: str | None, host: str) -> bool:
    """True if a page's origin is the host that was asked, over HTTP or, through a proxy, HTTPS."""
    scheme, _, rest = (origin or "").lower().partition("://")
    if scheme not in ("http", "https"):
        return False
    default = ":80" if scheme == "http" else ":443"
    return rest.removesuffix(default) == host.lower().removesuffix(default)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _cookies(headers: Headers) -> Iterable[tuple[str, str]]:
    for line in headers.getlist("cookie"):
        for one in line.split(";"):
            name, _, value = one.strip().partition("=")
            yield name, value


async def _read(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b""
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """A body that was read already, for the next reader."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def read() -> Message:
        return waiting.pop() if waiting else await receive()

    return read


def _with_security_headers(send: Send) -> Send:
    async def add(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _SECURITY_HEADERS.items():
                headers[name] = value
            # In addition to the page's own policy: both policies hold.
            headers.append("Content-Security-Policy", _FRAMES)
        await send(message)

    return add
