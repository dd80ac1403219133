"""The parts of each claim: which numbers it rests on, and their intervals.

Every difference is paired by example and bootstrapped over clusters; several seeds are
put together by `stats.over_seeds`. "Start" is step 0 of the recipe, or the parameters
that the study starts from; "end" is its last step. What a recipe does is read from its
records (`Record.stage`, `augmented`, `faithful`), never from its name; a recipe whose
records don't say it, or a model that was only evaluated, takes part in no claim about
training. *Plain* recipes are trained with neither augmentation nor a faithfulness
reward, *accuracy-only* ones without that reward.

The parts, per recipe r (C = wrong_caption, T = wrong_think; at the end unless noted);
1, 6 and 7 fall back on models that were only evaluated where there is no plain recipe:

  1  r plain: accuracy(base − C), accuracy(base − T), P(correct)(base − C),
     P(correct)(base − T) > 0; faithful-accuracy drop less accuracy drop, C and T, > 0;
     accuracy(C − T) > 0
  2  r accuracy-only: base accuracy(end − start) > 0; base consistent(start − end) > 0
  3  r accuracy-only: entropy(start − end) > 0 under every condition without abstain
  4  r augmented, accuracy-only: accuracy(C − base) > −SAME; accuracy(base − T) > SAME;
     gain over a plain recipe, C less T, > 0; base consistent(start − end) > 0
  5  r faithful, not augmented: base consistent(r − plain) > 0; base consistent(r −
     start) > −SAME. r both: base consistent(faithful − r) > 0; share of the start's
     think tokens lost > 0
  6  r plain, C and T: AUROC of P(correct | base) for staying correct, less that of −H,
     > FAR, over all items and over those correct under base
  7  r plain: accuracy(c − abstain+c) > −SAME for every such pair; accuracy of each
     correct_* condition − base > −SAME
  8  σ(seeds within a recipe) / σ(recipes) of base accuracy > 1/3, by the F interval
     (`stats.spread_ratio`); needs two trained recipes of two seeds
"""

from __future__ import annotations

import numpy as np

from vlmrl.eval import stats
from vlmrl.eval.measures import View
from vlmrl.report.analysis import predicts
from vlmrl.report.claim import ClaimPart

SAME = 0.05  # "about the same", "no harm": within 5 points
FAR = 0.05  # "far better", in AUROC

PLAIN = {"augmented": False, "faithful": False}
NO_PLAIN = "a recipe trained with neither augmentation nor a faithfulness reward"


def trained(view: View, **facts: bool) -> list[str]:
    """Return the trained recipes, of the given `augmented` and `faithful` if any."""
    return view.names(
        lambda r: (
            view.stage(r) == "trained"
            and all(getattr(view, name)(r) == value for name, value in facts.items())
        )
    )


def untrained(view: View) -> list[str]:
    """Return the models of which no training by a recipe is recorded."""
    return view.names(lambda r: view.stage(r) in ("start", "evaluated"))


# -- parts -----------------------------------------------------------------------------


class Parts:
    """Collect the parts of a claim, and what it needs and lacks."""

    def __init__(self, view: View):
        self.view, self.parts, self.missing = view, [], []

    def add(self, recipe, label, per_seed, floor=0.0, unit="points", **more):
        """Add a part from its interval in each seed, None where it was not measured."""
        per_seed = [i for i in per_seed if i is not None and i.n]
        label = f"{label} (recipe {recipe})" if recipe else label
        if per_seed:
            part = ClaimPart(label, stats.over_seeds(per_seed), floor, unit)
            self.parts.append(part._replace(**more))
        else:
            self.missing.append(label)

    def contrast(self, recipe, label, terms, floor=0.0, unit="points"):
        """Add the part Σ c · measure(cell); `terms(seed)` lists (c, point, condition,
        measure)."""
        per_seed = [
            contrast(self.view, terms(seed)) for seed in self.view.seeds(recipe)
        ]
        self.add(recipe, label, per_seed, floor, unit)

    def need(self, recipes: list[str], what: str) -> list[str]:
        """Return the recipes; note that `what` is missing if there are none."""
        if not recipes:
            unknown = self.view.names(lambda r: self.view.stage(r) == "unknown")
            if unknown:
                names = ", ".join(unknown)
                what += f" (the records of {names} don't say how it was trained)"
            self.missing.append(what)
        return recipes

    def subjects(self) -> list[str]:
        """Return the plain recipes, or else the models that were only evaluated."""
        recipes = trained(self.view, **PLAIN) or untrained(self.view)
        return self.need(recipes, f"{NO_PLAIN}, or an untrained model")

    def done(self):
        return self.parts, self.missing


