"""The judge prompt: a file of named parts, with a version and a hash.

`prompt.md` beside this module is the default; a file of the user's own works alike. A
judge over HTTP is sent system, item and json; a local model is sent system, item and
token, or, with `brief`, only `short` (for models too small for prose).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from string import ascii_uppercase as LETTERS
from typing import NamedTuple

from vlmrl.judges.judge import JudgeItem
from vlmrl.types import UserError

DEFAULT = Path(__file__).with_name("prompt.md")
_FIELDS = {
    "item": {"item"},
    "repair": {"fault"},
    "short": {"options", "think", "answer", "text"},
}


class JudgePrompt(NamedTuple):
    version: str
    hash: str  # sha256 of the file, first 16 hex digits
    parts: dict[str, str]

    @property
    def about(self) -> dict[str, str]:
        return {"judge prompt": f"{self.version} ({self.hash})"}


def load(path: str | os.PathLike = DEFAULT) -> JudgePrompt:
    """Read a prompt file.

    Raises:
      UserError: no such file, no version in its first line, a part missing or given
        twice, or a part without one of its fields.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read the judge prompt: {error}") from None
    head = re.match(r"version: (\S+)\n", text)
    if not head:
        raise UserError(f"{path}: line 1: expected 'version: NAME'")
    pieces = re.split(r"^== (\w+) ==\n", text, flags=re.M)
    names = pieces[1::2]
    parts = {n: t.strip() for n, t in zip(names, pieces[2::2], strict=True)}
    if len(parts) < len(names):
        raise UserError(f"{path}: a part is given twice: {', '.join(names)}")
    needed = ("system", "item", "json", "token", "repair")
    if missing := [n for n in needed if n not in parts]:
        raise UserError(
            f"{path}: expected the parts {needed}, got no '== {missing[0]} =='"
        )
    for name, fields in _FIELDS.items():
        for field in sorted(fields):
            if name in parts and f"{{{field}}}" not in parts[name]:
                raise UserError(f"{path}: part '{name}' lacks the field {{{field}}}")
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return JudgePrompt(head[1], digest, parts)


def fill(template: str, **fields: str) -> str:
    """Return the template with its {fields} filled in; braces in the values stay."""
    return re.sub(r"\{(\w+)\}", lambda m: fields.get(m[1], m[0]), template)


def messages(prompt: JudgePrompt, item: JudgeItem, form: str) -> list[dict]:
    """Return chat messages that put an item to a judge; `form` is 'json' or 'token'.

    The item goes in as JSON, so that no text of it can pass for the prompt's own.
    """
    shown = {
        "question": item.question,
        "options": dict(zip(LETTERS, item.options, strict=False)),
        "reasoning": item.think,
        "answer": LETTERS[item.predicted],
    }
    text = fill(prompt.parts["item"], item=json.dumps(shown, ensure_ascii=False))
    return [
        {"role": "system", "content": prompt.parts["system"]},
        {"role": "user", "content": f"{text}\n\n{prompt.parts[form]}"},
    ]


def short(prompt: JudgePrompt, item: JudgeItem) -> list[dict]:
    """Return the same in few words, for a tiny model trained to read them."""
    lines = [f"{k}. {v}" for k, v in zip(LETTERS, item.options, strict=False)]
    text = fill(
        prompt.parts["short"],
        question=item.question,
        options="\n".join(lines),
        think=item.think,
        answer=LETTERS[item.predicted],
        text=item.options[item.predicted],
    )
    return [{"role": "user", "content": text}]
