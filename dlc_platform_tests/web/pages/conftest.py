"""A lab with five sessions, each with a video of another kind, and its pages on a port of their own."""

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from sqlalchemy import Engine

from dlc_platform.settings.environment import POSTGRES_VARIABLE
from dlc_platform.store import Store
from dlc_platform.web.pages.app import pages
from dlc_platform.web.pages.lab import PagesLab
from dlc_platform_tests.web.pages.looked_at import add_model, add_session, served, write_video

FRAMES = 300


@dataclass(frozen=True)
class Written:
    """A session's video: its letter in the catalogue, and the number of its first frame that is shown."""

    write: Callable[[Path], Path]
    letter: str
    first: int = 0


@dataclass(frozen=True)
class LookedAt:
    """A lab whose pages answer at `address`; `points` are the poses of each session, by the name of its video."""

    home: Path
    store: Store
    engine: Engine
    address: str
    points: dict[str, np.ndarray]


def _plain(folder: Path) -> Path:
    write_video(folder / "plain.mp4", np.arange(FRAMES), Fraction(1, 30), bf="0", g="12")
    return folder / "plain.mp4"


def _b_frames(folder: Path) -> Path:
    write_video(folder / "b.mp4", np.arange(FRAMES), Fraction(1, 30), bf="3", g="60")
    return folder / "b.mp4"


def _variable(folder: Path) -> Path:
    steps = np.random.default_rng(1).integers(8, 90, FRAMES)
    write_video(folder / "variable.mp4", np.cumsum(steps), Fraction(1, 1000), bf="3", g="50")
    return folder / "variable.mp4"


def _cut(folder: Path) -> Path:
    """Cut without encoding again: an edit list hides the frames up to the cut."""
    whole = _b_frames(folder)
    cut = "-loglevel error -ss 1.5 -i b.mp4 -c copy cut.mp4"
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), *cut.split()], cwd=folder, check=True)
    whole.unlink()
    return folder / "cut.mp4"


def _avi(folder: Path) -> Path:
    """What no browser plays: a preview is made of it."""
    write_video(folder / "old.avi", np.arange(FRAMES), Fraction(1, 25), "mpeg4", g="40")
    return folder / "old.avi"


WRITTEN = {
    "plain": Written(_plain, "1"),
    "b-frames": Written(_b_frames, "2"),
    "variable": Written(_variable, "3"),
    "cut": Written(_cut, "4", 45),
    "preview": Written(_avi, "5"),
}


@pytest.fixture
def looked_at(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LookedAt]:
    monkeypatch.setenv(POSTGRES_VARIABLE, engine.url.render_as_string(hide_password=False))
    home = tmp_path / "lab"
    home.mkdir()
    (home / "lab.yaml").write_text("name: looked-at\nraw_roots: [raw]\nprojects: {maze: {path: maze}}\n")
    store = Store(home / "store")
    add_model(engine)
    points = {}
    for name, written in WRITTEN.items():
        folder = home / "raw" / name
        folder.mkdir(parents=True)
        points[name] = add_session(engine, store, f"sub-{name}_ses-1", written.letter, written.write(folder))
    with served(pages(PagesLab(home))) as address:
        yield LookedAt(home, store, engine, address, points)