def contrast(view: View, terms: list[tuple], **bootstrap) -> stats.Interval | None:
    """Return Σ c · measure(cell) of terms (c, point, condition, measure); None where a
    cell was not measured. Keywords as in `stats.contrast`."""
    cells = [(c, view.cell(*where)) for c, *where in terms]
    if any(cell is None for _, cell in cells):
        return None
    return stats.contrast(cells, **bootstrap)


_MISLEADING = ("wrong_caption", "wrong_think")


def _1(view):
    parts = Parts(view)
    for recipe in parts.subjects():

        def drop(measure, condition, sign=1, recipe=recipe):
            return lambda seed: [
                (sign, view.end(recipe, seed), "base", measure),
                (-sign, view.end(recipe, seed), condition, measure),
            ]

        for c in _MISLEADING:
            parts.contrast(recipe, f"accuracy, base − {c}", drop("accuracy", c))
            parts.contrast(recipe, f"P(correct), base − {c}", drop("p_correct", c))
            parts.contrast(
                recipe,
                f"faithful-accuracy drop less accuracy drop, {c}",
                lambda s, c=c, drop=drop: (
                    drop("faithful_accuracy", c)(s) + drop("accuracy", c, -1)(s)
                ),
            )
        parts.contrast(
            recipe,
            "accuracy, wrong_caption − wrong_think",
            lambda s, r=recipe: [
                (1, view.end(r, s), "wrong_caption", "accuracy"),
                (-1, view.end(r, s), "wrong_think", "accuracy"),
            ],
        )
    return parts.done()


def _change(parts, recipe, condition, measure, sign, label, unit="points", floor=0.0):
    """Part: sign · (end − start) of a measure."""
    view = parts.view
    parts.contrast(
        recipe,
        label,
        lambda s: [
            (sign, view.end(recipe, s), condition, measure),
            (-sign, view.start(recipe, s), condition, measure),
        ],
        floor,
        unit,
    )


def _2(view):
    parts = Parts(view)
    for r in parts.need(
        trained(view, faithful=False), "a recipe trained for accuracy only"
    ):
        _change(parts, r, "base", "accuracy", 1, "base accuracy, end − start")
        _change(parts, r, "base", "consistent", -1, "base consistent, start − end")
    return parts.done()


def _3(view):
    parts = Parts(view)
    for r in parts.need(
        trained(view, faithful=False), "a recipe trained for accuracy only"
    ):
        if "stop_think" not in view.conditions(r):
            parts.missing.append(f"stop_think (recipe {r})")
        for c in view.conditions(r):
            if not c.startswith("abstain+"):
                _change(
                    parts, r, c, "entropy", -1, f"entropy, start − end, {c}", "nats"
                )
    return parts.done()


def _4(view):
    parts = Parts(view)
    plain = trained(view, **PLAIN)
    for r in parts.need(
        trained(view, augmented=True, faithful=False),
        "a recipe trained with augmentation alone",
    ):

        def end(condition, sign, r=r):
            return lambda s: (sign, view.end(r, s), condition, "accuracy")

        parts.contrast(
            r,
            "accuracy, wrong_caption − base",
            lambda s, e=end: [e("wrong_caption", 1)(s), e("base", -1)(s)],
            -SAME,
        )
        parts.contrast(
            r,
            "accuracy, base − wrong_think",
            lambda s, e=end: [e("base", 1)(s), e("wrong_think", -1)(s)],
            SAME,
        )
        for p in plain[:1]:
            parts.contrast(
                r,
                f"accuracy gained over {p}, wrong_caption less wrong_think",
                lambda s, e=end, p=p: [
                    e("wrong_caption", 1)(s),
                    (-1, view.end(p, s), "wrong_caption", "accuracy"),
                    e("wrong_think", -1)(s),
                    (1, view.end(p, s), "wrong_think", "accuracy"),
                ],
            )
        if not plain:
            parts.missing.append(NO_PLAIN)
        _change(parts, r, "base", "consistent", -1, "base consistent, start − end")
    return parts.done()


