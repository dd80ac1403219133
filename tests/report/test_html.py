"""The page is one file, asks nothing of the network, and shows model text as text."""

import io
import json
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from tests.report import synthetic
from vlmrl.report import html
from vlmrl.types import UserError

INFO = {"title": "A <b>run</b>", "summary": "x & y", "Model": "tiny </script>"}


@pytest.fixture(scope="module")
def page(table, metrics) -> str:
    found = html.browser(table, synthetic.images())
    return html.render_page(synthetic.report(table, metrics, INFO), found)


class Reader(HTMLParser):
    """Elements with their attributes, and the text of script elements."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.scripts, self.inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.inside = tag == "script"
        if self.inside:
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.scripts[-1] += data


def test_nothing_is_loaded_from_outside(page):
    reader = Reader(page)
    for tag, attributes in reader.elements:
        for name in ("src", "srcset", "href", "action", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/", "#")), (tag, value)
    assert "@import" not in page and "url(" not in page
    policy = next(a for t, a in reader.elements if "http-equiv" in a)
    assert "default-src 'none'" in policy["content"]


def test_model_text_stays_inside_the_json(page):
    reader = Reader(page)
    *data, code = reader.scripts
    chunks = [d["rows"] for d in map(json.loads, data) if "prompts" in d]
    assert any(synthetic.HOSTILE in row["out"] for rows in chunks for row in rows)
    assert "use strict" in code
    assert "onerror" not in {n for _, a in reader.elements for n in a}
    assert "<b>bold" not in page and "<b>run</b>" not in page
    assert "A &lt;b&gt;run&lt;/b&gt;" in page
    assert "innerHTML" not in page and "insertAdjacentHTML" not in page


def test_json_in_a_script_round_trips_and_cannot_close_it():
    value = ["</script><!--", "\u2028", "&amp;", {"é": [1.5, None, True]}]
    text = html.script_json(value)
    assert json.loads(text) == value
    assert not set("<>&\u2028") & set(text)


def test_rows_carry_what_the_records_say(table):
    found = html.browser(table, synthetic.images())
    data = found.index
    assert len(data["examples"]) == 60 and len(data["x"]) == 60 * 6 * 3
    assert data["variants"] == [
        "warm-start · step 0",
        "accuracy · step 60",
        "faithfulness · step 60",
    ]
    records = {
        (r["example"], r["recipe"], r["condition"]): r
        for r in table.to_pylist()
        if r["step"] in (0, 60)
    }
    assert [len(c["rows"]) for c in found.chunks] == [200] * 5 + [80]
    for i in range(0, len(data["x"]), 17):
        chunk = found.chunks[i // html.CHUNK]
        row = chunk["rows"][i % html.CHUNK]
        example = data["examples"][data["x"][i]]
        recipe = data["variants"][data["v"][i]].split(" · ")[0]
        record = records[example["id"], recipe, data["conditions"][data["c"][i]]]
        assert row["out"] == record["completion"]
        assert (
            data["ok"][i] == record["correct"] and data["y"][i] == record["predicted"]
        )
        assert data["verdicts"][data["ver"][i]] == record["verdict"]
        assert chunk["prompts"][row["p"]] == [record["prompt"], record["spans"]]
        assert row["l"] == pytest.approx(record["letters"], abs=1e-4)
    assert len(found.images) == 30  # two examples share an image
    order = list(zip(data["x"], data["c"], data["v"], strict=True))
    assert order == sorted(order)


def test_the_page_holds_claims_tables_and_figures(page):
    reader = Reader(page)
    tags = [tag for tag, _ in reader.elements]
    assert tags.count("picture") == 3 and tags.count("h1") == 1
    assert page.count('<p class="verdict') == 8
    assert "wrong_think" in page and "One seed" in page
    images = [a for t, a in reader.elements if t == "img"]
    assert all(a["alt"] for a in images)
    assert {a["lang"] for t, a in reader.elements if t == "html"} == {"en"}
    labels = page.count("<label>")
    assert labels == tags.count("select") + tags.count("input")


def test_more_examples_than_fit_are_chosen_by_hash_and_said(monkeypatch, table):
    monkeypatch.setattr(html, "ROWS", 10 * 18)
    found = html.browser(table, synthetic.images())
    assert len(found.index["examples"]) == 10
    assert found.note.startswith("10 of the 60 examples")
    assert "not by result" in found.note
    tasks = [e["task"] for e in found.index["examples"]]
    assert {tasks.count(t) for t in synthetic.TASKS} == {2, 3}
    again = html.browser(table.take(np.arange(len(table))[::-1]), synthetic.images())
    ids = [{e["id"] for e in f.index["examples"]} for f in (found, again)]
    assert ids[0] == ids[1]


def test_a_missing_image_is_told_and_a_heavy_one_made_small(table):
    noise = np.random.default_rng(0).integers(0, 255, (900, 900, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "PNG")
    found = html.browser(table, {"scenes/test-0000": out.getvalue()})
    assert len(found.images) == 1 and len(found.images[0]) < 300_000
    assert found.images[0].startswith(b"\xff\xd8\xff")
    assert sum(e["image"] == -1 for e in found.index["examples"]) == 59
    with pytest.raises(UserError, match="scenes/test-0000: its image does not decode"):
        html.browser(table, {"scenes/test-0000": b"\x89PNG" + b"x" * 100_000})


def test_many_images_lie_in_a_folder_beside(tmp_path, monkeypatch, table, metrics):
    monkeypatch.setattr(html, "INSIDE", 1000)
    images = synthetic.images()
    report = synthetic.report(table, metrics, INFO)
    page = html.write_report(tmp_path, report, images).read_text()
    names = {p.name for p in (tmp_path / html.FOLDER).iterdir()}
    assert len(names) == 30
    reader = Reader(page)
    found = [s for s in map(json.loads, reader.scripts[:-1]) if isinstance(s, list)]
    addresses = [a for part in found for a in part]
    assert {a.removeprefix(f"{html.FOLDER}/") for a in addresses} == names
    held = {(tmp_path / a).read_bytes() for a in addresses}
    assert held == set(images.values())
    html.write_report(tmp_path, report, images)
    assert {p.name for p in tmp_path.iterdir()} == {"report.html", html.FOLDER}


def test_writing_is_whole_or_not_at_all(tmp_path, monkeypatch, table, metrics, page):
    monkeypatch.setattr(html, "render_page", lambda *_: page)
    report = synthetic.report(table, metrics, INFO)
    path = html.write_report(tmp_path, report, {})
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert path.read_text(encoding="utf-8") == page
    with pytest.raises(UserError, match="cannot write the report"):
        html.write_report(tmp_path / "none", report, {})
