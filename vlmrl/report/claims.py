"""A verdict on each claim of the paper, computed from intervals on the records.

A claim is a list of parts; a part is one number with a 95 % interval, signed so that
the claim wants it large. With `floor` its least acceptable value, a part

  holds    if the whole interval lies above floor,
  fails    if the whole interval lies below max(floor, SLIGHT if floor is 0), that is,
           if even an effect of SLIGHT in the claimed direction is ruled out,
  open     otherwise, or on fewer than 10 clusters.

A claim 'shows' if every part holds, 'does not show' if any part fails, is 'not
measured' where a part it needs has no records, else 'unclear at this size'. The number
shown for a claim is its weakest part's.

The parts of each claim are defined in `evidence`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from vlmrl.eval import records
from vlmrl.report import render
from vlmrl.report.evidence import PARTS, Part, View

TEXTS = {
    1: "Perturbations cut accuracy and P(correct), faithful accuracy more so, and "
    "wrong_think more than wrong_caption.",
    2: "Base accuracy rises with RL while the consistent ratio falls, in every "
    "accuracy-only recipe.",
    3: "Letter entropy falls with steps under every condition, even stop_think.",
    4: "Augmentation brings wrong_caption back to about base, wrong_think only a "
    "little; consistency still falls.",
    5: "The faithfulness reward restores consistency; with augmentation it is unstable "
    "and thinks become short.",
    6: "P(correct) under base predicts robustness far better than −H.",
    7: "Abstain does not help; correct captions and thinks do no harm.",
    8: "Seed variance is of the order of recipe differences.",
}


class Claim(NamedTuple):
    """The verdict on one claim; effect, lo and hi are its weakest part's, None where
    nothing was measured."""

    number: int
    text: str
    effect: float | None
    lo: float | None
    hi: float | None
    verdict: str  # 'shows', 'does not show', 'unclear at this size', 'not measured'
    note: str
    unit: str = "points"
    parts: tuple[Part, ...] = ()


def judge_claims(table: pa.Table, *, split: str | None = None) -> list[Claim]:
    """The verdicts on claims 1 to 8, in order.

    Args:
      table: records.
      split: the one judged on; 'test' if there, else the first, when None.
    """
    data = records.columns(table)
    cells = records.cells(data)
    splits = list(dict.fromkeys(k[0] for k in cells))
    if split is None:
        split = "test" if "test" in splits else (splits or [""])[0]
    view = View(data, {k[1:]: rows for k, rows in cells.items() if k[0] == split})
    return [_verdict(number, view, *parts(view)) for number, parts in PARTS.items()]


def as_rows(claims: list[Claim]) -> list[dict]:
    """Claims as JSON-ready dicts, without parts; an infinite end becomes None."""

    def finite(value):
        return value if isinstance(value, float) and np.isfinite(value) else None

    return [
        {
            "number": c.number,
            "text": c.text,
            "effect": finite(c.effect),
            "lo": finite(c.lo),
            "hi": finite(c.hi),
            "unit": c.unit,
            "verdict": c.verdict,
            "note": c.note,
        }
        for c in claims
    ]


def as_table(claims: list[Claim]) -> render.Table:
    """Claims as a table of text, for Markdown, CSV and LaTeX."""
    return render.Table(
        "claims",
        "Claims of the paper",
        "The effect is the claim's weakest part with its 95 % interval; a claim shows "
        "only if every part of it holds.",
        (
            ("Claim", "text"),
            ("Verdict", "text"),
            ("Effect", "text"),
            ("Note", "text"),
        ),
        [
            (
                f"{c.number}. {c.text}",
                c.verdict,
                shown(c.effect, c.lo, c.hi, c.unit) or None,
                c.note,
            )
            for c in claims
        ],
    )


_SHAPES = {"points": (100, "+.1f"), "ratio": (1, ".2f"), "AUROC": (1, "+.3f")}


def shown(value, lo, hi, unit: str) -> str:
    """'value [lo, hi] unit' as a reader sees it, '' where nothing was measured."""
    if value is None:
        return ""
    scale, shape = _SHAPES.get(unit, (1, "+.2f"))

    def one(v):
        if np.isnan(v):
            return render.DASH
        return "∞" if np.isinf(v) else format(scale * v, shape).replace("-", "−")

    return f"{one(value)} [{one(lo)}, {one(hi)}] {unit}"


def _verdict(number: int, view: View, parts: list, missing: list[str]) -> Claim:
    """Puts parts together; `missing` names what the claim needs and lacks."""
    text = TEXTS[number]
    kinds = [p.verdict for p in parts]
    lacks = "; ".join(dict.fromkeys(missing))
    if not parts:
        verdict = "not measured"
        return Claim(number, text, None, None, None, verdict, f"Needs {lacks}.")
    if "fails" in kinds:
        verdict, candidates = "does not show", "fails"
    elif missing:
        verdict, candidates = "not measured", None
    elif "open" in kinds:
        verdict, candidates = "unclear at this size", "open"
    else:
        verdict, candidates = "shows", None
    weakest = min(
        (p for p in parts if candidates in (None, p.verdict)),
        key=lambda p: np.nan_to_num(p.interval.lo - p.floor, nan=-np.inf),
    )
    note = [f"{weakest.label[0].upper()}{weakest.label[1:]}."]
    if len(parts) > 1:
        note += [f"{kinds.count('holds')} of {len(parts)} parts hold."]
    if missing:
        note += [f"Not measured: {lacks}."]
    if number != 8 and max(len(view.seeds(r)) for r in view.names(bool)) == 1:
        note += ["One seed."]
    effect, lo, hi = weakest.interval[:3]
    return Claim(
        number,
        text,
        effect,
        lo,
        hi,
        verdict,
        " ".join(note),
        weakest.unit,
        tuple(parts),
    )
