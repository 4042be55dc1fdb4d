"""Titles, cover pictures, sound and data in a video file: they never decide whether the video can be read."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.stream import VideoStream

from dlc_platform.errors import PlatformError
from dlc_platform.sessions.readiness import Header, read_header
from dlc_platform.video.probe import probe
from dlc_platform_tests.video.conftest import picture

SIZE = (96, 64)
TITLE, NAME = "Maus KXXfig", "StrXXm"
#: Text as Windows programs write it, in as many bytes.
ENCODED = {
    "latin-1": ("Maus K\xe4\xfcig".encode("latin-1") + b"x", b"Str\xf6\xdfm"),
    "shift-jis": ("動物の箱".encode("shift-jis") + b"\x83\x5cx", "線線".encode("shift-jis") + b"\x83x"),
    "no encoding": (b"\xff\xfe\x80\xc0\xed\xa0\x80\xf8\x88\x01x", b"\x80\xff\xfe\xc0\x01x"),
}


def add_stream(container: av.container.OutputContainer, codec: str, size: tuple[int, int]) -> VideoStream:
    stream = container.add_stream(codec, rate=25)
    assert isinstance(stream, VideoStream)
    stream.width, stream.height = size
    stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    return stream


def write(
    path: Path, codec: str = "mpeg4", cover: bool = False, second: tuple[int, int] | None = None, frames: int = 20
) -> Path:
    """A video with a title, and with sound; a picture may come before it, another video behind it."""
    with av.open(str(path), "w") as container:
        container.metadata["title"] = TITLE
        before = add_stream(container, "mjpeg", (32, 32)) if cover else None
        video = add_stream(container, codec, SIZE)
        video.metadata["title"] = NAME
        behind = add_stream(container, codec, second) if second else None
        sound = container.add_stream("aac" if path.suffix in (".mp4", ".mov", ".mkv") else "mp2", rate=44100)
        if before is not None:
            container.mux(before.encode(av.VideoFrame.from_ndarray(picture(0, 32, 32), format="rgb24")))
            container.mux(before.encode(None))
        for number in range(frames):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture(number, *SIZE), format="rgb24")))
            if behind is not None and second is not None:
                container.mux(behind.encode(av.VideoFrame.from_ndarray(picture(number, *second), format="rgb24")))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8 * 1152), np.int16), format="s16", layout="mono")
        silence.rate, silence.pts, silence.time_base = 44100, 0, Fraction(1, 44100)
        container.mux(sound.encode(silence))
        for stream in (video, behind, sound):
            if stream is not None:
                container.mux(stream.encode(None))
    return path


def rewrite(path: Path, *changes: tuple[bytes, bytes]) -> Path:
    """The file with some of its bytes replaced by as many others."""
    content = path.read_bytes()
    for old, new in changes:
        assert len(old) == len(new) and old in content, old
        content = content.replace(old, new)
    path.write_bytes(content)
    return path


def rename_codec(path: Path, old: bytes) -> Path:
    """The MP4 file with an unknown codec in place of this one, where it is named first."""
    content = path.read_bytes()
    place = content.index(old, content.index(b"stsd"))
    path.write_bytes(content[:place] + b"zz9x" + content[place + 4 :])
    return path


@pytest.mark.parametrize("encoding", ENCODED)
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".avi", ".mkv"])
def test_a_title_need_not_be_utf8(tmp_path: Path, suffix: str, encoding: str) -> None:
    path = write(tmp_path / f"a{suffix}")
    title, name = ENCODED[encoding]
    content = path.read_bytes()
    assert TITLE.encode() in content
    changes = [(TITLE.encode(), title)] + ([(NAME.encode(), name)] if NAME.encode() in content else [])
    rewrite(path, *changes)
    assert isinstance(read_header(path), Header)
    video = probe(path)
    assert (video.frames, video.width, video.height, video.account.damage) == (20, *SIZE, None)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_cover_picture_before_the_video_is_not_the_video(tmp_path: Path, suffix: str) -> None:
    video = probe(write(tmp_path / f"a{suffix}", cover=True))
    assert (video.frames, video.width, video.height) == (20, *SIZE)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_of_two_videos_in_a_file_the_first_is_read(tmp_path: Path, suffix: str) -> None:
    video = probe(write(tmp_path / f"a{suffix}", second=(48, 32)))
    assert (video.frames, video.width, video.height, video.video_streams) == (20, *SIZE, 2)


def test_a_stream_of_an_unknown_codec_is_passed_over(tmp_path: Path) -> None:
    no_sound = rename_codec(write(tmp_path / "sound.mp4"), b"mp4a")
    assert (probe(no_sound).frames, probe(no_sound).video_streams) == (20, 1)
    only_second = rename_codec(write(tmp_path / "first.mp4", "libx264", second=(48, 32)), b"avc1")
    video = probe(only_second)
    assert (video.frames, video.width, video.height, video.video_streams) == (20, 48, 32, 2)


def only_sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=44100)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.int16), format="s16", layout="mono")
        silence.rate = 44100
        container.mux(sound.encode(silence))
        container.mux(sound.encode(None))
    return path


def without_index(path: Path) -> Path:
    content = write(path).read_bytes()
    path.write_bytes(content[: content.index(b"moov") - 4])
    return path


def spoiled_index(path: Path) -> Path:
    content = write(path).read_bytes()
    place = content.index(b"moov") + 4
    path.write_bytes(content[:place] + b"\x07" * 400 + content[place + 400 :])
    return path


def header_of_an_avi(path: Path) -> Path:
    path.write_bytes(write(path.with_suffix(".avi")).read_bytes()[:60])
    return path


@pytest.mark.parametrize(
    ("make", "said", "unsaid"),
    [
        (only_sound, "holds no video stream, only sound", "index"),
        (lambda path: rename_codec(write(path, "libx264"), b"avc1"), "codec that this FFmpeg cannot decode", "Remove"),
        (without_index, "its index is missing, because the recording or a copy was interrupted", "Remove"),
        (spoiled_index, "a.mp4", "its index is missing"),
        (header_of_an_avi, "begins as a video does, and FFmpeg says", "not a video"),
    ],
    ids=["sound", "codec", "no index", "spoiled index", "cut"],
)
def test_a_cause_is_named_where_the_file_shows_it(
    tmp_path: Path, make: Callable[[Path], Path], said: str, unsaid: str
) -> None:
    with pytest.raises(PlatformError) as raised:
        probe(make(tmp_path / "a.mp4"))
    assert said in str(raised.value) and unsaid not in str(raised.value)
