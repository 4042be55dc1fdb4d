"""What decoders only write into FFmpeg's log: pictures that they hand out as good ones, and that are not.

Most decoders fail at damage or mark the picture. Some only complain, such as that of MJPEG, which leaves out the rest
of the picture, and that of FFV1, whose checksums are wrong.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import Lock

#: Decoders that mark what they cover up. What they write besides is often harmless, such as what the first pictures of
#: a file lack that begins in an open group.
_MARKING = re.compile(r"h26[1-4]\w*|hevc|vvc|mpeg[124]\w*|msmpeg4\w*|wmv\w*|vc1\w*|flv|rv[1-6]0|libdav1d")
#: What the decoder of MJPEG writes when it gives up a picture; what it writes of a camera's own markers is harmless.
_GIVEN_UP = re.compile(r"overread|error y=|error count|bad vlc|decode_sos")

_lock = Lock()
_listeners = 0
_restore = ExitStack()


@contextmanager
def listening() -> Iterator[None]:
    """Have FFmpeg's errors written down, so that `av.logging.Capture` finds them; it is off by default.

    What nobody captures goes nowhere.
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
    """True when lines of the log say that a decoder could not make out a picture.

    Parameters
    ----------
    lines
        Level, writer and text, as `av.logging.Capture` gives them.
    decoder
        FFmpeg's name of it.
    """
    import av.logging

    if not lines or _MARKING.fullmatch(decoder):
        return False
    texts = [text for level, writer, text in lines if level <= av.logging.ERROR and writer == decoder]
    return any(decoder != "mjpeg" or _GIVEN_UP.search(text) for text in texts)


def _turn_on() -> None:
    import av.logging

    logger = logging.getLogger("libav")
    _restore.callback(av.logging.set_level, av.logging.get_level())
    _restore.callback(av.logging.set_skip_repeated, av.logging.get_skip_repeated())
    _restore.callback(logger.setLevel, logger.level)
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)
    logger.setLevel(logging.CRITICAL + 1)
