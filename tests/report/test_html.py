"""The page is one file, asks nothing of the network, and shows model text as text."""

import html as html_
import io
import json
import re
import shutil
import subprocess
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
    return html.render_page(table, metrics, synthetic.images(), INFO)


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
    assert len(reader.scripts) == 2
    data = json.loads(reader.scripts[0])
    assert any(synthetic.HOSTILE in row["out"] for row in data["rows"])
    assert "onerror" not in {n for _, a in reader.elements for n in a}
    assert "<b>bold" not in page and "<b>run</b>" not in page
    assert "A &lt;b&gt;run&lt;/b&gt;" in page
    assert "innerHTML" not in page and "insertAdjacentHTML" not in page


def test_json_in_a_script_round_trips_and_cannot_close_it():
    value = ["</script><!--", "\u2028", "&amp;", {"é": [1.5, None, True]}]
    text = html.script_json(value)
    assert json.loads(text) == value
    assert not set("<>&\u2028") & set(text)


def test_rows_carry_what_the_records_say(page, table):
    data = json.loads(Reader(page).scripts[0])
    assert len(data["examples"]) == 60 and len(data["rows"]) == 60 * 6 * 3
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
    for row in data["rows"][::17]:
        example = data["examples"][row["x"]]
        recipe = data["variants"][row["v"]].split(" · ")[0]
        record = records[example["id"], recipe, data["conditions"][row["c"]]]
        assert row["out"] == record["completion"]
        assert row["ok"] == record["correct"]
        assert data["prompts"][row["p"]] == [record["prompt"], record["spans"]]
        assert row["l"] == pytest.approx(record["letters"], abs=1e-4)
    assert len(data["images"]) == 30  # two examples share an image


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
    assert labels == tags.count("select") == 6


def test_more_examples_than_fit_are_chosen_by_hash_and_said(monkeypatch, table):
    monkeypatch.setattr(html, "EXAMPLES", 10)
    data = html.browser(table, synthetic.images())
    assert len(data["examples"]) == 10
    assert data["note"].startswith("10 of the 60 examples")
    assert "not by result" in data["note"]
    tasks = [e["task"] for e in data["examples"]]
    assert {tasks.count(t) for t in synthetic.TASKS} == {2, 3}
    again = html.browser(table.take(np.arange(len(table))[::-1]), synthetic.images())
    assert {e["id"] for e in again["examples"]} == {e["id"] for e in data["examples"]}


