"""Images and ids of a model's directory, equal to transformers' own processors; the
pool, the cache, what a directory may lack or contradict."""

import io
import json
import shutil
import threading

import numpy as np
import pytest
from PIL import Image, ImageOps
from transformers import AutoTokenizer
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
    GotOcr2ImageProcessorPil,
)
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
)

from tests import kit
from vlmrl.models import registry
from vlmrl.prompts import processor as processors
from vlmrl.prompts import styles, tokens
from vlmrl.types import UserError

SHOT = "<|vision_start|><|image_pad|><|vision_end|>"
LIMITS = 28 * 28 * 4, 28 * 28 * 30


def pixels(height, width, seed=0, channels=3):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(how):
    exif = Image.Exif()
    exif[0x0112] = how
    return encoded(Image.fromarray(pixels(90, 61)), "JPEG", exif=exif)


def holes():
    palette = Image.fromarray(pixels(64, 80)).quantize(7)
    return encoded(palette, transparency=3)


def deep(kind="PNG"):
    grey = np.random.default_rng(0).integers(0, 2**16, (70, 50)).astype(np.uint16)
    grey[:30] %= 256
    return encoded(Image.fromarray(grey), kind)


RGB = Image.fromarray(pixels(64, 80))
RGBA = Image.fromarray(pixels(64, 80, channels=4))
FILES = {
    "rgb": encoded(RGB),
    "jpeg": encoded(Image.fromarray(pixels(300, 200)), "JPEG"),
    "rgba": encoded(RGBA),
    "grey and alpha": encoded(RGBA.convert("LA")),
    "palette": encoded(RGB.quantize(16)),
    "palette with holes": holes(),
    "one colour see-through": encoded(RGB, transparency=(1, 2, 3)),
    "grey": encoded(RGB.convert("L")),
    "black and white": encoded(RGB.convert("1")),
    "16 bit": deep(),
    "16 bit, tiff": deep("TIFF"),
    "cmyk": encoded(RGB.convert("CMYK"), "JPEG"),
    **{f"turned {i}": turned(i) for i in range(2, 9)},
    "wide": encoded(Image.fromarray(pixels(11, 1100))),
    "tall": encoded(Image.fromarray(pixels(2000, 10))),  # 200 to 1, the most
    "one pixel": encoded(Image.fromarray(pixels(1, 1))),
    "three pixels": encoded(Image.fromarray(pixels(3, 3))),
    "large": encoded(Image.fromarray(pixels(900, 700))),
    "small": encoded(Image.fromarray(pixels(20, 31))),
}


def upright(data):
    return ImageOps.exif_transpose(Image.open(io.BytesIO(data)))


@pytest.fixture(scope="module")
def qwen():
    return processors.load_processor(
        registry.TINY, min_pixels=LIMITS[0], max_pixels=LIMITS[1]
    )


def copy(path):
    for file in registry.TINY.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, path)


