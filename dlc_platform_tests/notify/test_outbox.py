"""Notifications on their way to real servers on this machine, which answer well, badly, late or not at all."""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from dlc_platform.catalog.notifications import channel_states
from dlc_platform.catalog.quarantine import Fault, judge, release
from dlc_platform.errors import PlatformError
from dlc_platform.notify.mail import send_mail
from dlc_platform.notify.messages import News, SendError, trial_message
from dlc_platform.notify.outbox import announce, announce_quarantine, deliver
from dlc_platform.notify.sending import explained, exposed_secret, reach, send
from dlc_platform.settings.lab import Lab
from dlc_platform_tests import receivers
from dlc_platform_tests.catalog.conftest import lab as catalogue
from dlc_platform_tests.catalog.small_lab import identity, session
from dlc_platform_tests.receivers import MailServer, Webhook

ONE, TWO = "sub-1_ses-1", "sub-2_ses-1"
__all__ = ["catalogue"]

DELIVER = """
import os, sys
from pathlib import Path
from sqlalchemy import make_url
from dlc_platform.catalog.database import open_catalog
from dlc_platform.notify.outbox import deliver
from dlc_platform.settings.lab import Lab
engine = open_catalog(make_url(os.environ["CATALOGUE"]))
lab = Lab.model_validate_json(os.environ["LAB"])
print("ready", flush=True)
sys.stdin.readline()
print(deliver(engine, lab.name, lab.notify, print, limit=60), flush=True)
"""


@pytest.fixture
def hook() -> Iterator[Webhook]:
    with receivers.webhook() as hook:
        yield hook


@pytest.fixture
def mails() -> Iterator[MailServer]:
    with receivers.mail_server() as server:
        yield server


def make_lab(tmp_path: Path, url: str, digest_minutes: float = 0, **channel: Any) -> Lab:
    (tmp_path / "url").write_text(url + "\n")
    hook = {"name": "room", "url_file": str(tmp_path / "url"), **channel}
    return _lab({"webhooks": [hook], "digest_minutes": digest_minutes})


def _lab(notify: dict[str, Any]) -> Lab:
    return Lab.model_validate(
        {"name": "maze-lab", "raw_roots": ["/raw"], "projects": {"maze": {"path": "/maze"}}, "notify": notify}
    )


@pytest.fixture
def lab(tmp_path: Path, hook: Webhook) -> Lab:
    """A lab with one webhook, which is told at once."""
    return make_lab(tmp_path, hook.url)


def mail_lab(port: int, **channel: Any) -> Lab:
    mail = {
        "name": "us",
        "host": "127.0.0.1",
        "port": port,
        "tls": "none",
        "sender": "lab@example.org",
        "recipients": ["ada@example.org", "bob@example.org"],
        **channel,
    }
    return _lab({"mails": [mail], "digest_minutes": 0})


def tell(engine: Engine, lab: Lab, *subjects: str, kind: Any = "run_failure") -> int:
    news = [News(kind, subject, f"run {subject} failed", "the disk is full") for subject in subjects]
    return announce(engine, lab.notify.channels, news)


def rows(engine: Engine) -> list[dict[str, Any]]:
    with engine.connect() as connection:
        found = connection.execute(text("select * from dlc.notification order by id"))
        return [dict(row._mapping) for row in found]


def make_due(engine: Engine, age: str = "0") -> None:
    """As if the time to the next attempt were over, and the notifications so old."""
    with engine.begin() as connection:
        connection.execute(
            text(
                "update dlc.notification set next_attempt_at = now(), created_at = created_at - cast(:age as interval)"
            ),
            {"age": age},
        )


