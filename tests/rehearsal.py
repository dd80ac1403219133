"""What a rehearsal runs on: the paper's sets in their published layout with true image
sizes, each split by a few items that cover its extremes.

    python -m tests.rehearsal [DIR]        # runs/rehearsal: DIR/data and DIR/models

`write(NAME, root)` writes a set's files as its authors publish them; `prepare(data)`
writes and prepares every set that a config of `configs/paper` names. Layouts and sizes
are those of the sets' cards and repositories; pictures are smooth, so that a large one
is a small file. `model(directory)` writes a narrow model that ends by itself.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
from PIL import Image

from tests import real_tokenizer
from tests.data.published import HF, L, S, parquet, text, tsv
from vlmrl.data import prepare as preparing
from vlmrl.models import hf as checkpoints
from vlmrl.models import qwen2_5_vl
from vlmrl.prompts import tokens

# Width and height of pictures, the smallest and the largest of a set among them.
COCO = ((640, 480), (480, 640), (640, 427), (200, 160), (640, 640))
WEB = ((4000, 3000), (320, 240), (1280, 720), (800, 1200), (1093, 60), (600, 600))
PHONE = ((4032, 3024), (3024, 4032), (1200, 1600))


@functools.cache
def photo(width: int, height: int, kind: str = "JPEG") -> bytes:
    """An encoded picture of a size: two colour ramps."""
    across = Image.linear_gradient("L").resize((width, height))
    down = Image.linear_gradient("L").rotate(90).resize((width, height))
    picture = Image.merge("RGB", (across, down, across))
    if kind == "palette":
        picture, kind = picture.convert("P"), "PNG"
    out = io.BytesIO()
    picture.save(out, kind)
    return out.getvalue()


def hf(size, kind: str = "JPEG") -> dict:
    return {"bytes": photo(*size, kind), "path": "x.jpg"}


def b64(size) -> str:
    return base64.b64encode(photo(*size)).decode()


def table(path: Path, schema: list, rows: list[list]) -> None:
    names = [name for name, _ in schema]
    parquet(path, [dict(zip(names, r, strict=True)) for r in rows], schema)


# -- one function per set --------------------------------------------------------------


def threedsrbench(root: Path) -> None:
    names = "index qid question A B C D answer category image_source image_url image"
    url = "http://images.cocodataset.org/train2017/000000000001.jpg"
    asked = (
        ("Which object is higher in the 3D world space, the lamp or the mug?",
         ["lamp", "mug", "", ""], "A", "height_higher"),
        ("Consider the real-world 3D orientations of the objects. Which side of the dog"
         " is facing the camera?", ["front", "left", "back", "right"], "C",
         "orientation_viewpoint"),
    )  # fmt: skip
    rows = []
    for i, size in enumerate(COCO):
        for flip in ("", "-flip"):
            question, options, answer, category = asked[i % 2]
            cells = [len(rows), f"A{i:07d}{flip}", question, *options, answer]
            rows.append([*cells, category, "MS-COCO", url, b64(size)])
    tsv(root / "3dsrbench_v1_vlmevalkit.tsv", names, rows)


def cv_bench(root: Path) -> None:
    schema = [
        *[("idx", pa.int64()), ("type", S), ("task", S), ("image", HF)],
        *[("question", S), ("choices", L(S)), ("answer", S), ("prompt", S)],
        *[("filename", S), ("source", S)],
    ]

    def rows(kind, asked, sizes):
        out = []
        for i, size in enumerate(sizes):
            task, question, choices, answer, source = asked[i % len(asked)]
            image = hf(size, "PNG")
            cells = [i, kind, task, image, question, choices, answer, question]
            out.append([*cells, f"img/{kind}/{i}.png", source])
        return out

    where = (
        "Considering the relative positions of the lamp and the bed in the image"
        " provided, where is the lamp located with respect to the bed?"
    )
    count = "How many organs are in the image?"
    two = (
        ("Count", count, ["3", "2", "1", "0"], "(C)", "ADE20K"),
        ("Count", count, ["0", "5", "1", "2", "3", "4"], "(F)", "COCO"),
        ("Relation", where, ["above", "below"], "(B)", "COCO"),
        ("Count", count, ["3", "2", "4", "1", "0"], "(A)", "ADE20K"),
    )
    boxes = "(highlighted by a red box)", "(highlighted by a blue box)"
    closer = f"Which object is closer to the camera, the table {boxes[0]} or the chair"
    three = (
        ("Depth", f"{closer} {boxes[1]}?", ["table", "chair"], "(A)", "Omni3D"),
        ("Distance", "Estimate the real-world distances between objects in this image."
         f" Which object is closer to the books {boxes[0]}, the lamp {boxes[1]} or the"
         " table (highlighted by a green box)?", ["lamp", "table"], "(B)", "Omni3D"),
    )  # fmt: skip
    sizes = ((1650, 1280), (640, 480), (256, 256), (2048, 1536), (512, 683), (640, 427))
    table(root / "test_2d.parquet", schema, rows("2D", two, sizes))
    sizes = ((1600, 900), (730, 530), (1242, 375), (256, 192))
    table(root / "test_3d.parquet", schema, rows("3D", three, sizes))


def spatial_mm(root: Path) -> None:
    four = "\nA. left\nB. right\nC. middle\nD. top"
    asked = (
        ("From the camera's perspective, where is the kettle?" + four, "B. right"),
        ("From the woman's perspective, on which side of her is the dog?\nA. left\n"
         "B. right", "A. left"),
    )  # fmt: skip
    hops = (
        ("What colour is the bag left of the man who holds the cup?", "red", 3),
        ("Is the man left of the dog?", "no", 2),
        ("How many cups are on the table behind the woman in blue?", "two", 4),
        ("What is under the table?", "backpack", 2),
    )
    for i, size in enumerate(WEB):
        text(root / f"images/{i:06d}.jpg", photo(*size))
        text(root / f"images/{i}.jpeg", photo(*size))
    for name in ("one", "two"):
        rows = [
            dict(image_name=f"{i:06d}.jpg", question=q, answer=a, object1="kettle")
            for i in range(len(WEB))
            for q, a in [asked[i % 2]]
        ]
        text(root / f"data/spatial_mm_{name}_obj.json", rows)
    rows = [
        dict(image_name=f"{i}.jpeg", question=q, answer=a, reasoning="{[a, b]}", hop=h)
        for i, (q, a, h) in enumerate(hops)
    ]
    text(root / "data/multihop_reasoning_309.json", rows)


def whatsup(root: Path) -> None:
    for name, folder, sayings, sizes in (
        ("images", "beer-bottle_{}_armchair",
         {"on": "on", "under": "under", "left_of": "to the left of",
          "right_of": "to the right of"}, PHONE),
        ("clevr", "cap_{}_knife",
         {"in-front_of": "in front of", "behind": "behind",
          "left_of": "to the left of", "right_of": "to the right of"}, PHONE),
    ):  # fmt: skip
        captions = {k: f"A cap {s} a knife" for k, s in sayings.items()}
        rows = []
        for i, (key, caption) in enumerate(captions.items()):
            path = f"data/controlled_{name}/{folder.format(key)}.jpeg"
            text(root / path, photo(*sizes[i % len(sizes)]))
            rest = [c for c in captions.values() if c != caption]
            rows.append(dict(image_path=path, caption_options=[caption, *rest]))
        text(root / f"controlled_{name}_dataset.json", rows)
    one = ("A photo of a dining table on the bottom", "A photo of a dining table on the"
           " top")  # fmt: skip
    two = ("A photo of a cup to the left of a knife", "A photo of a cup to the right of"
           " a knife")  # fmt: skip
    for name, folder, width in (("coco", "val2017", 12), ("vg", "vg_images", 0)):
        for i, size in enumerate(COCO, 1):
            text(root / folder / f"{i:0{width}d}.jpg", photo(*size))
        for part, pair in (("one", one), ("two", two)):
            rows = [[i, *pair] for i in range(1, len(COCO) + 1)]
            text(root / f"{name}_qa_{part}_obj.json", rows)


def vstar(root: Path) -> None:
    suffix = "Answer with the option's letter from the given choices directly."
    four = "What is the material of the glove?\n(A) rubber\n(B) cotton\n(C) kevlar\n"
    two = (
        "Is the motorcycle on the left or right side of the dog?\n(A) The motorcycle is"
        " on the left side of the dog.\n(B) The motorcycle is on the right side of the"
        " dog.\n"
    )
    lines = []
    for i, size in enumerate(((2250, 1500), (1500, 2250), (2249, 1500), (1500, 1500))):
        kind = ("direct_attributes", "relative_position")[i % 2]
        asked, label = ((four + "(D) leather\n", "D"), (two, "B"))[i % 2]
        image = f"{kind}/sa_{i}.jpg"
        text(root / image, photo(*size))
        row = dict(image=image, text=asked + suffix, category=kind, label=label)
        lines.append(json.dumps(row | {"question_id": i}))
    text(root / "test_questions.jsonl", "\n".join(lines) + "\n")


def mme_realworld_lite(root: Path) -> None:
    schema = [
        *[("index", pa.int64()), ("question", S), ("multi-choice options", L(S))],
        *[("answer", S), ("category", S), ("l2-category", S), ("bytes", S)],
    ]
    five = ["(A) 3", "(B) 4", "(C) 6", "(D) 5"]
    five.append("(E) The image does not feature the trucks.")
    kinds = ("Perception/Remote Sensing", "Reasoning/Monitoring")
    sizes = ((7400, 5500), (2000, 1500), (800, 600), (3840, 2160))
    rows = [
        [i, "How many trucks are visible?", five, "BE"[i % 2], kinds[i % 2], "count",
         b64(size)]
        for i, size in enumerate(sizes)
    ]  # fmt: skip
    table(root / "data/train-00000-of-00004.parquet", schema, rows[:2])
    table(root / "data/train-00001-of-00004.parquet", schema, rows[2:])


def mmbench(root: Path) -> None:
    names = "index question hint A B C D answer category l2-category image source split"
    hint = "The passage below describes an experiment. Read it and answer. " * 12
    sizes = ((512, 411), (60, 50), (1024, 1024), (300, 500))
    rows = []
    for i, size in enumerate(sizes):
        options = ["cat", "dog", "neither of them, because the animal is a bird", ""]
        for turn in range(3):
            turned = options[turn:3] + options[:turn] + [""]
            answer = "ABC"[turned.index("dog")]
            index = 241 + i + turn * 1_000_000
            image = b64(size) if turn == 0 else str(241 + i)
            asked = ["Which animal is this?", hint * (i == 1)]
            kinds = ["identity_reasoning", "attribute_reasoning"]
            rows.append([index, *asked, *turned, answer, *kinds, image, "x", "dev"])
    tsv(root / "MMBench_DEV_EN.tsv", names, rows)


def sat(root: Path) -> None:
    schema = [
        *[("images", L(HF)), ("question", S), ("answers", L(S))],
        *[("correct_answer", S), ("question_type", S)],
    ]
    camera = (
        "The first image is from the beginning of the video and the second image is"
        " from the end. How did the camera likely move when shooting the video?"
    )
    turned = ["rotated left and moved forward", "rotated right and moved forward"]
    chairs = "How many chairs are there in the image?"
    rows = [
        [[hf((512, 512))] * 2, camera, turned, turned[1], "action_sequence"]
        if i % 2
        else [[hf((512, 512))], chairs, ["3", "4"], "3", "other"]
        for i in range(12)
    ]
    table(root / "data/train-00000-of-00002.parquet", schema, rows)


def pixmo_count(root: Path) -> None:
    points = pa.struct([("x", L(pa.float32())), ("y", L(pa.float32()))])
    schema = [
        *[("image_url", S), ("image_sha256", S), ("count", pa.int32())],
        *[("points", points), ("label", S)],
    ]
    rows = []
    for i, size in enumerate(((1024, 768), (4000, 3000), (300, 400), (768, 1024)) * 3):
        data = photo(*size)
        digest = hashlib.sha256(data).hexdigest()
        text(root / "images" / digest, data)
        count = (3, 1, 10, 0)[i % 4]
        at = {"x": [1.0] * count, "y": [2.0] * count}
        label = ("chairs", "people", "birds", "traffic lights")[i // 4]
        rows.append([f"https://example.org/{i}.jpg", digest, count, at, label])
    table(root / "data/train-00000-of-00001.parquet", schema, rows)


def geometry3k(root: Path) -> None:
    schema = [
        *[("images", L(HF)), ("problem", S), ("answer", S), ("id", pa.int64())],
        *[("choices", L(S)), ("ground_truth", S)],
    ]
    answers = ("2 \\sqrt { 221 }", "7", "\\frac { 5 } { 2 }", "36", "4 \\pi", "30")
    sizes = ((300, 220), (900, 700), (120, 90))
    rows = [
        [[hf(sizes[i % 3], "palette")], "<image>Find $m \\angle A B C$.", answer, i,
         None, None]
        for i, answer in enumerate(answers * 2)
    ]  # fmt: skip
    table(root / "data/train-00000-of-00001.parquet", schema, rows)


def refcoco(root: Path) -> None:
    schema = [
        *[("question_id", S), ("image", HF), ("question", S), ("answer", L(S))],
        *[("segmentation", L(pa.float32())), ("bbox", L(pa.float32()))],
        *[("iscrowd", pa.int8()), ("file_name", S)],
    ]
    asked = "Provide the bounding box"
    for split in ("val", "testA", "testB"):
        rows = [
            [str(i), hf(size), asked, ["left man", "man in red"], [1.0],
             [10.0, 2.0, 50.5, 44.0], 0, f"COCO_train2014_{i:012d}_0.jpg"]
            for i, size in enumerate(COCO)
        ]  # fmt: skip
        table(root / f"data/{split}-00000-of-00001.parquet", schema, rows)


WRITERS = {
    "3dsrbench": threedsrbench,
    "cv_bench": cv_bench,
    "spatial_mm": spatial_mm,
    "whatsup": whatsup,
    "vstar": vstar,
    "mme_realworld_lite": mme_realworld_lite,
    "mmbench": mmbench,
    "sat": sat,
    "pixmo_count": pixmo_count,
    "geometry3k": geometry3k,
    "refcoco": refcoco,
}


def write(name: str, root: Path) -> Path:
    WRITERS[name](root)
    return root


def prepare(data_dir: Path) -> list[str]:
    """Write every set and prepare it below a data directory; return the summaries."""
    out = []
    with tempfile.TemporaryDirectory() as folder:
        for name in WRITERS:
            root = write(name, Path(folder) / name)
            request = preparing.Request(
                name, data_dir, Path(folder) / "downloads", source=str(root)
            )
            bar = lambda text, total: nullcontext(lambda n: None)  # noqa: E731
            out += preparing.prepare(request, bar, lambda line: None)
    return out


# -- a narrow model --------------------------------------------------------------------

SHORT = 36  # steps from the end at which most completions begin


def model(directory: Path, *, seed: int = 0, width: int = 64) -> Path:
    """Write a random Qwen2.5-VL of two narrow layers with Qwen's vocabulary, which ends
    by itself: after some 24 tokens, at most twice its width.

    A chain of ordinary tokens counts down to the end token: the head's row of each is
    the direction of the embedding of the one before it. Other embeddings are small, so
    that what the layers read of the prompt decides where in the chain it begins.

    Returns:
      the directory, in Hugging Face format.
    """
    source = directory.with_name(directory.name + "-source")
    real_tokenizer.qwen_tokenizer(source)
    raw = real_tokenizer.config(width=width)
    raw["tie_word_embeddings"] = raw["text_config"]["tie_word_embeddings"] = False
    raw["text_config"]["rope_parameters"]["mrope_section"] = [4, 6, 6]
    (source / "config.json").write_text(json.dumps(raw))
    (source / "preprocessor_config.json").write_text(json.dumps(IMAGES))
    family = qwen2_5_vl.model(raw)
    params = {k: np.array(v) for k, v in family.init(jax.random.key(seed)).items()}
    draw = np.random.default_rng(seed)
    embed = draw.normal(size=params["text.embed"].shape).astype(np.float32)
    embed /= np.linalg.norm(embed, axis=1, keepdims=True)
    chain = _words(source, 2 * width)
    basis, _ = np.linalg.qr(draw.normal(size=(width, width)))
    embed[chain] = np.concatenate([basis, -basis])  # none is mistaken for another
    head = np.zeros_like(embed)
    ends = [raw["text_config"]["eos_token_id"], *chain[:-1]]
    loud = np.where(np.arange(len(chain)) < SHORT, 1.0, 0.6)
    head[ends] = 3.0 * loud[:, None] * embed[chain]
    embed *= 0.02
    embed[chain] *= 100
    params["text.embed"] = embed
    params["text.head"] = head.T if params["text.head"].shape == head.T.shape else head
    return checkpoints.save(directory, family, params, source)


def _words(directory: Path, count: int) -> list[int]:
    """Ids of tokens that are a word after a blank, none of them a part of a tag."""
    tokenizer = tokens.load_processor(directory).tokenizer
    ids = (i for i in range(1000, 20_000) if tokenizer.decode([i])[1:].isalpha())
    words = (i for i in ids if tokenizer.decode([i])[:2].startswith(" "))
    return [i for i, _ in zip(words, range(count), strict=False)]


IMAGES = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "min_pixels": 3136,
    "max_pixels": 12_845_056,
    "patch_size": 14,
    "merge_size": 2,
    "temporal_patch_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def main(folder: str = "runs/rehearsal") -> None:
    print("\n".join(prepare(Path(folder) / "data")))
    print(model(Path(folder) / "models" / "qwen2_5_vl"))


if __name__ == "__main__":
    main(*sys.argv[1:])
