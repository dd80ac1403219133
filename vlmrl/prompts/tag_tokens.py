"""How the reasoning tags <think> </think> <answer> </answer> become token ids.

Some tokenizers have a tag as an added token, matched before anything is split. Where
training used that token the model knows it; where it never did (Qwen3-VL Instruct), a
prompt that holds the tag says nothing, and the model can't write it.

  added   as the tokenizer has them: one token, where there is one
  plain   as ordinary text, split like any other; the added token is never sampled
  auto    plain where the added tokens were never trained, else added (`choose`)

Text is the same in both, and so is what is read in it. One `Processor` encodes prompts,
prefills, forced openings, probes and training texts; an export in plain mode has a
tokenizer without these added tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vlmrl.perturb import TAGS
from vlmrl.types import Array, UserError

MODES = ("auto", "added", "plain")
# What an added tag is renamed to, id kept, where tags are plain.
UNUSED = {tag: f"<|unused:{tag[1:-1]}|>" for tag in TAGS}
# Families whose chat models have the tokens and never saw them, unless their template
# writes one itself (https://github.com/QwenLM/Qwen3-VL/issues/1663).
UNTRAINED = ("qwen3_vl", "qwen3_vl_moe")


class TagRows(NamedTuple):
    """Rows of an embedding, or of a head: of V × D, float32."""

    tags: Array  # [t, D]: of the added tags
    unused: Array  # [u, D]: of ids that no text has: padding and reserved tokens
    ordinary: Array  # [o, D]: a sample of the vocabulary


class Choice(NamedTuple):
    mode: str  # 'added' or 'plain'
    why: str


def check(mode: str) -> None:
    if mode not in MODES:
        raise UserError(f"tags: expected {', '.join(MODES)}, got '{mode}'")


def added_ids(tokenizer) -> dict[str, int]:
    """Return the tags that a tokenizer has as added tokens, with their ids."""
    ids = {t.content: i for i, t in tokenizer.added_tokens_decoder.items()}
    return {tag: ids[tag] for tag in TAGS if tag in ids}


def trained(rows: TagRows) -> list[bool | None]:
    """Return, for each tag, whether training moved its row; None: it can't be said.

    Rows that training never wrote stay together: at their initial values, decayed to
    the same small ones, or, in a head, pushed by every step in the same direction
    (https://arxiv.org/abs/2405.05417). So an untrained row lies as near to the mean of
    the unused ones as these do, and ordinary rows lie farther; where both are equally
    far, as in a model that was just initialised, nothing can be said. A row of less
    than half the norm of nearly all others is untrained as well.
    """
    norms = np.linalg.norm(rows.ordinary, axis=-1)
    small = np.linalg.norm(rows.tags, axis=-1) < 0.5 * np.quantile(norms, 0.01)
    inside, outside = np.inf, 0.0
    if len(rows.unused):
        middle = rows.unused.mean(0)

        def distances(x):
            return np.linalg.norm(x - middle, axis=-1)

        outside = np.quantile(distances(rows.ordinary), 0.1)
        inside = 1.05 * np.quantile(distances(rows.unused), 0.95)
        inside = max(inside, 0.05 * outside)  # unused rows may all be equal
    if inside >= outside:
        return [False if s else None for s in small]
    near = distances(rows.tags) < np.sqrt(inside * outside)
    return [not (s or n) for s, n in zip(small, near, strict=True)]


def sample_ids(token_bytes: Sequence[bytes], added: Sequence[int]) -> tuple:
    """Return (unused ids, at most 256; ordinary ids, at most 2048), spread evenly."""

    def unused(i):
        name = token_bytes[i].lower()
        reserved = name.startswith(b"<|") and (b"reserved" in name or b"unused" in name)
        return not name or reserved

    def spread(ids, most):
        return ids[:: max(1, -(-len(ids) // most))]

    ids = range(len(token_bytes))
    idle = [i for i in ids if unused(i)]
    known = set(idle) | set(added)
    return spread(idle, 256), spread([i for i in ids if i not in known], 2048)


def choose(
    mode: str,
    added: Sequence[str],
    *,
    opened: bool,
    family: str,
    tables: Sequence[TagRows] = (),
) -> Choice:
    """Decide between 'added' and 'plain', and say why.

    Args:
      mode: one of MODES.
      added: the tags that the tokenizer has as added tokens.
      opened: the chat template writes a tag where the assistant turn begins.
      family: model_type of config.json.
      tables: rows of the embedding, and of the head where that is another table. A
        token that is only read is trained in the one, one only written in the other:
        a single trained row is enough.
    """
    if not added:
        return Choice("plain", "the tokenizer has no added tokens for them")
    names = " and ".join(added)
    if mode != "auto":
        return Choice(mode, f"as configured; {names} are added tokens")
    verdicts = [v for rows in tables for v in trained(rows)]
    if True in verdicts:
        return Choice("added", f"{names} are added tokens, and trained")
    if False in verdicts:
        why = "their embedding rows are those of unused tokens"
        return Choice(
            "plain", f"{names} are added tokens that were never trained: {why}"
        )
    unclear = f"{names} are added tokens, their embedding rows don't tell if trained"
    if opened:
        return Choice("added", f"{unclear}; the chat template writes them")
    if family in UNTRAINED:
        return Choice("plain", f"{unclear}; {family} was not trained on them")
    return Choice("added", f"{unclear}; taken as the tokenizer has them")


def plain_backend(tokenizer) -> Any:
    """Return a `tokenizers.Tokenizer` equal to a transformers one but for the tags,
    which it splits as ordinary text."""
    from tokenizers import Tokenizer

    raw = renamed(json.loads(tokenizer.backend_tokenizer.to_str()))
    out = Tokenizer.from_str(json.dumps(raw, ensure_ascii=False))
    out.no_truncation()
    out.no_padding()
    return out


def renamed(raw: dict) -> dict:
    """Return a parsed tokenizer.json with the added tags under other names, their ids
    kept."""
    added = [
        t | {"content": _renamed_values(t["content"])} for t in raw["added_tokens"]
    ]
    vocab = raw["model"]["vocab"]
    if isinstance(vocab, dict):  # some list added tokens there, too
        was = {t["content"] for t in raw["added_tokens"]}
        vocab = {
            UNUSED[t] if t in UNUSED and t in was else t: i for t, i in vocab.items()
        }
    return raw | {"added_tokens": added, "model": raw["model"] | {"vocab": vocab}}


def make_plain(directory: Path) -> None:
    """Rename the added tags in the tokenizer files of a directory, so that whoever
    loads it reads tags as ordinary text."""
    names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
    for path in (directory / name for name in (*names, "added_tokens.json")):
        raw = json.loads(path.read_text()) if path.is_file() else None
        new = renamed(raw) if path.name == names[0] and raw else _renamed_values(raw)
        if new != raw:
            path.write_text(json.dumps(new, indent=2, ensure_ascii=False) + "\n")


def _renamed_values(raw):
    """Rename strings, and keys, that are exactly a tag."""
    if isinstance(raw, dict):
        return {UNUSED.get(k, k): _renamed_values(v) for k, v in raw.items()}
    if isinstance(raw, list):
        return [_renamed_values(v) for v in raw]
    return UNUSED.get(raw, raw) if isinstance(raw, str) else raw
