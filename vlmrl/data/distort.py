"""Image perturbations: the same text under another image, as controls and as noise.

Together with the conditions of `perturb` they separate two kinds of robustness: does a
policy keep its answer against a misleading text because it uses the image, or because
it ignores the text?

  blank     one grey: what the question alone gives away
  shuffled  patches in another order: colours and textures without layout
  noisy     Gaussian noise on every pixel
  masked    a share of the patches in black

Each is a pure function of pixels uint8[H,W,3] and a generator; `distort` applies one to
all images of an example, with a generator keyed by (seed, name, id, image).
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from vlmrl import user_code
from vlmrl.data import distributed, images
from vlmrl.types import Array, Example, UserError

GREY = 127


def blank(pixels: Array, rng: np.random.Generator) -> Array:
    """Return an image of the same size in one grey. uint8[H,W,3]."""
    return np.full_like(pixels, GREY)


def shuffled(pixels: Array, rng: np.random.Generator, patch: int = 28) -> Array:
    """Permute the whole patches; a border that fills no patch stays.

    Args:
      pixels: uint8[H,W,3].
      patch: side in pixels; 28 is one merged token of Qwen2.5-VL.
    """
    tiles = _tiles(pixels, patch)
    return _untile(tiles[rng.permutation(len(tiles))], pixels, patch)


def noisy(pixels: Array, rng: np.random.Generator, sigma: float = 0.25) -> Array:
    """Add Gaussian noise: x + 255 · sigma · N(0, 1), rounded and clipped to [0, 255].

    Rollouts on noisy images as training noise: https://arxiv.org/abs/2504.13055

    Args:
      pixels: uint8[H,W,3].
      sigma: standard deviation as a share of the range of values.
    """
    if not sigma >= 0:
        raise UserError(f"distort.sigma: expected at least 0, got {sigma}")
    values = pixels + 255 * sigma * rng.standard_normal(pixels.shape)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def masked(
    pixels: Array, rng: np.random.Generator, share: float = 0.6, patch: int = 14
) -> Array:
    """Set round(share · n) of the n whole patches to black.

    The second branch of PAPO's perception term sees this image: 60 % of 14-pixel
    patches, https://arxiv.org/abs/2507.06448

    Args:
      pixels: uint8[H,W,3].
      share: in [0, 1].
      patch: side in pixels.
    """
    if not 0 <= share <= 1:
        raise UserError(f"distort.share: expected 0 to 1, got {share}")
    tiles = _tiles(pixels, patch).copy()
    tiles[rng.permutation(len(tiles))[: round(share * len(tiles))]] = 0
    return _untile(tiles, pixels, patch)


DISTORTIONS: dict[str, Callable[..., Array]] = {
    "blank": blank,
    "shuffled": shuffled,
    "noisy": noisy,
    "masked": masked,
}


def distortion_of(name: str, field: str = "") -> Callable[..., Array]:
    """Return the function of a distortion's name, a user's own too.

    Raises:
      UserError: an unknown name, a file without the function or with another one.
    """
    kind = "" if field else "image perturbation"
    return user_code.lookup(name, DISTORTIONS, field, ("pixels", "rng"), kind=kind)


def distort(example: Example, name: str, seed: int, **settings) -> Example:
    """Return the example with every image perturbed and condition `<name>+…`.

    Text and statements stay: the answer is still what the clean image shows.

    Args:
      example: a condition may have been applied already.
      name: a key of DISTORTIONS, or path/to/file.py:name.
      seed: of the run or of the evaluation.
      settings: of the perturbation, e.g. sigma.

    Raises:
      UserError: unknown name, an example without images, an image that does not decode.
    """
    function = distortion_of(name)
    if not example.images:
        raise UserError(f"example {example.id!r}: has no image for {name!r}")

    def changed(files):
        for i, data in enumerate(files):
            pixels = np.asarray(images.decode(data, f"{example.id} image {i}"))
            text = f"distort\0{seed}\0{name}\0{example.id}\0{i}"
            key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")
            rng = np.random.Generator(np.random.PCG64(key))
            about = f"example {example.id!r}"
            new = user_code.call(function, pixels, rng, about=about, **settings)
            if getattr(new, "dtype", None) != np.uint8 or new.shape[2:] != (3,):
                got = getattr(new, "dtype", type(new).__name__)
                raise user_code.failure(
                    function, about, f"expected uint8[H,W,3], got {got}"
                )
            yield encode(new)

    return example._replace(
        images=distributed.map_images(example.images, changed),
        condition=f"{user_code.short(name)}+{example.condition}",
    )


def encode(pixels: Array) -> bytes:
    """Return uint8[H,W,3] as a PNG file, without loss."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=1)
    return out.getvalue()


def _tiles(pixels: Array, patch: int) -> Array:
    """Return whole patches in raster order, uint8[n, patch, patch, 3]."""
    if patch < 1:
        raise UserError(f"distort.patch: expected at least 1 pixel, got {patch}")
    rows, columns = (side // patch for side in pixels.shape[:2])
    cut = pixels[: rows * patch, : columns * patch]
    cut = cut.reshape(rows, patch, columns, patch, 3).swapaxes(1, 2)
    return cut.reshape(-1, patch, patch, 3)


def _untile(tiles: Array, pixels: Array, patch: int) -> Array:
    rows, columns = (side // patch for side in pixels.shape[:2])
    grid = tiles.reshape(rows, columns, patch, patch, 3).swapaxes(1, 2)
    out = pixels.copy()
    out[: rows * patch, : columns * patch] = grid.reshape(
        rows * patch, columns * patch, 3
    )
    return out
