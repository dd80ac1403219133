"""One self-contained page: claims, tables, figures, and a browser of single examples.

Nothing in the page loads from anywhere: images are data URIs, records are JSON inside
the page, and its own Content-Security-Policy forbids the network. Text that a model
wrote reaches the page as JSON with `<` escaped and is put there with `textContent`, so
markup inside it shows as text.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import os
from pathlib import Path

import jinja2
import pyarrow as pa
from PIL import Image

from vlmrl.eval import records
from vlmrl.report import claims as claims_
from vlmrl.report import figures, render, tables
from vlmrl.types import UserError

EXAMPLES = 300  # examples shown at most, each with all its conditions
ROWS = 20_000  # rows shown at most

_HEAVY = 64 * 1024  # bytes of an image beyond which the page shows a smaller copy
_MAGIC = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"RIFF": "webp", b"GIF8": "gif"}


def write_report(
    run_dir: str | os.PathLike,
    table: pa.Table,
    metrics_rows: list[dict],
    images: dict[str, bytes],
    info: dict,
) -> Path:
    """Writes `report.html` into a run directory and returns its path.

    Args:
      run_dir: an existing directory.
      table: records.
      metrics_rows: their `records.summarise`.
      images: encoded image by example id; examples without one say so.
      info: what was run, shown as it is: words by heading. 'title' becomes the page's
        title, 'summary' its first paragraph.

    Raises:
      UserError: no records, or a directory that can't be written.
    """
    path = Path(run_dir) / "report.html"
    page = render_page(table, metrics_rows, images, info)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(page, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot write the report: {error.strerror}") from None
    return path


def render_page(table, metrics_rows, images, info) -> str:
    """The page as text; arguments as `write_report`."""
    made = tables.build(table, metrics_rows)
    data = browser(table, images)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vlmrl.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    light = figures.build(metrics_rows)
    dark = figures.build(metrics_rows, "dark")
    split = headline(table)
    return environment.get_template("report.html.j2").render(
        title=str(info.get("title", "vlmrl report")),
        summary=str(info.get("summary", "")),
        info=[(k, str(v)) for k, v in info.items() if k not in ("title", "summary")],
        claims=[_claim(c) for c in claims_.judge_claims(table, split=split)],
        split=split,
        main=_cells(next(t for t in made if t.name == f"conditions-{split}")),
        tables=[_cells(t) for t in made if t.name != f"conditions-{split}"],
        figures=[
            {
                "name": a.name,
                "title": a.title,
                "caption": a.caption,
                "light": _uri(figures.png(a.figure)),
                "dark": _uri(figures.png(b.figure)),
                "width": round(a.figure.get_figwidth() * 200),
                "height": round(a.figure.get_figheight() * 200),
            }
            for a, b in zip(light, dark, strict=True)
        ],
        note=data.pop("note"),
        data=script_json(data),
    )


def headline(table: pa.Table) -> str:
    """The split that claims and examples are read on: 'test' if there, else the first.

    Raises:
      UserError: where there are no records.
    """
    splits = table.column("split").unique().to_pylist()
    if not splits:
        raise UserError("records: no rows; evaluate something first")
    return "test" if "test" in splits else splits[0]


def script_json(value) -> str:
    """JSON that can't end or open a script element, nor hold a line separator that
    JavaScript would not take."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


# -- claims and tables -----------------------------------------------------------------

_LOOK = {  # css class and sign
    "shows": ("yes", "✓"),
    "does not show": ("no", "✗"),
    "unclear at this size": ("open", "~"),
    "not measured": ("none", "–"),
}


def _claim(claim: claims_.Claim) -> dict:
    return {
        "number": claim.number,
        "text": claim.text,
        "verdict": claim.verdict,
        "class": _LOOK[claim.verdict][0],
        "mark": _LOOK[claim.verdict][1],
        "note": claim.note,
        "effect": claims_.shown(claim.effect, claim.lo, claim.hi, claim.unit),
        "parts": [
            {
                "label": p.label,
                "verdict": p.verdict,
                "effect": claims_.shown(*p.interval[:3], p.unit),
                "plot": _plot(p, claim.parts),
            }
            for p in claim.parts
        ],
    }


def _plot(part, beside) -> dict | None:
    """Interval, estimate and floor as per cents of a bar centred on zero, on one scale
    for the parts of a claim that share a unit."""
    value, lo, hi = part.interval[:3]
    same = [(*p.interval[:3], p.floor) for p in beside if p.unit == part.unit]
    sizes = [abs(v) for numbers in same for v in numbers if not math.isnan(v)]
    reach = max(sizes)
    if not all(map(math.isfinite, (lo, hi, reach))) or reach == 0:
        return None

    def place(v):
        return round(50 + 48 * v / reach, 1)

    return {
        "lo": place(lo),
        "width": round(place(hi) - place(lo), 1),
        "value": place(value),
        "floor": place(part.floor),
    }


def _cells(table: render.Table) -> dict:
    kinds = [kind for _, kind in table.columns]
    body, previous = [], None
    for row in table.rows:
        texts = [render.cell(v, k) for v, k in zip(row, kinds, strict=True)]
        body.append({"cells": texts, "starts": row[0] != previous})
        previous = row[0]
    return {
        "name": table.name,
        "title": table.title,
        "note": table.note,
        "heads": [render.heading(*c) for c in table.columns],
        "left": [kind == "text" for kind in kinds],
        "rows": body,
    }


