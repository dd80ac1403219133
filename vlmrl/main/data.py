"""Prepare data sets, and look at them.

vlmrl data list                 every source: splits, tasks, licence
vlmrl data prepare NAME... [--source=DIR]
                                published sets as files under WORKDIR/data: downloaded
                                from a hub, or read from files that are already there;
                                goes on where it was stopped
vlmrl data prepare NAME --source=DIR
                                with a name of your own: your data (vlmrl/data/own.py
                                says what DIR holds)
vlmrl data prepare scenes --size=train=2400,validation=96
                                the procedural source, which is made on the spot
vlmrl data show NAME            some examples: questions, options, answers, and what the
                                conditions make of them; their pictures on one sheet,
                                WORKDIR/NAME-SPLIT.png
vlmrl data check NAME           counts against the published ones, letter balance,
                                duplicates, what was repaired and refused, by row
vlmrl data texts NAME [--model=NAME]
                                the misleading statements as a file, one line of JSON
                                per example, WORKDIR/NAME-SPLIT.texts.jsonl; with
                                --model those that a model behind --url rewrites. Read
                                by `show --texts=FILE` and by the `texts` fields of
                                configs, so that two labs can mislead with one file

What a condition wrote stands between « and ».
"""

from __future__ import annotations

import io
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from vlmrl import perturb
from vlmrl.client import http
from vlmrl.data import (
    build,
    drawing,
    fetch,
    images,
    loader,
    own,
    reading,
    scenes,
    texts,
)
from vlmrl.data.check import check, told
from vlmrl.data.sets import SETS
from vlmrl.main import args
from vlmrl.main.progress import bar
from vlmrl.prompts import styles
from vlmrl.types import Example, Prompt, UserError

HELP = "list, prepare, check and look at the data sets"
FLAGS = {
    "args": ("list | prepare NAME... | show NAME | check NAME | texts NAME", "what"),
    "workdir": ("runs/data", "directory to write into"),
    "split": ("", "splits, as train,test; default: all (show: one of them)"),
    "n": (6, "examples to show"),
    "conditions": ([], "conditions to show each example under, as base,wrong_caption"),
    "style": ("tiny", "prompt style of what is shown under conditions"),
    "size": ([], "scenes only: examples per split, as train=2400,validation=96"),
    "source": ("hub", "where published files are: hub, or a directory"),
    "repo": ("", "repository on the hub, instead of the pinned one"),
    "revision": ("", "its revision, instead of the pinned one"),
    "pins": ("third_party/datasets.json", "file of repositories, revisions, licences"),
    "seed": (0, "of what preparing draws: option order, suggestions, wrong answers"),
    "texts": ("", "file of statements to show instead of the prepared ones"),
    "model": ("", "name of the model that rewrites statements, at an endpoint"),
    "url": ("http://127.0.0.1:8000/v1", "base URL of the endpoint"),
    "key_env": ("", "environment variable that holds the endpoint's key"),
    "insecure": (False, "allow plain http to another machine"),
    "concurrency": (16, "requests in flight"),
}
WORDS = ("list", "prepare", "show", "check", "texts")


class About(NamedTuple):
    """What can be told of a source without reading it."""

    text: str
    splits: tuple[str, ...]
    tasks: tuple[str, ...]


ABOUT = {
    "scenes": About(
        "shapes on a grid, drawn from a seed: made on the spot, of any size",
        tuple(drawing.SPLITS),
        tuple(scenes.TASKS),
    )
}

TILE, EDGE, TEXT = 224, 12, 14  # pixels: a picture's side, margins, a line of text


def main(argv):
    listing = argv[:1] == ["list"]  # writes nothing, so it makes no directory
    flags = {k: v for k, v in FLAGS.items() if not (listing and k == "workdir")}
    _, workdir, other = args.parse(argv, flags)
    what, *names = other.args or [""]
    if what not in WORDS:
        raise UserError(f"data: '{what}' is not one of {', '.join(WORDS)}")
    if what == "list":
        if names:
            raise UserError(f"data list: takes no name, not '{' '.join(names)}'")
        print(listed(fetch.pins(args.CHECKOUT / other.pins)))
        return
    if not names or (what != "prepare" and len(names) != 1):
        wanted = (
            "names of data sets" if what == "prepare" else "the name of one data set"
        )
        raise UserError(f"data {what}: takes {wanted}, not '{' '.join(names)}'")
    if what == "prepare":
        for name in names:
            print(prepared(name, other, workdir))
        return
    if other.n < 1:
        raise UserError(f"--n is {other.n}, want at least 1")
    for condition in other.conditions:
        perturb.check(condition)
    {"show": show, "check": checked, "texts": written}[what](names[0], other, workdir)


