"""The judge that is a model of this project: the probabilities of two verdict words.

It is asked to reply with Yes or No, and nothing is sampled: P(Yes) and P(No) of the
first reply token, over every token that spells the word, are read off the logits. So it
is deterministic, and its confidence is a probability.

    judge = model.make(policies.load(path), prompt.load())

All items share the judge's instructions: they are branches of one prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import numpy as np

from vlmrl import sharding
from vlmrl.engine.options import Spellings, spelled_logprobs, spellings
from vlmrl.engine.prefix_cache import prefill
from vlmrl.judges.judge import Judge, JudgeItem, Verdict, undecided
from vlmrl.judges.prompt import JudgePrompt, load, messages, short
from vlmrl.policy import Policy
from vlmrl.prompts import styles, tokens
from vlmrl.types import UserError

SIZES = (64, 128, 256, 512, 1024, 2048, 4096, 8192)  # of what is shared, and of an item
_WORDS = ("yes", "no")  # consistent, inconsistent


def make(
    policy: Policy,
    prompt: JudgePrompt | None = None,
    *,
    sure: float = 0.5,
    mass: float | None = None,
    longest: int = 4096,
    batch: int = 16,
    brief: bool = False,
    progress: Callable[[int], None] = lambda n: None,
) -> Judge:
    """Return the judge of a model.

    Args:
      sure: probability of the likelier word, of the two, below which it is undecided.
      mass: probability of both words together below which it is undecided, because the
        model prefers another reply. By default 0.05; with `brief` 0.5, as a model
        trained so replies with a third word where nothing is concluded.
      longest: tokens of one item at most; a longer one is undecided, never truncated.
      batch: items per pass.
      brief: ask by the prompt's `short` part alone, as a tiny model was trained to.

    Raises:
      UserError: the prompt has no `short` part, or the tokenizer no verdict words.
    """
    prompt = prompt or load()
    if brief and "short" not in prompt.parts:
        raise UserError("judge prompt: has no part '== short ==', which `brief` needs")
    mass = (0.5 if brief else 0.05) if mass is None else mass
    words = verdict_spellings(policy.processor)
    shards = sharding.batch_shards(policy.mesh)
    batch += -batch % shards
    name = f"model {policy.source} {prompt.version}:{prompt.hash[:8]}"
    write = writer(policy.processor.tokenizer, prompt, brief)
    sizes = tuple(s for s in SIZES if s < longest) + (longest,)
    buckets = tokens.Buckets(prefix=sizes, branch=sizes)

    @jax.jit
    def run(params, group):
        """Return log P(Yes), log P(No) of the token after each row, float32[B, 2]."""
        params = policy.cast(params)
        cache = prefill(policy.model, params, group)
        return spelled_logprobs(policy.model, params, cache, words)

    def judge(items: Sequence[JudgeItem]) -> list[Verdict]:
        rows = [
            tokens.encode(policy.processor, (write(item), ()), name=item.id)
            for item in items
        ]
        fits = [k for k, row in enumerate(rows) if len(row.ids) <= longest]
        out: list[Verdict] = [
            undecided(f"too long: {len(r.ids)} tokens, it reads {longest}", name)
            for r in rows
        ]
        # rows of about the same length share a program
        fits.sort(key=lambda k: len(rows[k].ids))
        for start in range(0, len(fits), batch):
            part = fits[start : start + batch]
            padded = [rows[k] for k in part] + [rows[part[-1]]] * (batch - len(part))
            each = batch // shards
            groups = [padded[i : i + each] for i in range(0, batch, each)]
            group = tokens.group(groups, policy.processor.geometry, buckets)
            logprobs = np.asarray(run(policy.params, policy.put(group)))[: len(part)]
            for k, pair in zip(part, logprobs, strict=True):
                out[k] = _verdict(items[k], pair, sure, mass, name)
            progress(len(part))
        return out

    about = {
        **prompt.about,
        "judge model": policy.source,
        "judge thresholds": f"sure {sure:g}, mass {mass:g}",
    }
    return Judge(name, judge, about)


def verdict_spellings(processor: tokens.Processor) -> Spellings:
    """Return the tokens whose text is Yes, and those whose text is No; any case, with
    or without a space before.

    Raises:
      UserError: the tokenizer writes one of them in pieces only.
    """
    texts = [b.decode("utf-8", "replace") for b in processor.token_bytes]
    by_word = []
    for word in _WORDS:
        ids = [i for i, t in enumerate(texts) if t.strip(" ").lower() == word]
        if not ids:
            # a small vocabulary: the first piece, as long as it tells the words apart
            ids = processor.encode_plain(word.title())[:1]
        by_word.append(ids)
    if set(by_word[0]) & set(by_word[1]):
        raise UserError("judge: this tokenizer can't tell Yes from No by one token")
    return spellings(by_word)


def _verdict(item: JudgeItem, pair, sure: float, mass: float, name: str) -> Verdict:
    yes, no = np.exp(np.asarray(pair, np.float64))
    total = yes + no
    if total < mass:
        reason = f"Yes and No hold less than {mass:g} of the probability"
        return undecided(reason, name)
    p = yes / total
    confidence = float(max(p, 1 - p))
    if confidence < sure:
        return undecided(f"no more than {confidence:.3f} sure", name, confidence)
    if p >= 0.5:
        return Verdict("consistent", item.predicted, confidence, "", name)
    other = 1 - item.predicted if len(item.options) == 2 else -1
    return Verdict("inconsistent", other, confidence, "", name)


def writer(tokenizer, prompt: JudgePrompt, brief: bool) -> Callable[[JudgeItem], str]:
    """Return a function item → rendered chat, with the assistant's turn open."""

    def write(item: JudgeItem) -> str:
        chat = short(prompt, item) if brief else messages(prompt, item, "token")
        if not getattr(tokenizer, "chat_template", None):
            return styles.chatml(chat)
        text = tokenizer.apply_chat_template(
            chat,
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,  # templates that know no thinking ignore it
        )
        return "".join(styles.begin_turn(text, "", direct=True))  # nor may one think

    return write