def test_a_missing_image_is_told_and_a_heavy_one_made_small(table):
    noise = np.random.default_rng(0).integers(0, 255, (900, 900, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "PNG")
    data = html.browser(table, {"test-0000": out.getvalue()})
    assert len(data["images"]) == 1 and len(data["images"][0]) < 400_000
    assert data["images"][0].startswith("data:image/jpeg")
    assert sum(e["image"] == -1 for e in data["examples"]) == 59
    with pytest.raises(UserError, match="scenes/test-0000: its image does not decode"):
        html.browser(table, {"test-0000": b"\x89PNG" + b"x" * 100_000})


def test_writing_is_whole_or_not_at_all(tmp_path, monkeypatch, table, metrics, page):
    monkeypatch.setattr(html, "render_page", lambda *_: page)
    path = html.write_report(tmp_path, table, metrics, {}, INFO)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert path.read_text(encoding="utf-8") == page
    with pytest.raises(UserError, match="cannot write the report"):
        html.write_report(tmp_path / "none", table, metrics, {}, INFO)


# Drives the page as a reader would, and leaves what it saw in the title.
_VISIT = """
<script>
addEventListener("load", () => setTimeout(() => {
  const $ = (id) => document.getElementById(id);
  const press = (key) => $("list").dispatchEvent(new KeyboardEvent("keydown", { key }));
  const choose = (id, value) => {
    $(id).value = value;
    $(id).dispatchEvent(new Event("change", { bubbles: true }));
  };
  const where = () => document.querySelector("#detail .where").textContent;
  const rows = () => Number($("count").textContent.split(" ")[0].replace(",", ""));
  const ready = document.documentElement.dataset.ready;
  const seen = { ready, all: rows(), first: where() };
  choose("f-flip", "caption");
  seen.flipped = rows();
  seen.flippedAre = where();
  choose("f-flip", ""); choose("f-condition", "2"); choose("f-recipe", "1");
  press("Home"); press("ArrowDown");
  seen.second = document.querySelector("#detail h3").textContent;
  seen.mark = document.querySelector("#detail mark").textContent;
  seen.prefill = document.querySelector("#detail .prefill").textContent;
  seen.bars = document.querySelectorAll("#detail .bars tr").length;
  press("ArrowRight");
  seen.beside = where();
  choose("f-condition", "0"); choose("f-recipe", "1"); choose("f-answer", "none");
  seen.none = rows();
  document.querySelector(".filters button").click();
  setTimeout(() => {
    seen.cleared = rows();
    seen.selected = document.querySelectorAll("#list li[aria-selected=true]").length;
    seen.wide = document.documentElement.scrollWidth <= innerWidth;
    const out = document.createElement("output");
    out.id = "seen"; out.textContent = JSON.stringify(seen);
    document.body.append(out);
  });
}));
</script>
"""


def _dump(path, profile, *flags) -> str:
    """The page's DOM after its scripts ran, by headless Chromium without a network."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.fail("chromium is not installed: `apt-get install chromium` brings it")
    command = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
        "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", f"--user-data-dir={profile}",
        "--virtual-time-budget=5000", *flags, "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=180, check=True
    )
    return done.stdout


@pytest.mark.chromium
@pytest.mark.parametrize("width", [1280, 500])
def test_the_browser_of_examples_works(tmp_path, page, table, width):
    path = tmp_path / "report.html"
    path.write_text(page.replace("</body>", _VISIT + "</body>"), encoding="utf-8")
    dom = _dump(path, tmp_path / "profile", f"--window-size={width},900")
    seen = json.loads(
        html_.unescape(re.search(r'<output id="seen">(.*?)</output>', dom)[1])
    )
    assert seen["ready"] == "yes" and seen["all"] == seen["cleared"] == 60 * 6 * 3

    last = [r for r in table.to_pylist() if r["step"] in (0, 60)]
    right = {(r["recipe"], r["example"]): r["correct"] for r in last
             if r["condition"] == "base"}  # fmt: skip
    flipped = [r for r in last if r["condition"] == "wrong_caption"
               and right[r["recipe"], r["example"]] and not r["correct"]]  # fmt: skip
    flipped += [r for r in last if r["condition"] == "correct_caption"
                and right[r["recipe"], r["example"]] and not r["correct"]]  # fmt: skip
    assert seen["flipped"] == len(flipped)
    assert "caption" in seen["first"] and "caption" in seen["flippedAre"]

    mine = [r for r in last if r["recipe"] == "accuracy"]
    second = next(r for r in mine if r["condition"] == "wrong_think"
                  and r["example"] == seen["second"])  # fmt: skip
    assert seen["mark"] == seen["prefill"] == second["prefill"]
    assert seen["bars"] == len(second["options"])
    assert seen["beside"].split(" · ")[1] == "wrong_caption"
    none = sum(r["predicted"] < 0 for r in mine if r["condition"] == "base")
    assert seen["none"] == none
    assert seen["selected"] == 1 and seen["wide"]


@pytest.mark.chromium
def test_hostile_text_is_shown_and_does_not_run(tmp_path, page):
    path = tmp_path / "report.html"
    visit = "location.hash = '#test-0003~1~0';"
    path.write_text(
        page.replace("<head>", f"<head><script>{visit}</script>"), encoding="utf-8"
    )
    dom = _dump(path, tmp_path / "profile")
    detail = dom[dom.index('<article id="detail"') :]
    assert html_.escape(synthetic.HOSTILE, quote=False) in detail
    assert "<title>A &lt;b&gt;run&lt;/b&gt;</title>" in dom
