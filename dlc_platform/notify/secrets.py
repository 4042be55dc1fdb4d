"""The URL or password of a channel, read when it is needed; nothing that is written or logged holds it."""

import os
import re
import stat
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from dlc_platform.errors import PlatformError
from dlc_platform.notify.messages import Channel
from dlc_platform.settings.channels import Webhook

#: No URL or password is longer; a longer file is not read.
_LONGEST_SECRET = 4096


def secret_of(channel: Channel) -> str:
    """A webhook's URL or a mail server's password, empty where none is needed.

    Raises
    ------
    PlatformError
        When it is not where lab.yaml says, or is not a URL that can be posted to.
    """
    if isinstance(channel, Webhook):
        secret = _read(channel.name, "URL", channel.url_variable, channel.url_file)
        with suppress(ValueError):
            parts = urlsplit(secret)
            plain = parts.hostname and parts.port != 0 and not re.search(r"\s", secret) and "@" not in parts.netloc
            if plain and parts.scheme in ("http", "https"):
                return secret
        raise PlatformError(
            f"the URL of the channel {channel.name} is not one that messages can be posted to",
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
        # Opening a pipe that nobody writes to would wait for ever.
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
        "Write it there, readable only for the user of the lab",
    )
