"""The one decoder of image files."""

from __future__ import annotations

import io
import warnings

from PIL import Image, ImageOps

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
    if not data:
        raise UserError(f"{where}: the image file is empty")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} × {image.height} pixels are too many")
            image.load()
            ImageOps.exif_transpose(
                image, in_place=True
            )  # otherwise it copies the pixels
            return _to_rgb(image)
    except Exception as error:  # readers raise many kinds on broken files
        why = " ".join(str(error).split()) or type(error).__name__
        if "cannot identify image file" in why:
            why = f"it is not a {', '.join(FORMATS)} file"
        raise UserError(f"{where}: the image does not decode: {why}") from error
