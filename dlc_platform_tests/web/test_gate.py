"""Who is let in, and in which way: requests to a real web server, those of another account of the machine included."""

import http.client
import json
import os
import pwd
import socket
import stat
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from dagster_graphql.schema import create_schema
from graphql import (
    GraphQLEnumType,
    GraphQLField,
    GraphQLInputObjectType,
    GraphQLInputType,
    GraphQLList,
    GraphQLNonNull,
    GraphQLSchema,
    get_named_type,
    is_leaf_type,
    parse,
    validate,
)
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from dlc_platform.errors import PlatformError
from dlc_platform.orchestration.web_access import address, token_of
from dlc_platform.settings.loading import load_lab
from dlc_platform.web.gate import host_of
from dlc_platform_tests.web.conftest import FOREIGN, LAUNCH, OWN, RUNS, Server, Servers

JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
BODY = json.dumps({"query": LAUNCH})
ADDRESS = f"/graphql?{urlencode({'query': LAUNCH})}"


def test_the_address_that_up_prints_carries_the_token_once(servers: Servers):
    server = servers.work
    path = server.address.partition(f":{server.port}")[2]
    first = server.request("GET", path.replace("/?", "/runs/abc?view=all&"), known=False)
    assert first.status == 303
    assert first.headers["location"] == "/runs/abc?view=all"
    name, *kept = first.headers["set-cookie"].split("; ")
    assert name == server.cookie["Cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(kept)
    assert server.token not in first.headers["location"] + first.body
    # Whoever has the cookie already does not keep the token in the address either.
    assert server.request("GET", path, server.cookie, known=False).status == 303
    assert server.request("GET", "/runs", server.cookie, known=False).status == 200
    assert (
        server.request("GET", f"//{FOREIGN}/?token={server.token}", known=False).headers["location"] == f"/{FOREIGN}/"
    )


def test_who_is_not_known_learns_how_to_get_in(servers: Servers):
    server = servers.work
    page = server.request("GET", '/runs?a="><script>', {"Accept": "text/html"}, known=False)
    assert page.status == 401
    assert "dlc-platform up" in page.body and "dlc-platform ui HOME" in page.body
    assert "<script>" not in page.body
    assert (
        "is not the present token of this lab"
        in server.request("GET", "/?token=no", {"Accept": "text/html"}, known=False).body
    )
    # A link in a message brings no cookie along; the page opens itself again, and then the cookie is there.
    link = {"Accept": "text/html", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    bounce = server.request("GET", "/runs", {**link, "Sec-Fetch-Dest": "document"}, known=False)
    assert bounce.status == 401 and 'http-equiv="refresh"' in bounce.body
    assert server.request("GET", "/runs", {**link, "Sec-Fetch-Dest": "iframe"}, known=False).status == 403


#: Requests with the token that are refused all the same, by what they try, and the status.
REFUSED: dict[str, tuple[str, str, dict[str, str], str | None, int]] = {
    "a change by GET": ("GET", ADDRESS, {}, None, 405),
    "a question by GET": ("GET", f"/graphql?{urlencode({'query': RUNS})}", {}, None, 405),
    "a change by GET below a slash": ("GET", ADDRESS.replace("?", "/?"), {}, None, 405),
    "a form": ("POST", "/graphql", FORM, f"query={quote(LAUNCH)}", 415),
    "a form whose address says it": ("POST", ADDRESS, FORM, "", 415),
    "a form with files": ("POST", ADDRESS, {"Content-Type": "multipart/form-data; boundary=x"}, "--x--", 415),
    "text": ("POST", "/graphql", {"Content-Type": "text/plain"}, BODY, 415),
    "text that calls itself JSON": ("POST", "/graphql", {"Content-Type": "text/plain; application/json"}, BODY, 415),
    "bare GraphQL": ("POST", "/graphql", {"Content-Type": "application/graphql"}, LAUNCH, 415),
    "no type": ("POST", ADDRESS, {}, None, 415),
    "a report without a body": ("POST", "/report_asset_materialization/pose_estimates", {}, None, 415),
    "PUT": ("PUT", "/graphql", JSON, BODY, 405),
    "DELETE": ("DELETE", "/graphql", JSON, BODY, 405),
    "a preflight": ("OPTIONS", "/graphql", {"Access-Control-Request-Method": "POST"}, None, 405),
    "a page of another port": ("POST", "/graphql", JSON | {"Origin": "http://127.0.0.1:1"}, BODY, 403),
    "a page of another host": ("POST", "/graphql", JSON | {"Origin": f"http://{FOREIGN}"}, BODY, 403),
    "a page without an origin": ("POST", "/graphql", JSON | {"Origin": "null"}, BODY, 403),
    "a page of the same host's other port, by what the browser says": (
        "POST", "/graphql", JSON | {"Sec-Fetch-Site": "same-site"}, BODY, 403,
    ),
    "a picture of another site's page": (
        "GET", "/favicon.png", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, None, 403,
    ),
    "another name for this machine": ("POST", "/graphql", JSON | {"Host": FOREIGN}, BODY, 403),
    "its own name with something before": ("POST", "/graphql", JSON | {"Host": f"x.{OWN}"}, BODY, 403),
    "its own name with something after": ("POST", "/graphql", JSON | {"Host": f"localhost.{FOREIGN}"}, BODY, 403),
    "an address of another machine": ("POST", "/graphql", JSON | {"Host": "10.0.0.1"}, BODY, 403),
    "its own name behind an account": ("POST", "/graphql", JSON | {"Host": f"{FOREIGN}@localhost"}, BODY, 403),
    "its own name before a path": ("POST", "/graphql", JSON | {"Host": f"localhost/{FOREIGN}"}, BODY, 403),
    "its own name with a port that is none": ("POST", "/graphql", JSON | {"Host": "localhost:abc"}, BODY, 403),
    "no name": ("POST", "/graphql", JSON | {"Host": ""}, BODY, 403),
}  # fmt: skip


@pytest.mark.parametrize("way", REFUSED)
def test_changes_come_in_one_way_alone(servers: Servers, way: str):
    method, path, headers, body, status = REFUSED[way]
    before = servers.work.state()
    answer = servers.work.request(method, path, headers, body)
    assert answer.status == status, answer
    assert answer.body.startswith("Refused: ")
    assert "access-control-allow-origin" not in answer.headers
    assert servers.work.state() == before


def test_of_two_sites_neither_is_believed(servers: Servers):
    for sites in (("none", "cross-site"), ("cross-site", "none")):
        assert _status(servers.work, {"Sec-Fetch-Site": list(sites)}) == 403


def test_two_hosts_or_two_types_are_none(servers: Servers):
    server = servers.work
    for name, values in (("Host", ("localhost", FOREIGN)), ("Content-Type", ("application/json", "text/plain"))):
        assert _status(server, {name: list(values)}) in (400, 403, 415), name


def _status(server: Server, several: dict[str, list[str]]) -> int:
    """What a change is answered that has some headers several times."""
    given = {"Host": ["localhost"], "Content-Type": ["application/json"]} | several
    head = "".join(f"{key}: {value}\r\n" for key, values in given.items() for value in values)
    with socket.create_connection(("127.0.0.1", server.port), 30) as plain:
        plain.sendall(
            f"POST /graphql HTTP/1.1\r\n{head}Authorization: Bearer {server.token}\r\nConnection: close\r\n"
            f"Content-Length: {len(BODY)}\r\n\r\n{BODY}".encode()
        )
        return int(plain.makefile("rb").readline().split()[1])


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:1234", "LOCALHOST", "[::1]:3000", OWN, f"{OWN}:8443"])
def test_the_lab_answers_under_its_own_names(servers: Servers, host: str):
    """A tunnel may end at another port, and a proxy speaks TLS."""
    for scheme in ("http", "https"):
        answer = servers.work.post(RUNS, Host=host, Origin=f"{scheme}://{host}")
        assert answer.status == 200, answer


def test_no_page_of_others_shows_or_embeds_what_the_lab_answers(servers: Servers):
    for path in ("/", "/runs", "/graphql", "/server_info", "/nothing", "/favicon.png"):
        for known in (True, False):
            headers = servers.work.request("GET", path, {"Accept": "text/html"}, known=known).headers
            assert headers["x-frame-options"] == "SAMEORIGIN", path
            assert "frame-ancestors 'self'" in headers["content-security-policy"]
            assert headers["cross-origin-resource-policy"] == "same-origin"
            assert headers["x-content-type-options"] == "nosniff"


def test_whoever_watches_over_the_server_needs_no_token(servers: Servers):
    """Docker asks 127.0.0.1, Kubernetes the address of the pod."""
    for host in ("127.0.0.1:3000", "10.42.0.7:3000", "[fd00::7]:3000"):
        assert servers.look.request("GET", "/server_info", {"Host": host}, known=False).status == 200
    assert servers.look.request("GET", "/server_info", {"Host": FOREIGN}, known=False).status == 403
    assert servers.look.request("GET", "/", {"Host": "10.42.0.7:3000"}).status == 403


def as_account(name: str, act: Callable[[], Any]) -> Any:
    """What `act` gives as another account of this machine; JSON carries it here."""
    account = pwd.getpwnam(name)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reading)
            os.setgroups([])
            os.setgid(account.pw_gid)
            os.setuid(account.pw_uid)
            with open(writing, "w") as told:
                told.write(json.dumps([os.getuid(), act()]))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(writing)
    with open(reading) as told:
        text = told.read()
    assert os.waitpid(child, 0)[1] == 0
    uid, found = json.loads(text)
    assert uid == account.pw_uid
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another account for a moment")
def test_another_account_of_the_machine_stays_outside(servers: Servers):
    before = servers.work.state()

    def plain(server: Server, method: str, path: str, headers: dict[str, str], body: str | None) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        connection.request(method, path, body, headers)
        return connection.getresponse().status

    def tries() -> dict[str, Any]:
        found: dict[str, Any] = {}
        for kind, server in (("work", servers.work), ("look", servers.look)):
            cookie = "dlc_platform_000000000000=guessed"
            for what, method, path, headers, body in (
                ("the way of the UI", "POST", "/graphql", JSON, BODY),
                ("GET", "GET", ADDRESS, {}, None),
                ("a form", "POST", ADDRESS, FORM, ""),
                ("as of its own page", "POST", "/graphql", JSON | {"Origin": f"http://127.0.0.1:{server.port}"}, BODY),
                ("a token that is guessed", "POST", "/graphql", JSON | {"Authorization": "Bearer 0"}, BODY),
                ("an empty token", "POST", "/graphql", JSON | {"Authorization": "Bearer "}, BODY),
                ("a cookie that is guessed", "POST", "/graphql", JSON | {"Cookie": cookie}, BODY),
                ("an address that is guessed", "GET", "/?token=0", {}, None),
                ("the pages", "GET", "/runs", {}, None),
                ("the logs", "GET", "/logs/a/compute_logs/b/out", {}, None),
                ("a run's debug file", "GET", "/download_debug/a", {}, None),
                ("a report", "POST", "/report_asset_materialization/a", JSON, "{}"),
            ):
                found[f"{kind}: {what}"] = plain(server, method, path, headers, body)
            try:
                with connect(f"ws://127.0.0.1:{server.port}/graphql", proxy=None):
                    found[f"{kind}: WebSocket"] = 101
            except InvalidStatus as error:
                found[f"{kind}: WebSocket"] = error.response.status_code
        for name in ("web.token", "web-read-only.token"):
            try:
                found[name] = (servers.work.home / name).read_text()
            except PermissionError:
                found[name] = "denied"
        return found

    found = as_account("nobody", tries)
    assert {found.pop(name) for name in ("web.token", "web-read-only.token")} == {"denied"}
    print(f"as another account: {len(found)} requests, all refused")
    assert {what: status for what, status in found.items() if status not in (401, 403)} == {}
    assert servers.work.state() == before


def test_each_server_has_a_token_of_its_own(servers: Servers):
    """Who may look on does not get to where things are changed."""
    work, look = servers.work, servers.look
    assert work.token != look.token and len(work.token) == len(look.token) == 32
    for server, other in ((work, look), (look, work)):
        headers = {"Authorization": f"Bearer {other.token}", **other.cookie}
        assert (
            server.request("POST", "/graphql", JSON | headers, json.dumps({"query": RUNS}), known=False).status == 401
        )


def test_the_token_is_for_its_owner_alone(tmp_path: Path):
    token = token_of(tmp_path)
    file = tmp_path / "web.token"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert token_of(tmp_path) == token
    assert address(tmp_path, 3001) == f"http://127.0.0.1:3001/?token={token}"
    # What others could read or have put there is no secret.
    file.chmod(0o640)
    second = token_of(tmp_path)
    assert second != token and stat.S_IMODE(file.stat().st_mode) == 0o600
    (tmp_path / "elsewhere").write_text("a token that somebody else has chosen")
    file.unlink()
    file.symlink_to(tmp_path / "elsewhere")
    assert token_of(tmp_path) not in (second, "a token that somebody else has chosen")
    assert [one.name for one in tmp_path.iterdir() if one.name.endswith(".part")] == []
    file.write_text("")
    with pytest.raises(PlatformError, match=r"web.token holds no token.*Remove it"):
        token_of(tmp_path)


@pytest.mark.parametrize("name", ["*", "lab.example.org:3000", "https://lab.example.org", "a b", ""])
def test_a_name_in_lab_yaml_is_a_name(tmp_path: Path, name: str):
    (tmp_path / "raw").mkdir()
    text = f"raw_roots: [raw]\nprojects: {{a: {{path: project}}}}\nweb: {{hosts: ['{name}']}}\n"
    (tmp_path / "lab.yaml").write_text(text)
    with pytest.raises(PlatformError, match=r"web.hosts"):
        load_lab(tmp_path)
    (tmp_path / "lab.yaml").write_text(text.replace(f"'{name}'", "lab.example.org, '[fd00::1]', lab"))
    assert load_lab(tmp_path).web.hosts == ("lab.example.org", "[fd00::1]", "lab")


@pytest.mark.parametrize(
    ("name", "host"),
    [("a.B:1", "a.b"), ("https://a.b:8443", "a.b"), ("[::1]:3", "[::1]"), ("127.0.0.1", "127.0.0.1")],
)
def test_a_host_is_found_in_each_way_of_writing_it(name: str, host: str):
    assert host_of(name) == host


def value_for(kind: GraphQLInputType) -> str:
    """A value that the schema takes, as GraphQL; of input objects the fields that have to be there."""
    if isinstance(kind, GraphQLNonNull):
        return value_for(kind.of_type)
    if isinstance(kind, GraphQLList):
        return f"[{value_for(kind.of_type)}]"
    if isinstance(kind, GraphQLEnumType):
        return next(iter(kind.values))
    if isinstance(kind, GraphQLInputObjectType):
        return f"{{{arguments(kind.fields)}}}"
    return {"Int": "1", "Float": "1.0", "Boolean": "true"}.get(str(kind), '"1"')


def arguments(fields: dict[str, Any]) -> str:
    needed = {name: one.type for name, one in fields.items() if isinstance(one.type, GraphQLNonNull)}
    return ", ".join(f"{name}: {value_for(kind)}" for name, kind in needed.items())


def call_of(name: str, field: GraphQLField) -> str:
    given = arguments(field.args)
    asked = "" if is_leaf_type(get_named_type(field.type)) else " { __typename }"
    return name + (f"({given})" if given else "") + asked


def mutations() -> tuple[GraphQLSchema, dict[str, str]]:
    """Every mutation that the schema has, as a document that the schema takes."""
    schema = create_schema().graphql_schema
    assert schema.mutation_type is not None
    calls = {name: f"mutation {{ {call_of(name, field)} }}" for name, field in schema.mutation_type.fields.items()}
    for call in calls.values():
        assert validate(schema, parse(call)) == [], call
    return schema, calls


def test_the_page_to_look_only_refuses_every_mutation(servers: Servers):
    look, before = servers.look, servers.work.state()
    assert look.ask(RUNS) == servers.work.ask(RUNS)
    _, calls = mutations()
    assert len(calls) > 30
    ways: dict[str, Callable[[str, str], Any]] = {
        "POST": lambda name, call: look.post(call).status,
        "POST beside a question": lambda name, call: (
            look.request(
                "POST", "/graphql", JSON, json.dumps({"query": f"query a {{ version }} {call}", "operationName": "a"})
            ).status
        ),
        "GET": lambda name, call: look.request("GET", f"/graphql?{urlencode({'query': call})}").status,
        "a form": lambda name, call: (
            look.request(
                "POST",
                f"/graphql?{urlencode({'query': call})}",
                FORM,
                urlencode({"query": call}),
            ).status
        ),
    }
    for way, send in ways.items():
        refused = [name for name, call in calls.items() if send(name, call.replace("mutation", "mutation b")) >= 400]
        print(f"{way}: {len(refused)} of {len(calls)} mutations refused")
        assert set(refused) == set(calls), way
    for path in ("a", "a/graphql"):
        reported = look.request("POST", f"/report_asset_materialization/{path}", JSON, '{"query": "{version}"}')
        assert reported.status == 403
    assert servers.work.state() == before


@pytest.mark.parametrize("read_only", [True, False], ids=["look", "work"])
def test_no_mutation_goes_through_a_websocket(servers: Servers, read_only: bool):
    """Nowhere: by it the UI listens, and asks for changes by POST."""
    server, before = servers.look if read_only else servers.work, servers.work.state()
    _, calls = mutations()
    headers = {"Authorization": f"Bearer {server.token}"}
    address = f"ws://127.0.0.1:{server.port}/graphql"
    answers = {}
    with connect(address, additional_headers=headers, subprotocols=["graphql-ws"], proxy=None) as socket:  # pyright: ignore
        socket.send(json.dumps({"type": "connection_init"}))
        assert json.loads(socket.recv(30))["type"] == "connection_ack"
        for name, call in [*calls.items(), ("the run", LAUNCH)]:
            socket.send(json.dumps({"type": "start", "id": name, "payload": {"query": call}}))
            answer = json.loads(socket.recv(30))
            answers[answer["id"]] = answer["type"]
    refused = [name for name in calls if answers.get(name) == "error"]
    print(f"WebSocket: {len(refused)} of {len(calls)} mutations refused")
    assert answers == dict.fromkeys([*calls, "the run"], "error")
    assert servers.work.state() == before


def test_who_has_the_token_starts_runs(servers: Servers):
    """What was refused above is refused for its way in, not for what it says."""
    server, (before, _) = servers.work, servers.work.state()
    started = json.loads(server.post(LAUNCH).body)["data"]["launchRun"]
    assert started["__typename"] == "LaunchRunSuccess", started
    answer = server.request("POST", "/graphql", {**server.cookie, **JSON}, BODY, known=False)
    assert json.loads(answer.body)["data"]["launchRun"]["__typename"] == "LaunchRunSuccess"
    assert len(server.state()[0]) == len(before) + 2
