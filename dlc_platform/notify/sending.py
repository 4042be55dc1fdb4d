"""Sending one message to one channel within a time limit; errors are reported without the secret."""

import smtplib
import socket
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from dlc_platform.errors import PlatformError
from dlc_platform.notify.mail import send_mail
from dlc_platform.notify.messages import Channel, Message, SendError, plain
from dlc_platform.notify.secrets import secret_of
from dlc_platform.notify.webhook import post
from dlc_platform.settings.channels import Webhook

_Result = TypeVar("_Result")
#: The seconds that one message may take, whatever the receiver does.
SEND_SECONDS = 10.0


def send(channel: Channel, message: Message, limit: float = SEND_SECONDS) -> None:
    """Send a message now.

    Raises
    ------
    SendError
        When the receiver does not accept it; the error does not hold the URL or the password.
    PlatformError
        When the URL or the password is not where lab.yaml says.
    """
    written = threading.Event()
    secret: list[str] = []

    def attempt() -> None:
        secret.append(secret_of(channel))
        if isinstance(channel, Webhook):
            post(channel, message, secret[0], limit, written)
        else:
            send_mail(channel, message, secret[0], limit, written)

    try:
        _within(limit, attempt)
    except PlatformError:
        raise
    except BaseException as error:
        failed = explained(error, secret[0]) if secret else SendError("its secret cannot be read in time", passing=True)
        if written.is_set() and (isinstance(error, TimeoutError) or isinstance(error.__context__, TimeoutError)):
            failed = SendError(f"{failed}, and the receiver may have the message", passing=True, unanswered=True)
    else:
        return
    # Not `from` the caught error, which may hold the secret.
    raise failed


def _within(seconds: float, work: Callable[[], _Result]) -> _Result:
    """The result or the error of `work`, or a TimeoutError if it takes too long; then it goes on unwatched.

    The time limit of a socket is for each byte, and looking up a host or reading a lost disk has no limit.
    """
    done: Future[_Result] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return done.result(seconds)


def explained(error: BaseException, secret: str) -> SendError:
    """The error, in words that hold no secret."""
    if isinstance(error, SendError):
        return error
    if isinstance(error, HTTPError):
        error.close()
        known = error.code in {status.value for status in HTTPStatus}
        phrase = f" ({HTTPStatus(error.code).phrase})" if known else ""
        return SendError(f"answered {error.code}{phrase}", passing=error.code >= 500 or error.code in (408, 425, 429))
    if isinstance(error, smtplib.SMTPResponseException):
        said = error.smtp_error.decode(errors="replace") if isinstance(error.smtp_error, bytes) else error.smtp_error
        return SendError(_without(f"answered {error.smtp_code} {said}", secret), passing=400 <= error.smtp_code < 500)
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        codes = {code for code, _ in error.recipients.values()}
        return SendError(
            f"refused for {', '.join(sorted(error.recipients))}", passing=all(400 <= code < 500 for code in codes)
        )
    if isinstance(error, smtplib.SMTPNotSupportedError):
        return SendError(_without(str(error), secret), passing=False)
    reason = error.reason if isinstance(error, URLError) else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return SendError(f"its certificate is not trusted: {reason.verify_message}", passing=False)
    if isinstance(reason, TimeoutError) or isinstance(error.__context__, TimeoutError):
        return SendError("no answer in time", passing=True)
    if isinstance(reason, OSError | HTTPException | smtplib.SMTPException):
        said = getattr(reason, "strerror", None) or type(reason).__name__
        return SendError(_without(f"cannot be reached: {said}", secret), passing=True)
    return SendError(f"{type(reason).__name__}", passing=False)


def _without(words: str, secret: str) -> str:
    """Text in one line without any piece of the URL or password."""
    parts = urlsplit(secret) if "://" in secret else None
    pieces = [secret, *((parts.path, parts.query, parts.password or "", *parts.path.split("/")) if parts else ())]
    words = " ".join(words.split())
    for piece in sorted((piece for piece in pieces if len(piece) >= 6), key=len, reverse=True):
        words = words.replace(piece, "...")
    return plain(words)[:200]


def exposed_secret(channel: Channel, seconds: float = 3.0) -> Path | None:
    """The file that holds a channel's URL or password, if other users of this machine may read it."""
    file = channel.url_file if isinstance(channel, Webhook) else channel.password_file
    with suppress(OSError):
        if file is not None and _within(seconds, file.stat).st_mode & 0o077:
            return file
    return None


def reach(channel: Channel, seconds: float = 3.0) -> str:
    """Open a connection to a channel's server, send nothing, and say how it is reached.

    Raises
    ------
    PlatformError
        When the secret is not where lab.yaml says, or the server does not answer; the URL is not shown.
    """
    try:
        secret = _within(seconds, lambda: secret_of(channel))
    except TimeoutError:
        raise PlatformError(
            f"the file that holds the secret of the channel {channel.name} cannot be read: its disk does not answer",
            "Check the disk, or keep the file on another one",
        ) from None
    if isinstance(channel, Webhook):
        parts = urlsplit(secret)
        host, port = str(parts.hostname), parts.port or (443 if parts.scheme == "https" else 80)
        if parts.scheme in getproxies() and not proxy_bypass(host):
            return f"{host} through a proxy, which was not tried"
    else:
        host, port = channel.host, channel.port
    try:
        socket.create_connection((host, port), timeout=seconds).close()
    except OSError as error:
        raise PlatformError(
            f"{host}:{port} of the channel {channel.name} cannot be reached: {error.strerror or error}",
            "Check that the address is right and that this machine may connect to it",
        ) from None
    return f"{host}:{port} answers"