# -- prepare ---------------------------------------------------------------------------


def prepared(name: str, other, workdir: Path) -> str:
    """Prepares a source and tells what became of it."""
    if name in loader.SOURCES:
        return str(loader.prepare(name, sizes(other.size), workdir / "data"))
    here = other.source == "hub"
    root = workdir / "downloads" / name if here else Path(other.source)
    if not here and not root.is_dir():
        raise UserError(f"--source: no directory {root}")
    if name in SETS:
        bench, pin = SETS[name], fetch.pins(args.CHECKOUT / other.pins).get(name)
        pin = pin or fetch.Pin()
        changed = {f: getattr(other, f) for f in ("repo", "revision")}
        pin = pin._replace(**{f: v for f, v in changed.items() if v})
    elif here:
        known = ", ".join([*loader.SOURCES, *SETS])
        raise UserError(
            f"data prepare: '{name}' is not one of {known}; for data of your own give"
            " --source=DIR"
        )
    else:
        bench, pin = own.bench(name, root), fetch.Pin()
    if other.size:
        raise UserError(f"--size: {name} has the examples it has; leave it out")
    asked = [s for s in other.split.split(",") if s]
    if unknown := [s for s in asked if s not in bench.files]:
        known = ", ".join(bench.files)
        raise UserError(f"{name}: split '{unknown[0]}' is not one of {known}")
    if here:
        root.mkdir(parents=True, exist_ok=True)
        arrived = lambda file: print(f"{name}: {file}", flush=True)  # noqa: E731
        splits = asked or list(bench.files)
        taken = fetch.from_hub(bench, splits, pin, root, progress=arrived)
        if taken != pin:
            print(f"{name}: {pin.repo} at {pin.revision} is {taken.revision}")
        fetch.from_urls(pin, root, arrived)
    there = {s: reading.find(bench, s, root) for s in asked or bench.files}
    there = {s: files for s, files in there.items() if files or s in asked}
    left = fetch.by_hand(pin, root)
    if not there:
        patterns = ", ".join(p for alike in bench.files.values() for p in alike)
        todo = "; ".join(left)
        raise UserError(f"{name}: {root} holds none of {patterns}. {todo}".rstrip(". "))
    fetch.check_sums(pin, dict.fromkeys(f for files in there.values() for f in files))
    lines = []
    for split, files in there.items():
        if here and pin.images:
            lines += [f"{name} {split} images: {_images(name, files, pin, root)}"]
        total = sum(map(reading.estimate, files)) or bench.splits.get(split) or 1
        with bar(f"{name} {split}", total) as advance:
            where, report = build.build(
                bench, split, root, workdir / "data", seed=other.seed, progress=advance
            )
        lines.append(f"{name} {split}: {report.line}\n  {where}")
    missing = [s for s in bench.files if s not in there and not asked]
    if missing:
        lines.append(f"{name}: no files of {', '.join(missing)}")
    lines += [f"{name}: left to do: {step}" for step in left]
    return "\n".join(lines)


def _images(name: str, files: Sequence[Path], pin: fetch.Pin, root: Path) -> str:
    """Downloads the images that rows name by address, and counts what came of them."""
    columns = pin.images["url"], pin.images["sha256"]
    pairs = [(r[columns[0]], r[columns[1]]) for f in files for r in reading.rows(f)]
    with bar(f"{name} images", len({sha for _, sha in pairs})) as advance:
        counts = fetch.images(pairs, root, advance)
    told = ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))
    return f"{told}; each in {root / 'images' / 'manifest.jsonl'}"


# -- look ------------------------------------------------------------------------------


