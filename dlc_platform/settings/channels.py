"""The section `notify` of lab.yaml: the events that the lab reports to people, and the channels for them."""

from typing import Literal, get_args

from pydantic import Field, model_validator

from dlc_platform.settings.fields import Address, Folder, Name, Section, VariableName

#: The events that a lab can report.
Event = Literal["run_failure", "quarantine", "stale", "daily_report"]
EVENTS: tuple[Event, ...] = get_args(Event)


class _Channel(Section):
    """A place to send notifications to."""

    name: Name = Field(description="Its name in rows and messages; with another name it is another channel.")
    send: tuple[Event, ...] = Field(default=EVENTS, min_length=1, description="The events that it is told.")


class Webhook(_Channel):
    """A URL to which messages are posted. The URL is a secret, so lab.yaml only says where it is."""

    url_variable: VariableName | None = Field(default=None, description="The environment variable that holds the URL.")
    url_file: Folder | None = Field(default=None, description="Or the file that holds it, and nothing else.")
    format: Literal["json", "slack"] = Field(
        default="json", description="`slack`: a text, as Slack, Mattermost and their like take it."
    )

    @model_validator(mode="after")
    def _one_place(self) -> "Webhook":
        if (self.url_variable is None) == (self.url_file is None):
            raise ValueError("give either url_variable or url_file, which say where the URL is")
        return self


class Mail(_Channel):
    """E-mail through the lab's SMTP server."""

    host: str = Field(min_length=1, description="The name of the SMTP server.")
    port: int = Field(default=587, ge=1, le=65535, description="Its port: 587 for `starttls`, 465 for `tls`.")
    tls: Literal["starttls", "tls", "none"] = Field(
        default="starttls", description="`tls` from the start, as on port 465; `none` never with a password."
    )
    user: str | None = Field(default=None, description="The account at the server; without one, no password is sent.")
    password_variable: VariableName | None = Field(
        default=None, description="The environment variable that holds the password."
    )
    password_file: Folder | None = Field(default=None, description="Or the file that holds it, and nothing else.")
    sender: Address = Field(description="The address that the messages come from.")
    recipients: tuple[Address, ...] = Field(min_length=1, description="The addresses that they go to.")

    @model_validator(mode="after")
    def _one_place(self) -> "Mail":
        given = [place for place in (self.password_variable, self.password_file) if place is not None]
        if len(given) != (self.user is not None):
            raise ValueError("a user needs either password_variable or password_file, and a password needs a user")
        if given and self.tls == "none":
            raise ValueError("a password is not sent without tls")
        return self


class Notify(Section):
    """The channels, and the events that each is told."""

    webhooks: tuple[Webhook, ...] = Field(default=(), description="URLs that messages are posted to.")
    mails: tuple[Mail, ...] = Field(default=(), description="Addresses that messages are mailed to.")
    digest_minutes: float = Field(
        default=15.0,
        ge=0,
        le=7 * 24 * 60,
        description="The least time between two messages to one channel: events meanwhile are sent together in one "
        "message.",
    )

    @property
    def channels(self) -> tuple[Webhook | Mail, ...]:
        return (*self.webhooks, *self.mails)

    @model_validator(mode="after")
    def _names_differ(self) -> "Notify":
        names = [channel.name for channel in self.channels]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"several channels are called {', '.join(twice)}")
        return self
