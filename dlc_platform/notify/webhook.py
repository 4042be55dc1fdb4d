"""A message to a webhook: JSON to any receiver, and the form that Slack knows."""

import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from dlc_platform.identity import canonical_json
from dlc_platform.notify.messages import Message
from dlc_platform.settings.channels import Webhook


class _NoRedirect(HTTPRedirectHandler):
    """Refuses redirects: a redirected post becomes a get, and the server that answers it has not taken the message."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


def post(channel: Webhook, message: Message, url: str, limit: float, written: threading.Event) -> None:
    if channel.format == "slack":
        content: dict[str, Any] = {"text": _slack(f"*{message.lab}: {message.title}*\n{message.text}")}
    else:
        content = payload(message)
    parts = urlsplit(url)
    body = canonical_json(content).encode()
    headers = {
        "Content-Type": "application/json; charset=utf-8",
        "Content-Length": str(len(body)),
        "Idempotency-Key": message.id,
        "User-Agent": "dlc-platform",
    }
    target = parts._replace(fragment="", path=quote(parts.path, safe="/%:@!$&'()*+,;=~-._")).geturl()

    def parts_of_body() -> Iterator[bytes]:
        yield body
        # More was asked for; this much is written.
        written.set()

    request = Request(target, parts_of_body(), headers, method="POST")
    # The status is the answer; the body may never end.
    build_opener(_NoRedirect).open(request, timeout=limit).close()


def payload(message: Message) -> dict[str, Any]:
    """A message as a webhook of the format `json` gets it; the page `howto/notifications` describes it."""
    return {
        "lab": message.lab,
        "message": message.id,
        "title": message.title,
        "counts": message.counts,
        "notifications": [
            {
                "kind": one.kind,
                "subject": one.subject,
                "title": one.title,
                "body": one.body,
                "created_at": one.created_at.isoformat(timespec="seconds"),
            }
            for one in message.notifications
        ],
    }


def _slack(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
