"""Files that would hang, fill the memory or never end are named within a moment, and nothing else is."""

import io
import os
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2  # noqa: F401 (so that no test with little memory has to load it)
import pytest
import yaml
from PIL import Image

from dlc_platform.dlc.images import examine_images, read_image
from dlc_platform.dlc.importing import import_model
from dlc_platform.dlc.label_tables import read_label_file
from dlc_platform.dlc.project import read_config, read_project
from dlc_platform.errors import PlatformError
from dlc_platform.files.yaml import load_yaml
from dlc_platform.identity import sha256_file
from dlc_platform.interop.dlc_poses import read_poses
from dlc_platform.orchestration.instance import wanted_dagster_yaml
from dlc_platform.sessions.sidecars import _read_json, _read_table
from dlc_platform.settings.loading import load_lab
from dlc_platform.store import Store
from dlc_platform.video.probe import probe
from dlc_platform_tests.interop.test_plain_hdf import little_memory

_NINE = ",".join(["*{0}"] * 9)
BOMBS = {
    "aliases": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{b}: &{b} [{_NINE.format(a)}]\n" for a, b in zip("abcdefghijk", "bcdefghijkl", strict=True)),
    "merged": "a: &a {k: 1}\n"
    + "".join(
        f"{b}: &{b} {{<<: [{_NINE.format(a)}], {b}k: 1}}\n" for a, b in zip("abcdefghijk", "bcdefghijkl", strict=True)
    ),
    "itself": "a: &a [*a]\n",
    "lists": "a: " + "[" * 2000 + "]" * 2000,
    "lists over lines": "a:\n" + " [\n" * 2000,
    "mappings": "a: " + "{a: " * 1500 + "}" * 1500,
    "blocks": "- " * 2000 + "a",
    "keys": "? " * 2000 + "a",
    "indented": "\n".join(" " * depth + "a:" for depth in range(1000)),
    "large": "a: " + "x" * (5 << 20),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_yaml_that_means_more_than_it_says_is_refused(bomb: str, tmp_path: Path):
    for name, read in (
        ("lab.yaml", lambda: load_lab(tmp_path)),
        ("config.yaml", lambda: read_project(tmp_path)),
        ("pytorch_config.yaml", lambda: import_model(tmp_path, Store(tmp_path / "store"))),
    ):
        (tmp_path / name).write_text(BOMBS[bomb])
        with little_memory(), pytest.raises(PlatformError) as error:
            read()
        assert str(tmp_path / name) in error.value.problem and len(error.value.problem) < 500


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("a: !!bool maybe", "line 1: maybe"),
        ("a: !!int ''", "a value that does not fit the type"),
        ("!!float _: 1", "line 1: _"),
        (f"a: 0x{'F' * 4000}", "line 1 holds a number of 4002 digits"),
        ("b: 1\na: '\ud800'".replace("'", '"').replace("\ud800", r"\ud800"), "line 2 holds half of a character"),
        ("? [a, b]\n: 1", "the key in line 1 is a list"),
        ("<<: [1]", "line 1"),
    ],
)
def test_values_that_no_parser_can_make_are_named(value: str, reason: str, tmp_path: Path):
    for name, read in (
        ("lab.yaml", lambda: load_lab(tmp_path)),
        ("config.yaml", lambda: read_project(tmp_path)),
        ("pytorch_config.yaml", lambda: import_model(tmp_path, Store(tmp_path / "store"))),
    ):
        (tmp_path / name).write_text(value)
        with pytest.raises(PlatformError) as error:
            read()
        assert str(tmp_path / name) in error.value.problem and reason in error.value.problem


def test_aliases_and_merged_keys_of_people_are_read(tmp_path: Path):
    text = "base: &base {epochs: 3, weights: random}\none: {<<: *base, seed: 1}\ntwo: {<<: *base, seed: 2}\n"
    assert load_yaml(tmp_path, text)["two"] == {"epochs": 3, "weights": "random", "seed": 2}
    config = {"video_sets": {f"/videos/{n}.mp4": {"crop": "0, 640, 0, 480"} for n in range(300)}}
    assert load_yaml(tmp_path, yaml.safe_dump(config)) == config
    pattern = "layout: {pattern: '[^/[({]+'}\n" * 1 + "".join(f"n{n}: '[[['\n" for n in range(10))
    assert load_yaml(tmp_path, pattern)["n9"] == "[[["


def test_pipes_devices_and_sockets_are_named_without_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    project = tmp_path / "project"
    project.mkdir()
    readers: dict[str, Callable[[Path], object]] = {
        "config.yaml": read_config,
        "lab.yaml": lambda file: load_lab(file.parent),
        "pytorch_config.yaml": lambda file: import_model(file.parent, Store(tmp_path / "store")),
        "image.png": lambda file: examine_images([file]),
        "other.mp4": sha256_file,
        "video.mp4": probe,
        "own.yaml": lambda file: wanted_dagster_yaml(tmp_path, lab.model_copy(update={"dagster_yaml": file})),
    }
    (tmp_path / "lab.yaml").write_text("raw_roots: [raw]\nprojects: {maze: {path: maze}}\n")
    lab = load_lab(tmp_path)
    monkeypatch.chdir(project)  # the path of a socket is short
    for name, read in readers.items():
        file = project / name
        for make, what in (
            (lambda file=file: os.mkfifo(file), "a pipe"),
            (lambda name=name: socket.socket(socket.AF_UNIX).bind(name), "a socket"),
            (lambda file=file: file.symlink_to(tmp_path), "a folder"),
            (lambda file=file: file.symlink_to("/dev/zero"), "a device"),
            (lambda file=file: file.symlink_to("/proc/self/status"), "the kernel makes up"),
        ):
            make()
            with pytest.raises(PlatformError, match=what) as error:
                read(file)
            assert str(file) in error.value.problem
            file.unlink()


