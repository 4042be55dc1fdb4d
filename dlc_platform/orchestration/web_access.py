"""Access to the lab's web servers: their tokens, and the host names under which they answer.

Each server has a token in a file in the lab's home that only its owner can read: a person who may only look does not
have the token of one who may change things. Tokens stay when services start again, so that a browser that was let in
once stays in; remove the file and start them again to turn everybody out.
"""

import contextlib
import os
import secrets
import stat
import sys
from pathlib import Path
from urllib.parse import urlencode

from dlc_platform.errors import HOME_VARIABLE, PlatformError, command
from dlc_platform.settings.environment import (
    WEB_HOSTS_VARIABLE,
    WEB_READ_ONLY_TOKEN_FILE_VARIABLE,
    WEB_TOKEN_FILE_VARIABLE,
    home_from_environment,
)
from dlc_platform.settings.loading import load_lab

#: The files of the tokens: for the server in which things can be changed, and for the read-only one.
_FILES = {False: "web.token", True: "web-read-only.token"}
#: The variables that name the token's file for a server that does not see the lab's home. Both may be set for both
#: servers, as one chart does.
_VARIABLES = {False: WEB_TOKEN_FILE_VARIABLE, True: WEB_READ_ONLY_TOKEN_FILE_VARIABLE}
#: The parameter of an address that carries the token.
TOKEN_PARAMETER = "token"
_FEWEST_CHARACTERS = 16


def address(home: Path, port: int, read_only: bool = False) -> str:
    """The address of a web server of this machine that lets a browser in.

    Raises
    ------
    PlatformError
        When the token can be neither read nor made.
    """
    return f"http://127.0.0.1:{port}/?{urlencode({TOKEN_PARAMETER: token_of(home, read_only)})}"


def shown_address(home: Path, port: int, read_only: bool = False) -> str:
    """The address of the lab's web server for people: at a terminal, the one that lets a browser in.

    Elsewhere, such as in systemd's journal, others may read it, so it comes without the token.

    Raises
    ------
    PlatformError
        When the token can be neither read nor made.
    """
    whole = address(home, port, read_only)
    if sys.stdout.isatty():
        return whole
    how = command("ui", home, "--port", str(port), *(["--read-only"] if read_only else []))
    return f"{whole.partition('?')[0]} ({how} prints the address that lets a browser in)"


def authorization(home: Path, read_only: bool = False) -> dict[str, str]:
    """The header with which the product's own commands ask the lab's web server.

    Raises
    ------
    PlatformError
        When the token can be neither read nor made.
    """
    return {"Authorization": f"Bearer {token_of(home, read_only)}"}


def token_of(home: Path, read_only: bool = False) -> str:
    """The token of a lab's web server; it is made if there is none yet.

    A file that others could read is made anew, because they may know the token.

    Raises
    ------
    PlatformError
        When the file can be neither read nor made.
    """
    file = home / _FILES[read_only]
    try:
        with contextlib.suppress(FileNotFoundError):
            state = file.lstat()
            if not stat.S_ISREG(state.st_mode) or state.st_mode & 0o077 or state.st_uid != os.geteuid():
                file.unlink()
        if not file.exists():
            _make(file)
        return _checked(file.read_text(), file)
    except OSError as error:
        raise PlatformError(f"{file}: {error.strerror}", "Run this as the user whose lab it is") from error


def token(read_only: bool) -> str:
    """The token of the web server that this process is: from the file that the environment names, or from its lab.

    Raises
    ------
    PlatformError
        When there is no token, or it cannot be read.
    """
    variable = _VARIABLES[read_only]
    given = os.environ.get(variable)
    if not given:
        return token_of(home_from_environment(), read_only)
    try:
        return _checked(Path(given).read_text(), Path(given))
    except OSError as error:
        raise PlatformError(f"{given}: {error.strerror}", f"Correct {variable}, or make that file") from error


def hosts() -> tuple[str, ...]:
    """The names under which the web server that this process is answers, besides those of this machine for itself.

    Raises
    ------
    PlatformError
        When the names must come from lab.yaml and it is not valid.
    """
    given = os.environ.get(WEB_HOSTS_VARIABLE)
    if given is not None:
        return tuple(name for part in given.split(",") if (name := part.strip()))
    if HOME_VARIABLE not in os.environ:
        return ()
    return load_lab(home_from_environment()).web.hosts


def _make(file: Path) -> None:
    # The file is complete before it has its name: another process may read it at this moment.
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "w") as written:
            written.write(secrets.token_urlsafe(24))
        with contextlib.suppress(FileExistsError):
            os.link(part, file)
    finally:
        part.unlink()


def _checked(text: str, file: Path) -> str:
    found = text.strip()
    if len(found) < _FEWEST_CHARACTERS or not found.isascii():
        raise PlatformError(f"{file} holds no token", "Remove it, and start the lab again: it makes another one")
    return found
