"""What the evaluation kernel must know of a tokenizer: tags, sentences and letters.
Tags are matched on decoded bytes."""

from __future__ import annotations

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vlmrl.engine.automata import automaton
from vlmrl.engine.generate import Stops, make_stops
from vlmrl.engine.options import CLOSING, OPENING, Spellings, letter_spellings
from vlmrl.prompts.tokens import Processor
from vlmrl.types import Array


class Tag(NamedTuple):
    """Automaton of one tag; its state is the number of bytes matched so far."""

    table: Array  # int16[V, A]
    hits: Array  # uint8[V, A]
    ends: Array  # uint8[V, A]


class TagTables(NamedTuple):
    """Device tables of one tokenizer."""

    stops: Stops  # for the sampler: `</answer>`
    think: Tag
    close: Tag
    answer: Tag
    size: Array  # int32[V]: bytes of each token
    sentence: Array  # bool[V]: ends with . ! ? or a line break
    word: Array  # bool[V]: holds a letter or digit
    end: Array  # bool[V]: end tokens
    closing: Array  # int32[F]: ids of `</think>\n<answer`
    opening: Array  # int32[F']: ids of `<answer`
    letters: Spellings


def make_tables(processor: Processor) -> TagTables:
    """Return the tables of a tokenizer.

    Raises:
      UserError: it cannot write the letters.
    """
    texts = [b.decode("utf-8", "replace") for b in processor.token_bytes]

    def flags(test):
        return np.array([bool(test(t)) for t in texts])

    def ids(text):
        return np.array(processor.encode_plain(text), np.int32)

    def tag(text):
        tables = automaton(processor.token_bytes, (text.encode(),))
        return Tag(*(jnp.asarray(x) for x in tables))

    stops = make_stops(processor)
    tables = TagTables(
        stops=stops,
        think=tag("<think>"),
        close=tag("</think>"),
        answer=tag(OPENING),
        size=np.array([len(b) for b in processor.token_bytes], np.int32),
        sentence=flags(lambda t: t.endswith((".", "!", "?", "\n"))),
        word=flags(lambda t: re.search(r"\w", t)),
        end=stops.end,
        closing=ids(CLOSING + OPENING),
        opening=ids(OPENING),
        letters=letter_spellings(processor),
    )
    return jax.tree.map(jnp.asarray, tables)


class TagMatch(NamedTuple):
    """First match of a tag in each row: B rows."""

    matched: Array  # bool[B]
    index: Array  # int32[B]: token in which it is completed; T if not found
    exact: Array  # bool[B]: its last byte is that token's last byte
    byte: Array  # int32[B]: offset of its first byte from the row's start


def find(tag: Tag, size, tokens, mask, after=None) -> TagMatch:
    """Return the first completion of a tag in every row, at token index > `after`
    int32[B]."""
    rows, length = tokens.shape

    def step(state, ids):
        return tag.table[ids, state].astype(jnp.int32), (
            state,
            tag.hits[ids, state] != 0,
            tag.ends[ids, state] != 0,
        )

    zero = jnp.zeros(rows, jnp.int32)
    _, (state, hit, ends) = jax.lax.scan(step, zero, tokens.T)
    state, hit, ends = state.T, hit.T & mask, ends.T
    if after is not None:
        hit = hit & (jnp.arange(length) > after[:, None])
    matched = hit.any(-1)
    index = jnp.where(matched, jnp.argmax(hit, -1), length)
    at = jnp.minimum(index, length - 1)[:, None]

    def there(x):
        return jnp.take_along_axis(x, at, -1)[:, 0]

    sizes = jnp.where(mask, size[tokens], 0)
    past = jnp.cumsum(sizes, -1)  # bytes up to the end of each token
    exact = there(ends) & matched
    # A token that holds a whole tag may follow bytes that only seemed to begin one.
    begin = there(past) - jnp.where(exact, tag.table.shape[1] - 1, there(sizes + state))
    return TagMatch(matched, index.astype(jnp.int32), exact, begin)
