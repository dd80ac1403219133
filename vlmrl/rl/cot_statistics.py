"""Guards: what a policy does to its think when a reward looks at it, as numbers.

A reward for consistency is paid for thinks that announce the answer, and one is
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
    """Comparable words, tags left out."""
    folded = unicodedata.normalize("NFKC", _TAG.sub(" ", text)).casefold()
    return _WORD.findall(folded)


def evidence(think: str) -> int:
    """Words of the think that are no conclusion (`consistency.stripped`)."""
    return len(words(stripped(think)))


def evidence_reward(think: str, least: int) -> float:
    """min(1, evidence / least): 0 for a bare conclusion, 1 from `least` words on.

    Distinct words are counted, so that repeating one does not pay.

    Args:
      think: text inside <think>, '' if none.
      least: distinct words of evidence wanted.
    """
    if least < 1:
        raise UserError(f"guards.least: expected at least 1 word, got {least}")
    return min(1.0, len(set(words(stripped(think)))) / least)


def skeleton(think: str, options: Sequence[str] = ()) -> tuple[str, ...]:
    """The words of a think with what an item fills in left blank.

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
    """Share of thinks whose skeleton a think of another item has, too.

    0: every item is argued in its own words. 1: one form letter for all. Empty thinks
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
    """Distinct n-grams over all n-grams of one text; 1 where it has none."""
    grams = _grams(words(text), n)
    return len(set(grams)) / len(grams) if grams else 1.0


def distinct_n(texts: Sequence[str], n: int = 2) -> Mean:
    """Distinct-n of a set: different n-grams over all n-grams of all texts.

    https://arxiv.org/abs/1510.03055. It falls with the size of the set: compare equal
    sizes; sums of several sets average them, weighted by their n-grams.

    Returns:
      Mean of floats: number of different n-grams, number of n-grams.
    """
    counts = Counter(gram for text in texts for gram in _grams(words(text), n))
    return Mean(float(len(counts)), sum(counts.values()))


def copied(text: str, prompt: str, n: int = 5) -> float:
    """Share of a text's n-grams that stand in the prompt, in [0, 1].

    A think that echoes the question, the options or a misleading caption argues
    nothing. A text of fewer than n words is compared whole.

    Args:
      text: think or completion.
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
        raise UserError(f"guards.n: expected at least 1 word, got {n}")
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
