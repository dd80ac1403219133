"""Show examples to a person: as text with their prompts, and as a contact sheet."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from vlmrl import perturb
from vlmrl.data import images
from vlmrl.files import atomic_write
from vlmrl.prompts import styles
from vlmrl.types import Example, Prompt, UserError

TILE, EDGE, TEXT = 224, 12, 14  # pixels: a picture's side, margins, a line of text


def describe(
    example: Example, conditions: Sequence[str], style: str, strict: bool = False
) -> str:
    """Return an example as text, and its prompt under each of the conditions.

    Args:
      strict: raise where a condition does not apply, instead of noting it.
    """
    lines = [f"{example.id}  ({example.task})", *_question_lines(example)]
    if example.trace:
        lines.append(f"  trace: {example.trace}")
    for name in conditions:
        try:
            prompt = styles.build(perturb.apply(example, name), style)
        except UserError as error:
            if strict:
                raise
            lines.append(f"  -- {name} does not apply: {error}")
            continue
        lines += [f"  -- {name}", textwrap.indent(marked(prompt).rstrip(), "  | ")]
    return "\n".join(lines)


def marked(prompt: Prompt) -> str:
    """Return the prompt's text with « » around what its condition wrote."""
    text = prompt.text
    for start, end in sorted(prompt.spans, reverse=True):
        text = f"{text[:start]}«{text[start:end]}»{text[end:]}"
    return text


def _question_lines(example: Example) -> list[str]:
    """Question and options, one per line, the right and the suggested one marked."""
    notes = {example.suggested: "  (suggested)", example.answer: "  (answer)"}
    labels = ["-"] * len(example.options) if example.open else styles.LETTERS
    mark = "" if example.open else "."
    pairs = enumerate(zip(labels, example.options, strict=False))
    options = [f"  {a}{mark} {text}{notes.get(i, '')}" for i, (a, text) in pairs]
    return [f"  {example.question}", *options]


def contact_sheet(examples: Sequence[Example]) -> bytes:
    """Return a PNG file with the first picture of every example above its question."""
    font = ImageFont.load_default(11)
    captions = [_caption(e, font) for e in examples]
    columns = min(len(examples), max(1, round(len(examples) ** 0.5 * 1.3)))
    rows = -(-len(examples) // columns)
    width = TILE + EDGE
    height = TILE + TEXT * max(map(len, captions)) + 2 * EDGE
    page = Image.new("RGB", (columns * width + EDGE, rows * height + EDGE), "white")
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


def write_contact_sheet(path: Path, examples: Sequence[Example]) -> None:
    atomic_write(path, contact_sheet(examples))


def _fitted(picture: Image.Image) -> Image.Image:
    """Scale to the tile's size; small pictures are enlarged without blurring."""
    scale = TILE / max(picture.size)
    size = [max(1, round(side * scale)) for side in picture.size]
    kernels = Image.Resampling
    return picture.resize(size, kernels.NEAREST if scale >= 1 else kernels.LANCZOS)


def _caption(example: Example, font) -> list[str]:
    """Lines of text no wider than a tile."""
    more = len(example.images) - 1
    note = f" (and {more} more)" if more > 0 else ""
    out: list[str] = []
    for line in [example.id + note, *_question_lines(example)]:
        current = ""
        for word in line.split():
            longer = f"{current} {word}".strip()
            if current and font.getlength(longer) > TILE:
                out.append(current)
                longer = word
            current = longer
        out.append(current)
    return out
