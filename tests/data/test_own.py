"""Data of one's own, and the texts of conditions in a file."""

import base64
import json

import pyarrow as pa
import pytest

from tests.data import published
from vlmrl import perturb
from vlmrl.data import build, loader, own, texts
from vlmrl.prompts import styles
from vlmrl.types import UserError


def write(root, rows, name="test.jsonl"):
    published.text(root / "a.png", published.picture("palette"))
    published.text(root / name, "\n".join(map(json.dumps, rows)))
    return own.bench("mine", root)


FULL = dict(
    id="x",
    question="Which is it?",
    options=["cup", "mug"],
    answer="B",
    image="a.png",
    task="t/u",
    group="g",
    cluster="c",
    statements=["It is a cup", "It is a mug"],
    thinks=["I see a cup.", "I see a mug."],
    suggested=0,
    trace="A mug.",
    hint="Look.",
    meta={"k": 1},
)


def built(bench, root, split="test"):
    where, report = build.build(bench, split, root, root / "out")
    return list(loader.load(where, split)), report


def test_a_full_row_goes_through_evaluation_unchanged(tmp_path):
    (e,), _ = built(write(tmp_path, [FULL]), tmp_path)
    assert (e.id, e.task, e.cluster, e.answer, e.suggested) == ("x", "t/u", "c", 1, 0)
    assert e.statements == tuple(FULL["statements"]) and e.trace == "A mug."
    assert json.loads(e.meta)["k"] == 1 and json.loads(e.meta)["group"] == "g"
    text = styles.build(perturb.apply(e, "wrong_caption"), "vlmevalkit").text
    assert "It is a cup.\nHint: Look.\nQuestion: Which is it?\nOptions:\nA. cup" in text


def test_little_is_needed(tmp_path):
    rows = [
        dict(question="How many dogs are there?", answer=3),
        dict(question="Which is it?", options=["cup", "mug"], answer=0, image="a.png"),
        dict(question="Which is it?", options=["cup", "mug"], answer="mug"),
    ]
    actual, report = built(write(tmp_path, rows), tmp_path)
    assert [e.id for e in actual] == ["test/0", "test/1", "test/2"]
    assert actual[0].open and actual[0].options[0] == "3" and not actual[0].images
    assert [e.answer for e in actual] == [0, 0, 1] and not report.refused


@pytest.mark.parametrize(
    "change, why",
    [
        ({"anwser": 1}, "field 'anwser' is not one of question, answer"),
        ({"answer": 2}, "answer 2 is not an index of its 2 options"),
        ({"answer": "C"}, "answer C is not one of its 2 options"),
        ({"answer": "jug"}, "answer 'jug' is not one of its options"),
        ({"answer": None}, "answer is missing"),
        ({"options": "cup"}, "options are not a list"),
        ({"options": ["cup"]}, "it has 1 options"),
        ({"statements": ["a"]}, "1 statements for 2 options"),
        ({"suggested": 1}, "suggested is the right option"),
        ({"suggested": 5}, "suggested 5 is not the index"),
        ({"image": "b.png"}, "b.png is not below"),
        ({"question": "nan"}, "question is missing"),
        ({"meta": 3}, "meta is not an object"),
    ],
)
def test_rows_that_cannot_be_meant_are_refused(tmp_path, change, why):
    fine = {**FULL, "id": "fine"}
    _, report = built(write(tmp_path, [fine, {**FULL, **change}]), tmp_path)
    assert report.examples == 1 and why in report.refused[0]["why"]


def test_a_vlmevalkit_table(tmp_path):
    names = "index image question A B C answer category split"
    big = published.b64(side=40)
    rows = [
        ["0", big, "Which?", "cup", "mug", "", "B", "c", "dev"],
        ["1", "0", "Is it a cup?", "", "", "", "Yes", "c", "dev"],
        ["2", "0", "What is it?", "", "", "", "a cup", "c", "dev"],
    ]
    published.tsv(tmp_path / "dev.tsv", names, rows)
    actual, _ = built(own.bench("mine", tmp_path), tmp_path, "dev")
    assert [e.options for e in actual[:2]] == [("cup", "mug"), ("Yes", "No")]
    assert actual[0].images == actual[2].images and actual[2].open


