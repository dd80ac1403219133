"""One self-contained page: claims, tables, figures, and a browser of single examples.

Nothing in the page loads from elsewhere: images are data URIs (or, where there are
many, files in a folder beside it), records are JSON inside the page, and its own
Content-Security-Policy forbids the network. Records are cut into chunks that are parsed
when they are first shown, so that 20,000 of them open as fast as 20. Text that a model
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
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
import pyarrow as pa
from PIL import Image

from vlmrl.eval import measures, records
from vlmrl.files import atomic_write
from vlmrl.report import claim as claim_
from vlmrl.report import figures, interactive, render, tables
from vlmrl.types import UserError

ROWS = 20_000  # rows of the browser at most
CHUNK = 200  # rows that the page parses at a time
PICTURES = 25  # images in a chunk
INSIDE = 20_000_000  # bytes of images beyond which they lie in a folder beside the page

_HEAVY = 64 * 1024  # bytes of an image beyond which the page shows a smaller copy
FOLDER = "report_images"
_MAGIC = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"RIFF": "webp", b"GIF8": "gif"}


class Page(NamedTuple):
    """What the page shows, but for the images."""

    table: pa.Table  # records
    rows: list[dict]  # their `measures.summarise`
    tables: list[render.Table]  # `conditions-SPLIT` of the headline split among them
    info: dict  # what was run, words by heading, shown as it is; 'title' becomes the
    # page's title, 'summary' its first paragraph
    claims: Sequence[claim_.Claim] = ()  # with their verdicts; no section if empty
    reading: str = "strict"  # that accuracy is of, one of `measures.READINGS`


def write_report(
    run_dir: str | os.PathLike, page: Page, images: dict[str, bytes]
) -> Path:
    """Write `report.html` into a run directory and return its path.

    Args:
      run_dir: an existing directory.
      images: encoded image by source/id of its example; examples without one say so.

    Raises:
      UserError: no records, or a directory that can't be written.
    """
    path = Path(run_dir) / "report.html"
    content = browser(page.table, images, page.reading)
    beside = sum(map(len, content.images)) > INSIDE
    try:
        sources = _beside(path.parent / FOLDER, content.images) if beside else None
        atomic_write(path, render_page(page, content, sources))
    except OSError as error:
        raise UserError(f"{path}: cannot write the report: {error.strerror}") from None
    return path


def _beside(folder: Path, images: list[bytes]) -> list[str]:
    """Write images into a folder, named by content; their addresses from the page."""
    folder.mkdir(exist_ok=True)
    names = []
    for image in images:
        names.append(f"{hashlib.sha256(image).hexdigest()[:24]}.{_kind(image)}")
        if not (folder / names[-1]).is_file():
            atomic_write(folder / names[-1], image)
    return [f"{folder.name}/{name}" for name in names]


def render_page(page: Page, content: Browser, sources: list[str] | None = None) -> str:
    """Return the page as text.

    Args:
      found: the `browser` of the report's records.
      sources: addresses of the browser's images; data URIs when None.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vlmrl.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    light, dark = (figures.build(page.rows, theme) for theme in ("light", "dark"))
    split = headline(page.table)
    view = measures.view(measures.columns(page.table, page.reading), split)
    recipes = view.names(lambda _: True)
    conditions = content.index["conditions"]
    points = [p for p in tables.points(page.rows) if p.split == split]
    views_ = {
        "heat": interactive.heat(view, recipes, conditions),
        "curves": interactive.curves(points),
        "calibration": interactive.calibrations(view, recipes, conditions),
        "recipes": recipes,
        "conditions": conditions,
    }
    pictures = [_uri(i) for i in content.images] if sources is None else sources
    return environment.get_template("report.html.j2").render(
        title=str(page.info.get("title", "vlmrl report")),
        summary=str(page.info.get("summary", "")),
        info=[
            (k, str(v)) for k, v in page.info.items() if k not in ("title", "summary")
        ],
        claims=[_claim(c) for c in page.claims],
        split=split,
        main=_cells(next(t for t in page.tables if t.name == f"conditions-{split}")),
        tables=[_cells(t) for t in page.tables if t.name != f"conditions-{split}"],
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
        note=content.note,
        has_curves=bool(views_["curves"]),
        has_letters=any(any(row) for row in views_["calibration"]),
        beside=sources is not None,
        data=script_json(content.index),
        views=script_json(views_),
        chunks=[script_json(chunk) for chunk in content.chunks],
        pictures=[
            script_json(pictures[i : i + PICTURES])
            for i in range(0, len(pictures), PICTURES)
        ],
    )