def _5(view):
    parts = Parts(view)

    def versus(recipe, other, sign):
        return lambda s: [
            (sign, view.end(recipe, s), "base", "consistent"),
            (-sign, view.end(other, s), "base", "consistent"),
        ]

    alone = parts.need(
        trained(view, augmented=False, faithful=True),
        "a recipe trained with a faithfulness reward alone",
    )
    plain = parts.need(trained(view, **PLAIN), NO_PLAIN)
    for r in alone:
        for p in plain[:1]:
            parts.contrast(r, f"base consistent, against {p}", versus(r, p, 1))
        label = "base consistent, end − start"
        _change(parts, r, "base", "consistent", 1, label, floor=-SAME)
    for r in parts.need(
        trained(view, augmented=True, faithful=True),
        "a recipe trained with augmentation and a faithfulness reward",
    ):
        for a in alone[:1]:
            parts.contrast(r, f"base consistent, {a} − this", versus(r, a, -1))

        def shorter(s, r=r):
            start, end = view.start(r, s), view.end(r, s)
            cell = view.cell(start, "base", "think_tokens")
            scale = 1 / max(np.nanmean(cell.values), 1e-9) if cell else 1.0
            return [
                (scale, start, "base", "think_tokens"),
                (-scale, end, "base", "think_tokens"),
            ]

        parts.contrast(r, "share of the start's think tokens lost", shorter)
    return parts.done()


def _6(view):
    parts = Parts(view)
    for r in parts.subjects():
        for c in _MISLEADING:
            for only in (False, True):
                seeds = [predicts(view, view.end(r, s), c, only) for s in view.seeds(r)]
                areas = [_areas(*each) for each in seeds if each is not None]
                shown = "/".join(
                    f"{np.mean(v):.2f}"
                    for v in zip(*(each for _, each in areas), strict=True)
                )
                parts.add(
                    r,
                    f"staying correct under {c}"
                    + (", items correct under base" if only else "")
                    + f": AUROC of P(correct)/−H/max p {shown or 'undefined'}",
                    [interval for interval, _ in areas],
                    FAR,
                    "AUROC",
                )
    return parts.done()


def _areas(scores: dict, label, clusters):
    """Return (AUROC(P(correct)) − AUROC(−H) with its interval, the AUROC of each
    score)."""
    first, second = scores["P(correct)"], scores["−H"]
    interval = stats.cluster_bootstrap(
        lambda w: stats.auroc(first, label, w) - stats.auroc(second, label, w),
        clusters,
        draws=1000,
    )
    return interval, [float(stats.auroc(s, label)) for s in scores.values()]


def _7(view):
    parts = Parts(view)
    for r in parts.subjects():

        def against(c, d, r=r):
            return lambda s: [
                (1, view.end(r, s), c, "accuracy"),
                (-1, view.end(r, s), d, "accuracy"),
            ]

        conditions = view.conditions(r)
        pairs = [
            (c, f"abstain+{c}") for c in conditions if f"abstain+{c}" in conditions
        ]
        if not pairs:
            parts.missing.append("a condition with and without abstain")
        for c, d in pairs:
            parts.contrast(r, f"accuracy, {c} − {d}", against(c, d), -SAME)
        for c in ("correct_caption", "correct_think"):
            parts.contrast(r, f"accuracy, {c} − base", against(c, "base"), -SAME)
    return parts.done()


def _8(view):
    parts = Parts(view)
    groups = []
    for r in trained(view):
        cells = [view.cell(view.end(r, s), "base", "accuracy") for s in view.seeds(r)]
        means = [float(np.nanmean(c.values)) for c in cells if c is not None]
        if len(means) > 1:
            groups.append(means)
    ratio = stats.spread_ratio(groups)
    if ratio.n:
        label = "σ of seeds over σ of recipes, base accuracy"
        parts.add("", label, [ratio], 1 / 3, "ratio", least=2)
    else:
        parts.missing.append("two trained recipes of two seeds each")
    return parts.done()


PARTS = {1: _1, 2: _2, 3: _3, 4: _4, 5: _5, 6: _6, 7: _7, 8: _8}
