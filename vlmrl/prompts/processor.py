"""What a model's directory says about text and images: its tokenizer, the resizing and
cutting of its images, the tokens it must never write.

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
from vlmrl.prompts.styles import chatml
from vlmrl.types import UserError

# Special tokens that only a prompt may hold: sampled, they would ask for image
# features that do not exist. Families that lack one simply do not have it.
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


# What transformers 4.49 left out of the vision_config of a Qwen2.5-VL that it saved,
# most fine-tuned ones among them: values that were its defaults.
LEFT_OUT = dict(
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
    """The vision_config of a config.json, whole."""
    said = config.get("vision_config") or {}
    known = LEFT_OUT if config.get("model_type") == "qwen2_5_vl" else {}
    return {**known, **said}


class Facts(NamedTuple):
    """What the host must know of a vision tower (sizes in pixels, merge in patches).

    `window` is the side of what is one row of the window axis: an attention window, a
    tile, or, where all attention is full, any length that cuts images into few sizes.
    `flat`: image tokens are counted like text, not laid out in height and width.
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
    `grid` (t, h, w): t pieces (1, or the tiles and their thumbnail) of h × w patches;
    `tokens` merged tokens; `key` names the file's bytes and the pixel limits.
    """

    patches: np.ndarray
    grid: tuple[int, int, int]
    tokens: int
    key: str


Pixels = tuple[int, int]  # (min, max) pixels an image is resized into


class Processor(NamedTuple):
    """All a model's directory says about text and images, loaded by `load_processor`.

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
    facts: Facts
    pixels: Pixels
    image_id: int  # id of the image placeholder; -1 in a model of text
    end_ids: tuple[int, ...]  # the first is the one that closes an assistant turn
    banned: np.ndarray
    token_bytes: tuple[bytes, ...]
    brackets: tuple[int, ...] = ()  # ids put before and after an image's tokens, where
    # the chat template does not write them itself

    @property
    def vocab_size(self) -> int:
        return len(self.token_bytes)

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
    """Reads tokenizer, image settings and vision facts of a Hugging Face directory.

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
    # Else it says that torch is missing, which nothing here needs.
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
        facts, low, high, slice_image = _tower(config, directory)
        text = config.get("text_config") or config
        vocab_size = text["vocab_size"]
        sees = facts is not None
        image_id = config["image_token_id"] if sees else -1
    except KeyError as e:
        raise UserError(f"{directory}/config.json: field {e} is missing") from e
    if len(tokenizer) > vocab_size:
        raise UserError(
            f"{directory}: tokenizer has {len(tokenizer)} ids but config.json's "
            f"vocab_size is {vocab_size}; they belong to different models"
        )
    pixels = (
        low if min_pixels is None else min_pixels,
        high if max_pixels is None else max_pixels,
    )
    if not 0 <= pixels[0] <= pixels[1]:
        raise UserError(
            f"{directory}: min_pixels is {pixels[0]} and max_pixels {pixels[1]}; needs "
            "0 <= min_pixels <= max_pixels"
        )
    token_bytes = _token_bytes(tokenizer, vocab_size, directory)
    known = tokenizer.get_vocab()
    brackets = ()
    if sees and facts.flat:
        brackets = tuple(known.get(t, -1) for t in ("<img>", "</img>"))
        if -1 in brackets:
            raise UserError(f"{directory}: tokenizer lacks the tokens <img> and </img>")
    generation = directory / "generation_config.json"
    end = (_read_json(generation) if generation.exists() else config).get(
        "eos_token_id", text.get("eos_token_id")
    )
    ends = [tokenizer.eos_token_id, *(end if isinstance(end, list) else [end])]
    banned = np.array([not b for b in token_bytes])
    banned[[known[t] for t in NEVER_SAMPLED if t in known]] = True
    banned[[*brackets, *([image_id] if sees else [])]] = True
    return Processor(
        tokenizer=tokenizer,
        cut=_cutter(slice_image, facts, pixels, cache_bytes),
        facts=facts or Facts(1, 1, 1, 1, flat=True),
        pixels=pixels,
        image_id=image_id,
        end_ids=tuple(dict.fromkeys(e for e in ends if e is not None)),
        banned=banned,
        token_bytes=token_bytes,
        brackets=brackets,
    )


def _joined(content: str | list[dict]) -> str:
    return content if isinstance(content, str) else "".join(p["text"] for p in content)


def cut_all(
    processor: Processor, files: Iterable[tuple[bytes, str]]
) -> dict[bytes, Picture]:
    """Pictures of image files, by their bytes, cut in a pool of threads.

    Pillow and numpy let go of the interpreter where the time goes. A file that occurs
    twice is cut once. An error is that of the first bad file, in the order given.

    Args:
      files: (file's bytes, what it is to the reader of an error).
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
        found = json.loads(path.read_text())
    except OSError as e:
        raise UserError(
            f"{path}: cannot be read ({e.strerror}); a model directory in Hugging "
            "Face format is needed"
        ) from e
    except ValueError as e:
        raise UserError(f"{path}: is not JSON ({e})") from e
    if not isinstance(found, dict):
        raise UserError(f"{path}: must hold a JSON object")
    return found


def _token_bytes(tokenizer, vocab_size: int, where) -> tuple[bytes, ...]:
    """Decoded bytes of every id of a byte-level BPE vocabulary."""
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
                    f"{where}: tokenizer is not a byte-level BPE (its token {token!a})"
                ) from None
    for i, b in added.items():
        out[i] = b
    return tuple(out)


