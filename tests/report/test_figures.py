"""Figures are drawn from metric rows, at paper size, with nothing over anything."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from vlmrl.report import figures
from vlmrl.types import UserError


@pytest.fixture(scope="module")
def drawings(metrics):
    made = figures.build(metrics)
    for drawing in made:
        drawing.figure.canvas.draw()
    return {d.name: d for d in made}


def test_the_three_figures_and_their_words(drawings):
    assert list(drawings) == ["accuracy-test", "letters-test", "steps-test"]
    for drawing in drawings.values():
        assert "One seed" in drawing.caption
        assert drawing.figure.get_figwidth() == figures.WIDTH


def test_accuracy_points_are_the_metric_rows(drawings, metrics):
    (axes,) = drawings["accuracy-test"].figure.axes
    labels = [text.get_text() for text in axes.get_yticklabels()]
    drawn = {
        container.get_label(): container.lines[0].get_xydata()
        for container in axes.containers
    }
    assert set(drawn) == {
        "warm-start, step 0",
        "accuracy, step 60",
        "faithfulness, step 60",
    }
    for row in metrics:
        points = drawn.get(f"{row['recipe']}, step {row['step']}")
        if points is not None:
            x = points[np.round(points[:, 1]) == labels.index(row["condition"]), 0]
            assert x == pytest.approx(100 * row["accuracy"])


def test_courses_start_at_the_warm_start(drawings, metrics):
    panel = drawings["steps-test"].figure.axes[0]
    base = next(line for line in panel.lines if line.get_label() == "base")
    want = [
        100 * r["accuracy"]
        for r in metrics
        if r["condition"] == "base" and r["recipe"] in ("warm-start", "accuracy")
    ]
    assert list(base.get_xdata()) == [0, 20, 40, 60]
    assert list(base.get_ydata()) == pytest.approx(want)


def test_letter_bars_fill_the_row(drawings):
    for axes in drawings["letters-test"].figure.axes:
        ends = [bar.get_x() + bar.get_width() for bar in axes.patches]
        assert max(ends) == pytest.approx(1)
        assert len(axes.patches) == 3 * 6


def _texts(figure):
    """Every text a reader sees; shared axes draw tick labels on outer panels only, and
    matplotlib keeps labels of ticks beyond the limits without drawing them."""
    for axes in figure.axes:
        yield from (axes.xaxis.label, axes.yaxis.label, axes._left_title)
        for axis, side in ((axes.xaxis, "labelbottom"), (axes.yaxis, "labelleft")):
            lo, hi = sorted(axis.get_view_interval())
            if axis.get_tick_params()[side]:
                ticks = [t for t in axis.get_major_ticks() if lo <= t.get_loc() <= hi]
                yield from (tick.label1 for tick in ticks)
    for legend in figure.legends:
        yield from legend.get_texts()


def test_no_label_overlaps_another_or_leaves_the_page(drawings):
    for drawing in drawings.values():
        figure = drawing.figure
        boxes = [
            (text.get_text(), text.get_window_extent(figure.canvas.get_renderer()))
            for text in _texts(figure)
            if text.get_visible() and text.get_text()
        ]
        assert len(boxes) > 12
        for words, box in boxes:
            assert box.x0 >= -1 and box.x1 <= figure.bbox.x1 + 1, words
            assert box.y0 >= -1 and box.y1 <= figure.bbox.y1 + 1, words
        for (a, one), (b, other) in itertools.combinations(boxes, 2):
            assert not one.overlaps(other), f"{drawing.name}: {a!r} over {b!r}"


def test_files_are_png_and_pdf_of_the_same_size(tmp_path, metrics):
    made = figures.build(metrics)[:1]
    paths = figures.write(tmp_path / "figures", made)
    assert [p.name for p in paths] == ["accuracy-test.png", "accuracy-test.pdf"]
    assert sorted(tmp_path.joinpath("figures").iterdir()) == sorted(paths)
    with Image.open(paths[0]) as image:
        assert image.width == figures.WIDTH * 200
    assert paths[1].read_bytes().startswith(b"%PDF")
    again = figures.png(figures.build(metrics)[0].figure)
    assert again == paths[0].read_bytes()


def test_the_dark_theme_is_dark(metrics):
    drawing = figures.build(metrics, "dark")[0]
    with Image.open(io.BytesIO(figures.png(drawing.figure, dpi=30))) as image:
        assert np.median(np.asarray(image.convert("L"))) < 60


def test_one_step_has_no_course(metrics):
    rows = [r for r in metrics if r["recipe"] == "warm-start"]
    assert [d.name for d in figures.build(rows)] == ["accuracy-test", "letters-test"]


def test_no_rows_is_one_line():
    with pytest.raises(UserError, match="no rows"):
        figures.build([])
