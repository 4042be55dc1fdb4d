"""A lab member's browser, which the lab knows, opens a page of somebody else; that page tries each way in."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, BrowserContext, Response, sync_playwright

from dlc_platform_tests.orchestration.test_ui import _QUIET, CHROMIUM
from dlc_platform_tests.web.conftest import FOREIGN, LAUNCH, RUNS, Servers

BODY = json.dumps({"query": LAUNCH})
QUESTION = json.dumps({"query": RUNS})
#: Each way that a page has to send something, and what it could read of the answer.
WAYS = {
    "img GET": "const i = new Image(); i.onload = () => done('read'); i.onerror = () => done(''); i.src = change",
    "script GET": """const s = document.createElement('script'); s.onload = () => done('read');
        s.onerror = () => done(''); s.src = question; document.head.append(s)""",
    "stylesheet GET": """const s = document.createElement('link'); s.rel = 'stylesheet'; s.onload = () => done('read');
        s.onerror = () => done(''); s.href = change; document.head.append(s)""",
    "prefetch GET": """const s = document.createElement('link'); s.rel = 'prefetch'; s.href = change;
        document.head.append(s); setTimeout(() => done(''), 1000)""",
    "fetch GET": "read(fetch(question, {credentials: 'include'}))",
    "fetch GET no-cors": "read(fetch(change, {mode: 'no-cors', credentials: 'include'}))",
    "form POST": "form('application/x-www-form-urlencoded')",
    "form POST multipart": "form('multipart/form-data')",
    "form POST text": "form('text/plain')",
    "fetch POST text no-cors": """read(fetch(url, {method: 'POST', mode: 'no-cors', credentials: 'include',
        headers: {'Content-Type': 'text/plain'}, body}))""",
    "fetch POST text that calls itself JSON": """read(fetch(url, {method: 'POST', mode: 'no-cors',
        credentials: 'include', headers: {'Content-Type': 'text/plain; application/json'}, body}))""",
    "fetch POST without a type": """read(fetch(change, {method: 'POST', mode: 'no-cors', credentials: 'include',
        body: new Blob([body])}))""",
    "fetch POST JSON": """read(fetch(url, {method: 'POST', credentials: 'include',
        headers: {'Content-Type': 'application/json'}, body}))""",
    "fetch of a question in JSON": """read(fetch(url, {method: 'POST', credentials: 'include',
        headers: {'Content-Type': 'application/json'}, body: asked}))""",
    "beacon": "navigator.sendBeacon(url, new Blob([body], {type: 'text/plain'})); setTimeout(() => done(''), 1000)",
    "event source": """const s = new EventSource(question, {withCredentials: true});
        s.onmessage = () => done('read'); s.onerror = () => done('')""",
    "WebSocket": """const s = new WebSocket(url.replace('http', 'ws'), 'graphql-ws');
        s.onopen = () => done('read'); s.onerror = () => done('')""",
    "frame": """const f = document.createElement('iframe'); f.src = base + '/runs'; document.body.append(f);
        f.onload = () => { try { done(f.contentDocument.body.innerText) } catch { done('') } };
        setTimeout(() => done(''), 3000)""",
    "frame of the change": """const f = document.createElement('iframe'); f.src = change; document.body.append(f);
        f.onload = () => setTimeout(() => done(''), 1000); setTimeout(() => done(''), 3000)""",
    "object": """const o = document.createElement('object'); o.data = base + '/runs'; o.onload = () => done('read');
        o.onerror = () => done(''); document.body.append(o); setTimeout(() => done(''), 3000)""",
    "window": """const w = window.open(change); setTimeout(() => { let read = '';
        try { read = w.document.body.innerText } catch {} done(read) }, 2000)""",
}
_SCRIPT = """([base, body, asked, query, way]) => new Promise(done => {
    const url = base + '/graphql', change = url + '?query=' + query,
        question = url + '?query=' + encodeURIComponent(JSON.parse(asked).query);
    const read = answer => answer.then(it => it.text()).then(done, () => done(''));
    const form = kind => {
        const frame = document.createElement('iframe'), f = document.createElement('form');
        frame.name = 'f' + Math.random(); document.body.append(frame);
        Object.assign(f, {method: 'POST', enctype: kind, action: change, target: frame.name});
        const field = document.createElement('input'); field.name = kind == 'text/plain' ? body.slice(0, -1) : 'query';
        field.value = kind == 'text/plain' ? '}' : decodeURIComponent(query); f.append(field); document.body.append(f);
        frame.onload = () => setTimeout(() => done(''), 500); f.submit(); setTimeout(() => done(''), 3000);
    };
    eval(way);
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}: install Debian's package chromium to test pages of others")
    with sync_playwright() as playwright:
        rules = f"--host-resolver-rules=MAP {FOREIGN} 127.0.0.1"
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*_QUIET, "--no-first-run", rules])
        yield browser
        browser.close()


