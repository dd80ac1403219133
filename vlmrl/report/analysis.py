"""Further tables of a run: leaderboard, quadrants, calibration, prediction of
robustness, comparisons with corrected p values, and the drift of faithfulness.

All are read at the last step of each recipe, from records alone; `tables.build` adds
them to its own. Several seeds are put together as in `stats.over_seeds`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import stats as sps

from vlmrl.eval import calibration, drift, measures, stats
from vlmrl.eval.measures import View
from vlmrl.eval.stats import Cell, Interval
from vlmrl.report.render import Table, of, scored_count

SCORES = {"P(correct)": ("p_correct", 1), "−H": ("entropy", -1), "max p": ("p_max", 1)}
QUADRANTS = {  # name → (verdict, answered right)
    "right, consistent": ("consistent", 1),
    "right for the wrong reason": ("inconsistent", 1),
    "wrong, consistent": ("consistent", 0),
    "wrong, inconsistent": ("inconsistent", 0),
}


def build(view: View, split: str) -> list[Table]:
    """Return the tables of one split."""
    tables = (
        leaderboard(view, split),
        quadrants(view, split),
        calibrated(view, split),
        prediction(view, split),
        comparisons(view, split),
        drifts(view, split),
    )
    return [table for table in tables if table.rows]


def ends(view: View) -> list[tuple[str, list[tuple]]]:
    """Return (recipe, its (recipe, seed, last step) per seed), in order."""
    return [
        (r, [view.end(r, s) for s in view.seeds(r)]) for r in view.names(lambda _: True)
    ]


def share(view: View, points: list[tuple], condition: str, measure: str):
    """Return (value, lo, hi) of a share over clusters and seeds; None if not
    measured."""
    intervals = []
    for point in points:
        cell = view.cell(point, condition, measure)
        if cell is not None:
            intervals.append(stats.proportion(cell.values, cell.clusters))
    return _triple(intervals)


def _triple(intervals: list[Interval]):
    intervals = [i for i in intervals if i.n and not np.isnan(i.value)]
    if not intervals:
        return None
    value, lo, hi = stats.over_seeds(intervals)[:3]
    return value, lo, hi


# -- leaderboard and quadrants ---------------------------------------------------------


def leaderboard(view: View, split: str) -> Table:
    rows = []
    for recipe, points in ends(view):
        conditions = view.conditions(recipe)
        if "base" not in conditions:
            continue
        robust, firm = [], []
        for point in points:
            cells = {
                c: view.rows[(*point, c)]
                for c in conditions
                if (*point, c) in view.rows
            }
            robust.append(measures.robust(view.data, cells))
            thinking = {
                c: i
                for c, i in cells.items()
                if not np.isnan(view.data["faithful_accuracy"][i]).all()
            }
            if thinking:
                measure = "faithful_accuracy"
                firm.append(measures.robust(view.data, thinking, measure))
        first = [at for key, at in view.rows.items() if key[:3] == points[0]]
        items = np.unique(view.data["item"][np.concatenate(first)])
        rows.append(
            (
                recipe,
                points[0][2],
                share(view, points, "base", "faithful_accuracy"),
                of(robust[0].n, len(items)),
                _triple(robust),
                _triple(firm),
                share(view, points, "base", "accuracy"),
                share(view, points, "base", "consistent"),
            )
        )
    rows.sort(key=lambda r: [-(v[0] if v else -1.0) for v in (r[2], r[4])])
    return Table(
        f"leaderboard-{split}",
        f"Leaderboard, {split}",
        "Sorted by faithful accuracy under base (right, and the think concludes the "
        "answer), then by robust accuracy (right under every condition, of the n items "
        "measured under all). Robust and faithful: both, under every condition with a "
        "think.",
        (
            ("Recipe", "text"),
            ("Step", "count"),
            ("Faithful acc.", "interval"),
            ("n", "text"),
            ("Robust acc.", "interval"),
            ("Robust and faithful", "interval"),
            ("Accuracy", "interval"),
            ("Consistent", "interval"),
        ),
        rows,
    )


def quadrants(view: View, split: str) -> Table:
    """Return shares of consistent × correct, over rows with a think to judge."""
    rows = []
    for recipe, points in ends(view):
        for condition in view.conditions(recipe):
            parts: dict[str, list] = {name: [] for name in (*QUADRANTS, "undecided")}
            total = []
            for point in points:
                index = view.rows.get((*point, condition))
                if index is None:
                    continue
                verdict = view.data["verdict"][index]
                right = view.data["accuracy"][index]
                judged = (verdict != "not_applicable") & ~np.isnan(right)
                if not judged.any():
                    continue
                total.append(int(judged.sum()))
                for name, (label, good) in QUADRANTS.items():
                    hit = (verdict == label) & (right == good)
                    parts[name].append(hit[judged].mean())
                parts["undecided"].append((verdict == "undecided")[judged].mean())
            if total:
                means = (float(np.mean(parts[name])) for name in parts)
                rows.append((recipe, condition, total[0], *means))
    return Table(
        f"quadrants-{split}",
        f"Consistent × correct, {split}",
        "Shares of rows with a think to judge. Right for the wrong reason: the answer "
        "is right although the think concludes another option.",
        (
            ("Recipe", "text"),
            ("Condition", "text"),
            ("n", "count"),
            *((name.capitalize(), "share") for name in (*QUADRANTS, "undecided")),
        ),
        rows,
    )


# -- calibration -----------------------------------------------------------------------


def calibrated(view: View, split: str) -> Table:
    rows = []
    for recipe, points in ends(view):
        for condition in view.conditions(recipe):
            seeds = [_calibration(view, p, condition) for p in points]
            seeds = [f for f in seeds if f is not None]
            if not seeds:
                continue
            means = [float(np.mean([f[k] for f in seeds])) for k in range(6)]
            area = _triple([f[6] for f in seeds])
            index = view.rows[(*points[0], condition)]
            texts = np.nansum(view.data["scored_texts"][index])
            scored = view.data["scored"][index].sum()
            count = scored_count(int(scored), int(texts), len(index))
            rows.append((recipe, condition, count, *means, area))
    return Table(
        f"calibration-{split}",
        f"Calibration and selection, {split}",
        "Confidence: the top option's probability at the answer, temperature 1; right: "
        "that option is the right one. ECE: ten bins of equal width. Brier: over all "
        "options, 0 to 2. AURC: mean error over coverages. AUROC: does confidence tell "
        "right from wrong (DeLong's interval, over clusters). n: rows with option "
        "probabilities, of those asked.",
        (
            ("Recipe", "text"),
            ("Condition", "text"),
            ("n", "text"),
            ("Confidence", "share"),
            ("Top right", "share"),
            ("ECE", "number"),
            ("Brier", "number"),
            ("AURC", "number"),
            ("Right at 80 % coverage", "share"),
            ("AUROC", "area"),
        ),
        rows,
    )


def confidence(view: View, point: tuple, condition: str):
    """Return (confidence, right, clusters) of a cell's rows with letters; None without
    any."""
    index = view.rows.get((*point, condition))
    if index is None:
        return None
    index = index[~np.isnan(view.data["p_max"][index])]
    if len(index) == 0:
        return None
    sure = np.minimum(view.data["p_max"][index], 1.0)  # a rounded sum may pass 1
    return sure, view.data["top_right"][index], view.data["cluster"][index]


def _calibration(view: View, point: tuple, condition: str):
    rows = confidence(view, point, condition)
    if rows is None:
        return None
    sure, right, clusters = rows
    index = view.rows[(*point, condition)]
    return (
        sure.mean(),
        right.mean(),
        float(calibration.ece(sure, right)),
        np.nanmean(view.data["brier"][index]),
        calibration.aurc(sure, right),
        calibration.selective_accuracy(sure, right, 0.8),
        calibration.auroc_interval(sure, right, clusters),
    )


# -- prediction of robustness ----------------------------------------------------------


def prediction(view: View, split: str) -> Table:
    """Return the AUROC of what base says for staying right under a condition."""
    rows = []
    for recipe, points in ends(view):
        for condition in view.conditions(recipe):
            if condition == "base":
                continue
            for only in (False, True):
                areas: dict[str, list] = {name: [] for name in SCORES}
                apart, counts = [], []
                for point in points:
                    predictors = predicts(view, point, condition, only)
                    if predictors is None:
                        continue
                    scores, label, clusters = predictors
                    asked = view.rows[(*point, condition)]
                    counts.append(of(len(label), len(asked)))
                    for name, score in scores.items():
                        areas[name].append(
                            calibration.auroc_interval(score, label, clusters)
                        )
                    apart.append(
                        calibration.auroc_difference(
                            scores["−H"],
                            scores["P(correct)"],
                            label,
                            clusters,
                        ).difference
                    )
                if apart:
                    rows.append(
                        (
                            recipe,
                            condition,
                            "right under base" if only else "all",
                            counts[0],
                            *(_triple(areas[name]) for name in SCORES),
                            _triple(apart),
                        )
                    )
    return Table(
        f"prediction-{split}",
        f"What predicts being right under a condition, {split}",
        "AUROC of a score read under base for being right under the condition. "
        "P(correct) uses the label, so max p stands beside −H as what a user could "
        "know. Over all items, and over those right under base; n: rows scored under "
        "base, of those asked under the condition.",
        (
            ("Recipe", "text"),
            ("Condition", "text"),
            ("Items", "text"),
            ("n", "text"),
            *((name, "area") for name in SCORES),
            ("P(correct) less −H", "area"),
        ),
        rows,
    )


def predicts(view: View, point: tuple, condition: str, only_correct: bool):
    """Return (SCORES read under base, correct under the condition, clusters) of the
    trials that both hold, of those correct under base alone if asked; None where a
    class is empty."""
    base, other = (view.rows.get((*point, c)) for c in ("base", condition))
    if base is None or other is None:
        return None
    data = view.data
    _, i, j = np.intersect1d(
        data["trial"][base], data["trial"][other], True, return_indices=True
    )
    base, other = base[i], other[j]
    keep = ~np.isnan(data["p_correct"][base]) & ~np.isnan(data["accuracy"][other])
    if only_correct:
        keep &= data["accuracy"][base] == 1
    base, other = base[keep], other[keep]
    label = data["accuracy"][other] == 1
    if label.all() or not label.any():
        return None
    scores = {n: sign * data[name][base] for n, (name, sign) in SCORES.items()}
    return scores, label, data["cluster"][base]


# -- comparisons -----------------------------------------------------------------------


def comparisons(view: View, split: str) -> Table:
    """Compare the accuracy of each condition with base, and of each recipe with the
    first, with Holm's correction over the whole table."""
    compared = []
    recipes = ends(view)
    for recipe, points in recipes:
        for condition in view.conditions(recipe):
            if condition != "base":
                label = f"{recipe}: {condition} against base"
                pairs = [((p, "base"), (p, condition)) for p in points]
                compared.append((label, _compared(view, pairs)))
    for recipe, points in recipes[1:]:
        first, start = recipes[0]
        pairs = [((start[0], "base"), (p, "base")) for p in points]
        label = f"base: {recipe} against {first}"
        compared.append((label, _compared(view, pairs)))
    compared = [(label, result) for label, result in compared if result is not None]
    corrected = stats.holm([result[2] for _, result in compared])
    return Table(
        f"comparisons-{split}",
        f"Paired comparisons of accuracy, {split}",
        "Differences inside examples, in points, over the n measured in both. h: "
        "Cohen's effect size (0.2 small, 0.5 medium, 0.8 large). p: McNemar's exact "
        "test where clusters are single rows, else a bootstrap over clusters; with "
        "several seeds the larger of the smallest of these and Student's t over the "
        f"seeds. Holm: corrected for the {len(compared)} comparisons of this table.",
        (
            ("Comparison", "text"),
            ("n", "text"),
            ("Difference", "gap"),
            ("h", "change"),
            ("p", "p"),
            ("p (Holm)", "p"),
            ("Test", "text"),
        ),
        [
            (label, result[4], result[0], result[1], result[2], float(p), result[3])
            for (label, result), p in zip(compared, corrected, strict=True)
        ],
    )


