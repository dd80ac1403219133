"""Statistics of chains of thought (CoT), which a reward for consistency may distort.

A reward for consistency is paid for CoTs that announce the answer, and one is
cheapest when it is short, the same for every item, or copied from the prompt. These
functions measure that; a recipe logs them always and may add them as shaping terms
(`rewards.shaped`), so whether a guard is needed is seen, not assumed.

Words are runs of letters and digits after NFKC and case folding, so that look-alike
widths and cases don't count as variety.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence

from vlmrl.judges import patterns
from vlmrl.rl.consistency import stripped
from vlmrl.types import Mean, UserError

_WORD = re.compile(r"[^\W_]+")
_FILLED = re.compile(rf"\w|[0-9]+|{'|'.join(patterns.NUMBERS)}")
_TAG = re.compile(r"</?(?:think|answer)>")


def words(text: str) -> list[str]:
    """Return comparable words, without tags."""
    folded = unicodedata.normalize("NFKC", _TAG.sub(" ", text)).casefold()
    return _WORD.findall(folded)


def evidence(think: str) -> int:
    """Count the words of the CoT outside its conclusion (`consistency.stripped`)."""
    return len(words(stripped(think)))


def evidence_reward(think: str, min_words: int) -> float:
    """Return min(1, evidence / min_words): 0 for a bare conclusion.

    Distinct words are counted, so that repeating one does not pay.

    Args:
      think: text inside <think>, '' if none.
      min_words: distinct words of evidence for the full reward.
    """
    if min_words < 1:
        raise UserError(
            f"cot_statistics.min_words: expected at least 1 word, got {min_words}"
        )
    return min(1.0, len(set(words(stripped(think)))) / min_words)


def skeleton(think: str, options: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the words of a CoT with what depends on the item left blank.

    Option texts, single letters and numbers become '_', runs of them one ("a" too: it
    may be a letter).
    """
    text = " " + " ".join(words(think)) + " "
    for option in sorted({" ".join(words(o)) for o in options} - {""}, key=len)[::-1]:
        text = text.replace(f" {option} ", " _ ")
    blank = ["_" if _FILLED.fullmatch(w) else w for w in text.split()]
    return tuple(
        w for i, w in enumerate(blank) if w != "_" or i == 0 or blank[i - 1] != "_"
    )


def template_rate(
    thinks: Sequence[str], options: Sequence[Sequence[str]], items: Sequence[str]
) -> Mean:
    """Return the share of CoTs whose skeleton a CoT of another item has, too.

    0: every item is argued in its own words. 1: one form letter for all. Empty CoTs
    are alike. It falls with the size of the set: compare equal sizes.

    Args:
      thinks: n texts.
      options: of each, its option texts.
      items: of each, the id of its item: agreeing with one's own group is no template.

    Returns:
      Mean of floats.
    """
    rows = list(zip(thinks, options, items, strict=True))
    forms = [skeleton(think, texts) for think, texts, _ in rows]
    owners = defaultdict(set)
    for form, (_, _, item) in zip(forms, rows, strict=True):
        owners[form].add(item)
    return Mean(float(sum(len(owners[form]) > 1 for form in forms)), len(rows))


def distinct(text: str, n: int = 3) -> float:
    """Return distinct n-grams over all n-grams of one text; 1 where it has none."""
    grams = _grams(words(text), n)
    return len(set(grams)) / len(grams) if grams else 1.0


def distinct_n(texts: Sequence[str], n: int = 2) -> Mean:
    """Return distinct-n of a set: different n-grams over all n-grams of all texts.

    https://arxiv.org/abs/1510.03055. It falls with the size of the set: compare equal
    sizes; sums of several sets average them, weighted by their n-grams.

    Returns:
      Mean of floats: number of different n-grams, number of n-grams.
    """
    counts = Counter(gram for text in texts for gram in _grams(words(text), n))
    return Mean(float(len(counts)), sum(counts.values()))


def copied(text: str, prompt: str, n: int = 5) -> float:
    """Return the share of a text's n-grams that are in the prompt, in [0, 1].

    A CoT that echoes the question, the options or a misleading caption argues
    nothing. A text of fewer than n words is compared whole.

    Args:
      text: CoT or completion.
      prompt: what the model read (`Prompt.text`, prefill included).
      n: words.
    """
    mine, theirs = words(text), words(prompt)
    n = min(n, len(mine))
    if not n:
        return 0.0
    known = set(_grams(theirs, n))
    grams = _grams(mine, n)
    return sum(gram in known for gram in grams) / len(grams)


def _grams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    if n < 1:
        raise UserError(f"cot_statistics.n: expected at least 1 word, got {n}")
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
