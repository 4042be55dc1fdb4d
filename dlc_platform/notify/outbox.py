"""Telling people: what is to be told, in the table `notification`, and how it gets to webhooks and mail servers.

Each thing is written down once for each channel, and travels in one message. A message is sent at least once: it is
marked after the receiver took it, because a failure that nobody hears of is worse than one that is heard of twice. That
happens when the process dies between the receiver's answer and one commit, and when a receiver got the message and did
not answer in time, which is tried again a few times only. The message goes out as it was, under the same
`Idempotency-Key` (for e-mail, `Message-ID`), by which a receiver knows it.

A URL or password is read when it is needed, and nothing that is written or logged holds it. What is worth telling is
decided elsewhere.
"""

import os
import re
import smtplib
import socket
import ssl
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from email.utils import formatdate
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener, getproxies, proxy_bypass
from uuid import uuid4

from sqlalchemy import ColumnElement, Connection, Engine, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert

from dlc_platform.catalog.tables import Notification
from dlc_platform.errors import PlatformError, in_this_lab
from dlc_platform.identity import canonical_json
from dlc_platform.settings.channels import Event, Mail, Webhook
from dlc_platform.settings.lab import Lab

Channel = Webhook | Mail
_Result = TypeVar("_Result")

#: For how long one message may take, whatever the receiver does.
SEND_SECONDS = 10.0
#: A failure that can pass is tried again after a minute, then after twice as long each time, at most this.
_LONGEST_WAIT = timedelta(hours=1)
#: A message that nobody took for so long is given up: over a weekend, mail servers come back.
PATIENCE = timedelta(days=3)
#: How often a message is sent again that was written to the end and not answered: the receiver may have it.
_UNANSWERED = 3
#: A URL or password is no longer; whatever else a file holds is not read.
_LONGEST_SECRET = 4096
#: What a message shows of each kind; the rest is counted.
_SHOWN = 10
_LONGEST_TEXT = 600

#: How a message's title speaks of one thing, and of several.
_WORDS: dict[Event, tuple[str, str]] = {
    "run_failure": ("run failed", "runs failed"),
    "quarantine": ("session is in quarantine", "times a session or file was put in quarantine"),
    "stale": ("session waits for poses for too long", "sessions wait for poses for too long"),
    "daily_report": ("daily report", "daily reports"),
}
#: A report comes alone, so that it is found again.
_TOGETHER: tuple[tuple[Event, ...], ...] = (("daily_report",), ("run_failure", "quarantine", "stale"))


@dataclass(frozen=True)
class News:
    """Something to tell; `subject` names it among those of its kind, for good."""

    kind: Event
    subject: str
    title: str
    body: str


@dataclass(frozen=True)
class Message:
    """What one channel is told at once: the newest notifications of each kind, and how many there are of each."""

    id: str
    lab: str
    counts: dict[str, int]
    notifications: tuple[Notification, ...]

    @property
    def title(self) -> str:
        first = self.notifications[0]
        if sum(self.counts.values()) == 1:
            return first.title
        parts = [f"{count} {_WORDS[kind][count > 1]}" for kind in _WORDS if (count := self.counts.get(kind, 0))]
        return ", ".join(parts)

    @property
    def text(self) -> str:
        parts = [f"{one.title}\n{one.body}" if one.body else one.title for one in self.notifications]
        more = sum(self.counts.values()) - len(self.notifications)
        rest = in_this_lab(f"... and {more} more: see `dlc-platform notifications HOME`")
        return "\n\n".join([*parts, *([rest] if more else [])])


class SendError(Exception):
    """A message that did not get through; `passing` says whether it may another time.

    One that is `unanswered` was written to the end, so the receiver may have it.
    """

    def __init__(self, reason: str, passing: bool, unanswered: bool = False):
        super().__init__(reason)
        self.passing = passing
        self.unanswered = unanswered


def announce(engine: Engine, channels: Iterable[Channel], news: Iterable[News]) -> int:
    """Write down what is to be told, for each channel that wants it; what it knows already is left.

    Returns
    -------
    int
        How many notifications are new.
    """
    rows = [
        {
            "kind": one.kind,
            "subject": one.subject,
            "channel": channel.name,
            "title": _plain(" ".join(one.title.split())),
            "body": _plain(one.body),
        }
        for one in news
        for channel in channels
        if one.kind in channel.send
    ]
    if not rows:
        return 0
    with engine.begin() as connection:
        statement = insert(Notification).on_conflict_do_nothing().returning(Notification.id)
        return len(connection.execute(statement, rows).all())