@pytest.fixture
def member(browser: Browser, servers: Servers) -> Iterator[BrowserContext]:
    """The browser of somebody who has opened the lab by the address that `up` prints."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(servers.work.address)
    page.get_by_text("Runs").first.wait_for(timeout=120_000)
    assert "token" not in page.url
    yield context
    context.close()


@pytest.fixture(scope="module")
def other_site() -> Iterator[int]:
    """The port of a web server of somebody else on this machine."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>somebody else</title><body>")

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", FOREIGN])
def test_a_page_of_another_origin_starts_and_reads_nothing(
    member: BrowserContext, servers: Servers, other_site: int, host: str
):
    """From another port of the same host, to which browsers do send the cookie, and from other hosts."""
    before = servers.work.state()
    base = f"http://127.0.0.1:{servers.work.port}"
    answers: list[tuple[int, str]] = []

    def keep(response: Response) -> None:
        if response.url.startswith(base):
            answers.append((response.status, f"{response.request.method} {response.request.resource_type}"))

    page = member.new_page()
    page.on("response", keep)
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url) if request.url.startswith(base) else None)
    page.goto(f"http://{host}:{other_site}/")
    given = [base, BODY, QUESTION, quote(LAUNCH)]
    read = page.evaluate(
        f"([given, ways]) => Promise.all(ways.map(way => ({_SCRIPT})([...given, way])))", [given, list(WAYS.values())]
    )
    assert {name: what for name, what in zip(WAYS, read, strict=True) if what} == {}
    # The browser hides from a page what it is refused, but it did ask; a window and a WebSocket are not in this list.
    assert len(sent) >= len(WAYS) - 4, sent
    assert {what for status, what in answers if status < 400} == set()
    print(f"from {host}: {len(WAYS)} ways tried, nothing started and nothing read")
    assert servers.work.state() == before


def test_a_site_that_gives_itself_the_labs_address_reads_nothing(member: BrowserContext, servers: Servers):
    """DNS rebinding: for the browser it is the same origin, so nothing but the name is in its way."""
    before = servers.work.state()
    page = member.new_page()
    answer = page.goto(f"http://{FOREIGN}:{servers.work.port}/")
    assert answer is not None and answer.status == 403
    base = f"http://{FOREIGN}:{servers.work.port}"
    for name in ("fetch POST JSON", "fetch of a question in JSON", "fetch GET", "WebSocket", "form POST"):
        told = page.evaluate(_SCRIPT, [base, BODY, QUESTION, quote(LAUNCH), WAYS[name]])
        assert not told or told.startswith(f"Refused: this lab does not answer under the name {FOREIGN}"), name
    assert servers.work.state() == before


def test_a_link_from_elsewhere_opens_the_page(member: BrowserContext, servers: Servers, other_site: int):
    """As one in a message about a run; the browser sends no cookie with it."""
    page = member.new_page()
    page.goto(f"http://{FOREIGN}:{other_site}/")
    page.evaluate("url => { location.href = url }", f"http://127.0.0.1:{servers.work.port}/runs")
    page.get_by_text("Deployment").first.wait_for(timeout=120_000)
    assert page.url.startswith(f"http://127.0.0.1:{servers.work.port}/runs")


def test_the_pages_of_the_lab_go_on_as_they_were(member: BrowserContext, servers: Servers):
    """From its own page the same changes are made, the log is read live, and nothing is refused."""
    (runs, _), base = servers.work.state(), f"http://127.0.0.1:{servers.work.port}"
    page = member.new_page()
    refused: list[str] = []
    page.on("response", lambda got: refused.append(f"{got.status} {got.url}") if got.status >= 400 else None)
    page.goto(f"{base}/runs")
    page.get_by_text("Deployment").first.wait_for(timeout=120_000)
    told = json.loads(page.evaluate(_SCRIPT, [base, BODY, QUESTION, quote(LAUNCH), WAYS["fetch POST JSON"]]))
    run = told["data"]["launchRun"]["run"]["id"]
    with page.expect_websocket(lambda socket: socket.url.endswith("/graphql")) as listening:
        page.goto(f"{base}/runs/{run}")
    listening.value.wait_for_event("framereceived", lambda frame: '"type":"data"' in str(frame), timeout=120_000)
    page.wait_for_load_state("networkidle")
    assert refused == []
    assert len(servers.work.state()[0]) == len(runs) + 1


def test_the_page_to_look_only_shows_the_lab(browser: Browser, servers: Servers):
    context = browser.new_context()
    page = context.new_page()
    refused: list[str] = []
    page.on("response", lambda got: refused.append(f"{got.status} {got.url}") if got.status >= 400 else None)
    page.goto(servers.look.address)
    page.goto(f"http://127.0.0.1:{servers.look.port}/automation")
    page.get_by_text("looks", exact=True).first.wait_for(timeout=120_000)
    page.wait_for_load_state("networkidle")
    assert refused == []
    context.close()