@pytest.mark.parametrize("name", ["video.mp4", "poses.csv", "image.png", "own.yaml"])
def test_a_terabyte_of_nothing_is_named_at_once(name: str, tmp_path: Path):
    (tmp_path / "lab.yaml").write_text("raw_roots: [raw]\nprojects: {maze: {path: maze}}\n")
    lab = load_lab(tmp_path).model_copy(update={"dagster_yaml": tmp_path / name})
    with open(tmp_path / name, "wb") as file:
        try:
            file.truncate(1 << 40)
        except OSError:
            pytest.skip("this disk has no files of a terabyte")
    readers: dict[str, Callable[[Path], object]] = {
        "video.mp4": probe,
        "poses.csv": read_poses,
        "image.png": lambda file: examine_images([file]),
        "own.yaml": lambda _: wanted_dagster_yaml(tmp_path, lab),
    }
    with little_memory(), pytest.raises(PlatformError) as error:
        readers[name](tmp_path / name)
    assert str(tmp_path / name) in error.value.problem


def test_a_table_of_labels_that_is_a_pipe_is_named(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("Task: t\nscorer: s\nbodyparts: [nose]\n")
    project = read_project(tmp_path)
    for suffix in (".csv", ".h5"):
        os.mkfifo(tmp_path / f"CollectedData_s{suffix}")
        with pytest.raises(PlatformError, match="a pipe"):
            read_label_file(tmp_path / f"CollectedData_s{suffix}", project)


def png(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    packed = zlib.compress(bytes(1 << 20))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def tiff(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (4, 4)).save(file, "TIFF")
    data = bytearray(file.getvalue())
    begin = struct.unpack_from("<I", data, 4)[0]
    for entry in range(struct.unpack_from("<H", data, begin)[0]):
        place = begin + 2 + 12 * entry
        if (tag := struct.unpack_from("<H", data, place)[0]) in (256, 257):
            struct.pack_into("<HHII", data, place, tag, 4, 1, width if tag == 256 else height)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (png(100_000, 100_000), "pixels"),
        (png(13_000, 13_000), "13000 x 13000 pixels"),
        (png(0x7FFFFFFF, 1), "pixels"),
        (tiff(60_000, 60_000), "pixels|damaged"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\nshowpage\n", "not an image"),
    ],
    ids=["png", "smaller png", "long png", "tiff", "a program"],
)
def test_images_that_claim_more_than_a_camera_takes_are_refused(data: bytes, match: str, tmp_path: Path):
    file = tmp_path / "img001.png"
    file.write_bytes(data)
    for read in (read_image, lambda path: examine_images([path])):
        with little_memory(), pytest.raises(PlatformError, match=match) as error:
            read(file)
        assert str(file) in error.value.problem


def test_images_of_large_cameras_are_read(tmp_path: Path):
    Image.new("L", (7680, 4320)).save(tmp_path / "img.png")
    assert examine_images([tmp_path / "img.png"])[0].width == 7680


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' + "[" * 900 + "]" * 900 + "}", '{"a": ' + "9" * 5000 + "}"])
def test_json_beside_a_video_stops_nothing(text: str, tmp_path: Path):
    (tmp_path / "video.json").write_text(text)
    values, problem = _read_json(tmp_path / "video.json")
    assert problem or set(values) == {"a"}


def test_a_table_beside_videos_that_never_answers_is_named(tmp_path: Path):
    (tmp_path / "sessions.csv").symlink_to("/proc/self/status")
    assert "the kernel makes up" in _read_table(str(tmp_path / "sessions.csv")).problems[0]


def test_all_bombs_together_take_the_time_of_one_process(tmp_path: Path):
    """A process that may compute for few seconds reads them all."""
    program = """
import resource, sys
from pathlib import Path
from dlc_platform.errors import PlatformError
from dlc_platform.files.yaml import load_yaml, yaml_text
import ruamel.yaml
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
for file in map(Path, sys.argv[1:]):
    try:
        load_yaml(file, yaml_text(file))
    except PlatformError as error:
        print(error.problem)
"""
    files = []
    for number, text in enumerate(BOMBS.values()):
        files.append(tmp_path / f"{number}.yaml")
        files[-1].write_text(text)
    done = subprocess.run([sys.executable, "-c", program, *map(str, files)], check=True, capture_output=True, text=True)
    assert len(done.stdout.splitlines()) == len(BOMBS)
