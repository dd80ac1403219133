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

from pathlib import Path

import numpy as np
import pyarrow as pa

from vlmrl.eval import measures
from vlmrl.eval.measures import View
from vlmrl.report import assemble
from vlmrl.report.claim import Claim
from vlmrl.studies.evidence import PARTS

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


def build_report(
    workdir: Path,
    info: dict,
    *,
    table: pa.Table | None = None,
    images=None,
    own=(),
    reading: str = "strict",
) -> assemble.Report:
    """Write the report of a run directory with the verdicts on the claims in it.

    Args:
      info, own, reading: see `assemble.build`.
      table, images: records and images, those of the run directory when None.
    """
    table = assemble.find_records(workdir) if table is None else table
    images = assemble.read_images(workdir) if images is None else images
    claims = judge_claims(table, reading=reading)
    return assemble.build(workdir, table, images, info, own, claims, reading)


def judge_claims(
    table: pa.Table, *, split: str | None = None, reading: str = "strict"
) -> list[Claim]:
    """Return the verdicts on claims 1 to 8, in order.

    Args:
      table: records.
      split: the one judged on; 'test' if there, else the first, when None.
      reading: what accuracy is of.
    """
    data = measures.columns(table, reading)
    if split is None:
        splits = list(dict.fromkeys(data["split"]))
        split = "test" if "test" in splits else (splits or [""])[0]
    view = measures.view(data, split)
    return [_verdict(number, view, *parts(view)) for number, parts in PARTS.items()]


def _verdict(number: int, view: View, parts: list, missing: list[str]) -> Claim:
    """Put parts together; `missing` names what the claim needs and lacks."""
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