def announce_quarantine(engine: Engine, channels: Iterable[Channel]) -> int:
    """Write down what is in quarantine, for each channel that wants it and does not know; returns how many are new."""
    new = 0
    for channel in channels:
        if "quarantine" in channel.send:
            with engine.begin() as connection:
                new += connection.execute(
                    text(_QUARANTINE), {"channel": channel.name, "longest": _LONGEST_TEXT}
                ).rowcount
    return new


#: In the database alone, for a bad disk puts thousands of sessions in at once.
_QUARANTINE = """
insert into dlc.notification (kind, subject, channel, title, body)
select 'quarantine', q.id::text, :channel,
       regexp_replace(q.session_key, '\\s+', ' ', 'g') || ' is in quarantine (' || q.stage || ')',
       left(coalesce(q.path || ': ', '') || q.reason || '. ' || q.remedy || '.', :longest)
from dlc.quarantine q
where q.released_at is null and not exists (
    select from dlc.notification n where n.kind = 'quarantine' and n.subject = q.id::text and n.channel = :channel
)
order by q.id
on conflict do nothing
"""


def deliver(
    engine: Engine, lab: Lab, say: Callable[[str], None], seconds: float = 25.0, limit: float = SEND_SECONDS
) -> int:
    """Send what is waiting, a message for each channel, and what failed before and is due again.

    Any number of processes may do this at once; each message is sent by one of them.

    Parameters
    ----------
    say
        Called with one line for each message that failed.
    seconds
        No message is begun after so long.
    limit
        For how long one message may take, in seconds.

    Returns
    -------
    int
        How many messages were taken by their receivers.
    """
    until = time.monotonic() + seconds
    sent = 0
    for channel in lab.notify.channels:
        for message_id in _due(engine, lab, channel):
            if time.monotonic() > until:
                return sent
            sent += _deliver(engine, lab, channel, message_id, say, limit)
    return sent


def _due(engine: Engine, lab: Lab, channel: Channel) -> list[str]:
    """The messages to send to a channel now, put together from what waits where nothing is under way."""
    own = (Notification.channel == channel.name, Notification.sent_at.is_(None), Notification.given_up_at.is_(None))
    with engine.begin() as connection:
        # One process puts messages of a channel together at a time; the other one has nothing to do here.
        lock = text("select pg_try_advisory_xact_lock(hashtext('dlc_platform notify ' || :name))")
        if not connection.scalar(lock, {"name": channel.name}):
            return []
        # The database's clock throughout: hosts may have others.
        now = connection.execute(select(func.now())).scalar_one()
        for kinds in _TOGETHER:
            of_kinds = (*own, Notification.kind.in_(kinds))
            under_way = connection.scalar(
                select(func.count()).where(*of_kinds, Notification.message.is_not(None)).select_from(Notification)
            )
            last = connection.scalar(
                select(func.max(Notification.sent_at)).where(
                    Notification.channel == channel.name, Notification.kind.in_(kinds)
                )
            )
            pause = timedelta(minutes=lab.notify.digest_minutes)
            if under_way or (last is not None and last <= now < last + pause):
                continue
            connection.execute(
                update(Notification)
                .where(*of_kinds, Notification.message.is_(None))
                .values(message=str(uuid4()), next_attempt_at=func.now())
            )
        due = (Notification.message.is_not(None), _is_due())
        found = select(Notification.message).where(*own, *due).group_by(Notification.message)
        return [str(message) for message in connection.scalars(found.order_by(func.min(Notification.id)))]


def _is_due() -> ColumnElement[bool]:
    """The next attempt's time has come, or is further away than any is: the clock was set back since."""
    now, next_one = func.now(), Notification.next_attempt_at
    return or_(next_one <= now, next_one > now + _LONGEST_WAIT)


def _deliver(
    engine: Engine, lab: Lab, channel: Channel, message_id: str, say: Callable[[str], None], limit: float
) -> bool:
    rows = (Notification.message == message_id, Notification.sent_at.is_(None), Notification.given_up_at.is_(None))
    with engine.begin() as connection:
        # The message as a whole is held until it is marked, also while it is sent: whoever else comes passes it by.
        lock = text("select pg_try_advisory_xact_lock(hashtextextended('dlc_platform message ' || :id, 0))")
        if not connection.scalar(lock, {"id": message_id}):
            return False
        first = connection.execute(
            select(Notification.attempts, Notification.unanswered, Notification.created_at, func.now().label("now"))
            .where(*rows, _is_due())
            .order_by(Notification.id)
            .limit(1)
        ).one_or_none()
        if first is None:
            return False
        unanswered = first.unanswered
        try:
            send(channel, _message(connection, lab, message_id), limit)
        except SendError as error:
            failed, passing = str(error), error.passing
            if error.unanswered:
                unanswered += 1
                passing = unanswered <= _UNANSWERED
        except PlatformError as error:
            # A person can mend it, and until then nothing was tried.
            failed, passing = str(error), True
        else:
            connection.execute(
                update(Notification)
                .where(*rows)
                .values(sent_at=func.now(), attempts=first.attempts + 1, last_error=None)
            )
            return True
        over = not passing or first.created_at + PATIENCE < first.now
        wait = min(timedelta(minutes=2 ** min(first.attempts, 10)), _LONGEST_WAIT)
        connection.execute(
            update(Notification)
            .where(*rows)
            .values(
                attempts=first.attempts + 1,
                unanswered=unanswered,
                last_error=failed,
                next_attempt_at=func.now() + wait,
                given_up_at=func.now() if over else None,
            )
        )
    say(f"{channel.name}: a message did not get through and {'is given up' if over else 'is tried again'}: {failed}")
    return False