def test_each_thing_is_told_once(engine: Engine, lab: Lab, hook: Webhook) -> None:
    assert tell(engine, lab, "a") == 1
    assert deliver(engine, lab.name, lab.notify, print) == 1
    assert tell(engine, lab, "a") == 0
    assert deliver(engine, lab.name, lab.notify, print) == 0
    (got,) = hook.got
    assert (got["lab"], got["title"], got["counts"]) == ("maze-lab", "run a failed", {"run_failure": 1})
    (one,) = got["notifications"]
    assert {name: one[name] for name in ("kind", "subject", "title", "body")} == {
        "kind": "run_failure",
        "subject": "a",
        "title": "run a failed",
        "body": "the disk is full",
    }
    assert hook.paths == ["/services/T0/verysecret?token=alsosecret"]
    assert hook.keys == [got["message"]]
    (row,) = rows(engine)
    assert (row["attempts"], row["last_error"]) == (1, None)
    assert row["sent_at"] is not None


def test_what_comes_together_is_one_message(engine: Engine, tmp_path: Path, hook: Webhook) -> None:
    lab = make_lab(tmp_path, hook.url, digest_minutes=60)
    tell(engine, lab, *map(str, range(400)))
    tell(engine, lab, "x", kind="stale")
    assert deliver(engine, lab.name, lab.notify, print) == 1
    (got,) = hook.got
    assert got["title"] == "400 runs failed, 1 session waits for poses for too long"
    assert got["counts"] == {"run_failure": 400, "stale": 1}
    assert len(got["notifications"]) == 11

    # The next one waits for the others, but a report goes by itself.
    tell(engine, lab, "later")
    tell(engine, lab, "2026-03-04", kind="daily_report")
    assert deliver(engine, lab.name, lab.notify, print) == 1
    assert hook.got[-1]["counts"] == {"daily_report": 1}
    assert deliver(engine, lab.name, lab.notify, print) == 0
    with engine.begin() as connection:
        connection.execute(text("update dlc.notification set sent_at = sent_at - interval '61 minutes'"))
    assert deliver(engine, lab.name, lab.notify, print) == 1
    assert hook.titles()[-1] == "run later failed"


def test_a_channel_is_told_what_it_wants(engine: Engine, tmp_path: Path, hook: Webhook) -> None:
    lab = make_lab(tmp_path, hook.url, send=["daily_report"], format="slack")
    assert tell(engine, lab, "a") == 0
    announce(engine, lab.notify.channels, [News("daily_report", "2026-03-04", "A day", "5 < 6 & <!channel>")])
    assert deliver(engine, lab.name, lab.notify, print) == 1
    assert hook.got == [{"text": "*maze-lab: A day*\nA day\n5 &lt; 6 &amp; &lt;!channel&gt;"}]


def test_quarantine_is_told_while_it_lasts(catalogue: Engine, lab: Lab, hook: Webhook) -> None:
    fault = Fault("too dark", "Switch the lamp on", identity("a"), "/raw/a\nb.mp4")
    judge(catalogue, ONE, "videos", [fault])
    judge(catalogue, TWO, "poses", [Fault("failed", "Look", identity("b"))])
    release(catalogue, TWO, "ada")
    assert announce_quarantine(catalogue, lab.notify.channels) == 1
    assert announce_quarantine(catalogue, lab.notify.channels) == 0
    deliver(catalogue, lab.name, lab.notify, print)
    (one,) = hook.got[0]["notifications"]
    assert one["title"] == f"{ONE} is in quarantine (videos)"
    assert one["body"] == "/raw/a\nb.mp4: too dark. Switch the lamp on."
    # The same evidence again is nothing new; another entry is.
    judge(catalogue, ONE, "videos", [fault])
    assert announce_quarantine(catalogue, lab.notify.channels) == 0
    judge(catalogue, ONE, "videos", [Fault("too bright", "Switch it off", identity("c"))])
    assert announce_quarantine(catalogue, lab.notify.channels) == 1


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_what_can_pass_is_tried_again_as_it_was(engine: Engine, lab: Lab, hook: Webhook, status: int) -> None:
    hook.statuses = [status, 200]
    tell(engine, lab, "a", "b")
    said: list[str] = []
    assert deliver(engine, lab.name, lab.notify, said.append) == 0
    assert deliver(engine, lab.name, lab.notify, said.append) == 0  # not due yet
    assert len(hook.got) == 1
    assert f"answered {status}" in rows(engine)[0]["last_error"]
    # What comes meanwhile is not put into a message that the receiver may know.
    tell(engine, lab, "c")
    make_due(engine)
    assert deliver(engine, lab.name, lab.notify, said.append) == 1
    assert hook.got[0] == hook.got[1]
    assert hook.keys[0] == hook.keys[1]
    assert deliver(engine, lab.name, lab.notify, said.append) == 1
    assert hook.titles()[-1] == "run c failed"
    assert len(said) == 1


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 410])
def test_what_cannot_pass_is_given_up_with_its_reason(engine: Engine, lab: Lab, hook: Webhook, status: int) -> None:
    hook.statuses = [status]
    tell(engine, lab, "a")
    said: list[str] = []
    assert deliver(engine, lab.name, lab.notify, said.append) == 0
    (row,) = rows(engine)
    assert row["given_up_at"] is not None
    assert f"answered {status}" in row["last_error"]
    make_due(engine)
    assert deliver(engine, lab.name, lab.notify, said.append) == 0
    assert len(hook.got) == 1
    assert channel_states(engine, ["room", "other"]) == {
        "room": (0, 1, row["last_error"]),
        "other": (0, 0, None),
    }
    for words in (*said, row["last_error"]):
        assert "secret" not in words


