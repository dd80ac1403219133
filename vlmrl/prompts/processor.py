"""Reading a model's directory for text and images: its tokenizer, how images are
resized and cut, which tokens are never sampled.

The image processors are transformers' own PIL ones, which need no torch. An image
becomes patches in the order its vision tower reads them: merge units contiguous, in
raster order, one grid after another where a family cuts an image into tiles.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vlmrl.data.images import decode as decode_image
from vlmrl.prompts import styles, tag_tokens
from vlmrl.prompts.styles import chatml
from vlmrl.types import UserError

# Special tokens that only a prompt may contain: sampled, they would need image features
# that don't exist. Not every family has all of them.
NEVER_SAMPLED = (
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
)
_BANNED = (*NEVER_SAMPLED, *tag_tokens.UNUSED.values())


# transformers 4.49 left these defaults out of the vision_config of every Qwen2.5-VL
# that it saved, among them most fine-tuned ones.
OMITTED = dict(
    depth=32,
    intermediate_size=3420,
    num_heads=16,
    patch_size=14,
    spatial_merge_size=2,
    temporal_patch_size=2,
    window_size=112,
    fullatt_block_indexes=(7, 15, 23, 31),
)


def vision_of(config: dict) -> dict:
    """Return the vision_config of a config.json, omitted defaults included."""
    defaults = OMITTED if config.get("model_type") == "qwen2_5_vl" else {}
    return {**defaults, **(config.get("vision_config") or {})}


_PROBE = {"type": "text", "text": "Hello"}


class Geometry(NamedTuple):
    """How a vision tower sees an image (`merge` in patches, other sizes in pixels).

    `window` is the side of a row of the window axis: an attention window, a tile, or,
    under full attention, any length that leads to few numbers of windows.
    `flat`: positions of image tokens are one-dimensional, like those of text.
    """

    patch: int
    merge: int
    temporal: int
    window: int
    flat: bool = False

    @property
    def side(self) -> int:
        """Merge units along one side of a window."""
        return self.window // self.merge // self.patch


class Picture(NamedTuple):
    """One image, resized, normalised and cut.

    `patches` float32[t * h * w, patch_dim], merge units contiguous, in raster order;
    `grid` (t, h, w): t tiles (1, or several and a thumbnail) of h × w patches;
    `tokens` merged tokens; `key` names the file's bytes and the pixel limits.
    """

    patches: np.ndarray
    grid: tuple[int, int, int]
    tokens: int
    key: str


Pixels = tuple[int, int]  # (min, max) pixels an image is resized into


class Processor(NamedTuple):
    """What `load_processor` reads of a model's directory about text and images.

    `cut(data, where, pixels)` gives a file's Picture, from a bounded cache by (file,
    pixels); `pixels` defaults to the directory's. `encode` passes the processor's, so
    `processor._replace(pixels=...)` is the same processor at another resolution.

    `banned` bool[V] is True where a token must never be sampled: vision tokens, and
    ids beyond the tokenizer's (vocabularies are padded). `token_bytes` has one entry
    per id of the model's vocabulary: its decoded bytes, a special token's own text,
    b"" beyond the tokenizer.
    """

    tokenizer: Any
    cut: Callable[..., Picture]
    geometry: Geometry
    pixels: Pixels
    image_id: int  # id of the image placeholder; -1 in a model of text
    end_ids: tuple[int, ...]  # the first is the one that closes an assistant turn
    banned: np.ndarray
    token_bytes: tuple[bytes, ...]
    # (width, height), pixels → the grid (t, h, w) that `cut` gives such an image; a
    # ValueError where it can't be resized
    grid: Callable[[tuple[int, int], Pixels], tuple[int, int, int]] | None
    brackets: tuple[int, ...] = ()  # ids put before and after an image's tokens, where
    # the chat template does not write them itself
    tags: tag_tokens.Choice = tag_tokens.Choice("added", "")  # how tags become ids
    plain: Any = None  # encodes where tags are plain and the tokenizer has them added

    @property
    def vocab_size(self) -> int:
        return len(self.token_bytes)

    def encode_plain(self, text: str) -> list[int]:
        """Return the ids of a text, reasoning tags as `tags` says (`tag_tokens`). Some
        tokenizers (Llama 3.1) would put a BOS token before it, also in the middle of a
        turn: none is added here."""
        if self.plain is not None:
            return self.plain.encode(text, add_special_tokens=False).ids
        return self.tokenizer.encode(text, add_special_tokens=False)

    def encode_many(self, texts: list[str]) -> list[list[int]]:
        """Return `encode_plain` of many texts, on all cores."""
        if self.plain is not None:
            done = self.plain.encode_batch(texts, add_special_tokens=False)
            return [one.ids for one in done]
        return self.tokenizer(texts, add_special_tokens=False, verbose=False).input_ids

    def with_tags(self, choice: tag_tokens.Choice) -> Processor:
        """Return the processor that encodes reasoning tags as chosen. Where they are
        plain, their added tokens are banned: what is sampled is what is encoded."""
        ids = tag_tokens.added_ids(self.tokenizer)
        if choice.mode == "added" or not ids:
            return self._replace(tags=choice)
        banned = self.banned.copy()
        banned[list(ids.values())] = True
        plain = tag_tokens.plain_backend(self.tokenizer)
        return self._replace(tags=choice, plain=plain, banned=banned)

    def opening(self) -> str:
        """Return what the chat template writes of a chain of thought where the
        assistant turn begins: '<think>⏎', an empty one, or ''."""
        text = self.render([{"role": "user", "content": [_PROBE]}])
        tail = text.rpartition(_PROBE["text"])[2]
        return tail[len(styles.begin_turn(tail, "<think>", direct=False)[0]) :]

    def about_tags(self) -> str:
        """Return a line: how tags are tokenised, why, what the template writes."""
        line = f"reasoning tags: {self.tags.mode} ({self.tags.why})"
        opening = self.opening()
        if "</think>" in opening:
            return line + "; the chat template writes an empty <think></think>"
        if opening:
            line += "; the chat template opens <think>: turns begin inside it"
        return line

    def render(self, messages: list[dict]) -> str:
        """Chat messages (see `prompts.messages`) as the directory's own template writes
        them, assistant turn opened; as its family does where it has none."""
        if self.tokenizer.chat_template:
            if self.image_id < 0:  # templates of text models take no lists
                messages = [m | {"content": _joined(m["content"])} for m in messages]
            return self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        if self.brackets:  # InternVL: no system text, an image on a line of its own
            image = self.token_bytes[self.image_id].decode() + "\n"
            return chatml(messages, image, system="")
        return chatml(messages)


def load_processor(
    directory: str | Path,
    *,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    cache_bytes: int = 256 * 2**20,
) -> Processor:
    """Read tokenizer, image settings and image geometry of a Hugging Face directory.

    Args:
      directory: holds config.json, tokenizer.json, tokenizer_config.json, usually
        generation_config.json, and, if the model reads images, preprocessor_config.json
        or processor_config.json. Nothing is fetched.
      min_pixels, max_pixels: replace the directory's limits. Families that cut images
        into tiles take the number of tiles that such an image has.
      cache_bytes: memory for cut images, least recently used out first.

    Raises:
      UserError: a file is missing, does not parse or contradicts another.
    """
    # transformers would otherwise warn that torch is missing, which nothing here needs.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer

    directory = Path(directory)
    config = _read_json(directory / "config.json")
    _read_json(directory / "tokenizer_config.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    except Exception as e:  # its Rust part raises plain Exceptions
        line = (str(e).strip() or type(e).__name__).splitlines()[0]
        raise UserError(f"{directory}: cannot load the tokenizer: {line}") from e
    try:
        geometry, low, high, slice_image, grid = _tower(config, directory)
        text = config.get("text_config") or config
        vocab_size = text["vocab_size"]
        sees = geometry is not None
        image_id = config["image_token_id"] if sees else -1
    except KeyError as e:
        raise UserError(f"{directory}/config.json: field {e} is missing") from e
    if len(tokenizer) > vocab_size:
        raise UserError(
            f"{directory}: expected at most {vocab_size} ids in the tokenizer "
            f"(vocab_size of config.json), got {len(tokenizer)}; are they of one model?"
        )
    low = low if min_pixels is None else min_pixels
    high = high if max_pixels is None else max_pixels
    if not 0 <= low <= high:
        raise UserError(
            f"{directory}: expected 0 <= min_pixels <= max_pixels, got {low} and {high}"
        )
    token_bytes = _token_bytes(tokenizer, vocab_size, directory)
    known = tokenizer.get_vocab()
    brackets = ()
    if sees and geometry.flat:
        brackets = tuple(known.get(t, -1) for t in ("<img>", "</img>"))
        if -1 in brackets:
            raise UserError(f"{directory}: tokenizer lacks the tokens <img> and </img>")
    generation = directory / "generation_config.json"
    end = (_read_json(generation) if generation.exists() else config).get(
        "eos_token_id", text.get("eos_token_id")
    )
    ends = [tokenizer.eos_token_id, *(end if isinstance(end, list) else [end])]
    banned = np.array([not b for b in token_bytes])
    banned[[known[t] for t in _BANNED if t in known]] = True
    banned[[*brackets, *([image_id] if sees else [])]] = True
    return Processor(
        tokenizer=tokenizer,
        cut=_cutter(slice_image, geometry, (low, high), cache_bytes),
        geometry=geometry or Geometry(1, 1, 1, 1, flat=True),
        pixels=(low, high),
        image_id=image_id,
        end_ids=tuple(dict.fromkeys(e for e in ends if e is not None)),
        banned=banned,
        token_bytes=token_bytes,
        grid=grid,
        brackets=brackets,
    )


def _joined(content: str | list[dict]) -> str:
    return content if isinstance(content, str) else "".join(p["text"] for p in content)


def cut_all(
    processor: Processor, files: Iterable[tuple[bytes, str]]
) -> dict[bytes, Picture]:
    """Return Pictures of image files, by their bytes, cut in a pool of threads.

    Pillow and numpy release the interpreter lock in their slow parts. A file that
    occurs twice is cut once. The first bad file in the given order raises.

    Args:
      files: (file's bytes, its name in errors).
    """
    names: dict[bytes, str] = {}
    for data, where in files:
        names.setdefault(data, where)
    if not names:
        return {}
    with ThreadPoolExecutor(min(len(names), os.cpu_count() or 1)) as pool:
        cut = pool.map(
            lambda item: processor.cut(*item, processor.pixels), names.items()
        )
        return dict(zip(names, cut, strict=True))


# -- from the directory ----------------------------------------------------------------


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text())
    except OSError as e:
        raise UserError(
            f"{path}: cannot be read ({e.strerror}); expected a model directory in "
            "Hugging Face format"
        ) from e
    except ValueError as e:
        raise UserError(f"{path}: expected JSON ({e})") from e
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object")
    return content


def _token_bytes(tokenizer, vocab_size: int, where) -> tuple[bytes, ...]:
    """Return the decoded bytes of every id of a byte-level BPE vocabulary."""
    # Byte-level BPE writes each byte as one printable character: printable Latin-1
    # stands for itself, the rest for code points from 256 on, in order.
    same = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in same]
    byte_of = {chr(b): b for b in same}
    byte_of |= {chr(256 + i): b for i, b in enumerate(rest)}
    added = {i: t.content.encode() for i, t in tokenizer.added_tokens_decoder.items()}
    out = [b""] * vocab_size
    for token, i in tokenizer.get_vocab().items():
        if i not in added:
            try:
                added[i] = bytes(byte_of[c] for c in token)
            except KeyError:
                raise UserError(
                    f"{where}: expected a byte-level BPE, got the token {token!a}"
                ) from None
    for i, b in added.items():
        out[i] = b
    return tuple(out)


def _tower(config: dict, directory: Path):
    """Return (Geometry or None, min pixels, max pixels, cutting function, grid).

    The cutting function takes (RGB image, pixels) and returns (patches, grid);
    `Processor.grid` is the grid alone.
    """
    if "vision_config" not in config:
        return None, 0, 0, None, None
    settings = directory / "preprocessor_config.json"
    if not (directory / "processor_config.json").exists() or settings.exists():
        _read_json(settings)
    tiled = "downsample_ratio" in config
    return (_tiles if tiled else _grid)(config, directory)


def _grid(config: dict, directory: Path):
    """As `_tower`, for Qwen: one grid of patches in the image's own shape."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
        Qwen2VLImageProcessorPil,
        smart_resize,
    )

    resizer = _settings(Qwen2VLImageProcessorPil, directory)
    vision = vision_of(config)
    patch, merge = vision["patch_size"], vision["spatial_merge_size"]
    geometry = Geometry(
        patch=patch,
        merge=merge,
        temporal=vision["temporal_patch_size"],
        # No window attention: as many merge units a side as Qwen2.5-VL's windows have.
        window=vision.get("window_size", 4 * merge * patch),
    )
    for name in ("patch", "merge", "temporal"):
        field = "temporal_patch_size" if name == "temporal" else f"{name}_size"
        expected, actual = getattr(geometry, name), getattr(resizer, field)
        if actual != expected:
            raise UserError(
                f"{directory}/preprocessor_config.json: field {field}: expected "
                f"{expected} as in config.json, got {actual}"
            )

    def slice_image(image, pixels):
        size = dict(shortest_edge=pixels[0], longest_edge=pixels[1])
        out = resizer(images=[image], size=size, return_tensors="np")
        return out["pixel_values"], tuple(int(g) for g in out["image_grid_thw"][0])

    def grid(size, pixels):
        height, width = smart_resize(size[1], size[0], patch * merge, *pixels)
        return 1, height // patch, width // patch

    size = resizer.size
    return geometry, size["shortest_edge"], size["longest_edge"], slice_image, grid


