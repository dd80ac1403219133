"""Option probabilities: what a model gives each option once its answer is opened.

One implementation for evaluation (`eval/kernel.py`), for training's terms and probes
(`rl/cot_probe.py`) and for the model judge. The rows of a cache end with `<answer`, and
every way to go on is a branch of them:

  letters  P(c) is a sum over every spelling. With Qwen's tokenizer the next token may
           be `>A` at once, or a bridge, `>` or `>(`, and then `A` or ` A`. `<answer` is
           the stable boundary that all of these continue.
  texts    log P(c) is the sum of the log-probs of the option's text and the closing
           tag: of all tokens of `>text</answer>` as the tokenizer writes them behind
           `<answer`. One spelling, the option's own, without blanks around it.
           Length-normalised it is divided by the number of these tokens.

Letters are measured where options are shown and the style asks for a letter; texts
where it asks for the option's text (`Style.form`), and for open items, whose options
are candidates. Nothing is measured of items with fewer than two options, of texts of
more than LONGEST tokens, or under the styles of other tools, which ask for an answer
without tags.

Probabilities are those of raw logits at temperature 1. Axis letters: n rows of a cache,
r items (n is a multiple of r), C options, K tokens of a text, J bridges.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_uppercase as LETTERS
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vlmrl.answers.strict import PARSER
from vlmrl.engine.logprobs import id_logprobs, token_logprobs
from vlmrl.engine.prefix_cache import PrefixCache, extend
from vlmrl.models.api import Model
from vlmrl.prompts import styles
from vlmrl.prompts.tokens import Processor
from vlmrl.types import Array, Example, UserError

OPENING = "<answer"
CLOSING = "</think>\n"
FINISH = "</answer>"
LONGEST = 256  # tokens of an option's text
# Static sizes: few programs, whatever the data.
_COUNTS = (2, 4, 6, 8, 12, 16, 20, len(LETTERS))
_WIDTHS = (8, 16, 32, 64, 128, LONGEST)

# What the assistant turn already holds where sampling starts.
NOTHING, THINKING, THOUGHT, ANSWERING = range(4)


def stage_of(turn: str) -> int:
    """Return the stage of a turn that begins like this (`Prompt.turn`)."""
    if OPENING in turn:
        return ANSWERING
    if "</think>" in turn:
        return THOUGHT
    return THINKING if "<think>" in turn else NOTHING


# -- what is measured, on the host -----------------------------------------------------


class Measured(NamedTuple):
    """How the options of an item are measured."""

    kind: str  # 'letters', 'texts', or '' where nothing is
    options: int
    texts: tuple[tuple[int, ...], ...] = ()  # of 'texts': ids behind `<answer`


class OptionSizes(NamedTuple):
    """Static sizes of a program."""

    options: int  # C
    tokens: int  # K; 0: no item is measured by texts
    measured: bool = True  # False: nothing is measured of any item


class OptionRows(NamedTuple):
    """The options of r items, for a program."""

    valid: Array  # bool[r, C]: the options that are measured
    ids: Array | None = None  # int32[r, C, K]; None: letters only
    mask: Array | None = None  # bool[r, C, K]: empty for items measured by letters


def measure(processor: Processor, example: Example, style: str) -> Measured:
    """Return how an item's options are measured under a prompt style."""
    rules, count = styles.style(style), len(example.options)
    if count < 2 or rules.parser != PARSER:
        return Measured("", count)
    if not example.open and rules.form != "text":
        return Measured("letters", count)
    texts = tuple(text_ids(processor, option) for option in example.options)
    if max(map(len, texts)) > LONGEST:
        return Measured("", count)
    return Measured("texts", count, texts)


def text_ids(processor: Processor, text: str) -> tuple[int, ...]:
    """Return the ids of `>text</answer>` as the tokenizer writes them behind
    `<answer`: whatever merges over the bracket does."""
    opening = processor.encode_plain(OPENING)
    ids = processor.encode_plain(OPENING + ">" + text + FINISH)
    if ids[: len(opening)] != opening:  # the tag is a token of its own
        ids = opening + processor.encode_plain(">" + text + FINISH)
    return tuple(ids[len(opening) :])


