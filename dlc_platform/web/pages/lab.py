"""The lab as the pages see it: opened once, read only, and read again where lab.yaml has changed.

What is asked of it often, and takes long in a large lab, is asked in the background and remembered for some seconds.
"""

import threading
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

from sqlalchemy import Engine

from dlc_platform.catalog.database import open_lab
from dlc_platform.catalog.gallery import choices, state_counts
from dlc_platform.errors import PlatformError
from dlc_platform.settings.environment import LAB_FILE
from dlc_platform.settings.lab import Lab
from dlc_platform.settings.loading import load_lab
from dlc_platform.store import Store

Answer = TypeVar("Answer")
#: How long an answer is good enough, in seconds.
_FRESH = 5.0


class Remembered(Generic[Answer]):
    """An answer that is asked for anew when it is older than some seconds; who comes meanwhile gets the last one."""

    def __init__(self, ask: Callable[[], Answer], fresh_s: float = _FRESH):
        self._ask = ask
        self._fresh_s = fresh_s
        self._lock = threading.Lock()
        self._answer: Answer | None = None
        self._asked_at = -1e9

    def __call__(self) -> Answer:
        answer = self._answer
        if answer is None:
            with self._lock:
                if self._answer is None:
                    self._renew()
                assert self._answer is not None
                return self._answer
        if time.monotonic() - self._asked_at > self._fresh_s and self._lock.acquire(blocking=False):
            threading.Thread(target=self._renew_and_release, daemon=True).start()
        return answer

    def settle(self) -> None:
        """Return when nobody asks any more."""
        with self._lock:
            pass

    def _renew(self) -> None:
        self._answer = self._ask()
        self._asked_at = time.monotonic()

    def _renew_and_release(self) -> None:
        try:
            self._renew()
        except Exception:
            # The next who comes asks again; until then the last answer stands.
            self._asked_at = time.monotonic()
        finally:
            self._lock.release()


class PagesLab:
    """A lab that is looked at.

    Attributes
    ----------
    home
        Its folder.
    read_only
        Nothing can be changed from these pages.
    dagster_url
        Where Dagster's UI of the lab answers browsers; None if nobody said it.
    """

    def __init__(self, home: Path, read_only: bool = False, dagster_url: str | None = None):
        self.home = home
        self.read_only = read_only
        self.dagster_url = dagster_url
        self.counts = Remembered(lambda: state_counts(self.engine))
        self.choices = Remembered(lambda: choices(self.engine))
        self._opening = threading.Lock()
        self._settings: tuple[tuple[int, int], Lab] | None = None

    def close(self) -> None:
        """Let go of the catalogue, once what is asked in the background has its answer."""
        for remembered in (self.counts, self.choices):
            remembered.settle()
        if "_catalogue" in self.__dict__:
            self._catalogue.dispose()

    @property
    def settings(self) -> Lab:
        """lab.yaml as it is now.

        Raises
        ------
        PlatformError
            When it is not valid and never was.
        """
        state = (self.home / LAB_FILE).stat()
        version = (state.st_mtime_ns, state.st_size)
        if self._settings is None or self._settings[0] != version:
            try:
                self._settings = version, load_lab(self.home)
            except PlatformError:
                # While somebody writes it, pages go on with what it said before.
                if self._settings is None:
                    raise
        return self._settings[1]

    @cached_property
    def _catalogue(self) -> Engine:
        return open_lab(self.home)

    @property
    def engine(self) -> Engine:
        """The catalogue, opened at the first question, so that the server answers while Postgres is away."""
        with self._opening:
            return self._catalogue

    @property
    def store(self) -> Store:
        return Store(self.settings.store)