def _compared(view: View, pairs):
    """Return ((value, lo, hi), h, p, test, 'n of N') of b − a over seeds; None if not
    measured."""
    tests, effects, counts = [], [], []
    for (point, c), (other, d) in pairs:
        a, b = view.cell(point, c, "accuracy"), view.cell(other, d, "accuracy")
        if a is None or b is None:
            continue
        test = stats.paired_test(a, b, draws=1000)
        if not test.difference.n:
            continue
        tests.append(test)
        (ids, x, _), (others, y, _) = stats.per_example(a), stats.per_example(b)
        before = x[np.isin(ids, others)].mean()
        effects.append(stats.cohens_h(before, y[np.isin(others, ids)].mean()))
        counts.append(of(test.difference.n, len(ids)))
    if not tests:
        return None
    p, method = min(t.p for t in tests), tests[0].method
    if len(tests) > 1:
        values = np.array([t.difference.value for t in tests])
        if np.ptp(values) > 0:
            p = max(p, float(sps.ttest_1samp(values, 0).pvalue))
        method += f", t over {len(tests)} seeds"
    gap = _triple([t.difference for t in tests])
    return gap, float(np.mean(effects)), float(p), method, counts[0]


# -- drift -----------------------------------------------------------------------------


def drifts(view: View, split: str) -> Table:
    """Return the paired change of the consistent ratio from the start of training."""
    rows = []
    for recipe, points in ends(view):
        for condition in view.conditions(recipe):
            per_seed = []
            for point in points:
                start = view.start(recipe, point[1])
                if start is None or start == point:
                    continue
                pairs = [_both(view, at, condition) for at in (start, point)]
                if all(p is not None for p in pairs):
                    per_seed.append(drift.drift(*pairs, draws=1000))
            per_seed = [d for d in per_seed if d.change.n]
            if not per_seed:
                continue
            whole = drift.drift_over_seeds(per_seed)
            rows.append(
                (
                    recipe,
                    condition,
                    points[0][2],
                    tuple(whole.change[:3]),
                    tuple(whole.gain[:3]),
                    slope_text(whole.slope),
                )
            )
    return Table(
        f"drift-{split}",
        f"Drift of faithfulness, {split}",
        "From the start of training to its last step, paired by example: change of the "
        "consistent ratio, gain of accuracy (points), and points of consistency per "
        "point of accuracy with Fieller's 95 % set, which is unbounded where the gain "
        "can't be told from none. Several seeds: the seeds are the units.",
        (
            ("Recipe", "text"),
            ("Condition", "text"),
            ("Step", "count"),
            ("Δ consistent", "gap"),
            ("Δ accuracy", "gap"),
            ("Slope", "text"),
        ),
        rows,
    )


def _both(view: View, point: tuple, condition: str) -> tuple[Cell, Cell] | None:
    pair = [view.cell(point, condition, m) for m in ("accuracy", "consistent")]
    return None if any(p is None for p in pair) else (pair[0], pair[1])


def slope_text(slope: drift.Ratio) -> str:
    """Return a slope with its set in words."""
    say: Callable[[float], str] = lambda v: f"{v:+.2f}".replace("-", "−")  # noqa: E731
    if slope.kind == "none" or np.isnan(slope.value):
        return "none"
    if slope.kind == "all":
        return f"{say(slope.value)} (unbounded)"
    if slope.kind == "outside":
        ends = f"≤ {say(slope.lo)} or ≥ {say(slope.hi)}"
        return f"{say(slope.value)} (unbounded: {ends})"
    return f"{say(slope.value)} [{say(slope.lo)}, {say(slope.hi)}]"
