"""The page in a real browser: it works by mouse and keyboard, says nothing on the
console, passes axe, and model text does not run."""

import html as html_

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tests.conftest import AXE
from tests.report import chromium, synthetic
from vlmrl.eval import measures, records
from vlmrl.eval.record_builder import unmeasured
from vlmrl.report import html

pytestmark = pytest.mark.chromium
INFO = {"title": "A <b>run</b>", "summary": "x & y", "Model": "tiny </script>"}


@pytest.fixture(scope="module")
def page(table, metrics) -> str:
    found = html.browser(table, synthetic.images())
    return html.render_page(synthetic.report(table, metrics, INFO), found)


VISIT = """
  const where = () => document.querySelector("#detail .where").textContent;
  const rows = () => Number($("count").textContent.split(" ")[0].replace(",", ""));
  const reset = async () => {
    document.querySelector(".filters button").click(); await pause(50);
  };
  const ready = document.documentElement.dataset.ready;
  const seen = { ready, all: rows(), first: where() };
  choose("f-flip", "caption");
  seen.flipped = rows(); seen.flippedAre = where();
  choose("f-flip", ""); choose("f-quadrant", "inconsistent 1");
  seen.wrongReason = rows();
  const badges = document.querySelectorAll("#detail .badges li");
  seen.badges = [...badges].map((b) => b.textContent);
  choose("f-quadrant", ""); choose("f-condition", "2"); choose("f-recipe", "1");
  press("list", "Home"); press("list", "ArrowDown");
  seen.second = document.querySelector("#detail h3").textContent;
  seen.active = $($("list").getAttribute("aria-activedescendant")).textContent;
  seen.mark = document.querySelector("#detail mark").textContent;
  seen.prefill = document.querySelector("#detail .prefill").textContent;
  seen.bars = document.querySelectorAll("#detail .bars tr").length;
  seen.room = document.querySelector("#detail .bars .bar div").clientWidth;
  seen.probes = document.querySelectorAll("#detail pre .probe").length;
  press("list", "ArrowRight");
  seen.beside = where();
  choose("f-condition", "0"); choose("f-recipe", "1"); choose("f-answer", "none");
  seen.none = rows();
  await reset();
  seen.cleared = rows();
  seen.selected = document.querySelectorAll("#rows [aria-selected=true]").length;
  choose("f-words", "0007"); seen.named = rows();
  await reset();
  // the heat map opens its examples
  choose("h-measure", "0"); choose("h-recipe", "1");
  const third = document.querySelector("#h-table tbody tr:nth-child(3)");
  const cell = third.querySelector("td:nth-child(2) button");
  cell.focus(); seen.cell = cell.textContent; seen.told = $("h-readout").textContent;
  cell.click();
  seen.opened = rows(); seen.openedAre = where();
  seen.focus = document.activeElement.id;
  // curves by keyboard
  press("c-chart", "ArrowRight"); seen.step = $("c-readout").textContent;
  const lines = () => document.querySelectorAll("#c-chart path:not(.band)").length;
  seen.lines = lines();
  document.querySelector("#c-legend input").click();
  seen.fewer = lines();
  choose("k-condition", "2"); seen.calibration = $("k-readout").textContent;
  $("theme").click(); $("theme").click();
  seen.theme = document.documentElement.dataset.theme;
  seen.wide = document.documentElement.scrollWidth <= innerWidth;
  done(seen);
"""


