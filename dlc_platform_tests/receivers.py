"""Servers that receive notifications: a webhook over HTTP, and a mail server. Both do as they are told, badly too."""

import base64
import json
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Webhook:
    """What a webhook got, and how it answers: a status for each request, the last one for all that follow.

    A status of 0 says nothing for `silence` seconds, and then hangs up.
    """

    port: int = 0
    statuses: list[int] = field(default_factory=lambda: [200])
    silence: float = 3.0
    got: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/services/T0/verysecret?token=alsosecret"

    def titles(self) -> list[str]:
        return [one["title"] for one in self.got]


@contextmanager
def webhook() -> Iterator[Webhook]:
    """A webhook that listens while the context lasts."""
    hook = Webhook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status = hook.statuses.pop(0) if len(hook.statuses) > 1 else hook.statuses[0]
            hook.got.append(content)
            hook.keys.append(self.headers["Idempotency-Key"])
            hook.paths.append(self.path)
            if status == 0:
                time.sleep(hook.silence)
                return
            # What it answers may quote the URL, as proxies like to do.
            self.send_response(status, f"no {self.path}")
            if status in (301, 302):
                self.send_header("Location", f"http://127.0.0.1:{hook.port}/login")
            self.end_headers()
            self.wfile.write(f"{self.path} has gone".encode())

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hook.port = server.server_address[1]
    with _serving(server):
        yield hook


@dataclass
class MailServer:
    """What a mail server got; `replies` are what it says to a command instead of yes; an empty one is silence."""

    port: int = 0
    replies: dict[str, str] = field(default_factory=dict)
    mails: list[EmailMessage] = field(default_factory=list)
    recipients: list[list[str]] = field(default_factory=list)
    logins: list[str] = field(default_factory=list)


@contextmanager
def mail_server() -> Iterator[MailServer]:
    """A mail server without encryption that listens while the context lasts."""
    state = MailServer()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self._say("220 ready")
            recipients: list[str] = []
            while line := self.rfile.readline().decode().strip():
                verb = line.split()[0].upper().split(":")[0]
                if verb in state.replies:
                    if state.replies[verb]:
                        self._say(state.replies[verb])
                elif verb == "EHLO":
                    self._say("250-here", "250 AUTH PLAIN")
                elif verb == "AUTH":
                    state.logins.append(base64.b64decode(line.split()[2]).decode())
                    self._say("235 welcome")
                elif verb == "RCPT":
                    recipients.append(line.partition("<")[2].partition(">")[0])
                    self._say("250 yes")
                elif verb == "DATA":
                    self._say("354 go on")
                    content = b""
                    while (part := self.rfile.readline()) != b".\r\n":
                        content += part.removeprefix(b".")
                    state.mails.append(message_from_bytes(content, policy=policy.default))  # pyright: ignore
                    state.recipients.append(recipients)
                    self._say("250 taken")
                elif verb == "QUIT":
                    self._say("221 bye")
                    return
                else:
                    self._say("250 yes")

        def _say(self, *lines: str) -> None:
            self.wfile.write("".join(f"{line}\r\n" for line in lines).encode())

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.port = server.server_address[1]
    with _serving(server):
        yield state


@contextmanager
def _serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
