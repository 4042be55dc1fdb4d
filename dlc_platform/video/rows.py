"""The rows of a video: its pictures in their order, and the places of those that cannot be decoded."""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dlc_platform.video.complaints import tells_of_damage, tells_of_skipped
from dlc_platform.video.jpeg import EarlyEnds
from dlc_platform.video.opening import open_video

if TYPE_CHECKING:
    from av import Packet, VideoFrame, VideoStream
    from av.container import InputContainer

#: Codecs in which each packet gives one frame, so that timestamps count frames without decoding.
_ONE_FRAME_A_PACKET = ("h264", "hevc")
#: Containers, by a part of FFmpeg's name, that keep the timestamp of each packet; those of `_STREAMED` may give one
#: frame in several packets.
_TIMED = ("mp4", "matroska")
_STREAMED = ("mpegts", "flv")
#: A decoder gives a frame at most so many packets after the frame's own: FFmpeg reorders 16 and works on 16 at a time.
LATEST = 32


@dataclass(frozen=True)
class Picture:
    """One row of a video: a picture in its order of presentation, or the place where one should be.

    Attributes
    ----------
    pts
        The time at which it is shown, by its own timestamp in units of the stream's time base; None if the file has
        none. The time that counts is that of `times.Clock`.
    dts
        The time of decoding of the packet with which it came out of the decoder; None for the last rows, which come
        without a packet.
    frame
        None if it was lost: its packet is in the file, but gave no picture.
    damaged
        True if the decoder found errors in it and covered them.
    """

    pts: int | None
    dts: int | None
    frame: "VideoFrame | None"
    damaged: bool


@dataclass
class Tally:
    """The counts of a reading besides its rows: packets with data, packets at the beginning that give no row, and the
    number of times that bytes between packets were skipped."""

    packets: int = 0
    left_out: int = 0
    skipped: int = 0


def picture_rows(container: "InputContainer", stream: "VideoStream", tally: Tally) -> Iterator[Picture]:
    """Each row of the video in order of presentation, from the position of the container.

    A packet without a frame is a lost row. It comes before the first later frame, and that frame waits until the packet
    is too old for a frame. If timestamps do not tell the order (a file written without times of presentation), an
    earlier frame may still follow a later one, and nothing is lost.
    """
    counted = counts_frames(container, stream)
    is_transport_stream = container.format.name == "mpegts"
    waits = counted or _is_timed(container, stream, _STREAMED)
    stores_order = _stores_order(container, stream)
    first_key: int | None = None
    is_indexed_key = _first_indexed_key(container, stream)
    unanswered: list[_Unanswered] = []
    leading: set[int] = set()
    corrupt: set[int] = set()
    lost: set[int] = set()
    held: list[tuple[Picture, int]] = []
    # Failed packets are not counted: they push no frame out of the decoder.
    decoded = 0
    latest: int | None = None
    is_reordered = is_interlaced = False
    # Without timestamps its picture is not known: the next picture stands for it.
    is_next_spoiled = False

    def released(now: int) -> Iterator[Picture]:
        while held:
            picture, fed = held[0]
            earlier = _earlier(unanswered, picture, fed)
            if earlier is None:
                del held[0]
                yield picture
            elif now - earlier.number >= LATEST:
                unanswered.remove(earlier)
                if earlier.is_row:
                    lost.add(earlier.pts)
                    yield Picture(earlier.pts, None, None, damaged=False)
            else:
                return

    for packet, frames, has_failed, is_spoiled in _decoded(container, stream, tally):
        if packet and packet.size:
            tally.packets += 1
            tally.skipped += is_transport_stream and packet.is_corrupt
        decoded += not has_failed
        pts = packet.pts if packet else None
        is_corrupt = packet is not None and packet.is_corrupt
        if packet and first_key is None and (packet.is_keyframe or is_indexed_key(packet)):
            first_key = pts
        # Pictures that an edit list leaves out, and those that depend on pictures before the first key frame, are not
        # missing if they give no frame.
        is_shown = packet is None or not packet.is_discard
        if pts is None:
            is_next_spoiled |= is_corrupt or is_spoiled
            if is_shown and (has_failed or is_corrupt) and not frames:
                held.append((Picture(None, None, None, damaged=False), decoded))
        else:
            # Only pictures that are stored out of their order show that the timestamps are those of presentation.
            is_reordered |= waits and latest is not None and pts < latest
            latest = pts if latest is None else max(latest, pts)
            is_awaited = waits and first_key is not None and pts >= first_key
            if is_shown and (is_awaited or has_failed or is_corrupt):
                is_row = counted or has_failed or is_corrupt or is_spoiled
                insort(unanswered, _Unanswered(pts, decoded, has_failed or is_corrupt, is_row))
            elif is_shown and packet and packet.size and (first_key is None or pts < first_key):
                leading.add(pts)
            # AV1's decoder fails at a packet because of the data of an earlier one.
            if is_corrupt or is_spoiled or has_failed:
                corrupt.add(pts)
        for frame in frames:
            _answer(unanswered, frame)
            is_interlaced = frame.interlaced_frame
            damaged = frame.is_corrupt or frame.pts in corrupt or is_next_spoiled
            is_next_spoiled = False
            if frame.pts is not None:
                corrupt.discard(frame.pts)
                leading.discard(frame.pts)
            if frame.pts in lost:
                # It comes too late: its place has passed.
                lost.discard(frame.pts)
                continue
            is_ordered = is_reordered or (stores_order and any(packet.has_failed for packet in unanswered))
            row = (Picture(frame.pts, frame.dts, frame, damaged), decoded)
            held.insert(_place(held, frame.pts) if is_ordered else len(held), row)
        tally.left_out = len(leading)
        yield from released(decoded)
    yield from released(decoded + LATEST)
    for packet in unanswered:
        if packet.has_failed or (packet.is_row and not is_interlaced):
            yield Picture(packet.pts, None, None, damaged=False)