def sizes_of(items: Sequence[Measured]) -> OptionSizes:
    """Return the sizes that items need, rounded up to few."""
    count = max((m.options for m in items), default=0)
    if count > len(LETTERS):
        raise UserError(
            f"options: expected at most {len(LETTERS)} of an item, the letters there "
            f"are, got {count}"
        )
    longest = max((len(t) for m in items for t in m.texts), default=0)
    width = next(n for n in _WIDTHS if n >= longest) if longest else 0
    measured = any(m.kind for m in items)
    return OptionSizes(next(n for n in _COUNTS if n >= count), width, measured)


def option_rows(items: Sequence[Measured], sizes: OptionSizes) -> OptionRows:
    """Return the rows of items at the sizes of a program; a program without texts
    measures no text."""
    shape = (len(items), sizes.options)
    valid = np.zeros(shape, bool)
    ids = np.zeros((*shape, sizes.tokens), np.int32)
    mask = np.zeros(ids.shape, bool)
    for i, item in enumerate(items):
        if item.kind == "letters" or (item.texts and sizes.tokens):
            valid[i, : item.options] = True
        for c, text in enumerate(item.texts if sizes.tokens else ()):
            ids[i, c, : len(text)], mask[i, c, : len(text)] = text, True
    return OptionRows(valid, ids, mask) if sizes.tokens else OptionRows(valid)


class Spellings(NamedTuple):
    """Ids that write each of C names; −1 pads."""

    direct: Array  # int32[C, m]: one token
    bridges: Array  # int32[J]: tokens after which a name may come
    second: Array  # int32[C, m']: a name after a bridge


def letter_spellings(processor: Processor) -> Spellings:
    """Return every way to write each of the 26 letters behind `<answer`.

    Raises:
      UserError: the tokenizer cannot write one of them.
    """
    direct: dict[str, list[int]] = {c: [] for c in LETTERS}
    second: dict[str, list[int]] = {c: [] for c in LETTERS}
    bridges = []
    for i, data in enumerate(processor.token_bytes):
        text = data.decode("utf-8", "replace") if len(data) < 16 else ""
        if not text or processor.banned[i]:
            continue
        if m := re.fullmatch(r">\s*\(?([A-Z])", text):
            direct[m[1]].append(i)
        elif m := re.fullmatch(r"\s*\(?([A-Z])", text):
            second[m[1]].append(i)
        elif re.fullmatch(r">\s?\(?", text):
            bridges.append(i)
    for name in LETTERS:
        if not direct[name] and not (second[name] and bridges):
            raise UserError(f"tokenizer: no token writes the letter {name}")
    return spellings(direct.values(), bridges, second.values())


def spellings(direct, bridges=(), second=()) -> Spellings:
    """Return Spellings of lists of ids per name."""
    direct = [list(row) for row in direct]
    second = [list(row) for row in second] or [[] for _ in direct]

    def padded(rows):
        width = max(1, *map(len, rows))
        return jnp.array([r + [-1] * (width - len(r)) for r in rows], jnp.int32)

    return Spellings(padded(direct), jnp.array(bridges, jnp.int32), padded(second))


# -- the probabilities, on the device --------------------------------------------------


class OptionProbs(NamedTuple):
    """Of the options of n rows; nan in rows of which nothing is measured."""

    logp: Array  # float32[n, C]: log-probs, renormalised over the valid options
    mass: Array  # float32[n]: probability of the options before renormalising
    normalised: Array | None  # float32[n, C]: of texts, log-probs of exp(mean log-prob
    # per token), renormalised; None: of letters only