@pytest.mark.parametrize("width", [1280, 500])
def test_a_reader_finds_the_way(tmp_path, page, table, metrics, width):
    seen, console = chromium.visit(page, tmp_path, VISIT, f"--window-size={width},900")
    assert console == []
    assert seen["ready"] == "yes" and seen["all"] == seen["cleared"] == 60 * 6 * 3

    last = [r for r in table.to_pylist() if r["step"] in (0, 60)]
    right = {(r["recipe"], r["example"]): r["correct"] for r in last
             if r["condition"] == "base"}  # fmt: skip
    flipped = [r for r in last if "caption" in r["condition"]
               and right[r["recipe"], r["example"]] and not r["correct"]]  # fmt: skip
    assert seen["flipped"] == len(flipped)
    assert "caption" in seen["first"] and "caption" in seen["flippedAre"]
    wrong_reason = [r for r in last if r["verdict"] == "inconsistent" and r["correct"]]
    assert seen["wrongReason"] == len(wrong_reason) > 0
    assert "right for the wrong reason" in seen["badges"]

    mine = [r for r in last if r["recipe"] == "accuracy"]
    second = next(r for r in mine if r["condition"] == "wrong_think"
                  and r["example"] == seen["second"])  # fmt: skip
    assert seen["second"] in seen["active"]
    assert seen["mark"] == seen["prefill"] == second["prefill"]
    assert seen["bars"] == len(second["options"]) and seen["room"] > 60
    assert seen["probes"] == len(second["sighted"])
    assert seen["beside"].split(" · ")[1] == "wrong_caption"
    none = sum(r["predicted"] < 0 for r in mine if r["condition"] == "base")
    assert seen["none"] == none and seen["named"] == 18
    assert seen["selected"] == 1 and seen["wide"]

    row = next(r for r in metrics if (r["recipe"], r["step"], r["condition"])
               == ("accuracy", 60, "wrong_think"))  # fmt: skip
    assert seen["cell"] == f"{100 * row['accuracy']:.1f}"
    assert (
        f"[{100 * row['accuracy_lo']:.1f}, " in seen["told"]
        and "n = 60" in seen["told"]
    )
    assert seen["opened"] == 60 and "wrong_think" in seen["openedAre"]
    assert seen["focus"] == "list"
    assert seen["step"].startswith("step 0: base ")
    assert seen["fewer"] == seen["lines"] - 1 == 3
    assert "ECE" in seen["calibration"] and seen["theme"] == "dark"


@pytest.mark.axe
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(tmp_path, page, theme):
    axe = f"<script>{AXE.read_text(encoding='utf-8')}</script>"
    script = f"""
      document.documentElement.dataset.theme = "{theme}";
      document.querySelectorAll("details").forEach((d) => {{ d.open = true; }});
      await pause(100);
      const found = await axe.run(document, {{ resultTypes: ["violations"] }});
      done({{ passes: found.passes.length, violations: found.violations.map((v) => (
        [v.impact, v.id, v.nodes.length, v.nodes[0].html.slice(0, 200)])) }});
    """
    head, _, tail = page.rpartition("</body>")
    seen, _ = chromium.visit(f"{head}{axe}</body>{tail}", tmp_path, script)
    assert seen["passes"] > 15
    assert [v for v in seen["violations"] if v[0] in ("serious", "critical")] == []


MANY = """
  // a frame's scroll events come before its callbacks; timers may see none of them
  const frame = () => new Promise((go) => requestAnimationFrame(() => setTimeout(go)));
  const nodes = () => document.querySelectorAll("*").length;
  const rows = () => Number($("count").textContent.split(" ")[0].replace(",", ""));
  const where = () => document.querySelector("#detail .where").textContent;
  const shown = () => document.querySelector("#detail h3").textContent;
  const parsed = () => JSON.parse($("data").textContent).x.length;
  const list = $("list"), title = document.title;
  const active = () => $(list.getAttribute("aria-activedescendant"));
  const place = () => Number(active().getAttribute("aria-posinset"));
  const seen = { all: rows(), parsed: parsed(), before: nodes() };
  press("list", "End"); await pause(50);
  seen.last = place();
  seen.place = shown();
  let most = 0;
  for (const part of [0, 0.3, 0.6, 0.9, 0.2, 1]) {  // dragging the scroll bar
    list.scrollTop = part * list.scrollHeight; await frame();
    most = Math.max(most, nodes());
    seen.inSight = document.querySelectorAll("#rows > *").length;
  }
  // by mouse a row and filters; by keyboard along the list, and to another condition
  list.scrollTop = 0;
  await frame();
  const third = document.querySelectorAll("#rows > *")[2];
  third.click(); seen.clicked = third.textContent.includes(shown()) && place() === 3;
  choose("f-condition", "2"); choose("f-recipe", "1"); choose("f-answer", "wrong");
  seen.filtered = rows(); seen.filteredAre = where();
  press("list", "PageDown"); press("list", "ArrowDown"); press("list", "ArrowUp");
  seen.tenth = place();
  press("list", "ArrowLeft"); seen.beside = where();
  document.querySelector(".filters button").click(); await pause(50);
  for (const k of [0, 7, 19]) {  // hostile text of three copies, all in other chunks
    choose("f-words", `copy-${k}-test-0003`); press("list", "Home");
    seen[`named-${k}`] = rows();
    seen[`text-${k}`] = document.querySelector("#detail pre").textContent;
    await pause(20);
  }
  seen.after = nodes(); seen.most = most;
  const foreign = document.querySelectorAll("#detail pre img, #detail pre b").length;
  seen.owned = document.title !== title || foreign > 0;
  done(seen);
"""


