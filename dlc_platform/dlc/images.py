"""Images as DeepLabCut's PyTorch engine reads them: the one reader for sizes, training, evaluation and pictures.

OpenCV gives the pixels, turned as the file says, in eight bits of blue, green and red. It does not report some damage,
so other libraries check an image, too, before it becomes part of a dataset.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from dlc_platform.errors import PlatformError
from dlc_platform.files.plain import read_plain
from dlc_platform.identity import sha256_bytes

if TYPE_CHECKING:
    import numpy as np

#: The tag of EXIF for the turn of a picture; 1 means no turn.
_ORIENTATION = 0x0112
#: Zero bytes that may follow the end of a whole JPEG.
_PADDING = 16
_MOST_BYTES = 256 << 20
#: A frame of a camera of 8K has 33 million. In memory a pixel takes three bytes.
_MOST_PIXELS = 50_000_000
#: The formats from which labels are taken; some of Pillow's other formats run programs.
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "DIB", "WEBP", "JPEG2000", "PPM", "GIF")
_AGAIN = (
    "Copy it again from where it came from, or take that frame of its video again with DeepLabCut, by the same name; "
    "its labels stay as they are"
)


@dataclass(frozen=True)
class Image:
    """The facts about the file of an image.

    Attributes
    ----------
    sha256
        The SHA-256 of the file's bytes.
    pixels_sha256
        The SHA-256 of the picture as DeepLabCut reads it: the same for an image that was saved again without loss.
    width, height
        The size of the picture as DeepLabCut reads it, in pixels.
    is_turned
        True if the file holds its pixels in another order than the one in which they are shown.
    """

    sha256: str
    pixels_sha256: str
    width: int
    height: int
    is_turned: bool


def examine_images(paths: Sequence[Path]) -> list[Image]:
    """Decode images to their last pixels, several at a time.

    Raises
    ------
    PlatformError
        When one is missing, cannot be read, is not an image, or is damaged.
    """
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore")  # of tags that mean nothing here, and of large pictures
        return list(pool.map(_examine, paths))


def read_image(path: Path) -> np.ndarray:
    """The pixels of an image: uint8, shape (height, width, 3), blue first, turned as its file says.

    Raises
    ------
    PlatformError
        When it is missing, cannot be read, or is not a whole image.
    """
    return _decoded(path, _bytes(path))


def sha256_pixels(picture: np.ndarray) -> str:
    """The SHA-256 of a picture and its size, from an array as `read_image` gives it."""
    height, width = picture.shape[:2]
    return sha256_bytes(b"%dx%d:" % (width, height) + picture.tobytes())


def size_of(path: Path, data: bytes | None = None) -> tuple[int, int]:
    """Width and height in pixels by an image's header, without decoding it.

    Raises
    ------
    PlatformError
        When it is missing, cannot be read, is not an image, or claims more pixels than any camera takes.
    """
    from PIL import Image as Pillow

    data = _bytes(path) if data is None else data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Pillow.open(io.BytesIO(data), formats=_formats()) as image:
                width, height = image.size
        except Pillow.DecompressionBombError:
            width = height = 0
        except Exception as error:  # each format has errors of its own
            raise PlatformError(f"{path} is damaged, or not an image that DeepLabCut can read", _AGAIN) from error
    if not 0 < width * height <= _MOST_PIXELS:
        said = f"{width} x {height}" if width else "too many"
        raise PlatformError(
            f"{path} says that it has {said} pixels, and no image here may have more than {_MOST_PIXELS:,}", _AGAIN
        )
    return width, height


@cache
def _formats() -> list[str]:
    """Those of `_FORMATS` that this Pillow has; it knows few until it is asked for all."""
    from PIL import Image as Pillow

    Pillow.init()
    return [name for name in _FORMATS if name in Pillow.OPEN]


def _examine(path: Path) -> Image:
    data = _bytes(path)
    is_turned, size = _look_at(path, data)
    picture = _decoded(path, data)
    height, width = picture.shape[:2]
    return Image(sha256_bytes(data), sha256_pixels(picture), width, height, is_turned or size != (width, height))


def _bytes(path: Path) -> bytes:
    try:
        data = read_plain(path, _MOST_BYTES)
    except FileNotFoundError:
        raise PlatformError(f"{path} is missing", _AGAIN) from None
    except OSError as error:
        raise PlatformError(
            f"{path} cannot be read: {error.strerror}", "See that the disk is there, and who may read the file"
        ) from error
    if not data:
        raise PlatformError(f"{path} is an empty file, not an image", _AGAIN)
    return data


def _decoded(path: Path, data: bytes) -> np.ndarray:
    import cv2
    import numpy as np

    size_of(path, data)
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if picture is None:
        raise PlatformError(f"{path} is damaged, or not an image that DeepLabCut can read", _AGAIN)
    return picture


def _look_at(path: Path, data: bytes) -> tuple[bool, tuple[int, int]]:
    """True if the file says that its picture must be turned, and the stored size; damage is refused."""
    from PIL import Image as Pillow
    from PIL import UnidentifiedImageError

    size_of(path, data)
    try:
        with Pillow.open(io.BytesIO(data), formats=_formats()) as image:
            image.verify()  # the checksums
        with Pillow.open(io.BytesIO(data), formats=_formats()) as image:
            size, file_format = image.size, image.format
            if file_format == "PNG" and b"eXIf" not in data:
                return False, size  # OpenCV refuses a damaged one
            is_turned = image.getexif().get(_ORIENTATION, 1) != 1
            image.load()  # the pixels
    except UnidentifiedImageError:
        raise PlatformError(f"{path} is not an image that can be read", _AGAIN) from None
    except Exception as error:  # each format has errors of its own
        raise PlatformError(f"{path} is a damaged image: {str(error) or type(error).__name__}", _AGAIN) from error
    if file_format == "JPEG":
        _check_jpeg(path, data)
    return is_turned, size


def _check_jpeg(path: Path, data: bytes) -> None:
    """Refuse a JPEG with a hole in it; the decoders above fill the hole silently."""
    from av import CodecContext, Packet
    from av.error import FFmpegError, InvalidDataError

    written = data.rstrip(b"\0")
    if len(data) - len(written) > _PADDING and not written.endswith(b"\xff\xd9"):
        raise PlatformError(f"{path} is a damaged image: it ends in {len(data) - len(written)} zero bytes", _AGAIN)
    decoder = CodecContext.create("mjpeg", "r")
    decoder.options = {"err_detect": "explode"}
    try:
        decoder.decode(Packet(data))
        decoder.decode(None)
    except InvalidDataError:
        raise PlatformError(f"{path} is a damaged image: it holds invalid data", _AGAIN) from None
    except FFmpegError:  # a kind of JPEG that FFmpeg does not know
        pass