def option_probs(
    model: Model,
    params,
    cache: PrefixCache,
    rows: OptionRows,
    letters: Spellings | None,
    limits=(),
    **options,
) -> OptionProbs:
    """Return the probabilities of each row's options behind the row.

    Args:
      cache: n rows that end with `<answer`.
      rows: r items; row i of the cache is of item i // (n / r).
      letters: None: no item is measured by letters.
      limits: how much of each segment a row sees (`prefix_cache.extend`).
      options: attend, unroll, as for `prefix_cache.extend`.
    """
    each = cache.next.shape[0] // rows.valid.shape[0]
    wide = jax.tree.map(lambda x: jnp.repeat(x, each, axis=0), rows)
    total = normalised = None
    given = (model, params, cache)
    if letters is not None:
        own = jax.tree.map(lambda x: x[: wide.valid.shape[1]], letters)
        own = own._replace(bridges=letters.bridges)
        total = spelled_logprobs(*given, own, limits, **options)
    if wide.ids is not None:
        sums = text_logprobs(*given, wide.ids, wide.mask, limits, **options)
        mean = sums / jnp.maximum(wide.mask.sum(-1), 1)
        by_text = wide.mask.any((1, 2))[:, None]
        total = sums if total is None else jnp.where(by_text, sums, total)
        normalised = _renormalised(mean, wide.valid & by_text)[0]
    return OptionProbs(*_renormalised(total, wide.valid), normalised)


def _renormalised(logp, valid):
    """Return (log-probs over the valid options, their mass before renormalising)."""
    logp = jnp.where(valid, logp, -jnp.inf)
    total = jax.nn.logsumexp(logp, axis=-1)
    return logp - total[..., None], jnp.exp(total)


def spelled_logprobs(
    model: Model, params, cache: PrefixCache, names: Spellings, limits=(), **options
) -> Array:
    """Return log P(name) behind each row over every spelling, float32[n, C]; not
    renormalised."""
    head = model.head(params)
    rows, count = cache.next.shape[0], names.bridges.shape[0]

    def summed(logp, ids):
        logp = jnp.where(ids.reshape(-1) < 0, -jnp.inf, logp)
        return jax.nn.logsumexp(logp.reshape(-1, *ids.shape), axis=-1)

    wanted = jnp.concatenate([names.bridges, names.direct.reshape(-1)])
    first = id_logprobs(cache.hidden, head, jnp.maximum(wanted, 0))
    direct = summed(first[:, count:], names.direct)
    if not count:
        return direct
    # Two tokens wide, the second one masked: attention holds the whole matrix of scores
    # for single tokens, which are few where it samples and many here.
    ids = jnp.tile(names.bridges, rows)[:, None] * jnp.array([1, 0], jnp.int32)
    mask = jnp.broadcast_to(jnp.array([True, False]), ids.shape)
    hidden, _ = extend(
        model, params, cache, ids, mask, _repeated(limits, count), **options
    )
    last = id_logprobs(hidden[:, 0], head, jnp.maximum(names.second.reshape(-1), 0))
    last = summed(last, names.second).reshape(rows, count, -1)
    through = jax.nn.logsumexp(first[:, :count, None] + last, axis=1)
    return jnp.logaddexp(direct, through)


def text_logprobs(
    model: Model, params, cache: PrefixCache, ids, mask, limits=(), **options
) -> Array:
    """Return log P(text) behind each row, float32[n, C].

    Args:
      ids: int32[n, C, K], the tokens of every text; mask: bool[n, C, K].
    """
    rows, count, width = ids.shape
    ids, mask = ids.reshape(-1, width), mask.reshape(-1, width)
    limits = _repeated(limits, count)
    # Nothing is read off the last token.
    hidden, _ = extend(
        model, params, cache, ids[:, :-1], mask[:, :-1], limits, **options
    )
    first = jnp.repeat(cache.hidden, count, axis=0)[:, None]
    before = jnp.concatenate([first, hidden], axis=1)
    logp, _ = token_logprobs(before, model.head(params), ids)
    return jnp.where(mask, logp, 0).sum(-1).reshape(rows, count)


def _repeated(limits, count: int):
    return tuple(x if x is None else jnp.repeat(x, count) for x in limits)
