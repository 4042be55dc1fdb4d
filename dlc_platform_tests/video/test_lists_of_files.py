"""A file that only names other files is no video, whatever its name says; none of them is opened."""

import os
import struct
from pathlib import Path

import av
import numpy as np
import pytest

from dlc_platform.errors import PlatformError
from dlc_platform.lab.new_lab import make_lab
from dlc_platform.sessions.listing import list_folder
from dlc_platform.settings.layout import Layout
from dlc_platform.video.probe import probe


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile /etc/passwd\n",
        "ffconcat version 1.0\nfile other.mp4\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.mp4\n#EXT-X-ENDLIST\n",
        "\ufeff#EXTM3U\nhttp://localhost:9/a.ts\n",
        '<?xml version="1.0"?><MPD><Period><BaseURL>other.mp4</BaseURL></Period></MPD>',
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
        "[playlist]\nFile1=other.mp4\n",
    ],
)
def test_a_list_of_files_is_no_video(text: str, tmp_path: Path):
    file = tmp_path / "video.mp4"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(PlatformError, match="is a list of other files, not a video") as error:
        probe(file)
    assert str(file) in error.value.problem


def test_a_folder_of_the_kernel_is_left_out(tmp_path: Path):
    (tmp_path / "sub-1").symlink_to("/proc")
    (tmp_path / "video.mp4").symlink_to("/proc/self/status")
    listing = list_folder(str(tmp_path), "", Layout())
    assert not listing.folders and not listing.videos
    assert all("the kernel makes up" in item.reason for item in listing.skipped) and len(listing.skipped) == 2


def test_a_new_lab_is_private_and_an_opened_one_stays_open(tmp_path: Path):
    (tmp_path / "raw").mkdir()
    project = tmp_path / "project"
    project.mkdir()
    (project / "config.yaml").write_text("Task: t\nscorer: s\nbodyparts: [nose]\n")
    make_lab(tmp_path / "home", [tmp_path / "raw"], [project])
    assert os.stat(tmp_path / "home").st_mode & 0o777 == 0o700
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o2770)
    make_lab(tmp_path / "shared", [tmp_path / "raw"], [project])
    assert os.stat(tmp_path / "shared").st_mode & 0o7777 == 0o2770


@pytest.mark.parametrize("size", [(100_000, 100_000), (9_000, 8_000)])
def test_a_header_that_claims_giant_pictures_is_refused_at_once(size: tuple[int, int], tmp_path: Path):
    file = tmp_path / "giant.avi"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), "rgb24")))
        container.mux(stream.encode())
    assert probe(file).width == 64
    before = struct.pack("<ii", 64, 48)
    data = file.read_bytes()
    assert data.count(before) == 2  # of the file and of the stream
    file.write_bytes(data.replace(before, struct.pack("<ii", *size)))
    with pytest.raises(PlatformError, match=r"giant\.avi"):
        probe(file)
