import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vlmrl.data import images
from vlmrl.types import UserError


def _file(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _pixel(data, at=(0, 0)):
    image = images.decode(data, "here")
    assert image.mode == "RGB"
    return image.getpixel(at)


def test_a_palette_gives_its_colours():
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    assert _pixel(_file(image)) == (10, 200, 30)
    assert _pixel(_file(image, transparency=1)) == (255, 255, 255)


@pytest.mark.parametrize(
    "mode, colour, seen",
    [
        ("RGB", (1, 2, 3), (1, 2, 3)),
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
        ("LA", (0, 0), (255, 255, 255)),
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("I;16", 0x00AB, (0xAB, 0xAB, 0xAB)),
        ("I;16", 0xAB12, (255, 255, 255)),
    ],
)
def test_modes(mode, colour, seen):
    assert _pixel(_file(Image.new(mode, (3, 2), colour))) == seen


def test_a_transparent_colour_without_an_alpha_channel():
    image = Image.new("RGB", (2, 2), (9, 9, 9))
    assert _pixel(_file(image, transparency=(9, 9, 9))) == (255, 255, 255)


def test_cmyk():
    r, g, b = _pixel(_file(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    assert r > 245 and g < 10 and b < 10


def test_exif_orientation_turns_the_image():
    image = Image.new("RGB", (4, 2))
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    data = _file(image, exif=exif)
    assert images.decode(data, "here").size == (2, 4)
    assert _pixel(data, (1, 0)) == (255, 0, 0)


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (2, 2), c) for c in ("red", "blue")]
    data = _file(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert _pixel(data) == (255, 0, 0)


def _chunk(kind, body):
    crc = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)


def _png_header(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IEND", b"")


GOOD = _file(
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), "uint8"))
)


# 8 KB that unpack to 8 MB of a comment, in a picture of 40 × 40.
TALKATIVE = (
    GOOD[:33] + _chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(2**23))) + GOOD[33:]
)


@pytest.mark.parametrize(
    "data, why",
    [
        (b"", "empty"),
        (b"not an image", "it is not a PNG, JPEG"),
        (GOOD[:60], "does not decode"),
        (GOOD[: len(GOOD) // 2], "truncated"),
        (GOOD[:100] + bytes(200) + GOOD[300:], "does not decode"),
        (_png_header(60_000, 60_000), "decompression bomb"),
        (TALKATIVE, "Decompressed data too large"),
        (_png_header(4, 4), "does not decode"),
        (_png_header(0, 4), "does not decode"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is not a"),
        (_file(Image.new("F", (2, 2), 0.5), "TIFF"), "floating-point"),
        ("text", "does not decode"),
    ],
)
def test_what_does_not_decode_is_named_in_one_line(data, why):
    with pytest.raises(UserError, match=why) as raised:
        images.decode(data, "scenes/test/3 image 0")
    assert str(raised.value).startswith("scenes/test/3 image 0: the image ")
    assert "\n" not in str(raised.value)


def test_the_limit_on_pixels(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 1599)
    with pytest.raises(UserError, match="40 × 40 pixels are too many"):
        images.decode(GOOD, "here")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "PPM"])
@pytest.mark.parametrize("turn", [None, 3, 6])
def test_the_size_in_the_header_is_that_of_the_image(kind, turn):
    exif = Image.Exif()
    options = {"exif": exif} if turn and kind in ("PNG", "JPEG", "WEBP", "TIFF") else {}
    if options:
        exif[0x0112] = turn
    data = _file(Image.new("RGB", (31, 20)), kind, **options)
    assert images.size_of(data, "x") == images.decode(data, "x").size


def test_an_orientation_behind_the_pixels_counts():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = _file(Image.new("RGB", (31, 20)), exif=exif)
    at = data.index(b"eXIf") - 4
    size = 12 + int.from_bytes(data[at : at + 4], "big")
    chunk, end = data[at : at + size], data.rindex(b"IEND") - 4
    moved = data[:at] + data[at + size : end] + chunk + data[end:]
    assert images.size_of(moved, "x") == images.decode(moved, "x").size == (20, 31)


def test_the_size_needs_the_header_alone():
    data = _file(Image.new("RGB", (31, 20)))
    assert images.size_of(data[:60], "x") == (31, 20)
    with pytest.raises(UserError, match="x: the image does not decode"):
        images.size_of(data[:20], "x")
