"""Scenes: their graph, how they are drawn at random, and their picture.

A scene is a 112 × 112 px image with a 4 × 4 grid of 28 px cells, rows and columns
counted from the top left, and two to five objects (shape, colour, size), one per cell.
Objects are drawn far to near. About half of the scenes hold one overlapping pair: two
objects of adjacent cells moved towards each other until the nearer covers a part of the
farther. No other objects touch, and (colour, shape) names an object of a scene.

Splits. `train`, `validation` and `test` are disjoint by seed and by content: a hash of
the scene graph without its pixel jitter decides the one split a scene may occur in, so
no arrangement is seen in two of them. `ood` has six or seven objects, at least half of
them of colour-shape pairs (`HELD_OUT`) that the other three never show.
"""

from __future__ import annotations

import functools
import io
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from vlmrl.types import UserError

GRID, CELL = 4, 28  # cells per side; pixels per cell: one merged vision token
SIDE = GRID * CELL
COLOURS = {
    "red": (225, 25, 30),
    "green": (20, 160, 60),
    "blue": (35, 70, 235),
    "yellow": (250, 205, 0),
    "purple": (160, 40, 200),
    "black": (25, 25, 25),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
SIZES = {"small": 7, "large": 12}  # radius in pixels
HELD_OUT = (
    ("red", "star"),
    ("green", "cross"),
    ("blue", "triangle"),
    ("yellow", "circle"),
    ("purple", "square"),
)
# Split → residues of the content hash modulo 8 that belong to it.
SPLITS = {"train": range(6), "validation": (6,), "test": (7,), "ood": range(8)}

_JITTER = {"small": 2, "large": 1}  # pixels either way: neighbours don't touch
_RIM = 1.25  # pixels of white around an object
_OVERLAP = 30  # pixels that the nearer of a pair covers of the farther, but not
_COVERED = 0.2  # more than this share of the smaller one
_OVERSAMPLE = 4


class Object(NamedTuple):
    shape: str
    colour: str
    size: str
    row: int  # 0 at the top
    column: int  # 0 at the left
    x: int  # centre in pixels
    y: int


class Scene(NamedTuple):
    split: str
    index: int
    objects: tuple[Object, ...]  # in drawing order: later is nearer
    overlap: (
        tuple[int, int] | None
    )  # indices of the overlapping pair: (farther, nearer)


# -- drawing ---------------------------------------------------------------------------


def _outline(shape: str, radius: float) -> list[tuple[float, float]]:
    """Return corners of a shape around the origin, in pixels; y points down."""
    if shape == "circle":
        angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        points = np.stack([np.cos(angles), np.sin(angles)], 1) * 0.97
    elif shape == "square":
        points = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.84
    elif shape == "triangle":
        points = np.array([(0, -1), (1, 0.84), (-1, 0.84)])
    elif shape == "star":
        angles = np.arange(10) * np.pi / 5 - np.pi / 2
        reach = np.where(np.arange(10) % 2, 0.5, 1.08)
        points = np.stack([np.cos(angles), np.sin(angles)], 1) * reach[:, None]
        points[:, 1] += 0.06
    else:
        a, b = 0.38, 1.0
        points = np.array(
            [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a)]
            + [(a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]
        )
    return [(float(x), float(y)) for x, y in points * radius]


@functools.cache
def _mask(shape: str, size: str, rim: float = 0.0) -> Image.Image:
    """Return coverage 0..255 of a shape centred in one cell, grown by `rim` pixels."""
    big = Image.new("L", (CELL * _OVERSAMPLE,) * 2)
    corners = [
        ((x + CELL / 2) * _OVERSAMPLE, (y + CELL / 2) * _OVERSAMPLE)
        for x, y in _outline(shape, SIZES[size])
    ]
    draw = ImageDraw.Draw(big)
    draw.polygon(corners, fill=255)
    if rim:
        wide = round(2 * rim * _OVERSAMPLE)
        draw.line([*corners, *corners[:2]], fill=255, width=wide, joint="curve")
    return big.reduce(_OVERSAMPLE)


@functools.cache
def _sprite(shape: str, colour: str, size: str) -> tuple[Image.Image, Image.Image]:
    """Return (colours, mask) of one object with a white rim, which shows what it covers
    even where both objects have the same colour."""
    picture = Image.new("RGB", (CELL, CELL), "white")
    picture.paste(COLOURS[colour], (0, 0), _mask(shape, size))
    return picture, _mask(shape, size, rim=_RIM)


@functools.cache
def _shift(first: tuple[str, str], second: tuple[str, str], down: bool) -> int:
    """Return the pixels that both objects, (shape, size) of adjacent cells, move
    towards each other until they overlap enough. It is the same whichever is nearer, so
    that depth shows in what covers what alone."""
    body, rim = (
        [np.asarray(_mask(*kind, rim=r)) > 127 for kind in (first, second)]
        for r in (0.0, _RIM)
    )
    enough = min(_OVERLAP, _COVERED * min(body[0].sum(), body[1].sum()))
    for shift in range(1, CELL // 2 - 2):
        gap = CELL - 2 * shift
        here, there = np.s_[gap:], np.s_[: CELL - gap]
        if not down:
            here, there = (slice(None), here), (slice(None), there)
        covered = (body[0][here] & rim[1][there]).sum()  # with the second in front
        covering = (rim[0][here] & body[1][there]).sum()
        if min(covered, covering) >= enough:
            return shift
    raise AssertionError(f"{first} and {second} cannot overlap")


@functools.cache
def background() -> Image.Image:
    """Return a light ground: red fades downwards and blue to the right. As sky and
    floor tell up from down in a photograph, this shows where a patch is, which relative
    rotary positions don't."""
    fade = np.linspace(252, 172, SIDE).astype(np.uint8)
    level = np.full((SIDE, SIDE), 228, np.uint8)
    down, right = np.repeat(fade[:, None], SIDE, 1), np.repeat(fade[None], SIDE, 0)
    return Image.fromarray(np.stack([down, level, right], -1))


def render(scene: Scene) -> Image.Image:
    """Return the RGB image of `SIDE` × `SIDE` pixels."""
    image = background().copy()
    for o in scene.objects:
        picture, mask = _sprite(o.shape, o.colour, o.size)
        image.paste(picture, (o.x - CELL // 2, o.y - CELL // 2), mask)
    return image


@functools.lru_cache(maxsize=64)
def png(scene: Scene) -> bytes:
    """Return the picture as a PNG file."""
    file = io.BytesIO()
    render(scene).save(file, "PNG", compress_level=1)
    return file.getvalue()


# -- scenes ----------------------------------------------------------------------------


def _kinds(ood: bool, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Draw distinct (colour, shape) pairs. Two scenes of three keep to two colours or
    to two shapes, so that counts above one are common."""
    colours, shapes = list(COLOURS), list(SHAPES)
    theme = rng.integers(3)
    if theme == 1:
        colours = [colours[i] for i in rng.permutation(len(colours))[:2]]
    elif theme == 2:
        shapes = [shapes[i] for i in rng.permutation(len(shapes))[:2]]
    pairs = [(c, s) for c in colours for s in shapes if (c, s) not in HELD_OUT]
    number = int(rng.integers(6, 8) if ood else rng.integers(2, 6))
    rare = (number + 1) // 2 if ood else 0
    return [HELD_OUT[i] for i in rng.permutation(len(HELD_OUT))[:rare]] + [
        pairs[i] for i in rng.permutation(len(pairs))[: number - rare]
    ]


def _arrange(
    kinds: Sequence[tuple[str, str]], rng: np.random.Generator
) -> tuple[tuple[Object, ...], tuple[int, int] | None]:
    """Draw sizes, cells, pixel positions and depth order for the given kinds."""
    kinds = [kinds[i] for i in rng.permutation(len(kinds))]  # index = drawing order
    number = len(kinds)
    sizes = [tuple(SIZES)[i] for i in rng.integers(2, size=number)]
    cells = [divmod(int(i), GRID) for i in rng.permutation(GRID * GRID)]
    pair = None
    if rng.random() < 0.5:
        first, second = (int(i) for i in rng.permutation(number)[:2])
        pair = (min(first, second), max(first, second))
        if sizes[first] == sizes[second] == "small":
            sizes[pair[rng.integers(2)]] = "large"
        down = bool(rng.integers(2))
        top, left = rng.integers(GRID - down), rng.integers(GRID - (not down))
        here = (int(top), int(left))
        there = (here[0] + down, here[1] + (not down))
        rest = iter([cell for cell in cells if cell not in (here, there)])
        cells = [
            {first: here, second: there}.get(i) or next(rest) for i in range(number)
        ]
    reach = np.array([_JITTER[size] for size in sizes])[:, None]
    moves = rng.integers(-reach, reach + 1, size=(number, 2)).tolist()  # (x, y)
    if pair:
        shift = _shift(*((kinds[i][1], sizes[i]) for i in (first, second)), down)
        side = min(moves[first][not down], moves[second][not down], key=abs)
        moves[first] = [side, shift] if down else [shift, side]
        moves[second] = [side, -shift] if down else [-shift, side]
    objects = tuple(
        Object(
            shape,
            colour,
            size,
            row,
            column,
            column * CELL + CELL // 2 + dx,
            row * CELL + CELL // 2 + dy,
        )
        for (colour, shape), size, (row, column), (dx, dy) in zip(
            kinds, sizes, cells[:number], moves, strict=True
        )
    )
    return objects, pair


def _content(objects: tuple[Object, ...], pair: tuple[int, int] | None) -> int:
    """Return a hash of what a scene shows, pixel jitter aside."""
    seen = sorted(o[:5] for o in objects)
    near = pair and objects[pair[1]][:5]
    return zlib.crc32(repr((seen, near)).encode())


def make_scene(split: str, index: int) -> Scene:
    """Return scene `index` (0, 1, …) of a split: the same on every machine and run.

    Raises UserError on a split not in `SPLITS`.
    """
    if split not in SPLITS:
        raise UserError(f"scenes: split {split!r} is not one of {', '.join(SPLITS)}")
    rng = np.random.default_rng([zlib.crc32(split.encode()), index])
    while True:
        objects, pair = _arrange(_kinds(split == "ood", rng), rng)
        if _content(objects, pair) % 8 in SPLITS[split]:
            return Scene(split, index, objects, pair)