def splits_of(name: str, other, workdir: Path) -> list[str]:
    """The prepared splits of a set that were asked for, all by default."""
    asked = [s for s in other.split.split(",") if s]
    there = loader.splits_of(name, workdir / "data")
    if not there and name not in SETS:
        known = ", ".join([*loader.SOURCES, *SETS])
        raise UserError(f"data: '{name}' is not one of {known}, nor a prepared one")
    if not there:
        raise UserError(
            f"{name} is not prepared; run `vlmrl data prepare {name}` first"
        )
    if unknown := [s for s in asked if s not in there]:
        known = ", ".join(there)
        raise UserError(f"{name}: split '{unknown[0]}' is not prepared; {known} are")
    return asked or there


def show(name: str, other, workdir: Path) -> None:
    footer = ""
    if name in loader.SOURCES:
        split = other.split or "validation"
        examples = list(loader.SOURCES[name](split, other.n))
    else:
        split = splits_of(name, other, workdir)[0]
        stored = loader.examples_of(name, split, 0, workdir / "data")
        examples = [stored[i] for i in range(min(other.n, len(stored)))]
        rules = build.report(loader.where(name, split, workdir / "data")).rules
        counts = ", ".join(f"{rule} {n}" for rule, n in rules.items())
        footer = f"\n\nstatement rules of the split: {counts}"
    if other.texts:
        examples = list(texts.apply(examples, texts.read(Path(other.texts))))
    text = "\n\n".join(shown(e, other.conditions, other.style) for e in examples)
    path = workdir / f"{name}-{split}.png"
    write_sheet(path, examples)
    print(f"{text}{footer}\n\npictures: {path}")


def checked(name: str, other, workdir: Path) -> None:
    if name in loader.SOURCES:
        raise UserError(f"data check: {name} is made on the spot; its tests check it")
    for split in splits_of(name, other, workdir):
        stored = loader.examples_of(name, split, 0, workdir / "data")
        report = build.report(loader.where(name, split, workdir / "data"))
        known = SETS[name].splits.get(split) if name in SETS else None
        print(told(name, split, check(known, stored, report)))


def written(name: str, other, workdir: Path) -> None:
    for split in splits_of(name, other, workdir):
        stored = loader.examples_of(name, split, 0, workdir / "data")
        path = workdir / f"{name}-{split}.texts.jsonl"
        if other.model:
            with bar(f"{name} {split}: {other.model}", len(stored)) as advance:
                fell = rewritten(stored, path, other, advance)
            print(f"{path}: {fell} sentences fell back to their templates")
        else:
            texts.write(path, map(texts.entry, stored))
            print(path)


def rewritten(stored: Sequence[Example], path: Path, other, progress) -> int:
    """A file of the sentences that a model behind an endpoint makes of templates."""
    endpoint = http.Endpoint(
        other.url,
        other.model,
        key_env=other.key_env,
        insecure=other.insecure,
        concurrency=other.concurrency,
    )
    with http.Client(endpoint) as client:

        def ask(asked: list[str]) -> list[str]:
            calls = [
                http.Call(
                    [{"role": "user", "content": text}],
                    {"temperature": 0.0, "max_tokens": 128},
                )
                for text in asked
            ]
            replies = client.complete(calls)
            for reply in replies:
                if reply.error:
                    raise UserError(
                        f"{other.url}: {other.model}: {reply.error}; the same command "
                        "goes on from here"
                    )
            return [reply.text for reply in replies]

        return texts.rewrite(stored, ask, other.model, path, progress)


def listed(pins: dict[str, fetch.Pin]) -> str:
    """Every source with its splits, tasks and terms."""
    out = [
        f"{name}: {about.text}\n"
        f"  splits  {', '.join(about.splits)}\n"
        f"  tasks   {', '.join(about.tasks)}"
        for name, about in ABOUT.items()
    ]
    for name, bench in SETS.items():
        pin = pins.get(name, fetch.Pin())
        counts = [s if n is None else f"{s} ({n})" for s, n in bench.splits.items()]
        where = f"{pin.repo} at {pin.revision}" if pin.repo else "by hand, see prepare"
        out.append(
            f"{name}: {bench.about}\n"
            f"  splits  {', '.join(counts)}\n"
            f"  tasks   {', '.join(bench.tasks)}\n"
            f"  from    {where}\n"
            f"  terms   {pin.licence}\n"
            f"  cite    {pin.citation}"
        )
    return "\n".join(out)


