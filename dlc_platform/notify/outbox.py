"""Telling people: what is to be told, in the table `notification`, and when it is sent.

Each thing is written down once for each channel, and travels in one message. A message is sent at least once: it is
marked after the receiver took it, because a failure that nobody hears of is worse than one that is heard of twice. That
happens when the process dies between the receiver's answer and one commit, and when a receiver got the message and did
not answer in time, which is tried again a few times only. The message goes out as it was, under the same
`Idempotency-Key` (for e-mail, `Message-ID`), by which a receiver knows it.

What is worth telling is decided elsewhere, and how one message is sent is in `sending`.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from uuid import uuid4

from sqlalchemy import ColumnElement, Connection, Engine, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert

from dlc_platform.catalog.tables import Notification
from dlc_platform.errors import PlatformError, in_this_lab
from dlc_platform.notify.messages import LONGEST_TEXT, WORDS, Channel, Message, News, SendError, plain
from dlc_platform.notify.sending import SEND_SECONDS, send
from dlc_platform.settings.channels import Event, Notify

#: A failure that can pass is tried again after a minute, then after twice as long each time, at most this.
_LONGEST_WAIT = timedelta(hours=1)
#: A message that nobody took for so long is given up: over a weekend, mail servers come back.
PATIENCE = timedelta(days=3)
#: How often a message is sent again that was written to the end and not answered: the receiver may have it.
_UNANSWERED = 3
#: What a message shows of each kind; the rest is counted.
_SHOWN = 10

#: A report comes alone, so that it is found again.
_TOGETHER: tuple[tuple[Event, ...], ...] = (("daily_report",), ("run_failure", "quarantine", "stale"))


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
    """Write down what is in quarantine, for each channel that wants it and does not know; returns how many are new."""
    new = 0
    for channel in channels:
        if "quarantine" in channel.send:
            with engine.begin() as connection:
                new += connection.execute(
                    text(_QUARANTINE), {"channel": channel.name, "longest": LONGEST_TEXT}
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
    engine: Engine,
    lab: str,
    notify: Notify,
    say: Callable[[str], None],
    seconds: float = 25.0,
    limit: float = SEND_SECONDS,
) -> int:
    """Send what is waiting, a message for each channel, and what failed before and is due again.

    Any number of processes may do this at once; each message is sent by one of them.

    Parameters
    ----------
    lab
        What messages call the lab.
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
    pause = timedelta(minutes=notify.digest_minutes)
    sent = 0
    for channel in notify.channels:
        for message_id in _due(engine, pause, channel):
            if time.monotonic() > until:
                return sent
            sent += _deliver(engine, lab, channel, message_id, say, limit)
    return sent


def _due(engine: Engine, pause: timedelta, channel: Channel) -> list[str]:
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
    engine: Engine, lab: str, channel: Channel, message_id: str, say: Callable[[str], None], limit: float
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
