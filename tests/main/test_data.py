"""`vlmrl data`: what there is, what it looks like, and where it is put."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import kit
from tests.data import published
from tests.judges import server
from vlmrl import perturb
from vlmrl.data import drawing, fetch, loader, prepare, scenes
from vlmrl.data.sets import PROCEDURAL, SETS
from vlmrl.prompts import preview, styles
from vlmrl.types import UserError


def test_list_names_every_source_with_its_splits_and_tasks(vlmrl, capsys, tmp_path):
    vlmrl("data", "list")
    output = capsys.readouterr().out
    assert set(PROCEDURAL) == set(loader.SOURCES)
    for word in (
        *SETS,
        "nyu-visionx/CV-Bench",
        "ODC-BY-1.0",
        "scenes",
        *drawing.SPLITS,
        *scenes.TASKS,
    ):
        assert word in output


def test_list_makes_no_directory(vlmrl, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vlmrl("data", "list")
    assert not list(tmp_path.iterdir())


def test_show_tells_the_examples_and_what_conditions_write(vlmrl, capsys, tmp_path):
    words = ["--split=test", "--n=4", "--conditions=base,abstain+wrong_caption"]
    vlmrl("data", "show", "scenes", *words, "--workdir", tmp_path)
    output = capsys.readouterr().out
    for example in kit.examples(4):
        assert example.id in output and example.question in output
        right = f"{styles.LETTERS[example.answer]}. {example.options[example.answer]}"
        assert f"  {right}  (answer)\n" in output
        assert f"{example.options[example.suggested]}  (suggested)\n" in output
        caption = perturb.apply(example, "wrong_caption").caption
        assert f"«{caption}»" in output and caption in output
        assert f"«{styles.LETTERS[len(example.options)]}. I'm not sure»" in output
    assert [p.name for p in tmp_path.iterdir()] == ["scenes-test.png"]


def test_the_sheet_shows_every_picture(vlmrl, tmp_path):
    words = ["data", "show", "scenes", "--split=test", "--n=5", "--workdir", tmp_path]
    vlmrl(*words)
    first = (tmp_path / "scenes-test.png").read_bytes()
    page = np.asarray(Image.open(io.BytesIO(first)))
    assert page.ndim == 3 and page.shape[1] > page.shape[0] * 0.8
    twice = preview.TILE // drawing.SIDE
    for number, example in enumerate(kit.examples(5)):
        row, column = divmod(number, 3)
        picture = np.asarray(Image.open(io.BytesIO(example.images[0])))
        left = preview.EDGE + column * (preview.TILE + preview.EDGE)
        tops = [
            t for t in range(len(page) - preview.TILE + 1) if (row == 0) == (t < 200)
        ]
        expected = picture.repeat(twice, 0).repeat(twice, 1)
        here = page[:, left : left + preview.TILE]
        assert any((here[t : t + preview.TILE] == expected).all() for t in tops), number
    vlmrl(*words)
    assert (tmp_path / "scenes-test.png").read_bytes() == first


def test_examples_of_any_shape_have_a_place_on_the_sheet():
    example = kit.examples(1)[0]
    wide = Image.new("RGB", (900, 30), "red")
    file = io.BytesIO()
    wide.save(file, "PNG")
    odd = [
        example._replace(images=()),
        example._replace(images=(file.getvalue(), file.getvalue())),
        example._replace(question="W" * 200, options=(), answer=-1, suggested=-1),
    ]
    assert "(and 1 more)" in " ".join(
        preview._caption(odd[1], preview.ImageFont.load_default(11))
    )
    page = Image.open(io.BytesIO(preview.contact_sheet(odd)))
    assert page.size[0] >= preview.TILE


def test_marked_shows_exactly_what_the_condition_wrote():
    for name in perturb.ORDER:
        prompt = styles.build(perturb.apply(kit.examples(1)[0], name), "tiny")
        notes = preview.marked(prompt)
        assert notes.replace("«", "").replace("»", "") == prompt.text
        parts = [piece.split("»")[0] for piece in notes.split("«")[1:]]
        assert parts == [prompt.text[a:b] for a, b in prompt.spans]


def test_prepare_writes_what_a_run_in_the_same_place_reads(vlmrl, capsys, tmp_path):
    words = ["data", "prepare", "scenes", "--size=train=7,test=3"]
    vlmrl(*words, "--workdir", tmp_path)
    where = capsys.readouterr().out.strip()
    assert loader.prepare("scenes", {"train": 7, "test": 3}, tmp_path / "data") == (
        Path(where)
    )
    assert list(loader.load(where, "test")) == list(kit.examples(3))
    assert len(loader.load(where, "train")) == 7


def test_a_set_comes_from_the_hub_with_images_by_address(
    vlmrl, capsys, tmp_path, monkeypatch
):
    hub = published.write("pixmo_count", tmp_path / "hub")
    at = {p.name[:6]: p.read_bytes() for p in (hub / "images").iterdir()}
    asked = []

    def listing(repo, revision):
        return [str(p.relative_to(hub)) for p in hub.glob("data/*")]

    def download(repo, revision, name, root):
        asked.append((repo, revision, name))
        published.text(root / name, (hub / name).read_bytes())

    def fetched(url, path, *, sha256, most):
        asked.append(url)
        data = at.get(url.rpartition("/")[2][:6])
        if data is None:
            raise fetch.GivenUp("dead", "HTTP 404")
        if hashlib.sha256(data).hexdigest() != sha256:
            raise fetch.GivenUp("changed", "sha256")
        path.write_bytes(data)

    monkeypatch.setattr(fetch, "_commit", lambda repo, revision: "c" * 40)
    monkeypatch.setattr(fetch, "_listing", listing)
    monkeypatch.setattr(fetch, "_download", download)
    monkeypatch.setattr(fetch, "download", fetched)
    words = ["data", "prepare", "pixmo_count", "--repo=me/mine", "--revision=main"]
    vlmrl(*words, "--workdir", tmp_path)
    output = capsys.readouterr().out
    assert f"pixmo_count: me/mine at main is {'c' * 40}" in output
    assert "pixmo_count train images: 1 changed, 1 dead, 2 ok; each in " in output
    assert "7 rows: 2 examples kept, 0 of them repaired, 5 rows refused" in output
    assert "pixmo_count: no files of validation, test" in output
    name = "data/train-00000-of-00001.parquet"
    assert asked[0] == ("me/mine", "c" * 40, name) and len(asked) == 5
    vlmrl(*words, "--workdir", tmp_path)
    assert [a for a in asked if isinstance(a, str)] == asked[1:5]  # no image twice
    assert "1 changed, 1 dead, 2 ok" in capsys.readouterr().out


def test_published_sets_are_prepared_shown_checked(vlmrl, capsys, tmp_path):
    root = published.write("cv_bench", tmp_path / "in")
    at = ["--workdir", tmp_path / "w"]
    vlmrl("data", "prepare", "cv_bench", "--source", root, *at)
    output = capsys.readouterr().out
    assert "cv_bench 2D: 9 rows: 3 examples kept, 0 of them repaired, 6 rows" in output
    vlmrl("data", "show", "cv_bench", "--n=2", "--conditions=wrong_caption", *at)
    output = capsys.readouterr().out
    assert "«The number of organs in the image is " in output
    assert "statement rules of the split: number 2, relative 1" in output
    assert (tmp_path / "w/cv_bench-2D.png").is_file()
    vlmrl("data", "check", "cv_bench", *at)
    output = capsys.readouterr().out
    assert "cv_bench 2D: 3 examples (published are 1438)" in output
    assert "test_2d.parquet row 3: option C is missing, D is not" in output
    assert "right letters: A 1 (33%), B 1 (33%), C 1 (33%)" in output
    vlmrl("data", "texts", "cv_bench", "--split=2D", *at)
    path = capsys.readouterr().out.strip()
    again = ["data", "show", "cv_bench", "--texts", path, "--split=2D", *at]
    vlmrl(*again)


def test_open_questions_show_their_candidates(vlmrl, capsys, tmp_path):
    root = published.write("pixmo_count", tmp_path / "in")
    at = ["--workdir", tmp_path]
    vlmrl("data", "prepare", "pixmo_count", "--source", root, *at)
    names = "--conditions=wrong_caption,abstain+base"
    capsys.readouterr()
    vlmrl("data", "show", "pixmo_count", names, *at)
    output = capsys.readouterr().out
    assert (
        "  - 3  (answer)" in output
        and "«The number of chairs in the image is" in output
    )
    assert "abstain+base does not apply" in output


def test_data_of_ones_own_needs_no_code(vlmrl, capsys, tmp_path):
    row = {"question": "Which is it?", "options": ["cup", "mug"], "answer": 1}
    published.text(tmp_path / "in/dev.jsonl", json.dumps(row))
    at = ["--workdir", tmp_path]
    vlmrl("data", "prepare", "kitchen", "--source", tmp_path / "in", *at)
    vlmrl("data", "show", "kitchen", *at)
    assert "B. mug  (answer)" in capsys.readouterr().out


def test_a_model_rewrites_what_misleads(vlmrl, capsys, tmp_path):
    rows = [
        {"question": f"Which is {i}?", "options": ["cup", "mug"], "answer": 1}
        for i in range(3)
    ]
    published.text(tmp_path / "in/dev.jsonl", "\n".join(map(json.dumps, rows)))
    at = ["--workdir", tmp_path]
    vlmrl("data", "prepare", "kitchen", "--source", tmp_path / "in", *at)

    def answer(request):
        (message,) = request["messages"]
        option = message["content"].split("Answer: ")[1].split("\n")[0]
        return server.body_of(f"What we see is a {option}.")

    words = ["data", "texts", "kitchen", "--model=m", *at]
    with server.serve(answer) as there:
        vlmrl(*words, "--url", there.url)
        assert len(there.bodies) == 6
    path = tmp_path / "kitchen-dev.texts.jsonl"
    assert f"{path}: 0 sentences fell back" in capsys.readouterr().out
    (first, *_) = (json.loads(line) for line in path.read_text().splitlines())
    assert first["by"] == "m" and first["statements"][0] == "What we see is a cup."
    vlmrl(*words, "--url", there.url)  # the server is gone, and not asked
    words = ["data", "show", "kitchen", "--texts", path, "--conditions=wrong_caption"]
    vlmrl(*words, *at)
    assert "«What we see is a cup" in capsys.readouterr().out


def test_what_is_left_by_hand_is_told(refused, tmp_path):
    (tmp_path / "in").mkdir()
    output = refused("data", "prepare", "whatsup", "--source", tmp_path / "in")
    assert f"put it at {tmp_path / 'in/controlled_images_dataset.json'}" in output
    output = refused("data", "prepare", "whatsup", "--source", tmp_path / "no")
    assert "--source: no directory" in output
    output = refused("data", "show", "mmvp", workdir=tmp_path)
    assert "mmvp is not prepared; run `vlmrl data prepare mmvp` first" in output


def test_sizes():
    assert prepare.sizes(["train=7", "test=3"]) == {"train": 7, "test": 3}
    for bad in ("train", "train=", "=3", "train=-1", "train=x", "train=1.5"):
        with pytest.raises(UserError, match="is not of the form SPLIT=NUMBER"):
            prepare.sizes([bad])


@pytest.mark.parametrize(
    "words, complaint",
    [
        ([], "data: '' is not one of list, prepare, show"),
        (["lst"], "data: 'lst' is not one of list, prepare, show"),
        (["list", "scenes"], "data list: takes no name, not 'scenes'"),
        (["show"], "takes the name of one set"),
        (["show", "scenes", "more"], "takes the name of one set"),
        (["show", "scene"], "data: 'scene' is not one of scenes"),
        (["show", "scenes", "--split=x"], "split 'x' is not one of train, validation"),
        (["show", "scenes", "--n=0"], "--n: expected at least 1, got 0"),
        (["show", "scenes", "--n=few"], "--n: expected int, got 'few'"),
        (["show", "scenes", "--conditions=wrong"], "unknown condition 'wrong'"),
        (
            ["show", "scenes", "--conditions=base", "--style=x"],
            "unknown prompt style 'x'",
        ),
        (["prepare", "scene", "--size=test=1"], "'scene' is not one of scenes"),
        (["prepare", "scenes"], "--size: must be given"),
        (
            ["prepare", "scenes", "--size=test=0"],
            "size of test: expected at least 1, got 0",
        ),
        (["prepare", "scenes", "--size=all=9"], "split 'all' is not one of train"),
    ],
)
def test_bad_words_are_refused(words, complaint, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert complaint in refused("data", *words)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_picture_that_does_not_decode_leaves_no_sheet(refused, tmp_path, monkeypatch):
    broken = kit.examples(1)[0]._replace(images=(b"no picture",))
    monkeypatch.setitem(loader.SOURCES, "broken", lambda split, n: [broken] * n)
    output = refused("data", "show", "broken", workdir=tmp_path)
    assert broken.id in output and "does not decode" in output
    assert not list(tmp_path.iterdir())
