"""The figures of a run, at paper size, as PNG and PDF.

`build` draws them all from metric rows alone. Colours are Okabe and Ito's, which
colour-blind readers tell apart (https://jfly.uni-koeln.de/color/), and every series
also has a marker of its own. The dark theme is for the page; files are light.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from vlmrl.report.render import write_files
from vlmrl.report.tables import (
    Point,
    final,
    points,
    reading_note,
    seeds_note,
    span,
)
from vlmrl.types import UserError

WIDTH = 6.75  # inches: a full text width of the usual two-column paper
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A7A7A")
MARKERS = "osD^vPX*"
CORRECT, SUGGESTED = "#0072B2", "#D55E00"

_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text
    "svg.fonttype": "none",
}
_INK = {
    "light": {
        "ink": "#1f2328",
        "paper": "#ffffff",
        "grid": "#e3e5e8",
        "other": "#d5d8dc",
    },
    "dark": {
        "ink": "#dfe3e8",
        "paper": "#1b1f24",
        "grid": "#343a42",
        "other": "#4a515b",
    },
}


class Drawing(NamedTuple):
    """A figure with the words that go with it."""

    name: str  # file stem
    title: str
    caption: str
    figure: Figure


def build(rows: list[dict], theme: str = "light") -> list[Drawing]:
    """Return every figure of a run: accuracy per condition and letter shift for each
    split, and learning curves for each split measured at two steps or more.

    Args:
      rows: `measures.summarise` of the records.
      theme: 'light' or 'dark'.
    """
    all_points = points(rows)
    if not all_points:
        raise UserError("records: no rows; evaluate something first")
    ink = _INK[theme]
    style = _STYLE | {
        f"{name}.color" if "." not in name else name: ink["ink"]
        for name in ("text", "xtick", "ytick", "axes.edgecolor", "axes.labelcolor")
    }
    style |= {
        "figure.facecolor": ink["paper"],
        "axes.facecolor": ink["paper"],
        "savefig.facecolor": ink["paper"],
        "grid.color": ink["grid"],
    }
    out = []
    with matplotlib.rc_context(style):
        for split in dict.fromkeys(p.split for p in all_points):
            here = [p for p in all_points if p.split == split]
            if any(p.mean("accuracy") is not None for p in final(here)):
                out.append(_accuracy(split, here, ink))
            if any(p.mean("p_correct") is not None for p in final(here)):
                out.append(_letters(split, here, ink))
            if len({p.step for p in here}) > 1:
                out.append(_steps(split, here, ink))
    return out


def _accuracy(split: str, points: list[Point], ink: dict) -> Drawing:
    """Return accuracy per condition, a row each, a marker per recipe, intervals."""
    points = [p for p in final(points) if p.mean("accuracy") is not None]
    recipes, conditions = _unique(points, "recipe"), _unique(points, "condition")
    height = 0.55 + len(conditions) * max(0.24, 0.095 * len(recipes) + 0.07)
    figure = _figure(height + 0.55)
    axes = figure.add_subplot()
    gap = min(0.22, 0.66 / len(recipes))
    for r, recipe in enumerate(recipes):
        mine = [p for p in points if p.recipe == recipe]
        bars = np.array([p.interval("accuracy") for p in mine], float) * 100
        y = [
            conditions.index(p.condition) + gap * (r - (len(recipes) - 1) / 2)
            for p in mine
        ]
        reach = np.nan_to_num(np.abs(bars[:, 1:] - bars[:, :1]).T)
        axes.errorbar(
            bars[:, 0],
            y,
            xerr=reach,
            fmt=MARKERS[r % len(MARKERS)],
            color=COLOURS[r % len(COLOURS)],
            markersize=4,
            markeredgewidth=0,
            elinewidth=1.1,
            label=f"{recipe}, step {mine[0].step}",
        )
    for i in range(1, len(conditions), 2):
        axes.axhspan(i - 0.5, i + 0.5, color=ink["grid"], alpha=0.35, lw=0, zorder=0)
    axes.set_yticks(range(len(conditions)), conditions)
    axes.set_ylim(len(conditions) - 0.5, -0.5)
    axes.set_xlim(-1, 101)
    axes.set_xlabel("Accuracy (%)")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    _legend(figure, axes.get_legend_handles_labels(), len(recipes))
    return Drawing(
        f"accuracy-{split}",
        f"Accuracy per condition, {split}",
        "Same items and images in every row, where the condition applies; only text "
        f"differs. {reading_note(points)}n = {span(p.n for p in points)} per point. "
        f"{seeds_note(points)}",
        figure,
    )


def _steps(split: str, points: list[Point], ink: dict) -> Drawing:
    """Return accuracy, consistency and entropy against step; a row of panels per
    recipe."""
    panels = (
        ("accuracy", "Accuracy (%)", 100),
        ("consistent", "Consistent (%)", 100),
        ("entropy", "Letter entropy (nats)", 1),
    )
    start = [p for p in points if p.starts]
    recipes = _unique([p for p in points if not p.starts] or points, "recipe")
    conditions = _legible(_unique(points, "condition"))
    figure = _figure(0.55 + 1.65 * len(recipes))
    grid = figure.subplots(len(recipes), 3, sharex=True, sharey="col", squeeze=False)
    for (r, recipe), (c, (measure, label, scale)) in (
        (row, panel) for row in enumerate(recipes) for panel in enumerate(panels)
    ):
        axes = grid[r, c]
        for k, condition in enumerate(conditions):
            curve = [
                p for p in points if p.condition == condition and p.recipe == recipe
            ]
            if not any(p.starts for p in curve) and all(p.step for p in curve):
                curve = [p for p in start if p.condition == condition] + curve
            xs, ys = [], []
            for p in sorted(curve, key=lambda p: p.step):
                value = p.mean(measure)
                if value is not None:
                    xs, ys = [*xs, p.step], [*ys, scale * value]
            if not xs:  # an unclipped empty line would have its box at the origin
                continue
            colour = COLOURS[k % len(COLOURS)]
            axes.plot(
                xs,
                ys,
                marker=MARKERS[k % len(MARKERS)],
                color=ink["ink"] if condition == "base" else colour,
                lw=1.6 if condition == "base" else 1.1,
                markersize=3.2,
                label=condition,
                clip_on=False,
            )
            if curve and len(curve[-1].rows) > 1:
                _band(axes, curve, measure, scale, colour)
        axes.set_title(label if r == 0 else "", loc="left")
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        if c == 0:
            axes.set_ylabel(recipe, fontweight="bold")
        if r == len(recipes) - 1:
            axes.set_xlabel("RL step")
    for column, (_, _, scale) in zip(grid.T, panels, strict=True):
        if scale == 1:
            column[0].set_ylim(0, None)
            continue
        # shares: up to 100, down to the ten below the lowest
        drawn = [min(line.get_ydata()) for axes in column for line in axes.lines]
        least = min(drawn, default=0) / 10 - 0.5
        column[0].set_ylim(max(0, 10 * np.floor(least)), 100)
    _legend(figure, grid[0, 0].get_legend_handles_labels(), 4)
    more = [c for c in _unique(points, "condition") if c not in conditions]
    return Drawing(
        f"steps-{split}",
        f"Learning curves, {split}",
        "Consistent: the think's conclusion agrees with the answer, undecided counted "
        "as failure; it is not defined where there is no think. "
        + reading_note(points)
        + ("Not drawn: " + ", ".join(more) + ". " if more else "")
        + seeds_note(points),
        figure,
    )


def _band(axes, curve, measure, scale, colour):
    """Draw the range over seeds behind their mean."""
    curve = sorted(curve, key=lambda p: p.step)
    curve = [p for p in curve if p.mean(measure) is not None]
    values = [
        [scale * r[measure] for r in p.rows if r[measure] is not None] for p in curve
    ]
    axes.fill_between(
        [p.step for p in curve],
        [min(v) for v in values],
        [max(v) for v in values],
        color=colour,
        alpha=0.15,
        lw=0,
    )


def _legible(conditions: list[str]) -> list[str]:
    """Return at most seven conditions a reader can follow: base and the bare misleading
    ones before their softened and abstaining variants."""
    first = (
        "base",
        "wrong_caption",
        "wrong_think",
        "stop_think",
        "correct_caption",
        "correct_think",
        "no_cot",
    )
    ranked = [c for c in first if c in conditions]
    ranked += [c for c in conditions if c not in ranked]
    return ranked[:7]


def _letters(split: str, points: list[Point], ink: dict) -> Drawing:
    """Draw P(correct), P(suggested) and the rest: a bar per condition, a panel per
    recipe."""
    points = [p for p in final(points) if p.mean("p_correct") is not None]
    recipes, conditions = _unique(points, "recipe"), _unique(points, "condition")
    figure = _figure(0.95 + 0.21 * len(conditions))
    grid = figure.subplots(1, max(len(recipes), 1), sharey=True, squeeze=False)[0]
    parts = (
        ("p_correct", "P(correct)", CORRECT),
        ("p_suggested", "P(suggested)", SUGGESTED),
        ("p_other", "P(other options)", ink["other"]),
    )
    for axes, recipe in zip(grid, recipes, strict=False):
        mine = [p for p in points if p.recipe == recipe]
        y = [conditions.index(p.condition) for p in mine]
        left = np.zeros(len(mine))
        for name, _, colour in parts:
            width = np.array([p.mean(name) or 0.0 for p in mine])
            axes.barh(y, width, 0.72, left, color=colour, lw=0)
            left += width
        base = [p.mean("p_correct") for p in mine if p.condition == "base"]
        if base:  # what the other bars are to be read against
            axes.axvline(base[0], color=ink["ink"], lw=0.8, ls=(0, (3, 2)))
        axes.set_title(f"{recipe}\nstep {mine[0].step}", loc="left")
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
        axes.tick_params(axis="y", length=0)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
    grid[0].set_yticks(range(len(conditions)), conditions)
    grid[0].set_ylim(len(conditions) - 0.5, -0.5)
    handles = [Patch(color=colour) for _, _, colour in parts]
    handles.append(Line2D([], [], color=ink["ink"], lw=0.8, ls=(0, (3, 2))))
    labels = [label for _, label, _ in parts] + ["P(correct) under base"]
    _legend(figure, (handles, labels), 4)
    return Drawing(
        f"letters-{split}",
        f"Letter distribution, {split}",
        "Mean probability of the right option, of the one wrong option that every "
        "misleading text suggests, and of the rest, after the model's own chain of "
        "thought, over the item's options, of the "
        f"{span(p.rows[0]['scored_n'] for p in points)} rows per bar that have them. "
        f"{seeds_note(points)}",
        figure,
    )


def _figure(height: float) -> Figure:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _legend(figure, handles_labels, columns):
    handles, labels = handles_labels
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=max(1, min(columns, 4, len(labels))),
        handlelength=1.8,
        columnspacing=1.6,
    )


def _unique(points: list[Point], field: str) -> list[str]:
    return list(dict.fromkeys(getattr(p, field) for p in points))


def png(figure: Figure, dpi: int = 200) -> bytes:
    """Return the figure as PNG bytes, the same for the same figure."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=dpi, metadata={"Software": None})
    return out.getvalue()


def _pdf(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="pdf", metadata={"CreationDate": None})
    return out.getvalue()


_WRITERS: dict[str, Callable[[Figure], bytes]] = {"png": png, "pdf": _pdf}


def write(folder: str | os.PathLike, drawings: list[Drawing]) -> list[Path]:
    """Write each figure as .png and .pdf; return the paths.

    Raises:
      UserError: where the folder can't be written.
    """
    files = {
        f"{drawing.name}.{ending}": render(drawing.figure)
        for drawing in drawings
        for ending, render in _WRITERS.items()
    }
    return write_files(folder, files, "figures")
