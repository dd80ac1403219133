"""Every published set's reader, on small files in its true schema."""

import json
import subprocess
import sys

import pytest

from tests.data import published
from vlmrl.data import build, features, images, loader, statements
from vlmrl.data.sets import SETS

CASES = [(n, s) for n, splits in published.WANTED.items() for s in splits]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(name, split) → (examples, report), of all the fixtures."""
    out = {}
    top = tmp_path_factory.mktemp("sets")
    for name in published.WANTED:
        root = published.write(name, top / "published" / name)
        for split in published.WANTED[name]:
            where, report = build.build(SETS[name], split, root, top / "data")
            out[name, split] = list(loader.load(where, split)), report
    return out


def test_every_set_has_its_fixture():
    assert list(published.WANTED) == list(published.WRITERS) == list(SETS)
    for name, bench in SETS.items():
        assert set(bench.splits) == set(bench.files)
        assert set(published.WANTED[name]) <= set(bench.splits)


@pytest.mark.parametrize("name, split", CASES)
def test_rows_are_kept_repaired_or_refused_with_their_reason(name, split, built):
    examples, report = built[name, split]
    remaining, repaired, reasons = published.WANTED[name][split]
    assert [e.id for e in examples] == remaining.split()
    assert [r["id"] for r in report.repaired] == repaired.split()
    assert len(report.refused) == len(reasons)
    for actual, expected in zip(report.refused, reasons, strict=True):
        assert expected in actual["why"]
        assert "row" in actual["where"] and "." in actual["where"]
    assert report.examples == len(examples) and sum(report.rules.values()) == len(
        examples
    )


@pytest.mark.parametrize("name, split", CASES)
def test_examples_are_whole(name, split, built):
    for e in built[name, split][0]:
        meta = json.loads(e.meta)
        assert e.source == name and e.question and e.task and e.cluster
        assert 0 <= e.answer < len(e.options) and len(e.statements) == len(e.options)
        if len(e.options) > 1:
            assert e.suggested != e.answer and 0 <= e.suggested < len(e.options)
            assert e.options[e.suggested] != e.options[e.answer]
        for data, size in zip(e.images, meta["sizes"], strict=True):
            assert list(images.decode(data, e.id).size) == size


@pytest.mark.parametrize("name", SETS)
def test_statements_of_wrong_options_do_not_name_the_right_one(name, built):
    for e in [e for (n, _), (rows, _) in built.items() if n == name for e in rows]:
        right = e.options[e.answer]
        for i, option in enumerate(e.options):
            if i != e.answer:
                sentence = e.statements[i]
                assert not statements.leaks(sentence, e.question, right, option)


def by_id(built, name, split):
    return {e.id: e for e in built[name, split][0]}


def test_images_stay_the_bytes_they_were(built):
    e = by_id(built, "3dsrbench", "circular")
    assert e["ABCD1234"].images == e["ABCD1234-1"].images == (published.picture(),)
    assert e["ABCD1234-flip-1"].images == (published.picture("EXIF"),)
    assert json.loads(e["ABCD1234-flip"].meta)["sizes"] == [[8, 12]]
    assert len(by_id(built, "mmbench", "dev")["242"].images) == 2
    four = by_id(built, "blink", "val")["val_Visual_Similarity_1"]
    assert [i[:2] for i in four.images] == [
        b"\x89P",
        b"\xff\xd8",
        b"\x89P",
        b"\xff\xd8",
    ]
    assert by_id(built, "hallusionbench", "non_image")["VS_chart_0_0_0"].images == ()


def test_copies_of_a_question_share_what_is_suggested(built):
    e = by_id(built, "mmbench", "dev")
    copies = [e[str(241 + k * 10**6)] for k in range(3)]
    assert len({c.options[c.suggested] for c in copies}) == 1
    assert {json.loads(c.meta)["group"] for c in copies} == {"241"}
    assert copies[0].options[-1] == "None"  # a text, not a missing cell


def test_orders_are_drawn_where_the_published_one_tells(built):
    captions = by_id(built, "whatsup", "controlled_a").values()
    assert len({e.answer for e in captions}) > 1
    test = by_id(built, "sat", "test_circular")
    assert test["test/0-1"].options == test["test/0"].options[::-1]
    right = {e.options[e.answer] for i, e in test.items() if i.startswith("test/0")}
    assert right == {"rotated right and moved forward"}
    assert by_id(built, "sat", "test")["test/0"] == test["test/0"]
    assert "in the first frame" not in "".join(test["test/1"].options)


def test_answers_that_contradict_their_letter(built):
    assert by_id(built, "spatial_mm", "one_obj")["one_obj/1"].answer == 1
    assert by_id(built, "geometry3k", "train")["train/1"].answer == 1
    assert by_id(built, "mmvp", "test")["99"].answer == 1


def test_open_questions_get_wrong_answers_of_their_kind(built):
    counts = by_id(built, "pixmo_count", "train")
    three = counts["train/0"]
    assert three.open and three.options[0] == "3" and len(three.options) == 4
    assert set(three.options[1:]) <= {"0", "1", "2", "4", "5", "6"}
    assert (
        counts["train/1"].question == "How many traffic lights are there in the image?"
    )
    assert all(int(o) >= 0 for o in counts["train/1"].options)
    hops = by_id(built, "spatial_mm", "multihop")
    assert hops["multihop/1"].options == ("no", "yes")
    assert set(hops["multihop/2"].options) == {"umbrella", "backpack"}
    assert (
        by_id(built, "refcoco", "testA")["testA/1/0"].options[0] == "[10, 2, 15.5, 6]"
    )
    assert by_id(built, "mathvista", "testmini")["1"].options[0] == "1.2"
    assert by_id(built, "mathvista", "testmini")["2"].options[0] == "7"
    assert not by_id(built, "mathvista", "testmini")["3"].open


def test_every_item_says_how_answers_are_compared(built):
    wanted = {
        ("pixmo_count", "train"): {"number"},
        ("spatial_mm", "multihop"): {"text"},
        ("refcoco", "testA"): {"box"},
        ("mathvista", "testmini"): {"number", "maths", "option"},
        ("geometry3k", "train"): {"maths", "option"},
        ("cv_bench", "2D"): {"option"},
    }
    for (name, split), kinds in wanted.items():
        examples = by_id(built, name, split).values()
        assert {e.kind for e in examples} <= kinds
        assert all((e.kind == "option") != e.open for e in examples)
    assert json.loads(by_id(built, "mathvista", "testmini")["1"].meta)["precision"] == 1


def test_examples_stored_before_they_had_a_kind_are_read(built):
    three = by_id(built, "pixmo_count", "train")["train/0"]
    record = features.tf_example_pb2.Example.FromString(features.serialised(three))
    del record.features.feature["kind"]
    assert features.example(record.SerializeToString()) == three


def test_tasks_and_groups_that_scoring_reads(built):
    assert by_id(built, "cv_bench", "2D")["2D/1"].task == "2D/Count/COCO"
    e = by_id(built, "3dsrbench", "circular")["EFGH5678"]
    assert e.task == "orientation/orientation_viewpoint"
    lite = by_id(built, "mme_realworld_lite", "test")
    assert lite["7"].task == "Perception/Monitoring/vehicle/counting"
    assert lite["8"].task == "Perception/Monitoring/vehicle/attribute"
    assert by_id(built, "vstar", "test")["0"].options[0] == "rubber (thick)"
    assert by_id(built, "sat", "test")["test/1"].task == "obj_movement"


def test_nothing_imports_tensorflow():
    code = (
        "import sys; from vlmrl.data import build, sets;"
        "sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