def _message(connection: Connection, lab: Lab, message_id: str) -> Message:
    rows = Notification.message == message_id
    counted = select(Notification.kind, func.count()).where(rows).group_by(Notification.kind)
    counts = {kind: count for kind, count in connection.execute(counted)}
    shown: list[Notification] = []
    for kind in _WORDS:
        if kind in counts:
            of_kind = select(Notification.__table__).where(rows, Notification.kind == kind).order_by(Notification.id)
            for row in connection.execute(of_kind.limit(_SHOWN)):
                told = {"title": in_this_lab(row.title), "body": in_this_lab(row.body)}
                shown.append(Notification(**{**row._mapping, **told}))
    return Message(message_id, lab.name, counts, tuple(shown))


def trial_message(lab: Lab) -> Message:
    """What `dlc-platform notify --test` sends."""
    row = Notification(
        kind="test",
        subject="test",
        title="A test of dlc-platform",
        body="This channel works.",
        created_at=datetime.now(UTC),
    )
    return Message(str(uuid4()), lab.name, {"test": 1}, (row,))


def send(channel: Channel, message: Message, limit: float = SEND_SECONDS) -> None:
    """Send a message now.

    Raises
    ------
    SendError
        When the receiver does not take it; without the URL or the password.
    PlatformError
        When the URL or the password is not where lab.yaml says.
    """
    written = threading.Event()
    secret: list[str] = []

    def attempt() -> None:
        secret.append(secret_of(channel))
        if isinstance(channel, Webhook):
            _post(channel, message, secret[0], limit, written)
        else:
            _mail(channel, message, secret[0], limit, written)

    try:
        _within(limit, attempt)
    except PlatformError:
        raise
    except BaseException as error:
        failed = (
            _explained(error, secret[0]) if secret else SendError("its secret cannot be read in time", passing=True)
        )
        if written.is_set() and (isinstance(error, TimeoutError) or isinstance(error.__context__, TimeoutError)):
            failed = SendError(f"{failed}, and the receiver may have the message", passing=True, unanswered=True)
    else:
        return
    # Not from what was raised, which may hold the secret.
    raise failed


def _within(seconds: float, work: Callable[[], _Result]) -> _Result:
    """What `work` returns or raises, and a TimeoutError when it takes longer; then it is left to itself.

    A time limit of a socket is one for each byte, and neither finding a host nor a disk that is away has any.
    """
    done: Future[_Result] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return done.result(seconds)


def secret_of(channel: Channel) -> str:
    """A webhook's URL or a mail server's password, empty where none is needed.

    Raises
    ------
    PlatformError
        When it is not where lab.yaml says, or a URL is none.
    """
    if isinstance(channel, Webhook):
        secret = _read(channel.name, "URL", channel.url_variable, channel.url_file)
        with suppress(ValueError):
            parts = urlsplit(secret)
            plain = parts.hostname and parts.port != 0 and not re.search(r"\s", secret) and "@" not in parts.netloc
            if plain and parts.scheme in ("http", "https"):
                return secret
        raise PlatformError(
            f"what should be the URL of the channel {channel.name} is none that can be posted to",
            "Let it begin with https://, without a user or a password in front of the host",
        )
    if channel.user is None:
        return ""
    return _read(channel.name, "password", channel.password_variable, channel.password_file)


def _read(name: str, what: str, variable: str | None, file: Path | None) -> str:
    if variable is not None:
        place, secret = f"the environment variable {variable}", os.environ.get(variable, "").strip()
        if not secret:
            raise PlatformError(
                f"{place}, which holds the {what} of the channel {name}, is not set here",
                "Set it where `dlc-platform up HOME` is started",
            )
    else:
        place, secret = str(file), _text_of(name, what, Path(str(file)))
    if len(secret.splitlines()) != 1:
        raise PlatformError(f"{place} does not hold one {what}", f"Let it hold the {what}, and nothing else")
    return secret


