"""The table of notifications. Their texts and their sending belong to `notify`."""

from collections.abc import Collection, Sequence

from sqlalchemy import Engine, func, select, text
from sqlalchemy.dialects.postgresql import aggregate_order_by

from dlc_platform.catalog.asking import Asked, Question
from dlc_platform.catalog.tables import Notification


@Question
def notification_table(most: int = 1000) -> Asked:
    """The notifications, one row for each channel, the newest first; `state` is waiting, sent or given up."""
    return (
        "select kind, subject, channel, title, body, created_at, case when sent_at is not null then 'sent' "
        "when given_up_at is not null then 'given up' else 'waiting' end as state, attempts, next_attempt_at, sent_at, "
        "given_up_at, last_error, message from dlc.notification order by id desc limit :most"
    ), {"most": most}


def announced(engine: Engine, kind: str, subjects: Collection[str]) -> set[str]:
    """The subjects of one kind that a channel was told of, or will be."""
    with engine.connect() as connection:
        known = select(Notification.subject).where(Notification.kind == kind, Notification.subject.in_(subjects))
        return set(connection.scalars(known))


#: Done only in the database, because a bad disk puts thousands of sessions into quarantine at once.
_OF_QUARANTINE = """
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


def notify_of_quarantine(engine: Engine, channel: str, longest: int) -> int:
    """Write down what is in quarantine for a channel that does not know; returns how many notifications are new.

    Parameters
    ----------
    longest
        Of a notification's body, in characters.
    """
    with engine.begin() as connection:
        return connection.execute(text(_OF_QUARANTINE), {"channel": channel, "longest": longest}).rowcount


def channel_states(engine: Engine, names: Sequence[str]) -> dict[str, tuple[int, int, str | None]]:
    """For each channel: the number of waiting notifications, of those given up, and the last error."""
    waits = Notification.sent_at.is_(None) & Notification.given_up_at.is_(None)
    last = Notification.next_attempt_at.desc().nulls_last()
    errors = func.array_agg(aggregate_order_by(Notification.last_error, last))
    states = (
        select(
            Notification.channel,
            func.count().filter(waits),
            func.count().filter(Notification.given_up_at.is_not(None)),
            errors.filter(Notification.last_error.is_not(None)),
        )
        .where(Notification.channel.in_(names))
        .group_by(Notification.channel)
    )
    with engine.connect() as connection:
        found = {
            name: (waiting, given_up, said[0] if said else None)
            for name, waiting, given_up, said in connection.execute(states)
        }
    return {name: found.get(name, (0, 0, None)) for name in names}