# -- the browser of examples -----------------------------------------------------------


def browser(table: pa.Table, images: dict[str, bytes]) -> dict:
    """What the browser shows: the headline split, each recipe's last step, its lowest
    seed, the first sample, of at most EXAMPLES examples spread evenly over tasks.

    Examples are taken in the order of a hash of their ids, so that no result decides
    which are seen.
    """
    split = headline(table)
    data = records.columns(table)
    cells = records.cells(data)
    keys = [key for key in cells if key[0] == split]
    seed = {r: min(k[2] for k in keys if k[1] == r) for r in {k[1] for k in keys}}
    keys = [k for k in keys if k[2] == seed[k[1]]]
    last = {r: max(k[3] for k in keys if k[1] == r) for r in seed}
    keys = [k for k in keys if k[3] == last[k[1]]]

    index = [i for k in keys for i in cells[k] if data["sample"][i] == 0]
    total = len(set(data["item"][index]))
    most = max(1, min(EXAMPLES, ROWS // len(keys)))
    chosen = _spread({data["item"][i]: data["task"][i] for i in index}, most)
    held = [i for i in index if data["item"][i] in chosen]

    variants = list(dict.fromkeys(k[1] for k in keys))
    conditions = list(dict.fromkeys(k[4] for k in keys))
    examples, places, prompts, pictures, rows = {}, {}, {}, {}, []
    for row in table.take(held).to_pylist():
        item = f"{row['source']}/{row['example']}"
        if item not in examples:
            image = images.get(row["example"])
            digest = image and hashlib.sha256(image).hexdigest()
            if image and digest not in pictures:
                pictures[digest] = len(pictures), _uri(_small(image, item))
            examples[item] = {
                "id": row["example"],
                "task": row["task"],
                "source": row["source"],
                "question": row["question"],
                "answer": row["answer"],
                "suggested": row["suggested"],
                "image": pictures[digest][0] if image else -1,
            }
        prompt = (row["prompt"], json.dumps(row["spans"]))
        rows.append(
            {
                "x": places.setdefault(item, len(places)),
                "v": variants.index(row["recipe"]),
                "c": conditions.index(row["condition"]),
                "p": prompts.setdefault(prompt, len(prompts)),
                "o": row["options"],
                "pre": row["prefill"],
                "out": row["completion"],
                "y": row["predicted"],
                "ok": row["correct"],
                "fmt": row["format"],
                "ver": row["verdict"],
                "own": row["verdict_sampled"],
                "con": row["conclusion"],
                "j": row["judge"],
                "l": [round(p, 4) for p in row["letters"]],
                "h": round(row["entropy"], 3),
                "m": round(row["option_mass"], 3),
                "nat": row["natural"],
                "cut": row["truncated"],
                "n": row["think_tokens"],
                "s": [[round(p, 3) for p in at] for at in row["sighted"]],
                "k": row["sighted_every"],
                "b": [round(p, 4) for p in row["blind"]],
            }
        )
    seeds = sorted({k[2] for k in cells if k[0] == split})
    note = (
        f"{len(examples)} of the {total} examples of the {split} split, each under "
        f"{len(conditions)} conditions, at the last step of each recipe"
    )
    note += f", seed {min(seed.values())} of {len(seeds)}." if len(seeds) > 1 else "."
    if len(examples) < total:
        note += " Chosen by a hash of their ids, evenly over tasks, not by result."
    return {
        "note": note,
        "variants": [f"{r} · step {last[r]}" for r in variants],
        "conditions": conditions,
        "tasks": sorted({e["task"] for e in examples.values()}),
        "examples": list(examples.values()),
        "prompts": [[text, json.loads(spans)] for text, spans in prompts],
        "images": [uri for _, uri in sorted(pictures.values())],
        "rows": rows,
    }


def _spread(task_of: dict[str, str], most: int) -> set[str]:
    """At most `most` items: by turns from each task, in the order of their hashes."""
    by_task: dict[str, list[str]] = {}
    for item in sorted(task_of, key=lambda i: hashlib.sha256(i.encode()).digest()):
        by_task.setdefault(task_of[item], []).append(item)
    turns = [
        (rank, item) for items in by_task.values() for rank, item in enumerate(items)
    ]
    return {item for _, item in sorted(turns)[:most]}


def _small(image: bytes, item: str) -> bytes:
    """The image, made no larger than a page of hundreds can carry."""
    if len(image) <= _HEAVY:
        return image
    try:
        with Image.open(io.BytesIO(image)) as picture:
            picture.thumbnail((512, 512))
            out = io.BytesIO()
            picture.convert("RGB").save(out, "JPEG", quality=85)
    except (OSError, ValueError) as error:
        raise UserError(
            f"example {item}: its image does not decode ({error})"
        ) from None
    return out.getvalue()


def _uri(image: bytes) -> str:
    kind = next((k for magic, k in _MAGIC.items() if image.startswith(magic)), "png")
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