def test_waits_become_longer_and_end_after_days(engine: Engine, lab: Lab, hook: Webhook) -> None:
    hook.statuses = [500]
    tell(engine, lab, "a")
    waits = []
    for _ in range(8):
        make_due(engine)
        deliver(engine, lab.name, lab.notify, print)
        with engine.connect() as connection:
            query = "select extract(epoch from next_attempt_at - now()) / 60 from dlc.notification"
            waits.append(round(float(connection.scalar(text(query)))))  # pyright: ignore
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
    assert rows(engine)[0]["given_up_at"] is None
    make_due(engine, age="73 hours")
    deliver(engine, lab.name, lab.notify, print)
    assert rows(engine)[0]["given_up_at"] is not None


def test_a_message_does_not_wait_for_a_clock_that_was_wrong(engine: Engine, lab: Lab, hook: Webhook) -> None:
    hook.statuses = [500, 200]
    tell(engine, lab, "a")
    assert deliver(engine, lab.name, lab.notify, print) == 0
    with engine.begin() as connection:
        connection.execute(text("update dlc.notification set next_attempt_at = now() + interval '1 day'"))
    assert deliver(engine, lab.name, lab.notify, print) == 1
    # Nor do those that come after one that was sent tomorrow.
    with engine.begin() as connection:
        connection.execute(text("update dlc.notification set sent_at = now() + interval '1 day'"))
    tell(engine, lab, "b")
    assert deliver(engine, lab.name, lab.notify, print) == 1


def test_a_receiver_that_hangs_costs_a_bounded_time(engine: Engine, lab: Lab, hook: Webhook) -> None:
    hook.statuses, hook.silence = [0], 20.0
    tell(engine, lab, "a")
    started = time.monotonic()
    assert deliver(engine, lab.name, lab.notify, print, limit=0.5) == 0
    assert time.monotonic() - started < 15
    assert "no answer" in rows(engine)[0]["last_error"]


def test_an_unanswered_message_is_tried_again_a_few_times_only(
    engine: Engine, tmp_path: Path, lab: Lab, hook: Webhook
) -> None:
    # Attempts that did not reach anybody do not count.
    with receivers.webhook() as gone:
        away = make_lab(tmp_path, gone.url)
    tell(engine, lab, "a")
    for _ in range(5):
        assert deliver(engine, away.name, away.notify, print) == 0
        make_due(engine)
    hook.statuses, hook.silence = [0], 20.0
    make_lab(tmp_path, hook.url)
    said: list[str] = []
    for _ in range(6):
        deliver(engine, lab.name, lab.notify, said.append, limit=0.4)
        make_due(engine)
    assert len(hook.got) == len(said) == 4
    assert len(set(hook.keys)) == 1
    (row,) = rows(engine)
    assert row["given_up_at"] is not None
    assert "the receiver may have the message" in row["last_error"]
    assert "is given up" in said[-1]