def _tiles(config: dict, directory: Path):
    """As `_tower`, for InternVL: square tiles in the grid nearest to the image's shape,
    and, if there are several, a thumbnail of the whole image as the last tile."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
        GotOcr2ImageProcessorPil,
        get_optimal_tiled_canvas,
    )

    resizer = _settings(GotOcr2ImageProcessorPil, directory)
    patch = config["vision_config"]["patch_size"]
    patch = patch if isinstance(patch, int) else patch[0]
    geometry = Geometry(
        patch=patch,
        merge=round(1 / config["downsample_ratio"]),
        temporal=1,
        window=resizer.size["height"],
        flat=True,
    )
    tile, side = geometry.window, geometry.side
    if resizer.size["width"] != tile or side * geometry.merge * patch != tile:
        raise UserError(
            f"{directory}/preprocessor_config.json: expected square tiles of whole "
            f"merge units of {geometry.merge * patch} pixels, got {tile} × "
            f"{resizer.size['width']}"
        )

    def limits(pixels):
        """Return the least and the most tiles."""
        high = max(1, pixels[1] // tile**2)
        return min(high, max(1, -(-pixels[0] // tile**2))), high

    def slice_image(image, pixels):
        min_tiles, max_tiles = limits(pixels)
        out = resizer(
            images=[image],
            crop_to_patches=True,  # InternVLProcessor sets it, whatever is stored
            min_patches=min_tiles,
            max_patches=max_tiles,
            return_tensors="np",
        )["pixel_values"]
        # [t, c, (y a p), (x b q)] → units (t y x) of patches (a b) of (c p q)
        n, c = out.shape[:2]
        cells = out.reshape(
            n, c, side, geometry.merge, patch, side, geometry.merge, patch
        )
        patches = cells.transpose(0, 2, 5, 3, 6, 1, 4, 7).reshape(-1, c * patch**2)
        return patches, (n, side * geometry.merge, side * geometry.merge)

    def grid(size, pixels):
        low, high = limits(pixels)
        cells = get_optimal_tiled_canvas(size[::-1], (tile, tile), low, high)
        count = cells[0] * cells[1] if high > 1 else 1
        thumbnail = count > 1
        return count + thumbnail, side * geometry.merge, side * geometry.merge

    low, high = (n * tile**2 for n in (resizer.min_patches, resizer.max_patches))
    return geometry, low, high, slice_image, grid


def _settings(kind, directory: Path):
    """Return transformers' image processor of a directory."""
    try:
        return kind.from_pretrained(str(directory), local_files_only=True)
    except (ValueError, OSError, TypeError) as e:
        line = (str(e).strip() or type(e).__name__).splitlines()[0]
        raise UserError(f"{directory}: cannot load the image settings: {line}") from e


