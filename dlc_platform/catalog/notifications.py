"""The table of notifications. Their texts and their sending belong to `notify`."""

from dlc_platform.catalog.asking import Asked, Question


@Question
def notification_table(most: int = 1000) -> Asked:
    """The notifications, one row for each channel, the newest first; `state` is waiting, sent or given up."""
    return (
        "select kind, subject, channel, title, body, created_at, case when sent_at is not null then 'sent' "
        "when given_up_at is not null then 'given up' else 'waiting' end as state, attempts, next_attempt_at, sent_at, "
        "given_up_at, last_error, message from dlc.notification order by id desc limit :most"
    ), {"most": most}
