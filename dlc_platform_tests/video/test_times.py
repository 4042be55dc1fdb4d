"""The clock of a video: it never runs backwards, and each picture keeps the time at which it was taken."""

from pathlib import Path

import numpy as np
import pytest

from dlc_platform.video.probe import probe
from dlc_platform.video.times import NO_TIME, clock_of
from dlc_platform_tests.video.numbered import BIDIRECTIONAL, PYRAMID, RATE, numbers, packets, remux, write_numbered

STEADY = list(range(60))
#: Five frames were dropped by the recorder before number 20.
GAP = [number if number < 20 else number + 5 for number in range(60)]
HEVC = {"x265-params": "keyint=24:bframes=3:b-adapt=0:scenecut=0:log-level=none"}
FORWARD = {"bf": "0", "g": "12", "x264-params": "scenecut=0"}
INTERLACED = {"bf": "2", "g": "12", "x264-params": "interlaced=1:b-adapt=0"}


def untimed(rows: int) -> np.ndarray:
    return np.full(rows, NO_TIME)


def ticks(pts: list[int]) -> list[int]:
    return clock_of(np.array(pts), untimed(len(pts)), intact=True).ticks.tolist()


def assert_times(path: Path, taken: list[int]) -> None:
    """Each row shows its picture at its time, counted from the first row that can be told."""
    info, shown = probe(path), numbers(path)
    assert info.frames == len(shown) and (np.diff(info.times_s) >= 0).all()
    known = [(row, number) for row, number in enumerate(shown) if number is not None]
    first, first_number = known[0]
    times = (info.times_s - info.times_s[first]) * RATE
    for row, number in known:
        # Matroska and FLV round to milliseconds.
        assert times[row] == pytest.approx(taken[number] - taken[first_number], abs=0.05), (row, number)


@pytest.mark.parametrize("taken", [STEADY, GAP], ids=["steady", "gap"])
@pytest.mark.parametrize(
    ("codec", "options", "ending"),
    [
        *(("libx264", PYRAMID, ending) for ending in ("avi", "mkv", "mp4", "mov", "ts", "flv", "asf", "nut")),
        *(("libx264", FORWARD, ending) for ending in ("avi", "mp4")),
        *(("libx264", INTERLACED, ending) for ending in ("avi", "mkv", "ts")),
        *(("libx265", HEVC, ending) for ending in ("mkv", "mp4", "ts")),
        *(("mpeg4", BIDIRECTIONAL, ending) for ending in ("avi", "mkv", "mp4", "asf", "ts")),
        *(("mpeg2video", BIDIRECTIONAL, ending) for ending in ("avi", "vob", "ts")),
        ("mpeg1video", BIDIRECTIONAL, "avi"),
    ],
)
def test_each_picture_has_the_time_at_which_it_was_taken(
    tmp_path: Path, codec: str, options: dict[str, str], ending: str, taken: list[int]
) -> None:
    path = write_numbered(tmp_path / f"a.{ending}", codec, taken, options=options)
    assert_times(path, taken)
    info = probe(path)
    assert numbers(path) == list(range(60)) and info.account.whole
    assert (info.quality.dropped, info.account.duplicated_timestamps) == (taken[-1] - 59, 0)
    assert info.quality.jitter_ms == pytest.approx(0, abs=0.5)
    assert info.account.variable_frame_rate is (taken is GAP)


def test_times_that_were_put_in_order_are_in_the_account(tmp_path: Path) -> None:
    account = probe(write_numbered(tmp_path / "a.avi")).account
    assert account.times_reordered is not None and 20 < account.times_reordered < 60
    assert account.times_estimated == account.clock_resets == 0 and account.problem(tmp_path / "a.avi") is None
    assert probe(write_numbered(tmp_path / "a.mp4")).account.times_reordered == 0


def test_a_writer_of_decoding_times_gives_times_in_order(tmp_path: Path) -> None:
    def as_decoded(number: int, packet) -> bool:
        packet.pts = packet.dts = number * 512
        return True

    path = remux(write_numbered(tmp_path / "a.mp4"), tmp_path / "b.mp4", as_decoded)
    assert_times(path, STEADY)
    assert numbers(path) == STEADY


@pytest.mark.parametrize("wrong_ms", [30_000, -30_000])
def test_a_wrong_timestamp_costs_no_other_row_its_time(tmp_path: Path, wrong_ms: int) -> None:
    path = write_numbered(tmp_path / "a.mkv", options=FORWARD)
    content = bytearray(path.read_bytes())
    # The number of the track, and the time in the cluster.
    block = b"\x81" + (20 * 40).to_bytes(2)
    content[(at := content.index(block, packets(path)[20][0])) : at + 3] = b"\x81" + wrong_ms.to_bytes(2, signed=True)
    path.write_bytes(content)
    account = probe(path).account
    assert (account.times_reordered, account.times_estimated) == (0, 1)
    assert_times(path, STEADY)


def test_joined_files_go_on_where_the_first_one_ends(tmp_path: Path) -> None:
    """As `cat a.ts b.ts` leaves them: the clock of the second one begins again."""
    one = write_numbered(tmp_path / "a.ts", options=FORWARD)
    both = tmp_path / "both.ts"
    both.write_bytes(one.read_bytes() * 2)
    info = probe(both)
    assert info.frames == 120 and info.account.clock_resets == 1
    np.testing.assert_allclose(info.times_s, np.arange(120) / RATE, atol=1e-3)


@pytest.mark.parametrize(
    ("pts", "expected"),
    [
        ([5, 6, 7], [5, 6, 7]),
        ([5, 6, 6, 7], [5, 6, 6, 7]),
        ([0, 3, 2, 4, 1, 7], [0, 1, 2, 3, 4, 7]),
        ([0, 1, 2**40, *range(3, 60)], list(range(60))),
        ([0, 1, -(2**40), *range(3, 60)], list(range(60))),
        ([*range(50), *range(3, 3 + 50)], list(range(100))),
        ([*range(50), *range(20, 20 + 50)], list(range(100))),
        ([*range(100, 150), 2**40, *range(151, 200), *range(100)], list(range(100, 300))),
        ([*range(20), 19, 18], [*range(19), 18, 19, 19]),
        ([7], [7]),
    ],
)
def test_a_clock_never_runs_backwards(pts: list[int], expected: list[int]) -> None:
    assert ticks(pts) == expected


def test_rows_without_a_timestamp_lie_between_the_others() -> None:
    pts = np.array([NO_TIME, 10, NO_TIME, NO_TIME, 40, 50, 60, NO_TIME])
    clock = clock_of(pts, untimed(8), intact=False)
    assert clock.ticks.tolist() == [0, 10, 20, 30, 40, 50, 60, 70]
    assert clock.known and (clock.reordered, clock.estimated) == (0, 4)
    assert not clock_of(untimed(7), untimed(7), intact=True).known


@pytest.mark.parametrize("seed", range(30))
def test_any_timestamps_at_all_give_a_clock(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = int(rng.integers(1, 300))
    pts = np.arange(rows, dtype=np.int64) * 512 + rng.integers(0, 3000, rows) * (seed % 3)
    for _ in range(seed % 7):
        start, end = sorted(rng.integers(0, rows + 1, 2))
        pts[start:end] = rng.choice([NO_TIME, 0, 2**60, -(2**60)]) if seed % 2 else pts[start:end] - 40_000
    clock = clock_of(pts, untimed(rows), bool(seed % 2))
    assert len(clock.ticks) == rows and (np.diff(clock.ticks) >= 0).all()