def _cutter(slice_image, geometry: Geometry | None, own: Pixels, cache_bytes: int):
    """Return `Processor.cut`: the image pipeline behind an LRU cache of `cache_bytes`,
    keyed by content and pixel limits."""
    cache: OrderedDict[str, Picture] = OrderedDict()
    lock = threading.Lock()
    cached = 0

    def cut(data: bytes, where: str, pixels: Pixels = own) -> Picture:
        nonlocal cached
        if geometry is None:
            raise UserError(f"{where}: this model reads no images")
        key = f"{hashlib.sha256(data).hexdigest()} {pixels[0]} {pixels[1]}"
        with lock:
            if key in cache:
                cache.move_to_end(key)
                return cache[key]
        image = decode_image(data, where)
        try:
            patches, grid = slice_image(image, pixels)
        except ValueError as e:
            raise UserError(f"{where}: the image cannot be resized: {e}") from e
        patches = np.ascontiguousarray(patches, np.float32)
        patches.flags.writeable = False
        picture = Picture(patches, grid, len(patches) // geometry.merge**2, key)
        with lock:
            if key in cache:  # another thread was first
                return cache[key]
            cache[key] = picture
            cached += patches.nbytes
            while cached > cache_bytes and len(cache) > 1:
                cached -= cache.popitem(last=False)[1].patches.nbytes
        return picture

    return cut