def test_a_mail_server_that_took_the_message_and_says_nothing(mails: MailServer) -> None:
    mails.replies = {"RCPT": ""}
    lab = mail_lab(mails.port)
    with pytest.raises(SendError, match="may have the message") as caught:
        send(lab.notify.mails[0], trial_message(lab.name), limit=0.4)
    assert caught.value.unanswered


def test_a_server_that_takes_no_message_does_not_have_it(tmp_path: Path) -> None:
    # It accepts connections and reads nothing; the message is larger than what the kernels keep.
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lab = make_lab(tmp_path, f"http://127.0.0.1:{server.getsockname()[1]}/")
        message = dataclasses.replace(trial_message(lab.name), lab=20_000_000 * "x")
        with pytest.raises(SendError) as caught:
            send(lab.notify.webhooks[0], message, limit=1)
    assert (caught.value.passing, caught.value.unanswered) == (True, False)


@pytest.mark.parametrize("kind", ["pipe", "folder", "large", "device"])
def test_a_secret_is_read_from_a_small_ordinary_file_only(tmp_path: Path, hook: Webhook, kind: str) -> None:
    lab = make_lab(tmp_path, hook.url)
    file = tmp_path / "url"
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "device":
        file.symlink_to("/dev/zero")
    else:
        file.write_text(hook.url + 5000 * "x")
    (channel,) = lab.notify.webhooks
    for ask in (
        lambda: send(channel, trial_message(lab.name)),
        lambda: reach(channel),
    ):
        with pytest.raises(PlatformError, match=f"{file}, which holds the URL of the channel room, cannot be read"):
            ask()
    assert hook.got == []


def test_a_secret_that_others_may_read_is_named(tmp_path: Path, hook: Webhook) -> None:
    (channel,) = make_lab(tmp_path, hook.url).notify.webhooks
    (tmp_path / "url").chmod(0o644)
    assert exposed_secret(channel) == tmp_path / "url"
    (tmp_path / "url").chmod(0o600)
    assert exposed_secret(channel) is None


def test_nobody_there(engine: Engine, tmp_path: Path) -> None:
    with receivers.webhook() as gone:
        lab = make_lab(tmp_path, gone.url)
    tell(engine, lab, "a")
    said: list[str] = []
    assert deliver(engine, lab.name, lab.notify, said.append) == 0
    assert "cannot be reached: Connection refused" in said[0]
    assert "secret" not in said[0]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "verysecret",
        "ftp://verysecret/x",
        "https://a:verysecret@h/x",
        "http://h:verysecret/",
        "http://h/very\nsecret",
    ],
)
def test_a_url_that_is_none_is_said_without_it(engine: Engine, tmp_path: Path, hook: Webhook, url: str) -> None:
    lab = make_lab(tmp_path, url)
    tell(engine, lab, "a")
    said: list[str] = []
    assert deliver(engine, lab.name, lab.notify, said.append) == 0
    assert "secret" not in said[0]
    # A person mends it, and then it is sent.
    (tmp_path / "url").write_text(hook.url)
    make_due(engine)
    assert deliver(engine, lab.name, lab.notify, said.append) == 1


@pytest.mark.parametrize("path", ["/very secret", "/verysecret\x7f", "/verysecrét", "/%zzverysecret"])
def test_odd_urls_leave_nothing_behind(engine: Engine, tmp_path: Path, hook: Webhook, path: str) -> None:
    hook.statuses = [404]
    lab = make_lab(tmp_path, f"http://127.0.0.1:{hook.port}{path}")
    tell(engine, lab, "a")
    said: list[str] = []
    deliver(engine, lab.name, lab.notify, said.append)
    assert "secr" not in str(said) + str(rows(engine))


