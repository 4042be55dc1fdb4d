"""News for people: one event, and the message that carries several of them."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import uuid4

from dlc_platform.catalog.tables import Notification
from dlc_platform.errors import in_this_lab
from dlc_platform.settings.channels import Event, Mail, Webhook

Channel = Webhook | Mail
LONGEST_TEXT = 600
#: The words of a message's title for one event, and for several.
WORDS: dict[Event, tuple[str, str]] = {
    "run_failure": ("run failed", "runs failed"),
    "quarantine": ("session is in quarantine", "times a session or file was put in quarantine"),
    "stale": ("session waits for poses for too long", "sessions wait for poses for too long"),
    "daily_report": ("daily report", "daily reports"),
}


@dataclass(frozen=True)
class News:
    """An event to tell; `subject` names it, for ever, among those of its kind."""

    kind: Event
    subject: str
    title: str
    body: str


@dataclass(frozen=True)
class Message:
    """The message for one channel: the newest notifications of each kind, and the number of each kind."""

    id: str
    lab: str
    counts: dict[str, int]
    notifications: tuple[Notification, ...]

    @property
    def title(self) -> str:
        first = self.notifications[0]
        if sum(self.counts.values()) == 1:
            return first.title
        parts = [f"{count} {WORDS[kind][count > 1]}" for kind in WORDS if (count := self.counts.get(kind, 0))]
        return ", ".join(parts)

    @property
    def text(self) -> str:
        parts = [f"{one.title}\n{one.body}" if one.body else one.title for one in self.notifications]
        more = sum(self.counts.values()) - len(self.notifications)
        rest = in_this_lab(f"... and {more} more: see `dlc-platform notifications HOME`")
        return "\n\n".join([*parts, *([rest] if more else [])])


class SendError(Exception):
    """A message that was not delivered; `passing` is true if a later try may succeed.

    An `unanswered` message was sent completely, so the receiver may have it.
    """

    def __init__(self, reason: str, passing: bool, unanswered: bool = False):
        super().__init__(reason)
        self.passing = passing
        self.unanswered = unanswered


def trial_message(lab: str) -> Message:
    """The message that `dlc-platform notify test` sends, in the name of a lab."""
    row = Notification(
        kind="test",
        subject="test",
        title="A test of dlc-platform",
        body="This channel works.",
        created_at=datetime.now(UTC),
    )
    return Message(str(uuid4()), lab, {"test": 1}, (row,))


def plain(words: str) -> str:
    """Text that may be written down: cut, and without the part between // and @ of a URL."""
    words = re.sub(r"(?<=://)[^/\s@]+@", "", words.replace("\0", ""))
    return words if len(words) <= LONGEST_TEXT else words[: LONGEST_TEXT - 4] + " ..."