def sizes(words: Sequence[str]) -> dict[str, int]:
    """Split → examples, of `--size=train=2400,validation=96`."""
    found = {}
    for word in words:
        split, equals, number = word.partition("=")
        if not (split and equals and number.isascii() and number.isdigit()):
            raise UserError(f"--size: '{word}' is not of the form SPLIT=NUMBER")
        found[split] = int(number)
    if not found:
        raise UserError("--size: must be given, as --size=train=2400,validation=96")
    return found


def shown(example: Example, conditions: Sequence[str], style: str) -> str:
    """An example in words, and its prompt under each of the conditions."""
    lines = [f"{example.id}  ({example.task})", *_asked(example)]
    if example.trace:
        lines.append(f"  trace: {example.trace}")
    for name in conditions:
        try:
            prompt = styles.build(perturb.apply(example, name), style)
        except UserError as error:
            if example.source in loader.SOURCES:
                raise
            lines += [f"  -- {name} does not apply: {error}"]
            continue
        lines += [f"  -- {name}", textwrap.indent(marked(prompt).rstrip(), "  | ")]
    return "\n".join(lines)


def marked(prompt: Prompt) -> str:
    """The prompt's text with « » around what its condition wrote."""
    text = prompt.text
    for start, end in sorted(prompt.spans, reverse=True):
        text = f"{text[:start]}«{text[start:end]}»{text[end:]}"
    return text


def _asked(example: Example) -> list[str]:
    """Question and options, one line each, the right and the suggested one told."""
    notes = {example.suggested: "  (suggested)", example.answer: "  (answer)"}
    pairs = zip(styles.LETTERS, example.options, strict=False)
    if example.open:  # candidates, which the prompt does not list
        pairs = (("-", text) for text in example.options)
    mark = "" if example.open else "."
    options = [
        f"  {a}{mark} {text}{notes.get(i, '')}" for i, (a, text) in enumerate(pairs)
    ]
    return [f"  {example.question}", *options]


# -- contact sheet ---------------------------------------------------------------------


def write_sheet(path: Path, examples: Sequence[Example]) -> None:
    """A PNG with the first picture of every example and, below it, what is asked."""
    part = path.with_name(path.name + ".partial")
    part.write_bytes(sheet(examples))
    os.replace(part, path)


def sheet(examples: Sequence[Example]) -> bytes:
    """The PNG file of `write_sheet`: tiles in rows, as square as they come."""
    font = ImageFont.load_default(11)
    captions = [_caption(e, font) for e in examples]
    columns = min(len(examples), max(1, round(len(examples) ** 0.5 * 1.3)))
    rows = -(-len(examples) // columns)
    width = TILE + EDGE
    height = TILE + TEXT * max(map(len, captions)) + 2 * EDGE
    size = (columns * width + EDGE, rows * height + EDGE)
    page = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(page)
    for i, (example, lines) in enumerate(zip(examples, captions, strict=True)):
        x, y = EDGE + i % columns * width, EDGE + i // columns * height
        if example.images:
            picture = _fitted(images.decode(example.images[0], example.id))
            page.paste(picture, (x, y))
        for number, line in enumerate(lines):
            draw.text((x, y + TILE + 4 + number * TEXT), line, "black", font)
    out = io.BytesIO()
    page.save(out, "PNG")
    return out.getvalue()


def _fitted(picture: Image.Image) -> Image.Image:
    """As large as a tile allows; small pictures are enlarged without blurring."""
    scale = TILE / max(picture.size)
    size = [max(1, round(side * scale)) for side in picture.size]
    how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    return picture.resize(size, how)


def _caption(example: Example, font) -> list[str]:
    """Lines of text no wider than a tile."""
    more = len(example.images) - 1
    note = f" (and {more} more)" if more > 0 else ""
    out: list[str] = []
    for line in [example.id + note, *_asked(example)]:
        words, current = line.split(), ""
        for word in words:
            longer = f"{current} {word}".strip()
            if current and font.getlength(longer) > TILE:
                out.append(current)
                longer = word
            current = longer
        out.append(current)
    return out