@pytest.fixture(scope="module")
def tiled_directory(tmp_path_factory):
    """The tiny model's tokenizer with InternVL's tokens; tiles of 56 × 56 pixels."""
    path = tmp_path_factory.mktemp("tiled")
    copy(path)
    names = dict(start="<img>", end="</img>", context="<IMG_CONTEXT>")
    tokenizer = AutoTokenizer.from_pretrained(
        registry.TINY,
        extra_special_tokens={f"{n}_image_token": t for n, t in names.items()},
    )
    tokenizer.save_pretrained(path)
    GotOcr2ImageProcessorPil(
        size=dict(height=56, width=56),
        max_patches=6,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(path)
    config = dict(
        model_type="internvl",
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        downsample_ratio=0.5,
        text_config=dict(vocab_size=len(tokenizer) + 3),
        vision_config=dict(patch_size=[14, 14], image_size=[56, 56]),
    )
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def tiled(tiled_directory):
    return processors.load_processor(tiled_directory)


# -- as transformers cuts images -------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("limits", [LIMITS, (28 * 28, 28 * 28 * 9)])
def test_patches_are_those_of_transformers(qwen, name, limits):
    size = dict(min_pixels=limits[0], max_pixels=limits[1])
    theirs = Qwen2VLImageProcessorPil.from_pretrained(registry.TINY, **size)
    want = theirs(images=[upright(FILES[name])], return_tensors="np")
    found = qwen.cut(FILES[name], name, limits)
    assert found.grid == tuple(want["image_grid_thw"][0])
    np.testing.assert_array_equal(found.patches, want["pixel_values"])
    assert found.tokens * 4 == len(found.patches)


@pytest.mark.parametrize("limits", [LIMITS, (28 * 28, 28 * 28), (28 * 28, 10**6)])
def test_the_grid_of_a_size_is_that_of_the_cut_image(qwen, tiled, limits):
    for width, height in ((1, 1), (31, 20), (700, 900), (90, 1000), (448, 448)):
        data = encoded(Image.new("RGB", (width, height)))
        for processor in (qwen, tiled):
            picture = processor.cut(data, "x", limits)
            assert processor.grid((width, height), limits) == picture.grid


def test_several_images_are_cut_as_a_batch_of_them_is(qwen):
    names = ["rgb", "wide", "turned 6", "small"]
    size = dict(min_pixels=LIMITS[0], max_pixels=LIMITS[1])
    theirs = Qwen2VLImageProcessorPil.from_pretrained(registry.TINY, **size)
    want = theirs(images=[upright(FILES[n]) for n in names], return_tensors="np")
    text = f"Is{SHOT}{SHOT} red{SHOT} {SHOT}?"
    row = tokens.encode(qwen, (text, [FILES[n] for n in names]))
    patches = np.concatenate([p.patches for p in row.pictures])
    np.testing.assert_array_equal(patches, want["pixel_values"])
    np.testing.assert_array_equal(
        [p.grid for p in row.pictures], want["image_grid_thw"]
    )


def as_tiles(picture):
    """Patches back to float32[tiles, 3, 56, 56]."""
    cells = picture.patches.reshape(-1, 2, 2, 2, 2, 3, 14, 14)
    return cells.transpose(0, 5, 1, 3, 6, 2, 4, 7).reshape(-1, 3, 56, 56)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("tiles", [(1, 6), (1, 1), (3, 12)])
def test_tiles_are_those_of_transformers(tiled, tiled_directory, name, tiles):
    theirs = GotOcr2ImageProcessorPil.from_pretrained(
        tiled_directory, min_patches=tiles[0], max_patches=tiles[1]
    )
    image = upright(FILES[name])
    want = theirs(images=[image], crop_to_patches=True, return_tensors="np")
    limits = tuple(n * 56**2 for n in tiles)
    found = tiled.cut(FILES[name], name, limits)
    np.testing.assert_array_equal(as_tiles(found), want["pixel_values"])
    assert found.grid == (want["num_patches"][0], 4, 4)
    assert found.tokens == want["num_patches"][0] * 4


def test_a_tiled_prompt_is_that_of_transformers(tiled, tiled_directory, monkeypatch):
    """Ids and tiles of two prompts, images apart, adjacent and last."""
    monkeypatch.setattr(  # or it looks for a video processor
        InternVLProcessor, "check_argument_for_proper_class", lambda *_: None
    )
    tokenizer = AutoTokenizer.from_pretrained(tiled_directory)
    tokenizer.video_token = "<video>"
    theirs = InternVLProcessor(
        GotOcr2ImageProcessorPil.from_pretrained(tiled_directory),
        tokenizer,
        image_seq_length=4,
    )
    shot = "<IMG_CONTEXT>"
    for text, names in (
        (f"Is {shot}\n red?", ["rgb"]),
        (f"Is{shot}{shot}\n red {shot}", ["wide", "small", "tall"]),
    ):
        want = theirs(
            images=[upright(FILES[n]) for n in names], text=text, return_tensors="np"
        )
        row = tokens.encode(tiled, (text, [FILES[n] for n in names]))
        np.testing.assert_array_equal(row.ids, want["input_ids"][0])
        tiles = np.concatenate([as_tiles(p) for p in row.pictures])
        np.testing.assert_array_equal(tiles, want["pixel_values"])
        # counted like text, on three equal axes
        plain = np.broadcast_to(np.arange(len(row.ids)), (3, len(row.ids)))
        np.testing.assert_array_equal(row.positions, plain)
        here = row.ids == tiled.image_id
        np.testing.assert_array_equal(row.image[here], np.arange(here.sum()))
        assert (row.image[~here] == -1).all()


def test_tiles_become_windows(tiled):
    shot = "<IMG_CONTEXT>"
    rows = [
        [tokens.encode(tiled, (f"{shot} {shot}", [FILES["wide"], FILES["small"]]))],
        [tokens.encode(tiled, (f"So{shot}", [FILES["jpeg"]]))],
    ]
    buckets = tokens.Buckets((128,), images=(2,), windows=(8,))
    group = tokens.group(rows, tiled.geometry, buckets)
    v = group.vision
    assert v.patches.shape == (2, 2, 8, 16, 588) and v.order.shape == (2, 2, 32)
    for n, ((row,), count) in enumerate(zip(rows, (2, 1), strict=True)):
        for i, p in enumerate(row.pictures):
            tiles = p.grid[0]
            assert v.mask[n, i].sum() == tiles * 16 == len(p.patches)
            flat = v.patches[n, i, :tiles].reshape(-1, 588)
            np.testing.assert_array_equal(flat, p.patches)
            order = np.arange(p.tokens)
            np.testing.assert_array_equal(v.order[n, i, : p.tokens], order)
            assert v.positions[n, i, :tiles].max() == 3
        assert len(row.pictures) == count


def test_a_prefix_of_tiles_is_whole(tiled):
    """What rows share never ends inside an image or between its brackets."""
    shot, file = "<IMG_CONTEXT>", [FILES["rgb"]]
    rows = [tokens.encode(tiled, (f"So{shot}{t}", file)) for t in (" red", " blue")]
    assert tokens.shared_length(rows) == len(rows[0].ids) - 1
    rows = [tokens.encode(tiled, (f"So{t}{shot} x", file)) for t in (" red", " blue")]
    assert tokens.shared_length(rows) == 1


def test_tokens_of_images_are_never_sampled(tiled):
    names = {tiled.token_bytes[i] for i in np.flatnonzero(tiled.banned)}
    assert {b"<img>", b"</img>", b"<IMG_CONTEXT>", b""} <= names
    assert tiled.vocab_size == len(tiled.tokenizer) + 3


def test_chats_are_written_by_the_directorys_template(tiled, qwen):
    chat = styles.messages(kit.examples(1)[0], styles.style("tiny"))
    assert qwen.render(chat) == styles.chatml(chat)
    silent = AutoTokenizer.from_pretrained(registry.TINY)
    silent.chat_template = None
    assert qwen._replace(tokenizer=silent).render(chat) == styles.chatml(chat)
    text = tiled._replace(tokenizer=silent).render(chat[1:])
    assert text.startswith("<|im_start|>user\n<IMG_CONTEXT>\n")
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    silent.chat_template = "{% for m in messages %}{{ m['content'] + '!' }}{% endfor %}"
    blind = qwen._replace(tokenizer=silent, image_id=-1)
    said = [dict(role="user", content=[dict(type="text", text=t) for t in "ab"])]
    assert blind.render(said) == "ab!"


# -- pool and cache --------------------------------------------------------------------


def example(i, images, text=None):
    example = kit.examples(1)[0]._replace(id=f"e{i}", images=tuple(images))
    made = styles.build(example, "tiny")
    return made if text is None else made._replace(text=text)


def test_many_prompts_are_each_as_one(qwen):
    names = ["rgb", "grey", "rgb", "small", "turned 3"]
    written = [example(i, [FILES[n]]) for i, n in enumerate(names)]
    written += [example(9, [], "none"), example(10, [FILES["rgb"]] * 2, SHOT * 2)]
    for found, prompt in zip(tokens.encode_all(qwen, written), written, strict=True):
        want = tokens.encode(qwen, prompt)
        assert found.name == prompt.example.id
        for a, b in zip(found[:3], want[:3], strict=True):
            np.testing.assert_array_equal(a, b)
        for a, b in zip(found.pictures, want.pictures, strict=True):
            np.testing.assert_array_equal(a.patches, b.patches)
    assert tokens.encode_all(qwen, []) == []


def test_images_are_cut_in_a_pool_each_once(qwen, monkeypatch):
    seen, cut = [], qwen.cut
    together = threading.Barrier(2, timeout=30)

    def watched(data, where, pixels):
        seen.append((where, threading.get_ident()))
        together.wait()
        return cut(data, where, pixels)

    monkeypatch.setattr(processors.os, "cpu_count", lambda: 2)
    written = [example(i, [FILES[n]]) for i, n in enumerate(["rgb", "grey", "rgb"])]
    tokens.encode_all(qwen._replace(cut=watched), written)
    assert {w for w, _ in seen} == {"example e0 image 0", "example e1 image 0"}
    assert len({thread for _, thread in seen}) == 2


def test_the_first_bad_image_is_named(qwen):
    bad = [FILES["rgb"], FILES["rgb"][:80], b"no image"]
    with pytest.raises(UserError, match="example e1 image 0: the image does not"):
        tokens.encode_all(qwen, [example(i, [data]) for i, data in enumerate(bad)])
    with pytest.raises(
        UserError, match="example e4: .* got 1 image placeholders for 2 im"
    ):
        tokens.encode_all(qwen, [example(4, bad[:2], SHOT)])


def test_pictures_are_kept_by_image_and_limits(qwen):
    file = FILES["large"]
    one = qwen.cut(file, "x")
    assert qwen.cut(bytes(bytearray(file)), "y", LIMITS) is one
    few = qwen._replace(pixels=(28 * 28, 28 * 28 * 9))
    small = tokens.encode(few, (SHOT, [file])).pictures[0]
    assert small.tokens <= 9 < one.tokens and small.key != one.key
    assert tokens.encode(few, (SHOT, [file])).pictures[0] is small
    assert tokens.encode(qwen, (SHOT, [file])).pictures[0] is one


# -- rows that contradict their images -------------------------------------------------


def test_tokens_and_features_that_differ_are_found(qwen):
    buckets = tokens.Buckets((64,), (64,), windows=(16,))
    row = tokens.encode(qwen, (f"{SHOT} red", [FILES["rgb"]]), name="e5")
    fewer = np.where(row.image == 3, -1, row.image)
    count = row.pictures[0].tokens
    with pytest.raises(UserError, match=f"e5: .* the {count} features .* {count - 1}$"):
        tokens.group([[row._replace(image=fewer)]], qwen.geometry, buckets)
    with pytest.raises(UserError, match=f"example e5: .* the 0 features .* {count}$"):
        tokens.group([[row._replace(pictures=())]], qwen.geometry, buckets)


# -- directories -----------------------------------------------------------------------


def test_a_model_of_text_needs_no_image_settings(tmp_path):
    copy(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config["text_config"]))
    made = processors.load_processor(tmp_path)
    row = tokens.encode(made, ("There is one", []))
    np.testing.assert_array_equal(row.positions[2], np.arange(len(row.ids)))
    assert tokens.group([[row]], made.geometry, tokens.Buckets((8,))).vision is None
    with pytest.raises(UserError, match="x: this model reads no images"):
        made.cut(FILES["rgb"], "x")
    with pytest.raises(UserError, match="example e: .* 0 image placeholders"):
        tokens.encode(made, ("There", [FILES["rgb"]]), name="e")