def test_a_variable_that_is_not_set_is_named(engine: Engine, hook: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = _lab({"webhooks": [{"name": "room", "url_variable": "LAB_HOOK"}]})
    (channel,) = lab.notify.webhooks
    monkeypatch.delenv("LAB_HOOK", raising=False)
    with pytest.raises(PlatformError, match="LAB_HOOK, which holds the URL of the channel room, is not set"):
        reach(channel)
    monkeypatch.setenv("LAB_HOOK", hook.url)
    assert reach(channel) == f"127.0.0.1:{hook.port} answers"
    assert hook.got == []
    tell(engine, lab, "a")
    assert deliver(engine, lab.name, lab.notify, print) == 1


def start_deliverer(engine: Engine, lab: Lab) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", DELIVER],
        env={
            **os.environ,
            "CATALOGUE": engine.url.render_as_string(hide_password=False),
            "LAB": lab.model_dump_json(exclude_defaults=True),
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_two_deliverers_at_once_send_each_message_once(engine: Engine, lab: Lab, hook: Webhook) -> None:
    hook.statuses, hook.silence = [200], 0.5
    processes = [start_deliverer(engine, lab) for _ in range(2)]
    tell(engine, lab, *map(str, range(50)))
    outcomes: list[int] = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        said, _ = process.communicate()
        outcomes.append(int(said.splitlines()[-1]))
    assert sorted(outcomes) == [0, 1]
    assert [one["counts"] for one in hook.got] == [{"run_failure": 50}]


def test_a_message_of_several_rows_is_locked_while_it_is_sent(engine: Engine, lab: Lab, hook: Webhook) -> None:
    # Put together and due, as after an attempt that failed.
    hook.statuses, hook.silence = [503, 0, 200], 1.0
    tell(engine, lab, *"abcde")
    assert deliver(engine, lab.name, lab.notify, print) == 0
    make_due(engine)
    raised: list[BaseException] = []

    def work() -> None:
        try:
            deliver(engine, lab.name, lab.notify, print)
        except BaseException as error:
            raised.append(error)

    deliverers = [threading.Thread(target=work) for _ in range(3)]
    for deliverer in deliverers:
        deliverer.start()
        while len(hook.got) < 2:
            time.sleep(0.01)
    for deliverer in deliverers:
        deliverer.join()
    assert raised == []
    assert len(hook.got) == 2
    assert {row["attempts"] for row in rows(engine)} == {2}


def test_a_second_deliverer_passes_by_what_is_being_sent(engine: Engine, lab: Lab, hook: Webhook) -> None:
    hook.statuses, hook.silence = [0, 200], 2.0
    tell(engine, lab, "a")
    first = threading.Thread(target=deliver, args=(engine, lab.name, lab.notify, print))
    first.start()
    while not hook.got:
        time.sleep(0.01)
    assert deliver(engine, lab.name, lab.notify, print) == 0
    first.join()
    assert len(hook.got) == 1


def test_a_kill_between_sending_and_marking_repeats_the_message(engine: Engine, lab: Lab, hook: Webhook) -> None:
    # The receiver has it, and its answer never comes.
    hook.statuses, hook.silence = [0, 200], 30.0
    tell(engine, lab, "a", "b")
    process = start_deliverer(engine, lab)
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    while not hook.got:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    tell(engine, lab, "c")
    # Until Postgres knows that the process is gone, its message is still locked.
    while not deliver(engine, lab.name, lab.notify, print):
        time.sleep(0.2)
    assert hook.got[0] == hook.got[1]
    assert hook.keys[0] == hook.keys[1]
    assert deliver(engine, lab.name, lab.notify, print) == 1
    assert hook.got[2]["counts"] == {"run_failure": 1}
    assert hook.keys[2] != hook.keys[1]


def test_mail_is_sent_to_everybody_and_names_the_message(engine: Engine, mails: MailServer) -> None:
    lab = mail_lab(mails.port)
    announce(
        engine,
        lab.notify.channels,
        [News("run_failure", "r", "sub-1\nBcc: eve@example.org ist für ünmöglich", "ein Grund: ü\n.\nEnde")],
    )
    assert deliver(engine, lab.name, lab.notify, print) == 1
    (mail,) = mails.mails
    assert mail["Subject"] == "[maze-lab] sub-1 Bcc: eve@example.org ist für ünmöglich"
    assert mail["Bcc"] is None
    assert mails.recipients == [["ada@example.org", "bob@example.org"]]
    assert mail.get_content().splitlines()[-3:] == ["ein Grund: ü", ".", "Ende"]
    (row,) = rows(engine)
    assert mail["Message-ID"] == f"<{row['message']}@example.org>"
    assert mails.logins == []


@pytest.mark.parametrize(
    ("replies", "passing", "said"),
    [
        ({"MAIL": "451 try later"}, True, "answered 451 try later"),
        ({"MAIL": "550 verysecretpassword is blocked"}, False, "answered 550 ... is blocked"),
        ({"RCPT": "450 greylisted"}, True, "refused for ada@example.org, bob@example.org"),
        ({"RCPT": "550 no such user"}, False, "refused for ada@example.org, bob@example.org"),
        ({"DATA": "421 closing"}, True, "answered 421 closing"),
    ],
)
def test_a_mail_server_that_says_no(
    engine: Engine, mails: MailServer, replies: dict[str, str], passing: bool, said: str
) -> None:
    mails.replies = replies
    (channel,) = mail_lab(mails.port).notify.mails
    message = trial_message(mail_lab(mails.port).name)
    # As with a password, which this server without encryption is not given.
    try:
        send_mail(channel, message, "verysecretpassword", 5, threading.Event())
        raise AssertionError("it was taken")
    except Exception as error:
        refused = explained(error, "verysecretpassword")
    assert (str(refused), refused.passing) == (said, passing)


def test_a_password_is_given_and_not_told(mails: MailServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMTP_PASSWORD", "verysecret pass word")
    lab = mail_lab(mails.port, tls="starttls", user="lab", password_variable="SMTP_PASSWORD")
    (channel,) = lab.notify.mails
    # A server without encryption does not get to see it.
    with pytest.raises(SendError, match="STARTTLS") as caught:
        send(channel, trial_message(lab.name))
    assert not caught.value.passing
    assert mails.logins == []
    plain = channel.model_copy(update={"tls": "none"})
    send(plain, trial_message(lab.name))
    assert mails.logins == ["\0lab\0verysecret pass word"]
    mails.replies = {"AUTH": "535 wrong: verysecret pass word"}
    with pytest.raises(SendError) as caught:
        send(plain, trial_message(lab.name))
    assert "secret" not in str(caught.value)
    assert "535" in str(caught.value)


def test_nothing_that_looks_like_a_password_is_written_down(engine: Engine, lab: Lab) -> None:
    body = "cannot reach postgresql://lab:verysecret@db/lab\0" + 2000 * "x"
    announce(engine, lab.notify.channels, [News("run_failure", "r", "failed", body)])
    (row,) = rows(engine)
    assert "secret" not in row["body"]
    assert "postgresql://db/lab" in row["body"]
    assert len(row["body"]) == 600


def test_the_same_session_may_be_told_to_two_channels(engine: Engine, tmp_path: Path, hook: Webhook) -> None:
    (tmp_path / "url").write_text(hook.url)
    names = ("one", "two")
    lab = _lab({"webhooks": [{"name": name, "url_file": str(tmp_path / "url")} for name in names]})
    session(ONE)
    assert tell(engine, lab, "a") == 2
    # One that is broken does not hold up the other.
    hook.statuses = [500, 200]
    assert deliver(engine, lab.name, lab.notify, print) == 1
    assert len(hook.got) == 2