def headline(table: pa.Table) -> str:
    """Return the split that claims and examples are read on: 'test' if there, else the
    first.

    Raises:
      UserError: where there are no records.
    """
    splits = table.column("split").unique().to_pylist()
    if not splits:
        raise UserError("records: no rows; evaluate something first")
    return "test" if "test" in splits else splits[0]


def script_json(value) -> str:
    """JSON that can't end or open a script element, nor hold a line separator that
    JavaScript would not take. A float that is no number is an error: no browser reads
    it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
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


def _claim(claim: claim_.Claim) -> dict:
    return {
        "number": claim.number,
        "text": claim.text,
        "verdict": claim.verdict,
        "class": _LOOK[claim.verdict][0],
        "mark": _LOOK[claim.verdict][1],
        "note": claim.note,
        "effect": claim_.shown(claim.effect, claim.lo, claim.hi, claim.unit),
        "parts": [
            {
                "label": p.label,
                "verdict": p.verdict,
                "effect": claim_.shown(*p.interval[:3], p.unit),
                "plot": _plot(p, claim.parts),
            }
            for p in claim.parts
        ],
    }


def _plot(part, beside) -> dict | None:
    """Return the interval, estimate and floor as per cents of a bar centred on zero, on
    one scale for the parts of a claim that share a unit."""
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


class Browser(NamedTuple):
    """What the browser of examples reads: an index that filters and lists run on, and
    the rest in chunks that the page parses when a row of theirs is shown."""

    index: dict
    chunks: list[dict]  # of CHUNK rows: {prompts, rows}
    images: list[bytes]
    note: str


def browser(
    table: pa.Table, images: dict[str, bytes], reading: str = "strict"
) -> Browser:
    """Return the headline split at each recipe's last step, lowest seed, first sample,
    of as many examples as ROWS rows allow, spread evenly over benchmarks and tasks.

    Examples are taken in the order of a hash of their ids, so that no result decides
    which are seen. Rows are in the order example, condition, recipe. Whether a row is
    right is told by the reading.
    """
    split = headline(table)
    data = measures.columns(table, reading)
    cells = measures.cells(data)
    keys = [key for key in cells if key[0] == split]
    seed = {r: min(k[2] for k in keys if k[1] == r) for r in {k[1] for k in keys}}
    keys = [k for k in keys if k[2] == seed[k[1]]]
    last = {r: max(k[3] for k in keys if k[1] == r) for r in seed}
    keys = [k for k in keys if k[3] == last[k[1]]]

    index = [i for k in keys for i in cells[k] if data["sample"][i] == 0]
    total = len(set(data["item"][index]))
    most = max(1, ROWS // len(keys))
    chosen = spread(
        {data["item"][i]: f"{data['source'][i]}/{data['task'][i]}" for i in index}, most
    )

    variants = list(dict.fromkeys(k[1] for k in keys))
    conditions = list(dict.fromkeys(k[4] for k in keys))
    place = {item: n for n, item in enumerate(sorted(chosen))}
    order = sorted(
        (
            place[data["item"][i]],
            conditions.index(str(data["condition"][i])),
            variants.index(str(data["recipe"][i])),
            int(i),
        )
        for i in index
        if data["item"][i] in chosen
    )
    examples: dict[str, dict] = {}
    pictures: dict[str, tuple[int, bytes]] = {}
    columns, chunks = defaultdict(list), []
    for start in range(0, len(order), CHUNK):
        part = order[start : start + CHUNK]
        prompts: dict[tuple, int] = {}
        rows = []
        taken = table.take([i for *_, i in part]).to_pylist()
        for (x, c, v, i), row in zip(part, taken, strict=True):
            item = f"{row['source']}/{row['example']}"
            if item not in examples:
                examples[item] = _example(row, item, images, pictures)
            answer, right = row[measures.OPTION[reading]], data["accuracy"][i] == 1
            verdict = records.VERDICTS.index(row["verdict"])
            cell = dict(x=x, c=c, v=v, y=answer, ok=int(right), ver=verdict)
            for name, value in cell.items():
                columns[name].append(value)
            prompt = (row["prompt"], json.dumps(row["spans"]))
            rows.append(_row(row) | {"p": prompts.setdefault(prompt, len(prompts))})
        texts = [[text, json.loads(spans)] for text, spans in prompts]
        chunks.append({"prompts": texts, "rows": rows})
    seeds = sorted({k[2] for k in cells if k[0] == split})
    note = (
        f"{len(examples):,} of the {total:,} examples of the {split} split, each under "
        f"{len(conditions)} conditions, at the last step of each recipe"
    )
    note += f", seed {min(seed.values())} of {len(seeds)}." if len(seeds) > 1 else "."
    if len(examples) < total:
        note += " Chosen by a hash of their ids, evenly over tasks, not by result."
    taken = {
        "variants": [f"{r} · step {last[r]}" for r in variants],
        "conditions": conditions,
        "verdicts": records.VERDICTS,
        "reading": reading,
        "sources": sorted({e["source"] for e in examples.values()}),
        "tasks": sorted({e["task"] for e in examples.values()}),
        "examples": list(examples.values()),
        "chunk": CHUNK,
        **columns,
    }
    return Browser(taken, chunks, [i for _, i in sorted(pictures.values())], note)


def _example(row, item, images, pictures) -> dict:
    image = images.get(item)
    digest = image and hashlib.sha256(image).hexdigest()
    if image and digest not in pictures:
        pictures[digest] = len(pictures), small(image, item)
    return {
        "id": row["example"],
        "task": row["task"],
        "source": row["source"],
        "question": row["question"],
        "answer": row["answer"],
        "suggested": row["suggested"],
        "open": row["open"],
        "not": dict(entry.split(": ", 1) for entry in row["not_asked"]),
        "image": pictures[digest][0] if image else -1,
    }


def _row(row) -> dict:
    return {
        "o": row["options"],
        "pre": row["prefill"],
        "out": row["completion"],
        "think": row["think_sampled"],
        "fmt": row["format"],
        "read": {name: row[column] for name, column in measures.OPTION.items()},
        "sc": row["scored"],
        "own": row["verdict_sampled"],
        "con": row["conclusion"],
        "j": row["judge"],
        "l": [round(p, 4) for p in row["letters"]],
        "h": _rounded(row["entropy"]),
        "m": _rounded(row["option_mass"]),
        "nat": row["natural"],
        "cut": row["truncated"],
        "n": row["think_tokens"],
        "s": [[round(p, 3) for p in at] for at in row["sighted"]],
        "k": row["sighted_every"],
        "b": [round(p, 4) for p in row["blind"]],
    }


def _rounded(value: float) -> float | None:
    """Return a rounded number, None where a model behind an API, or another tool's log,
    does not tell."""
    return None if math.isnan(value) else round(value, 3)


def spread(task_of: dict[str, str], most: int) -> set[str]:
    """Return at most `most` items: by turns from each task, in the order of their
    hashes."""
    by_task: dict[str, list[str]] = {}
    for item in sorted(task_of, key=lambda i: hashlib.sha256(i.encode()).digest()):
        by_task.setdefault(task_of[item], []).append(item)
    turns = [
        (rank, item) for items in by_task.values() for rank, item in enumerate(items)
    ]
    return {item for _, item in sorted(turns)[:most]}


def small(image: bytes, item: str) -> bytes:
    """Return the image, made no larger than a page of hundreds can carry."""
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


def _kind(image: bytes) -> str:
    return next((k for magic, k in _MAGIC.items() if image.startswith(magic)), "png")


def _uri(image: bytes) -> str:
    return f"data:image/{_kind(image)};base64,{base64.b64encode(image).decode()}"
