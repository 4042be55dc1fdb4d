"""Previews that are being made: one after the other, in the background, each with how far it is.

What a preview is, and how it is made, is `views.preview`.
"""

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dlc_platform.catalog.gallery import estimates_of_video, file_of_video
from dlc_platform.errors import PlatformError
from dlc_platform.views.pose_arrays import pose_arrays
from dlc_platform.views.preview import make_preview
from dlc_platform.web.pages.lab import PagesLab


@dataclass
class Making:
    """The progress of a preview: `done` of `frames`; `says` is what went wrong, in a sentence."""

    state: Literal["waiting", "making", "there", "failed"] = "waiting"
    done: int = 0
    frames: int = 0
    says: str = ""


class Previews:
    """The previews that this server makes."""

    def __init__(self, lab: PagesLab, file_of: Callable[[dict], Path]):
        self._lab = lab
        self._file_of = file_of
        self._lock = threading.Lock()
        self._asked: dict[str, Making] = {}
        self._queue: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._worker: threading.Thread | None = None

    def folder(self, video: str) -> Path:
        """The folder of a video's preview.

        Raises
        ------
        PlatformError
            When it is not there.
        """
        if not self._lab.store.has_view("previews", video):
            raise PlatformError("this preview is not made yet", "Open the page of its session")

        def write(_: Path) -> None:
            raise PlatformError("this preview was removed just now", "Open the page of its session again")

        return self._lab.store.view("previews", video, write)

    def ask(self, video: str) -> Making:
        """The progress of a video's preview; the first who asks sets it going, and so does who asks after a failure."""
        if self._lab.store.has_view("previews", video):
            return Making("there")
        with self._lock:
            making = self._asked.get(video)
            if making is None or making.state == "there":
                making = self._asked[video] = Making()
                self._queue.put(video)
                if self._worker is None or not self._worker.is_alive():
                    self._worker = threading.Thread(target=self._work, daemon=True)
                    self._worker.start()
            elif making.state == "failed":
                del self._asked[video]
            return making

    def _work(self) -> None:
        while True:
            video = self._queue.get()
            making = self._asked[video]
            try:
                self._make(video, making)
                making.state = "there"
            except Exception as error:
                making.says = str(error) if isinstance(error, PlatformError) else "the video cannot be shown"
                making.state = "failed"

    def _make(self, video: str, making: Making) -> None:
        store = self._lab.store
        row = next(iter(file_of_video.rows(self._lab.engine, video)), None)
        if row is None:
            raise PlatformError("no file of the lab holds this video", "It was replaced or removed")
        path = self._file_of(row)
        estimates = estimates_of_video.rows(self._lab.engine, video)
        if not estimates:
            raise PlatformError(
                "this video has no poses, and so no times of its frames yet", "Wait until it is tracked"
            )
        times_s = pose_arrays(store, str(estimates[0]["pose_estimate"])).times_s
        making.state, making.frames = "making", len(times_s)

        def progress(done: int) -> None:
            making.done = done

        store.view("previews", video, lambda folder: make_preview(path, row["whole"], times_s, folder, progress))
        store.trim_views(int(self._lab.settings.web.views_gigabytes * 1e9))