def test_settings_of_images_inside_processor_config(tmp_path, qwen):
    """Where transformers 5 puts them."""
    copy(tmp_path)
    settings = tmp_path / "preprocessor_config.json"
    inner = json.loads(settings.read_text())
    settings.unlink()
    (tmp_path / "processor_config.json").write_text(
        json.dumps(dict(image_processor=inner, processor_class="Qwen2_5_VLProcessor"))
    )
    made = processors.load_processor(tmp_path)
    assert made.pixels == (12544, 12544)
    np.testing.assert_array_equal(
        made.cut(FILES["rgb"], "x").patches,
        qwen.cut(FILES["rgb"], "x", made.pixels).patches,
    )


def rewritten(path, file, **changes):
    found = json.loads((path / file).read_text())
    found.update(changes)
    (path / file).write_text(json.dumps(found))


@pytest.mark.parametrize(
    "file, changes, why",
    [
        (
            "preprocessor_config.json",
            dict(patch_size=16),
            "patch_size: expected 14 .* 16",
        ),
        ("preprocessor_config.json", dict(merge_size=4), "merge_size: expected 2 .* 4"),
        ("config.json", dict(image_token_id=None), "image_token_id"),
        ("preprocessor_config.json", None, "preprocessor_config.json: cannot be read"),
        ("tokenizer_config.json", None, "tokenizer_config.json: cannot be read"),
        ("tokenizer.json", b"{", "cannot load the tokenizer: "),
        ("config.json", b"[]", "config.json: expected a JSON object"),
        ("config.json", b"\xff", "config.json: expected JSON"),
    ],
)
def test_what_is_missing_or_contradicts_is_named(tmp_path, file, changes, why):
    copy(tmp_path)
    if changes is None:
        (tmp_path / file).unlink()
    elif isinstance(changes, bytes):
        (tmp_path / file).write_bytes(changes)
    else:
        rewritten(tmp_path, file, **changes)
    with pytest.raises(UserError, match=why) as raised:
        processors.load_processor(tmp_path)
    assert "\n" not in str(raised.value)


def test_limits_that_cross_are_refused():
    with pytest.raises(UserError, match="min_pixels <= max_pixels, got 9 and 4"):
        processors.load_processor(registry.TINY, min_pixels=9, max_pixels=4)


@pytest.mark.parametrize(
    "size, why",
    [
        (dict(height=56, width=84), "expected square tiles .* 56 × 84"),
        (dict(height=60, width=60), "whole merge units of 28 pixels"),
    ],
)
def test_tiles_that_no_tower_reads_are_refused(tiled_directory, tmp_path, size, why):
    shutil.copytree(tiled_directory, tmp_path, dirs_exist_ok=True)
    rewritten(tmp_path, "preprocessor_config.json", size=size)
    with pytest.raises(UserError, match=why):
        processors.load_processor(tmp_path)


def test_a_tokenizer_without_brackets_is_refused(tiled_directory, tmp_path):
    shutil.copytree(tiled_directory, tmp_path, dirs_exist_ok=True)
    copy_of = ("tokenizer.json", "tokenizer_config.json")
    for file in copy_of:
        shutil.copy(registry.TINY / file, tmp_path)
    with pytest.raises(UserError, match="tokenizer lacks the tokens <img> and </img>"):
        processors.load_processor(tmp_path)
