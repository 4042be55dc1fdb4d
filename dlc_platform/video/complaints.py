"""Complaints in FFmpeg's log: damaged pictures that it returns as good ones, and bytes that it skips.

Most decoders fail at damage or mark the picture. Some only complain: that of MJPEG when it leaves out the rest of a
picture, that of FFV1 when a checksum is wrong. Readers of containers skip bytes that they do not understand.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import Lock

#: Decoders that mark the errors that they cover. Their other lines are often harmless, such as those about the first
#: pictures of a file that begins in an open group.
_MARKING = re.compile(r"h26[1-4]\w*|hevc|vvc|mpeg[124]\w*|msmpeg4\w*|wmv\w*|vc1\w*|flv|rv[1-6]0|libdav1d")
#: The lines of the decoder of MJPEG when it gives up a picture; its lines about a camera's own markers are harmless.
_GIVEN_UP = re.compile(r"overread|error y=|error count|bad vlc|decode_sos")
#: Lines that nevertheless tell of missing pictures. A decoder that begins with a key frame never looks for earlier
#: ones.
_WITHOUT_REFERENCE = {
    "hevc": re.compile(r"Could not find ref with POC"),
    "h264": re.compile(r"Frame num gap"),
}
#: The line of the decoder of H.264 about missing pictures is a debugging line: this makes it an error.
RAISE_LEVELS = {"log_level_offset": "-32"}
#: Warnings of a decoder about data that do not fill the picture, or that no writer would write.
_WARNINGS = {
    "jpeg2000": re.compile(r"Missing EOC Marker"),
    "magicyuv": re.compile(r"Unknown prediction"),
    "utvideo": re.compile(r"bits left after decoding slice"),
}
#: Containers in which bytes are skipped, by a part of FFmpeg's name, and FFmpeg's lines about it.
_SKIPPED = {
    "asf": re.compile(r"ff asf (?:skip|bad header)|packet_\w+ .*invalid|fragment position invalid"),
    "flv": re.compile(r"Packet mismatch"),
    "matroska": re.compile(r"invalid as first byte|exceeds max length|Error parsing frame sizes"),
    "mxf": re.compile(r"edit unit sync lost"),
    "nut": re.compile(r"frame size > |Last frame must have been damaged|reached EOF while decoding"),
    "ogg": re.compile(r"CRC mismatch"),
}

_lock = Lock()
_listeners = 0
_restore = ExitStack()


@contextmanager
def listening() -> Iterator[None]:
    """Have FFmpeg's errors and warnings written down, so that `av.logging.Capture` finds them; it is off by default.

    Lines that nobody captures are dropped.
    """
    global _listeners
    with _lock:
        _listeners += 1
        if _listeners == 1:
            _turn_on()
    try:
        yield
    finally:
        with _lock:
            _listeners -= 1
            if _listeners == 0:
                _restore.close()


def tells_of_damage(lines: Sequence[tuple[int, str, str]], decoder: str) -> bool:
    """True if lines of the log say that a decoder could not decode a picture.

    Parameters
    ----------
    lines
        Level, writer and text, as `av.logging.Capture` gives them.
    decoder
        FFmpeg's name of it.
    """
    import av.logging

    own = [(level, text) for level, writer, text in lines if writer == decoder]
    if not own:
        return False
    if (warning := _WARNINGS.get(decoder)) and any(warning.search(text) for _, text in own):
        return True
    errors = [text for level, text in own if level <= av.logging.ERROR]
    if _MARKING.fullmatch(decoder):
        missing = _WITHOUT_REFERENCE.get(decoder)
        return missing is not None and any(missing.search(text) for text in errors)
    return any(decoder != "mjpeg" or _GIVEN_UP.search(text) for text in errors)


def tells_of_skipped(lines: Sequence[tuple[int, str, str]], container: str) -> bool:
    """True if lines of the log say that bytes of a container were skipped; frames may have been there.

    Parameters
    ----------
    lines
        As for `tells_of_damage`.
    container
        FFmpeg's name of its format.
    """
    pattern = next((own for name, own in _SKIPPED.items() if name in container), None)
    return pattern is not None and any(writer == container and pattern.search(text) for _, writer, text in lines)


def _turn_on() -> None:
    import av.logging

    logger = logging.getLogger("libav")
    _restore.callback(av.logging.set_level, av.logging.get_level())
    _restore.callback(av.logging.set_skip_repeated, av.logging.get_skip_repeated())
    _restore.callback(logger.setLevel, logger.level)
    av.logging.set_level(av.logging.WARNING)
    av.logging.set_skip_repeated(False)
    logger.setLevel(logging.CRITICAL + 1)
