"""A claim with its verdict, as the page and the tables show it.

Claims are judged elsewhere (`vlmrl/studies/claims.py`) and reach the report as data.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vlmrl.eval.stats import Interval
from vlmrl.report import render

SLIGHT = 0.02  # an effect this small (2 points, 0.02 nats) is not worth a claim


class ClaimPart(NamedTuple):
    """One number a claim rests on, signed so that the claim wants it large."""

    label: str
    interval: Interval
    floor: float = 0.0
    unit: str = "points"  # 'points' (shown × 100), 'nats', 'AUROC' or 'ratio'
    least: int = 10  # clusters without which the part stays open

    @property
    def verdict(self) -> str:
        """'holds', 'fails' or 'open'."""
        _, lo, hi, _, clusters = self.interval
        if clusters < self.least or np.isnan(lo):
            return "open"
        if lo > self.floor:
            return "holds"
        return "fails" if hi < (self.floor or SLIGHT) else "open"


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
    parts: tuple[ClaimPart, ...] = ()


def as_rows(claims: list[Claim]) -> list[dict]:
    """Return the claims as JSON-ready dicts, without parts; an infinite end becomes
    None."""

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
    """Return the claims as a table of text, for Markdown, CSV and LaTeX."""
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