def _tower(config: dict, directory: Path):
    """(Facts, min pixels, max pixels, cutting function) of a model's images; no Facts
    if it reads none.

    The cutting function takes (RGB image, pixels) and returns (patches, grid).
    """
    if "vision_config" not in config:
        return None, 0, 0, None
    settings = directory / "preprocessor_config.json"
    if not (directory / "processor_config.json").exists() or settings.exists():
        _read_json(settings)
    tiled = "downsample_ratio" in config
    return (_tiles if tiled else _grid)(config, directory)


def _grid(config: dict, directory: Path):
    """Qwen's towers: one grid of patches of the image's own shape."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
        Qwen2VLImageProcessorPil,
    )

    resizer = _settings(Qwen2VLImageProcessorPil, directory)
    vision = vision_of(config)
    patch, merge = vision["patch_size"], vision["spatial_merge_size"]
    facts = Facts(
        patch=patch,
        merge=merge,
        temporal=vision["temporal_patch_size"],
        # No window attention: as many merge units a side as Qwen2.5-VL's windows have.
        window=vision.get("window_size", 4 * merge * patch),
    )
    for name in ("patch", "merge", "temporal"):
        field = "temporal_patch_size" if name == "temporal" else f"{name}_size"
        found, wanted = getattr(resizer, field), getattr(facts, name)
        if found != wanted:
            raise UserError(
                f"{directory}/preprocessor_config.json: {field} is {found}; "
                f"config.json says {wanted}"
            )

    def slice_image(image, pixels):
        size = dict(shortest_edge=pixels[0], longest_edge=pixels[1])
        out = resizer(images=[image], size=size, return_tensors="np")
        return out["pixel_values"], tuple(int(g) for g in out["image_grid_thw"][0])

    size = resizer.size
    return facts, size["shortest_edge"], size["longest_edge"], slice_image


def _tiles(config: dict, directory: Path):
    """InternVL's: square tiles of one size in the grid nearest to the image's shape,
    and the whole image once more as the last tile, if there are several."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
        GotOcr2ImageProcessorPil,
    )

    resizer = _settings(GotOcr2ImageProcessorPil, directory)
    patch = config["vision_config"]["patch_size"]
    patch = patch if isinstance(patch, int) else patch[0]
    facts = Facts(
        patch=patch,
        merge=round(1 / config["downsample_ratio"]),
        temporal=1,
        window=resizer.size["height"],
        flat=True,
    )
    tile, side = facts.window, facts.side
    if resizer.size["width"] != tile or side * facts.merge * patch != tile:
        raise UserError(
            f"{directory}/preprocessor_config.json: tiles of {tile} × "
            f"{resizer.size['width']} pixels; they must be square and of whole merge "
            f"units of {facts.merge * patch} pixels"
        )

    def slice_image(image, pixels):
        most = max(1, pixels[1] // tile**2)
        least = min(most, max(1, -(-pixels[0] // tile**2)))
        out = resizer(
            images=[image],
            crop_to_patches=True,  # as InternVLProcessor asks for, whatever is stored
            min_patches=least,
            max_patches=most,
            return_tensors="np",
        )["pixel_values"]
        # [t, c, (y a p), (x b q)] → units (t y x) of patches (a b) of (c p q)
        n, c = out.shape[:2]
        cells = out.reshape(n, c, side, facts.merge, patch, side, facts.merge, patch)
        patches = cells.transpose(0, 2, 5, 3, 6, 1, 4, 7).reshape(-1, c * patch**2)
        return patches, (n, side * facts.merge, side * facts.merge)

    low, high = (n * tile**2 for n in (resizer.min_patches, resizer.max_patches))
    return facts, low, high, slice_image


def _settings(kind, directory: Path):
    """transformers' image processor of a directory."""
    try:
        return kind.from_pretrained(str(directory), local_files_only=True)
    except (ValueError, OSError, TypeError) as e:
        line = (str(e).strip() or type(e).__name__).splitlines()[0]
        raise UserError(f"{directory}: cannot load the image settings: {line}") from e


def _cutter(slice_image, facts: Facts | None, own: Pixels, cache_bytes: int):
    """`Processor.cut`: the image pipeline behind a bounded cache, least recently used
    out first, keyed by content and pixel limits."""
    cache: OrderedDict[str, Picture] = OrderedDict()
    lock = threading.Lock()
    held = 0

    def cut(data: bytes, where: str, pixels: Pixels = own) -> Picture:
        nonlocal held
        if facts is None:
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
        picture = Picture(patches, grid, len(patches) // facts.merge**2, key)
        with lock:
            if key in cache:  # another thread was first
                return cache[key]
            cache[key] = picture
            held += patches.nbytes
            while held > cache_bytes and len(cache) > 1:
                held -= cache.popitem(last=False)[1].patches.nbytes
        return picture

    return cut
