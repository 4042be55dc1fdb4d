"""A message by e-mail."""

import smtplib
import ssl
import threading
from email.message import EmailMessage
from email.utils import formatdate

from dlc_platform.notify.messages import Message, SendError
from dlc_platform.settings.channels import Mail


def send_mail(channel: Mail, message: Message, password: str, limit: float, written: threading.Event) -> None:
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
        # The error does not say in which step the server hangs; the last step is the one in which it has the message.
        written.set()
        refused = server.send_message(mail)
    finally:
        # Not `quit`: the message is accepted, and a failing farewell must not cause a second sending.
        server.close()
    if refused:
        # The receivers who got it would get it again.
        raise SendError(f"refused for {', '.join(sorted(refused))}, and accepted for the others", passing=False)
