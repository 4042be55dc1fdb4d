import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image as Pillow
from PIL import ImageOps

from dlc_platform.dlc.images import examine_images, read_image
from dlc_platform.errors import PlatformError

PIXELS = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8), (0, 0), 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_images_are_read_as_they_are_shown(tmp_path: Path, kind: str, orientation: int):
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    file = tmp_path / "img.any"
    Pillow.fromarray(PIXELS).save(file, kind, exif=exif)
    with Pillow.open(file) as image:
        shown = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    (image,) = examine_images([file])
    assert (image.height, image.width) == shown.shape[:2] == ((120, 160) if orientation < 5 else (160, 120))
    assert image.is_turned == (orientation > 1)
    picture = read_image(file)[..., ::-1]
    assert picture.shape == shown.shape and np.abs(picture.astype(int) - shown).mean() < 2
    if kind != "TIFF":  # OpenCV 5.0 refuses files, though not bytes, of a TIFF that lies on its side
        np.testing.assert_array_equal(cv2.imread(str(file)), read_image(file))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16", "1"])
def test_other_pixels_become_eight_bits_in_three_colours(tmp_path: Path, mode: str):
    file = tmp_path / ("img.jpg" if mode == "CMYK" else "img.png")
    if mode == "I;16":
        cv2.imwrite(str(file), PIXELS[..., 0].astype(np.uint16) << 8)
    else:
        Pillow.fromarray(PIXELS).convert(mode).save(file)
    (image,) = examine_images([file])
    picture = read_image(file)
    assert (image.width, image.height, image.is_turned) == (160, 120, False)
    assert picture.shape == (120, 160, 3) and picture.dtype == np.uint8
    assert abs(float(picture.mean()) - float(PIXELS.mean())) < 12


def encoded(kind: str, **options: bool) -> bytes:
    file = io.BytesIO()
    Pillow.fromarray(PIXELS).save(file, kind, **options)
    return file.getvalue()


def damaged() -> dict[str, bytes]:
    found = {"nothing": b"", "text": b"not a picture"}
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"):
        whole = encoded(kind)
        found |= {f"half a {kind}": whole[: len(whole) // 2], f"{kind} without its last bytes": whole[:-40]}
    png, jpeg = encoded("PNG"), encoded("JPEG")
    found["PNG with zeros at the end"] = png[: len(png) // 2] + bytes(len(png) - len(png) // 2)
    found["PNG with a wrong byte"] = png[: len(png) // 2] + b"\x5a" + png[len(png) // 2 + 1 :]
    found["JPEG with zeros at the end"] = jpeg[: len(jpeg) // 2] + bytes(len(jpeg) - len(jpeg) // 2)
    found["JPEG with a hole"] = jpeg[: len(jpeg) // 2] + bytes(200) + jpeg[len(jpeg) // 2 + 200 :]
    return found


@pytest.mark.parametrize("what", damaged())
def test_a_damaged_image_is_refused_by_its_name(tmp_path: Path, what: str):
    whole = tmp_path / "whole.png"
    whole.write_bytes(encoded("PNG"))
    file = tmp_path / "img007.png"
    file.write_bytes(damaged()[what])
    with pytest.raises(PlatformError) as error:
        examine_images([whole, file])
    assert str(file) in error.value.problem and "its labels stay as they are" in error.value.remedy


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}])
def test_whole_images_are_taken_whatever_they_are_called(tmp_path: Path, options: dict[str, bool]):
    file = tmp_path / "img.png"
    file.write_bytes(encoded("JPEG", **options) + bytes(8))
    assert examine_images([file])[0].width == 160


def test_of_an_animation_the_first_picture_is_read(tmp_path: Path):
    file = tmp_path / "img.png"
    Pillow.fromarray(PIXELS).save(file, save_all=True, append_images=[Pillow.fromarray(255 - PIXELS)])
    np.testing.assert_array_equal(read_image(file)[..., ::-1], PIXELS)
    assert examine_images([file])[0].height == 120