@pytest.mark.slow
def test_20000_rows_cost_the_document_no_more_than_a_few(tmp_path, table, metrics):
    """The list holds the rows in sight; filters by mouse and keyboard run on them all,
    wherever they are, and hostile text among them does not run."""
    copies = [renamed(table, f"copy-{k}-") for k in range(20)]
    many = html.browser(pa.concat_tables(copies), {})
    assert 19_000 < len(many.index["x"]) <= 20_000
    page = html.render_page(synthetic.report(table, metrics, INFO), many)
    seen, console = chromium.visit(page, tmp_path, MANY)
    assert console == []
    count = len(many.index["x"])
    assert seen["all"] == seen["parsed"] == seen["last"] == count
    assert seen["place"] == many.index["examples"][-1]["id"]
    assert 5 < seen["inSight"] < 60
    assert max(seen["most"], seen["before"], seen["after"]) < 5000
    assert seen["clicked"]
    columns = (many.index[name] for name in ("c", "v", "ok"))
    wrong = sum(c == 2 and v == 1 and not ok for c, v, ok in zip(*columns, strict=True))
    assert seen["filtered"] == wrong > 100
    recipe = many.index["variants"][1]
    assert seen["filteredAre"].endswith(f"{many.index['conditions'][2]} · {recipe}")
    assert seen["tenth"] == 11
    assert seen["beside"].endswith(f"{many.index['conditions'][1]} · {recipe}")
    held = {e["id"] for e in many.index["examples"]}
    found = [k for k in (0, 7, 19) if f"copy-{k}-test-0003" in held]
    assert found
    for k in found:
        assert seen[f"named-{k}"] == 18
        assert "onerror" in seen[f"text-{k}"]
    assert not seen["owned"]


def renamed(table, prefix):
    """The same records of other examples, of which no two share an image."""
    for name in ("example", "cluster"):
        at = table.schema.get_field_index(name)
        names = [prefix + text for text in table.column(name).to_pylist()]
        table = table.set_column(at, name, pa.array(names, pa.string()))
    return table


def test_a_page_of_what_tells_no_letters(tmp_path, table, metrics):
    """Another tool's log has no letters, no entropy and no probes: its rows open."""
    rows = [{**r, **unmeasured()} for r in table.slice(0, 40).to_pylist()]
    bare = pa.Table.from_pylist(rows, schema=records.SCHEMA)
    page = html.render_page(
        synthetic.report(bare, measures.summarise(bare), INFO), html.browser(bare, {})
    )
    script = """
      press("list", "End");
      const badges = document.querySelectorAll("#detail .badges li");
      done({ badges: [...badges].map((b) => b.textContent),
             bars: document.querySelectorAll("#detail .bars tr").length });
    """
    seen, console = chromium.visit(page, tmp_path, script)
    assert console == [] and seen["bars"] > 1 and seen["badges"]
    words = ("NaN", "null", "entropy", "think tokens")
    assert not [b for b in seen["badges"] if any(w in b for w in words)]


def test_hostile_text_is_shown_and_does_not_run(tmp_path, page):
    visit = "location.hash = '#test-0003~1~0';"
    path = tmp_path / "report.html"
    path.write_text(
        page.replace("<head>", f"<head><script>{visit}</script>", 1), encoding="utf-8"
    )
    dom, console = chromium.run(path, tmp_path / "profile")
    assert console == []
    detail = dom[dom.index('<article id="detail"') :]
    detail = detail[: detail.index("</article>")]
    shown = html_.escape(synthetic.HOSTILE, quote=False)
    # probes along the think may stand inside it
    plain = "".join(
        part.split("</span>")[-1] for part in detail.split('<span class="probe')
    )
    assert shown in plain or shown in detail
    assert "<title>A &lt;b&gt;run&lt;/b&gt;</title>" in dom


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_screenshots(tmp_path, page, theme):
    """Kept in $VLMRL_ARTIFACTS where it is set; the background is the theme's."""
    scheme = {"light": 1, "dark": 0}[theme]
    path = chromium.picture(
        page,
        tmp_path,
        f"report-{theme}",
        "--window-size=1280,9000",
        f"--blink-settings=preferredColorScheme={scheme}",
    )
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    assert pixels.shape[1] == 1280
    assert (np.median(pixels) > 200) == (theme == "light")
