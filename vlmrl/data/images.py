"""The one decoder of image files, and their sizes without decoding."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import ExifTags, Image, ImageOps

from vlmrl.types import UserError

MAX_PIXELS = 2**27  # 134 megapixels, 400 MB as RGB; benchmark photographs have up to 50
# Formats of the benchmarks. Pillow's other readers are unsafe on untrusted files (EPS
# starts a program).
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")

# Pillow warns above its own limit while it opens a file and raises above twice that;
# here both refuse the file.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.simplefilter("error", Image.DecompressionBombWarning)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    # `convert` would copy an image that is in RGB already.
    return image if image.mode == "RGB" else image.convert("RGB")


def decode(data: bytes, where: str) -> Image.Image:
    """Return the RGB image of an encoded file as transformers' processors read it:
    upright by its EXIF orientation, alpha over white, 16-bit grey clipped to 255 (as
    Pillow converts it, so everywhere a model is served), an animation's first frame.

    Args:
      data: the whole file.
      where: what the file is to the reader of an error, e.g. 'scenes/test/3 image 0'.

    Raises UserError where it does not decode, is cut short, has more than `MAX_PIXELS`
    pixels or is not in one of `FORMATS`.
    """
    with _reading(data, where) as image:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)  # otherwise it copies the pixels
        return _to_rgb(image)


def size_of(data: bytes, where: str) -> tuple[int, int]:
    """Return the (width, height) that `decode` would give, from the file's header.

    A file that is cut short behind its header is not noticed.

    Raises UserError where the header can't be read, as `decode` does.
    """
    with _reading(data, where) as image:
        width, height = image.size
        # A PNG may have its orientation behind the pixels, where Pillow would decode
        # them to get there.
        if image.format != "PNG" or any(mark in data for mark in _ORIENTED):
            if image.format == "PNG":
                image.load()
            if image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8):
                if image.format == "TIFF":  # some versions of Pillow turned it already
                    image.load()
                    return ImageOps.exif_transpose(image).size
                width, height = height, width
        return width, height


def blank_like(data: bytes) -> bytes:
    """Return a black PNG of the size in a file's header."""
    file = io.BytesIO()
    Image.new("RGB", size_of(data, "image")).save(file, "PNG")
    return file.getvalue()


_ORIENTED = (b"eXIf", b"Raw profile type exif", b"tiff:Orientation")


@contextmanager
def _reading(data: bytes, where: str) -> Iterator[Image.Image]:
    """Yield the opened file; what goes wrong becomes a UserError."""
    if not data:
        raise UserError(f"{where}: the image file is empty")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} × {image.height} pixels are too many")
            yield image
    except Exception as error:  # readers raise many kinds on broken files
        why = " ".join(str(error).split()) or type(error).__name__
        if "cannot identify image file" in why:
            why = f"it is not a {', '.join(FORMATS)} file"
        raise UserError(f"{where}: the image does not decode: {why}") from error