def _text_of(name: str, what: str, file: Path) -> str:
    try:
        # A pipe that nobody writes to would be waited for.
        with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK), "rb") as opened:
            if stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                content = opened.read(_LONGEST_SECRET + 1)
                said = f"it holds more than {_LONGEST_SECRET} bytes"
                if len(content) <= _LONGEST_SECRET:
                    return content.decode().strip()
            else:
                said = "it is not an ordinary file"
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
    raise PlatformError(
        f"{file}, which holds the {what} of the channel {name}, cannot be read: {said}",
        "Write it there, readable for the user of the lab alone",
    )


class _NoRedirect(HTTPRedirectHandler):
    """A post that is sent elsewhere becomes a get, and what answers that has taken nothing."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


def _post(channel: Webhook, message: Message, url: str, limit: float, written: threading.Event) -> None:
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
        # Asked for more: this much is written.
        written.set()

    request = Request(target, parts_of_body(), headers, method="POST")
    # The status is the answer; what follows it may never end.
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


def _mail(channel: Mail, message: Message, password: str, limit: float, written: threading.Event) -> None:
    mail = EmailMessage()
    mail["Subject"] = f"[{message.lab}] {message.title}"
    mail["From"] = channel.sender
    mail["To"] = ", ".join(channel.recipients)
    mail["Date"] = formatdate()
    mail["Message-ID"] = f"<{message.id}@{channel.sender.partition('@')[2]}>"
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content(message.text)
    context = ssl.create_default_context()
    if channel.tls == "tls":
        server: smtplib.SMTP = smtplib.SMTP_SSL(channel.host, channel.port, timeout=limit, context=context)
    else:
        server = smtplib.SMTP(channel.host, channel.port, timeout=limit)
    try:
        if channel.tls == "starttls":
            server.starttls(context=context)
        if channel.user is not None:
            server.login(channel.user, password)
        # Which of its steps a server hangs in is not told; the last one is where a server looks at the message.
        written.set()
        refused = server.send_message(mail)
    finally:
        # Not `quit`: the message is taken, and a farewell that fails must not have it sent again.
        server.close()
    if refused:
        # Those who got it would get it again.
        raise SendError(f"refused for {', '.join(sorted(refused))}, and taken for the others", passing=False)


def _explained(error: BaseException, secret: str) -> SendError:
    """What went wrong, in words that hold no secret."""
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
    """Text on one line in which no piece of a URL or password is left."""
    parts = urlsplit(secret) if "://" in secret else None
    pieces = [secret, *((parts.path, parts.query, parts.password or "", *parts.path.split("/")) if parts else ())]
    words = " ".join(words.split())
    for piece in sorted((piece for piece in pieces if len(piece) >= 6), key=len, reverse=True):
        words = words.replace(piece, "...")
    return _plain(words)[:200]


def _plain(words: str) -> str:
    """Text that may be written down: not endless, and without what stands between // and @ in a URL."""
    words = re.sub(r"(?<=://)[^/\s@]+@", "", words.replace("\0", ""))
    return words if len(words) <= _LONGEST_TEXT else words[: _LONGEST_TEXT - 4] + " ..."


def exposed_secret(channel: Channel, seconds: float = 3.0) -> Path | None:
    """The file that holds a channel's URL or password, where others on this machine may read it."""
    file = channel.url_file if isinstance(channel, Webhook) else channel.password_file
    with suppress(OSError):
        if file is not None and _within(seconds, file.stat).st_mode & 0o077:
            return file
    return None


def reach(channel: Channel, seconds: float = 3.0) -> str:
    """How a channel's server is reached, found out by opening a connection and sending nothing.

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
            "See to the disk, or keep the file on another one",
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
            "See that the address is right and that this machine may connect to it",
        ) from None
    return f"{host}:{port} answers"


def channel_states(engine: Engine, names: Sequence[str]) -> dict[str, tuple[int, int, str | None]]:
    """For each channel: how many notifications wait, how many were given up, and what last went wrong."""
    query = text(
        "select channel, count(*) filter (where sent_at is null and given_up_at is null), "
        "count(*) filter (where given_up_at is not null), "
        "(array_agg(last_error order by next_attempt_at desc nulls last) filter (where last_error is not null))[1] "
        "from dlc.notification where channel = any(:names) group by channel"
    )
    with engine.connect() as connection:
        found = {row[0]: (row[1], row[2], row[3]) for row in connection.execute(query, {"names": list(names)})}
    return {name: found.get(name, (0, 0, None)) for name in names}