def _first_indexed_key(container: "InputContainer", stream: "VideoStream") -> Callable[["Packet"], bool]:
    """A function that tells if a packet is the first key frame of the container's index.

    FFmpeg removes the mark of a key frame from an H.264 packet with spoiled data; the index keeps it.
    """
    stamp = next((entry.timestamp for entry in stream.index_entries if entry.is_keyframe), None)
    # MP4 indexes times of decoding, Matroska those of presentation.
    if "mp4" in container.format.name:
        return lambda packet: stamp is not None and packet.dts == stamp
    return lambda packet: stamp is not None and packet.pts == stamp


class _Unanswered(NamedTuple):
    """A packet whose frame has not come: its timestamp, and the number of packets that had been decoded with it.

    It is a lost row, unless `is_row` is false because packets do not count frames.
    """

    pts: int
    number: int
    has_failed: bool
    is_row: bool


def _earlier(unanswered: list[_Unanswered], picture: Picture, fed: int) -> _Unanswered | None:
    """The first packet that should have given a row before this picture; `fed` packets were decoded when it came."""
    if picture.pts is None:
        return None
    for packet in unanswered:
        if packet.pts >= picture.pts:
            return None
        if packet.number <= fed:
            return packet
    return None


def _place(held: list[tuple[Picture, int]], pts: int | None) -> int:
    """The place of a frame among those that wait, by its timestamp.

    If packets fail or are missing, a decoder may give earlier frames after later ones.
    """
    place = len(held)
    if pts is not None:
        while place and (other := held[place - 1][0].pts) is not None and other > pts:
            place -= 1
    return place


def _answer(unanswered: list[_Unanswered], frame: "VideoFrame") -> None:
    if frame.pts is None:
        return
    place = bisect_left(unanswered, frame.pts, key=lambda packet: packet.pts)
    if place < len(unanswered) and unanswered[place].pts == frame.pts:
        del unanswered[place]
    if frame.interlaced_frame:
        # Its two fields may come in two packets, and only one of them gives the frame its timestamp.
        unanswered[:place] = [packet for packet in unanswered[:place] if packet.has_failed]


def _decoded(
    container: "InputContainer", stream: "VideoStream", tally: Tally
) -> Iterator[tuple["Packet | None", list["VideoFrame"], bool, bool]]:
    """Each packet, the frames that came when it was decoded, and true or false for a failure and for a complaint.

    The packet is None if it cannot be read.
    """
    from av.error import FFmpegError
    from av.logging import Capture

    stored = packets(container, stream)
    decoder = stream.codec_context.codec.name
    slots = _slots(container, stream)
    has_no_times = not _stores_order(container, stream)
    early_ends = EarlyEnds(lambda: open_video(Path(container.name)))
    is_begun = False
    while True:
        packet, has_ended = None, False
        with Capture() as lines:
            try:
                packet = next(stored)
            except StopIteration:
                has_ended = True
            except FFmpegError:
                pass
        tally.skipped += tells_of_skipped(lines, container.format.name)
        if has_ended:
            return
        if packet is None:
            yield None, [], True, False
            return
        if packet.dts is not None and (late := slots.get(packet.pos, packet.dts) - packet.dts) > 0:
            packet.dts += late
            packet.pts = None if packet.pts is None else packet.pts + late
        if has_no_times:
            packet.pts = packet.dts
        with Capture() as lines:
            try:
                frames = packet.decode()
                has_failed = False
            except FFmpegError:
                frames, has_failed = [], True
        # Before its first picture the decoder of H.264 misses pictures from before the beginning of the file.
        is_spoiled = tells_of_damage(lines, decoder) and (is_begun or decoder != "h264")
        is_begun |= bool(frames)
        if is_spoiled and decoder == "mjpeg":
            is_spoiled = not early_ends.explain(packet, stream, lines)
        yield packet, frames, has_failed, is_spoiled


def packets(container: "InputContainer", stream: "VideoStream") -> Iterator["Packet"]:
    """The packets of a stream, even if damage or a late sound track makes other streams appear."""
    while True:
        try:
            yield from container.demux(stream)
            return
        except IndexError:
            # PyAV does not know the stream of that packet, and goes on with the next one.
            continue


def _stores_order(container: "InputContainer", stream: "VideoStream") -> bool:
    """False if timestamps do not tell the order of presentation.

    AVI files keep times of decoding. For most codecs FFmpeg computes the times of presentation; for these it gives the
    time of the next packet.
    """
    return container.format.name != "avi" or stream.codec_context.name not in _ONE_FRAME_A_PACKET


def _slots(container: "InputContainer", stream: "VideoStream") -> dict[int | None, int]:
    """The time of each packet by its place, from the index of an AVI file.

    FFmpeg counts the packets that it finds, so that packets after a lost one would come too early.
    """
    if container.format.name != "avi":
        return {}
    # The index tells where the header of 8 bytes begins.
    return {entry.pos + 8: entry.timestamp for entry in stream.index_entries}


def counts_frames(container: "InputContainer", stream: "VideoStream") -> bool:
    return _is_timed(container, stream, _TIMED)


def _is_timed(container: "InputContainer", stream: "VideoStream", formats: tuple[str, ...]) -> bool:
    return stream.codec_context.name in _ONE_FRAME_A_PACKET and any(name in container.format.name for name in formats)