def test_parquet_and_every_way_to_give_an_image(tmp_path):
    data = published.picture("RGBA"), published.picture("JPEG")
    for i, file in enumerate(data):
        published.text(tmp_path / "in" / f"{i}.img", file)
    text, texts, image = pa.string(), pa.list_(pa.string()), published.HF
    asked = dict(question="Which is it?", options=["cup", "mug"], answer="B")
    rows = [
        asked | {"images": [{"bytes": data[0], "path": None}, {"path": "1.img"}]},
        asked | {"images": [{"bytes": data[1], "path": "x.png"}], "task": "a/b"},
        asked | {"answer": "jug"},
    ]
    schema = [("question", text), ("options", texts), ("answer", text)]
    schema += [("images", pa.list_(image)), ("task", text)]
    published.parquet(tmp_path / "in/dev.parquet", rows, schema)
    lines = [
        asked | {"images": ["0.img", base64.b64encode(data[1]).decode()]},
        asked | {"image": "1.img", "task": "a/b"},
    ]
    bench = write(tmp_path / "in", lines)
    assert set(bench.files) == {"dev", "test"}
    actual, report = built(bench, tmp_path / "in", "dev")
    assert [e.images for e in actual] == [data, data[1:]]
    assert actual[1].task == "a/b" and "'jug' is not one" in report.refused[0]["why"]
    same, _ = built(bench, tmp_path / "in")
    for e, other in zip(actual, same, strict=True):
        assert e._replace(id="", meta="", suggested=0) == (
            other._replace(id="", meta="", suggested=0)
        )


def test_an_empty_directory(tmp_path):
    with pytest.raises(UserError, match=r"holds no SPLIT\.jsonl"):
        own.bench("mine", tmp_path)


def test_texts_go_into_a_file_and_come_back(tmp_path):
    actual, _ = built(write(tmp_path, [FULL]), tmp_path)
    path = tmp_path / "t.jsonl"
    texts.write(path, map(texts.entry, actual))
    assert list(texts.apply(actual, texts.read(path))) == actual
    other = actual[0]._replace(question="Which was it?")
    with pytest.raises(UserError, match="mine/x: written for another question"):
        list(texts.apply([other], texts.read(path)))
    with pytest.raises(UserError, match="no entry of mine/y"):
        list(texts.apply([actual[0]._replace(id="y")], texts.read(path)))
    path.write_text(path.read_text() * 2)
    with pytest.raises(UserError, match="line 2: mine/x: given twice"):
        texts.read(path)


def test_a_model_rewrites_once_and_goes_on(tmp_path):
    rows = [{**FULL, "id": str(i)} for i in range(3)]
    actual, _ = built(write(tmp_path, rows), tmp_path)
    path, asked = tmp_path / "t.jsonl", []

    def ask(prompts, until=2):
        if len(asked) == until:
            raise KeyboardInterrupt
        asked.extend(prompts)
        return [
            "Two\nlines" if "Answer: cup" in p else '"There is a mug"' for p in prompts
        ]

    with pytest.raises(KeyboardInterrupt):
        texts.rewrite(actual, ask, "m", path, batch=1)
    assert not path.exists()
    with open(path.with_name("t.jsonl.unfinished"), "a") as file:
        file.write('{"source": "mi')
    done = []
    fell = texts.rewrite(actual, lambda p: ask(p, 99), "m", path, done.append, batch=2)
    assert len(asked) == 2 + 4 and fell == 2  # the first example is not asked again
    assert done == [2, 1]
    (first, *_) = texts.apply(actual, texts.read(path))
    assert first.statements == ("It is a cup", "There is a mug")
    assert list(texts.WithTexts(actual, texts.read(path))) == [
        *texts.apply(actual, texts.read(path))
    ]
    leaking = lambda prompts: ["A mug is it, not a cup" for _ in prompts]  # noqa: E731
    texts.rewrite(actual[:1], leaking, "another", tmp_path / "u.jsonl")
    (stored,) = texts.read(tmp_path / "u.jsonl").values()
    assert stored["statements"] == ["It is a cup", "A mug is it, not a cup"]
    texts.rewrite(actual, lambda p: ask(p, 0), "m", path)  # nothing left to ask


def test_open_questions_say_or_imply_their_kind(tmp_path):
    golds = {"3 dogs": "number", r"\frac{1}{2}x": "maths", "[1, 2, 3, 4]": "box"}
    golds |= {"a cup": "text", "x > 3": "maths", "12,000": "number"}
    rows = [dict(question="What is it?", answer=gold) for gold in golds]
    rows += [dict(question="Which year?", answer="1999", kind="text")]
    rows += [dict(question="What is it?", answer="a cup", kind="word")]
    rows += [FULL | dict(kind="number")]
    actual, report = built(write(tmp_path, rows), tmp_path)
    assert [e.kind for e in actual] == [*golds.values(), "text"]
    first, second = (row["why"] for row in report.refused)
    assert "kind: expected one of number, maths, box, text, got 'word'" in first
    assert "kind: expected option or none, got 'number'" in second
