"""The outbox: notifications in the table `notification`, and their sending.

Each event is written down once for each channel, and is sent in one message. A message is sent at least once: it is
marked after the receiver accepted it, because a failure that nobody hears about is worse than one that is told twice. A
message is sent twice if the process dies between the receiver's answer and one commit. The same happens if a receiver
got the message and did not answer in time; that is tried again only a few times. The message is sent again unchanged,
with the same `Idempotency-Key` (for e-mail, `Message-ID`), by which a receiver recognises it.

Other modules decide which events are worth telling; `sending` sends one message.
"""

import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from uuid import uuid4

from sqlalchemy import ColumnElement, Connection, Engine, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert

from dlc_platform.catalog.notifications import notify_of_quarantine
from dlc_platform.catalog.tables import Notification
from dlc_platform.errors import PlatformError, in_this_lab
from dlc_platform.notify.messages import LONGEST_TEXT, WORDS, Channel, Message, News, SendError, plain
from dlc_platform.notify.sending import SEND_SECONDS, send
from dlc_platform.settings.channels import Event, Notify

#: A failure that can pass is tried again after a minute, then after twice as long each time, at most this.
_LONGEST_WAIT = timedelta(hours=1)
#: A message that nobody accepted for so long is given up: after a weekend, mail servers are back.
PATIENCE = timedelta(days=3)
#: The most times that a completely sent message without an answer is sent again: the receiver may have it.
_UNANSWERED = 3
#: The most notifications of each kind that a message shows; the rest is counted.
_SHOWN = 10

#: A report is a message of its own, so that people find it again.
_TOGETHER: tuple[tuple[Event, ...], ...] = (("daily_report",), ("run_failure", "quarantine", "stale"))


def announce(engine: Engine, channels: Iterable[Channel], news: Iterable[News]) -> int:
    """Write news down for each channel that wants it; a channel that knows it already is left out.

    Returns
    -------
    int
        The number of new notifications.
    """
    rows = [
        {
            "kind": one.kind,
            "subject": one.subject,
            "channel": channel.name,
            "title": plain(" ".join(one.title.split())),
            "body": plain(one.body),
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
    """Write new entries of the quarantine down for each channel that wants them; return the number of new
    notifications."""
    wants = [channel.name for channel in channels if "quarantine" in channel.send]
    return sum(notify_of_quarantine(engine, name, LONGEST_TEXT) for name in wants)


def deliver(
    engine: Engine,
    lab: str,
    notify: Notify,
    say: Callable[[str], None],
    seconds: float = 25.0,
    limit: float = SEND_SECONDS,
) -> int:
    """Send waiting notifications, a message for each channel, and failed messages that are due again.

    Any number of processes may do this at once; each message is sent by one of them.

    Parameters
    ----------
    lab
        The name of the lab in messages.
    say
        Called with one line for each message that failed.
    seconds
        No message is begun after so long.
    limit
        The seconds that one message may take.

    Returns
    -------
    int
        The number of messages that receivers accepted.
    """
    until = time.monotonic() + seconds
    pause = timedelta(minutes=notify.digest_minutes)
    sent = 0
    for channel in notify.channels:
        for message_id in _due(engine, pause, channel):
            if time.monotonic() > until:
                return sent
            sent += _deliver(engine, lab, channel, message_id, say, limit)
    return sent


def _due(engine: Engine, pause: timedelta, channel: Channel) -> list[str]:
    """The messages to send to a channel now; waiting notifications become a message if none is under way."""
    own = (Notification.channel == channel.name, Notification.sent_at.is_(None), Notification.given_up_at.is_(None))
    with engine.begin() as connection:
        # Only one process at a time makes messages of a channel; another one has nothing to do here.
        lock = text("select pg_try_advisory_xact_lock(hashtext('dlc_platform notify ' || :name))")
        if not connection.scalar(lock, {"name": channel.name}):
            return []
        # Only the database's clock is used: those of hosts may differ.
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
    """True if the next attempt is due, or lies further ahead than any can: then the clock was set back."""
    now, next_one = func.now(), Notification.next_attempt_at
    return or_(next_one <= now, next_one > now + _LONGEST_WAIT)


def _deliver(
    engine: Engine, lab: str, channel: Channel, message_id: str, say: Callable[[str], None], limit: float
) -> bool:
    rows = (Notification.message == message_id, Notification.sent_at.is_(None), Notification.given_up_at.is_(None))
    with engine.begin() as connection:
        # The whole message is locked until it is marked, also while it is sent: other processes skip it.
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
    say(f"{channel.name}: a message was not delivered and {'is given up' if over else 'is tried again'}: {failed}")
    return False


def _message(connection: Connection, lab: str, message_id: str) -> Message:
    rows = Notification.message == message_id
    counted = select(Notification.kind, func.count()).where(rows).group_by(Notification.kind)
    counts = {kind: count for kind, count in connection.execute(counted)}
    shown: list[Notification] = []
    for kind in WORDS:
        if kind in counts:
            of_kind = select(Notification.__table__).where(rows, Notification.kind == kind).order_by(Notification.id)
            for row in connection.execute(of_kind.limit(_SHOWN)):
                told = {"title": in_this_lab(row.title), "body": in_this_lab(row.body)}
                shown.append(Notification(**{**row._mapping, **told}))
    return Message(message_id, lab, counts, tuple(shown))
