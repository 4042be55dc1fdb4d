"""Networks are built and trained offline: names in a foreign configuration are never fetched from the internet.

timm fetches a network by its name, even one that is built without its weights. Only the first weights of a training
are fetched, if the recipe in lab.yaml says `weights: imagenet`; see `backbone`.
"""

import re
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from dlc_platform.errors import PlatformError

#: The beginnings of names that timm and torch fetch from elsewhere.
_ELSEWHERE = re.compile(r"\s*(?:hf[-_]hub|local-dir|https?|ftp|file|s3|gs):", re.I)
_here = threading.local()


@contextmanager
def with_network() -> Iterator[None]:
    """Allow connections again within `without_network`, for the platform's own ones."""
    before = getattr(_here, "what", None)
    _here.what = None
    try:
        yield
    finally:
        _here.what = before


@contextmanager
def without_network(what: str) -> Iterator[None]:
    """Refuse every connection of this thread to another machine, or to a name that must be looked up.

    Parameters
    ----------
    what
        The thing that is built, for the error.
    """
    _install()
    before = getattr(_here, "what", None)
    _here.what = what
    try:
        yield
    finally:
        _here.what = before


def require_local(file: Path, section: str, configuration: Any) -> None:
    """Check that the part of a model's configuration that describes its network names nothing outside this machine.

    Raises
    ------
    PlatformError
        When it does; it names the key: `hf-hub:` and `local-dir:` of timm, and addresses.
    """
    if isinstance(configuration, Mapping):
        for key, value in configuration.items():
            require_local(file, f"{section}.{key}", value)
    elif isinstance(configuration, Sequence) and not isinstance(configuration, str):
        for value in configuration:
            require_local(file, section, value)
    elif isinstance(configuration, str) and _ELSEWHERE.match(configuration):
        raise PlatformError(
            f"{file} takes its network from elsewhere ({section}: {configuration[:100]}), and nothing is fetched for a "
            "model of somebody else",
            "Ask whoever trained it for a model of one of DeepLabCut's own networks",
        )


@cache
def _install() -> None:
    """Install a hook of Python that is asked before each connection; it cannot be removed again."""

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
            return
        what = getattr(_here, "what", None)
        if what is None or (event == "socket.connect" and arguments[0].family == socket.AF_UNIX):
            return
        raise PlatformError(f"{what} would be fetched from the network, which is not allowed", "Use another model")

    sys.addaudithook(refuse)
