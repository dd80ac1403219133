"""Look at data sets, and write them out.

vlmrl data list                 known sources, with their splits and tasks
vlmrl data show NAME            some examples: questions, options, answers, and what the
                                conditions make of them; their pictures on one sheet,
                                WORKDIR/NAME-SPLIT.png
vlmrl data prepare NAME --size=train=2400,validation=96
                                the data set as files under WORKDIR/data, where a run in
                                WORKDIR that asks for these sizes finds them

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

from vlmrl import perturb, prompts
from vlmrl.data import drawing, images, loader, scenes
from vlmrl.main import args
from vlmrl.types import Example, Prompt, UserError

HELP = "list, look at and write out the data sets"
FLAGS = {
    "args": ("list | show NAME | prepare NAME", "what to do with which data set"),
    "workdir": ("runs/data", "directory to write into"),
    "split": ("validation", "split to show"),
    "n": (6, "examples to show"),
    "conditions": ([], "conditions to show each example under, as base,wrong_caption"),
    "style": ("tiny", "prompt style of what is shown under conditions"),
    "size": ([], "examples per split to prepare, as train=2400,validation=96"),
}


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
    if what not in ("list", "show", "prepare"):
        raise UserError(f"data: '{what}' is not one of list, show, prepare")
    if what == "list" and not names:
        print(listed())
        return
    if what == "list" or len(names) != 1:
        wanted = "no name" if what == "list" else "the name of one data set"
        raise UserError(f"data {what}: takes {wanted}, not '{' '.join(names)}'")
    (name,) = names
    if name not in loader.SOURCES:
        known = ", ".join(loader.SOURCES)
        raise UserError(f"data {what}: '{name}' is not one of {known}")
    if what == "prepare":
        print(loader.prepare(name, sizes(other.size), workdir / "data"))
        return
    if other.n < 1:
        raise UserError(f"--n is {other.n}, want at least 1")
    for condition in other.conditions:
        perturb.check(condition)
    examples = list(loader.SOURCES[name](other.split, other.n))
    text = "\n\n".join(shown(e, other.conditions, other.style) for e in examples)
    path = workdir / f"{name}-{other.split}.png"
    write_sheet(path, examples)
    print(f"{text}\n\npictures: {path}")


def listed() -> str:
    """Every source with its splits and tasks."""
    return "\n".join(
        f"{name}: {about.text}\n"
        f"  splits  {', '.join(about.splits)}\n"
        f"  tasks   {', '.join(about.tasks)}"
        for name, about in ABOUT.items()
    )


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
        prompt = prompts.build(perturb.apply(example, name), style)
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
    pairs = zip(prompts.LETTERS, example.options, strict=False)
    options = [f"  {a}. {text}{notes.get(i, '')}" for i, (a, text) in enumerate(pairs)]
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
