"""Small files in the true schema of every published set, hostile rows included.

`write(NAME, root)` writes a set's files; `WANTED[NAME]` tells per split what a build
makes of them: ids kept, ids repaired, and a part of the reason of each refusal, in
order.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

S, L = pa.string(), pa.list_
HF = pa.struct([("bytes", pa.binary()), ("path", S)])


def picture(kind: str = "RGB", side: int = 12, colour=(200, 30, 30)) -> bytes:
    """An encoded image of a kind that the sets hold."""
    out = io.BytesIO()
    image = Image.new("RGB", (side, 8), colour)
    if kind == "palette":
        image.convert("P", palette=Image.Palette.ADAPTIVE).save(out, "PNG")
    elif kind in ("RGBA", "LA"):
        image.convert("RGBA").convert(kind).save(out, "PNG")
    elif kind == "16-bit":
        Image.new("I;16", (side, 8), 40000).save(out, "PNG")
    elif kind in ("L", "CMYK"):
        image.convert(kind).save(out, "JPEG")
    elif kind == "EXIF":
        exif = Image.Exif()
        exif[0x0112] = 6  # turned by a quarter
        image.save(out, "JPEG", exif=exif)
    else:
        image.save(out, kind if kind != "RGB" else "PNG")
    return out.getvalue()


KINDS = ("RGB", "palette", "RGBA", "LA", "16-bit", "L", "CMYK", "EXIF", "JPEG", "WEBP")


def hf(kind: str = "RGB", **how) -> dict:
    return {"bytes": picture(kind, **how), "path": "x.png"}


def b64(kind: str = "RGB", **how) -> str:
    return base64.b64encode(picture(kind, **how)).decode()


def parquet(path: Path, rows: list[dict], schema: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(schema)), path)


def tsv(path: Path, names: str, rows: list[list]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerows([names.split(), *rows])


def text(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))


# -- one function per set --------------------------------------------------------------


def threedsrbench(root: Path) -> None:
    names = "index qid question A B C D answer category image_source image_url image"
    high, side = (
        "Which object is higher?",
        "Which side of the dog is facing the camera?",
    )
    url = "http://images.cocodataset.org/train2017/000000000001.jpg"

    def row(i, qid, question, options, answer, category, image):
        cells = [*options, *[""] * (4 - len(options))]
        return [i, qid, question, *cells, answer, category, "MS-COCO", url, image]

    two, four = ["mug", "lamp"], ["front", "left", "back", "right"]
    orientation = "orientation_viewpoint"
    rows = [
        row(0, "ABCD1234", high, two, "A", "height_higher", b64()),
        row(1, "ABCD1234-1", high, two[::-1], "B", "height_higher", "0"),
        row(2, "ABCD1234-flip", high, two, "A", "height_higher", b64("EXIF")),
        row(3, "ABCD1234-flip-1", high, two[::-1], "B", "height_higher", "2"),
        row(4, "EFGH5678", side, four, "D", orientation, b64("palette")),
        row(5, "EFGH5679", side, [*four[:3], "nan"], "A", orientation, "6"),
        row(6, "EFGH5670", side, four, "C", orientation, b64("CMYK")),
        row(7, "EFGH0001", side, four, "E", orientation, b64()),
        row(8, "EFGH0002", side, ["a", "", "c"], "A", orientation, b64()),
        row(9, "EFGH0003", side, four, "A", orientation, "999"),
        row(10, "short", side, four, "A", orientation, b64()),
        row(11, "EFGH0004", side, four, "A", "size_bigger", b64()),
        row(12, "EFGH0005", side, four, "A", orientation, ""),
        row(13, "EFGH0006", side, four, "A", orientation, "14"),
        row(14, "EFGH0007", side, four, "A", orientation, "13"),
        row(15, "ABCD1234", high, two, "A", "height_higher", b64()),
        row(16, "EFGH0008", side, four, "A", orientation, b64()[:80] + "A" * 40),
    ]
    tsv(root / "3dsrbench_v1_vlmevalkit_circular.tsv", names, rows)


def cv_bench(root: Path) -> None:
    schema = [
        ("idx", pa.int64()),
        *[("type", S), ("task", S), ("image", HF), ("question", S), ("choices", L(S))],
        *[("answer", S), ("prompt", S), ("filename", S), ("source", S)],
        *[("source_dataset", S), ("source_filename", S), ("target_class", S)],
        *[("target_size", L(pa.int64())), ("bbox", L(L(pa.float64())))],
    ]

    def row(i, task, question, choices, answer, source, kind="2D", image="RGB"):
        lines = [f"({c}) {t}" for c, t in zip("ABCDEF", choices, strict=False)]
        listed = "\n".join(lines)
        prompt = f"{question} Select from the following choices.\n{listed}"
        return dict(
            idx=i,
            type=kind,
            task=task,
            image=image and hf(image),
            question=question,
            choices=choices,
            answer=answer,
            prompt=prompt,
            filename=f"img/{i}.png",
            source=source,
        )

    where = (
        "Considering the relative positions of the lamp and the bed in the image"
        " provided, where is the lamp located with respect to the bed?"
    )
    closer = (
        "Which object is closer to the camera taking this photo, the table (highlighted"
        " by a red box) or the chair (highlighted by a blue box)?"
    )
    near = (
        "Estimate the real-world distances between objects in this image. Which object"
        " is closer to the books (highlighted by a red box), the lamp (highlighted by a"
        " blue box) or the table (highlighted by a green box)?"
    )
    organs = "How many organs are in the image?"
    two = [
        row(0, "Count", organs, ["3", "2", "1", "0"], "(C)", "ADE20K"),
        row(1, "Count", organs, ["3", "2"], "(A)", "COCO", image="16-bit"),
        row(2, "Relation", where, ["above", "below"], "(B)", "COCO", image="LA"),
        row(3, "Count", organs, ["3", "2", None, "0"], "(A)", "ADE20K"),
        row(4, "Count", organs, ["3", "2"], "(C)", "ADE20K"),
        row(5, "Count", organs, ["3", "2"], None, "ADE20K"),
        row(6, "Count", organs, ["3", "2"], "(A)", "ADE20K", image=None),
        row(7, "Count", "", ["3", "2"], "(A)", "ADE20K"),
        row(8, "Count", organs, ["3", "2"], "(A)", "Flickr"),
    ]
    two[8]["image"] = {"bytes": b"no picture", "path": None}
    two[8]["source"] = "ADE20K"
    three = [
        row(0, "Depth", closer, ["table", "chair"], "(A)", "Omni3D", "3D", "RGBA"),
        row(1, "Distance", near, ["lamp", "table"], "(B)", "Omni3D", "3D", "L"),
    ]
    parquet(root / "test_2d.parquet", two, schema)
    parquet(root / "test_3d.parquet", three, schema)


def spatial_mm(root: Path) -> None:
    def row(name, question, answer):
        return dict(image_name=name, question=question, answer=answer, object1="k")

    where = "Where is the kettle?\nA. left\nB. right\nC. middle\nD. top"
    camera = (
        "From the camera's perspective, where is the dog relative to the woman?\n"
        "A. left\nB. right"
    )
    one = [
        row("000001.jpg", where, "B. right"),
        row("000001.jpg", where, "A. right"),
        row("000001.jpg", where, "A. somewhere"),
        row("gone.jpg", where, "A. left"),
        row("000001.jpg", "Where is the kettle?", "A. left"),
        row("../secret.jpg", where, "A. left"),
    ]
    two = [row("000002.png", camera, "A. left")]
    hops = [
        dict(image_name="12.jpeg", question=q, answer=a, reasoning="{[a, b]}", hop=2)
        for q, a in [
            ("What colour is the bag left of the man who holds the cup?", "red"),
            ("Is the man left of the dog?", "no"),
            ("What is the woman left of the dog holding?", "umbrella"),
            ("What is under the table?", "backpack"),
        ]
    ]
    text(root / "data/spatial_mm_one_obj.json", one)
    text(root / "data/spatial_mm_two_obj.json", two)
    text(root / "data/multihop_reasoning_309.json", hops)
    text(root / "images/000001.jpg", picture("EXIF"))
    text(root / "images/000002.png", picture("palette"))
    text(root / "images/12.jpeg", picture("JPEG"))


def whatsup(root: Path) -> None:
    scene = "beer-bottle_{}_armchair"
    said = ["on", "under", "to the left of", "to the right of"]
    captions = [f"A beer bottle {s} a armchair" for s in said]
    rows = []
    for i, name in enumerate(("on", "under", "left_of", "right_of")):
        path = f"data/controlled_images/{scene.format(name)}.jpeg"
        rest = [c for c in captions if c != captions[i]]
        rows.append(dict(image_path=path, caption_options=[captions[i], *rest]))
        text(root / path, picture("JPEG", colour=(i * 40, 0, 0)))
    rows.append(dict(image_path="data/controlled_images/x.jpeg", caption_options=said))
    text(root / "controlled_images_dataset.json", rows)
    table = "A photo of a dining table on the "
    text(
        root / "coco_qa_one_obj.json",
        [
            [397133, f"{table}bottom", f"{table}top"],
            [5, f"{table}top", f"{table}bottom"],
            [397133, f"{table}bottom", None],
            [397133],
        ],
    )
    text(root / "val2017/000000397133.jpg", picture("L"))


def vstar(root: Path) -> None:
    suffix = "Answer with the option's letter from the given choices directly."
    material = "What is the material of the glove?\n"
    four = "(A) rubber (thick)\n(B) cotton\n(C) kevlar\n(D) leather\n"
    moto = "Is the motorcycle on the left or right side of the dog?\n"
    sides = [
        f"The motorcycle is on the {s} side of the dog." for s in ("left", "right")
    ]
    two = "".join(f"({c}) {s}\n" for c, s in zip("AB", sides, strict=True))
    rows = [
        ("direct_attributes/sa_1.jpg", material + four + suffix, "A", 0),
        ("relative_position/sa_2.jpg", moto + two + suffix, "B", 1),
        ("direct_attributes/sa_3.jpg", material + four + suffix, "A", 2),
        ("direct_attributes/sa_1.jpg", material + suffix, "A", 3),
        ("direct_attributes/sa_1.jpg", material + four + suffix, "F", 4),
    ]
    lines = [
        dict(image=i, text=t, category=i.split("/")[0], label=a, question_id=n)
        for i, t, a, n in rows
    ]
    text(root / "test_questions.jsonl", "\n".join(map(json.dumps, lines)) + "\n")
    text(root / "direct_attributes/sa_1.jpg", picture("JPEG"))
    text(root / "relative_position/sa_2.jpg", picture("CMYK"))


def mme_realworld_lite(root: Path) -> None:
    schema = [
        *[("index", pa.int64()), ("question", S), ("multi-choice options", L(S))],
        *[("answer", S), ("category", S), ("l2-category", S), ("bytes", S)],
    ]
    trucks = "How many trucks are visible?"
    five = ["(A) 3", "(B) 4", "(C) 6", "(D) 5", "(E) The image does not feature them."]

    def row(i, options, answer, image, deeper="Vehicle/counting"):
        names = [name for name, _ in schema]
        task = "Perception/Monitoring"
        cells = [i, trucks, options, answer, task, deeper, image]
        return dict(zip(names, cells, strict=True))

    rows = [
        row(7, five, "B", b64("RGBA")),
        row(8, five, "E", b64("WEBP"), "Vehicle/color attribute"),
        row(9, five[1:], "B", b64()),
        row(10, five, "B", "not base64!"),
        row(11, five, "B", base64.b64encode(picture()[:40]).decode()),
        row(12, five, "", b64()),
    ]
    parquet(root / "data/train-00000-of-00004.parquet", rows[:2], schema)
    parquet(root / "data/train-00001-of-00004.parquet", rows[2:], schema)


def mmbench(root: Path) -> None:
    names = "index question hint A B C D answer category l2-category image source split"

    def row(index, options, answer, image, hint="", question="Which animal is this?"):
        cells = [*options, *[""] * (4 - len(options))]
        kinds = ["identity_reasoning", "attribute_reasoning"]
        return [index, question, hint, *cells, answer, *kinds, image, "x", "dev"]

    several = json.dumps([b64(), b64("palette")])
    rows = [
        row(241, ["cat", "dog", "None"], "B", b64(), hint="Look closely."),
        row(1000241, ["dog", "None", "cat"], "A", "241", hint="Look closely."),
        row(2000241, ["None", "cat", "dog"], "C", "241", hint="Look closely."),
        row(242, ["cat", "dog", "nan", "nan"], "A", several),
        row(243, ["cat", "dog"], "", b64()),
        row("two", ["cat", "dog"], "A", b64()),
        row(244, ["cat"], "A", b64()),
        row(245, ["cat", "", "dog"], "A", b64()),
    ]
    tsv(root / "MMBench_DEV_EN.tsv", names, rows)


_SAT2 = [
    *[("images", L(HF)), ("question", S), ("answers", L(S)), ("correct_answer", S)],
    ("question_type", S),
]
_CAMERA = (
    "The first image is from the beginning of the video and the second image is from"
    " the end. How did the camera likely move when shooting the video?"
)


def sat(root: Path) -> None:
    left, right = "rotated left and moved forward", "rotated right and moved forward"
    chair = "Chair (marked A) was moved left in the first frame"
    moved = "Were any of the objects in the initial frame moved?"

    def row(question, answers, right, kind="other", images=1):
        return dict(
            images=[hf("JPEG", side=12 + i) for i in range(images)],
            question=question,
            answers=answers,
            correct_answer=right,
            question_type=kind,
        )

    test = [
        row(_CAMERA, [right, left], right, "ego_movement", 2),
        row(moved, [chair, "No"], chair, None),
    ]
    train = [
        row("How many chairs are there in the image?", ["3", "4"], "3"),
        row("How many chairs are there in the image?", ["3", "3"], "3"),
        row("How many chairs are there in the image?", ["3", "4"], "5"),
        row("How many chairs are there in the image?", ["3", "4"], "4 ", images=0),
    ]
    parquet(root / "data/test-00000-of-00001.parquet", test, _SAT2)
    parquet(root / "data/train-00000-of-00002.parquet", train, _SAT2)
    first = [
        *[("image_bytes", L(pa.binary())), ("question", S), ("answers", L(S))],
        *[("question_type", S), ("correct_answer", S)],
    ]
    old = dict(
        image_bytes=[picture("JPEG"), picture("JPEG")],
        question=_CAMERA,
        answers=[right, left],
        question_type="action_sequence",
        correct_answer=right.upper() + " ",
    )
    parquet(root / "SAT_val.parquet", [old], first)


def pixmo_count(root: Path) -> None:
    schema = [
        *[("image_url", S), ("image_sha256", S), ("count", pa.int32())],
        ("points", pa.struct([("x", L(pa.float32())), ("y", L(pa.float32()))])),
        ("label", S),
    ]
    data, other = picture("JPEG"), picture("palette")
    sums = [hashlib.sha256(d).hexdigest() for d in (data, other)]
    text(root / "images" / sums[0], data)
    text(root / "images" / sums[1], other)
    text(root / "images" / ("0" * 64), data)

    def row(sha, count, points, label):
        at = points and {"x": [1.0] * points, "y": [2.0] * points}
        url = f"https://example.org/{sha[:6]}.jpg"
        cells = [url, sha, count, at, label]
        return dict(zip([name for name, _ in schema], cells, strict=True))

    rows = [
        row(sums[0], 3, 3, "chairs"),
        row(sums[1], 0, None, "traffic  lights"),
        row(sums[0], 3, 2, "chairs"),
        row("0" * 64, 2, None, "dogs"),
        row("f" * 64, 2, None, "dogs"),
        row(sums[0], None, None, "dogs"),
        row(sums[0], 2, None, ""),
    ]
    parquet(root / "data/train-00000-of-00001.parquet", rows, schema)


def geometry3k(root: Path) -> None:
    schema = [
        *[("images", L(HF)), ("problem", S), ("answer", S), ("id", pa.int64())],
        *[("choices", L(S)), ("ground_truth", S)],
    ]
    four = ["4", "2 \\sqrt { 221 }", "7", "9"]

    def row(i, problem, answer, choices, letter, image="palette"):
        names = [name for name, _ in schema]
        cells = [[hf(image)], problem, answer, i, choices, letter]
        return dict(zip(names, cells, strict=True))

    rows = [
        row(0, "<image>Find x.", four[1], four, "B"),
        row(1, "<image>Find x.", four[1], four, "A", "RGBA"),
        row(2, "<image>Find $m \\angle A B C$.", "\\frac { 5 } { 2 }", None, None),
        row(3, "<image>Find x.", "8", four, "B"),
        row(4, "<image>", "8", None, None),
    ]
    parquet(root / "data/train-00000-of-00001.parquet", rows, schema)


def blink(root: Path) -> None:
    schema = [
        *[("idx", S), ("question", S), ("sub_task", S)],
        *[(f"image_{i}", HF) for i in range(1, 5)],
        *[("choices", L(S)), ("answer", S), ("prompt", S), ("explanation", S)],
    ]

    def row(i, task, question, choices, answer, images):
        cells = [*images, *[None] * (4 - len(images))]
        lines = "\n".join(f"({c}) {t}" for c, t in zip("ABCD", choices, strict=False))
        prompt = f"{question}\nSelect from the following choices.\n{lines}"
        named = [f"val_{task}_{i}", question, task, *cells]
        values = [*named, choices, answer, prompt, ""]
        return dict(zip([name for name, _ in schema], values, strict=True))

    cat, four = "Is the cat left of the box?", [hf(), hf("L"), hf("LA"), hf("EXIF")]
    same = "Which image is most similar to the reference image?"
    images = ["the second image", "the third image"]
    parquet(
        root / "Spatial_Relation/val-00000-of-00001.parquet",
        [
            row(1, "Spatial_Relation", cat, ["yes", "no"], "(A)", [hf()]),
            row(2, "Spatial_Relation", cat, ["yes", "no"], "hidden", [hf()]),
            row(3, "Spatial_Relation", cat, ["yes", "no"], "(A)", [None, hf()]),
        ],
        schema,
    )
    parquet(
        root / "Visual_Similarity/val-00000-of-00001.parquet",
        [row(1, "Visual_Similarity", same, images, "(B)", four)],
        schema,
    )


def mmvp(root: Path) -> None:
    wings = "Are the butterfly's wings closer to being open or closed?"
    rows = [
        ["lndex", "Question", "Options", "Correct Answer"],
        ["1", wings, "(a) Open (b) Closed", "(a)"],
        ["2", wings, "(a) Open (b) Closed", "(b)"],
        ["99", wings, "(a) Open (b) Closed", "(a)"],
        ["3", wings, "Open, Closed", "(a)"],
        ["4", wings, "(a) Open (b) Closed", "(c)"],
        ["301", wings, "(a) Open (b) Closed", "(a)"],
        ["5", wings, "(a) Open (b) Closed", "(a)"],
    ]
    root.mkdir(parents=True, exist_ok=True)
    with open(root / "Questions.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    for name in ("1", "2", "99"):
        text(root / "MMVP Images" / f"{name}.jpg", picture("JPEG"))


def pope(root: Path) -> None:
    image = "COCO_val2014_000000310196.jpg"
    board = "Is there a snowboard in the image?"
    rows = [
        dict(question_id=1, image=image, text=board, label="yes"),
        dict(
            question_id=2, image=image, text="Is there a car in the image?", label="no"
        ),
        dict(question_id=3, image=image, text=board, label="maybe"),
    ]
    for kind in ("random", "popular"):
        lines = "\n".join(json.dumps(r) for r in rows)
        text(root / f"coco_pope_{kind}.json", lines)
    text(root / image, picture("JPEG"))


def hallusionbench(root: Path) -> None:
    def row(visual, figure, file, answer="1", category="VS"):
        names = "category subcategory visual_input set_id figure_id question_id"
        cells = [category, "chart", visual, "0", figure, "0"]
        known = dict(zip(names.split(), cells, strict=True))
        asked = "According to the chart, is A above B?"
        return dict(
            known, question=asked, gt_answer=answer, gt_answer_details="", filename=file
        )

    rows = [
        row("0", "0", None),
        row("1", "1", "./VS/chart/0_1.png"),
        row("2", "2", "./VS/chart/0_2.png", "0"),
        row("1", "3", None),
        row("1", "4", "./VS/chart/0_1.png", "2"),
    ]
    text(root / "HallusionBench.json", rows)
    text(root / "VS/chart/0_1.png", picture("palette"))
    text(root / "VS/chart/0_2.png", picture("RGBA"))


def mathvista(root: Path) -> None:
    facts = [("category", S), ("skills", L(S)), ("source", S), ("task", S)]
    schema = [
        *[("pid", S), ("question", S), ("image", S), ("decoded_image", HF)],
        *[("choices", L(S)), ("unit", S), ("precision", pa.float64()), ("answer", S)],
        *[("question_type", S), ("answer_type", S), ("metadata", pa.struct(facts))],
        ("query", S),
    ]
    about = dict(category="math", skills=["arithmetic"], source="S", task="textbook")

    def row(pid, question, answer, kind="text", choices=None, precision=None):
        return dict(
            pid=pid,
            question=question,
            image="images/1.jpg",
            decoded_image=hf("JPEG"),
            choices=choices,
            precision=precision,
            answer=answer,
            question_type="multi_choice" if choices else "free_form",
            answer_type=kind,
            metadata=about,
            query="Hint: …",
        )

    higher = "Which sample has higher temperature?"
    samples = ["sample A", "sample B", "neither"]
    rows = [
        row("1", "What is the total of the accuracies?", "1.2", "float", None, 1.0),
        row("2", "How many balls are there?", "7.0", "integer"),
        row("3", higher, "sample B", "text", samples),
        row("4", "Which years are shown?", "[2000, 2004]", "list"),
        row("5", higher, "sample C", "text", samples),
        row("6", "How many balls are there?", "seven", "integer"),
        row("7", "How many balls are there?", "", "integer"),
    ]
    parquet(root / "data/testmini-00000-of-00001.parquet", rows, schema)


REFCOCO = [
    *[("question_id", S), ("image", HF), ("question", S), ("answer", L(S))],
    *[("segmentation", L(pa.float32())), ("bbox", L(pa.float32()))],
    *[("iscrowd", pa.int8()), ("file_name", S)],
]


def refcoco_row(i: int, said: list, box: list[float]) -> dict:
    file = f"COCO_train2014_00000000000{i}_0.jpg"
    cells = [str(i), hf("JPEG", side=40), "q", said, [1.0], box, 0, file]
    return dict(zip([name for name, _ in REFCOCO], cells, strict=True))


def refcoco(root: Path) -> None:
    rows = [
        refcoco_row(1, ["left man", "man in red"], [10.0, 2.0, 5.5, 4.0]),
        refcoco_row(2, ["dog"], [1.0, 2.0, 0.0, 4.0]),
        refcoco_row(3, [], [1.0, 2.0, 5.0, 4.0]),
        refcoco_row(4, ["cat", None], [1.0, 2.0, 5.0, float("nan")]),
    ]
    parquet(root / "data/testA-00000-of-00001.parquet", rows, REFCOCO)


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
    "blink": blink,
    "mmvp": mmvp,
    "pope": pope,
    "hallusionbench": hallusionbench,
    "mathvista": mathvista,
    "refcoco": refcoco,
}


def write(name: str, root: Path) -> Path:
    WRITERS[name](root)
    return root


# name → split → (ids kept, ids repaired, parts of the reasons of refusals)
WANTED = {
    "3dsrbench": {
        "circular": (
            "ABCD1234 ABCD1234-1 ABCD1234-flip ABCD1234-flip-1 EFGH5678 EFGH5679"
            " EFGH5670",
            "EFGH5679",
            [
                "answer E is not one of its 4 options",
                "option B is missing, C is not",
                "row 999, which is not there",
                "qid 'short'",
                "category 'size_bigger'",
                "it has no image",
                "points back",
                "points back",
                "the id ABCD1234 occurs twice",
                "does not decode",
            ],
        )
    },
    "cv_bench": {
        "2D": (
            "2D/0 2D/1 2D/2",
            "",
            [
                "option C is missing, D is not",
                "answer C is not one of its 2 options",
                "answer is missing",
                "it has no image",
                "question is missing",
                "does not decode",
            ],
        ),
        "3D": ("3D/0 3D/1", "", []),
    },
    "spatial_mm": {
        "one_obj": (
            "one_obj/0 one_obj/1",
            "one_obj/1",
            [
                "answer 'somewhere' is not one of its options",
                "its image gone.jpg is not below",
                "holds no lines",
                "lies outside the set's directory",
            ],
        ),
        "two_obj": ("two_obj/0", "", []),
        "multihop": ("multihop/0 multihop/1 multihop/2 multihop/3", "", []),
    },
    "whatsup": {
        "controlled_a": (
            " ".join(
                f"controlled_a/beer-bottle_armchair/{r}"
                for r in ("on", "under", "left_of", "right_of")
            ),
            "",
            ["is not OBJECT_RELATION_OBJECT"],
        ),
        "coco_one": (
            "coco_one/0",
            "",
            ["val2017/000000000005.jpg is not below", "1 options", "it is not [image"],
        ),
    },
    "vstar": {
        "test": (
            "0 1",
            "",
            ["sa_3.jpg is not below", "0 options", "answer F is not one of its 4"],
        )
    },
    "mme_realworld_lite": {
        "test": (
            "7 8",
            "",
            [
                "does not begin with (A)",
                "is not base64",
                "does not decode",
                "answer is missing",
            ],
        )
    },
    "mmbench": {
        "dev": (
            "241 1000241 2000241 242",
            "242",
            [
                "answer is missing",
                "index 'two' is not a number",
                "1 options",
                "option B is missing, C is not",
            ],
        )
    },
    "sat": {
        "test_circular": ("test/0 test/0-1 test/1 test/1-1", "test/1 test/1-1", []),
        "test": ("test/0 test/1", "test/1", []),
        "train": (
            "train/0",
            "",
            ["repeat one another", "'5' is not one of its options", "it has no image"],
        ),
        "val": ("val/0", "", []),
    },
    "pixmo_count": {
        "train": (
            "train/0 train/1",
            "",
            [
                "count is 3, but 2 points",
                "its image has sha256",
                "is not there",
                "count None",
                "label is missing",
            ],
        )
    },
    "geometry3k": {
        "train": (
            "train/0 train/1 train/2",
            "train/1",
            ["answer '8' is not one of its options", "its question is empty"],
        )
    },
    "blink": {
        "val": (
            "val_Spatial_Relation_1 val_Visual_Similarity_1",
            "",
            ["answer 'hidden' is not a letter", "image_1 is missing"],
        )
    },
    "mmvp": {
        "test": (
            "1 2 99",
            "99",
            [
                "are not '(a) … (b) …'",
                "answer C is not one of its 2",
                "from 1 to 300",
                "5.jpg is not below",
            ],
        )
    },
    "pope": {
        "test": (
            "popular/1 popular/2 random/1 random/2",
            "",
            ["is not yes or no", "is not yes or no"],
        )
    },
    "hallusionbench": {
        "image": (
            "VS_chart_0_1_0 VS_chart_0_2_0",
            "",
            ["filename is missing", "answer '2' is not 0 or 1"],
        ),
        "non_image": (
            "VS_chart_0_0_0",
            "",
            ["filename is missing", "answer '2' is not 0 or 1"],
        ),
    },
    "mathvista": {
        "testmini": (
            "1 2 3 4",
            "",
            ["'sample C' is not one of", "is not a number", "answer is missing"],
        )
    },
    "refcoco": {
        "testA": (
            "testA/1/0 testA/1/1",
            "",
            ["is not [x, y, width, height]", "no referring", "is not [x, y, width"],
        )
    },
}
