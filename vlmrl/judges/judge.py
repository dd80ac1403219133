"""The one judge interface: items in, verdicts out.

A judge reads text only, never the image: question, options, a chain of thought and the
given answer. It decides whether the final conclusion of the chain of thought is that
answer. Rule, model and HTTP judges are all a `Judge`; a cascade and a majority are made
of judges and are judges too.

    judge = cascade(rule.JUDGE, chat.make(client, prompt))
    verdicts = ask(judge, items)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from vlmrl import user_code
from vlmrl.types import Record

LABELS = ("consistent", "inconsistent", "undecided")  # that a judge may give


class JudgeItem(NamedTuple):
    """What a judge sees of one completion."""

    id: str
    question: str
    options: tuple[str, ...]
    think: str  # chain of thought without its tags
    predicted: int  # option that was answered, -1 if none
    applicable: bool = True  # False where the condition leaves nothing to judge


class Verdict(NamedTuple):
    """A judge's decision on one item."""

    label: str  # one of LABELS, or 'not_applicable'
    conclusion: int  # option read as the conclusion of the CoT, -1 if none
    confidence: float  # probability the judge gives its label, NaN if it gives none
    reason: str  # why it is undecided; '' where it isn't
    judge: str  # the judge's name; in a cascade, the one that decided


class Judge(NamedTuple):
    """A judge. Call it through `ask`, which filters out what needs no judgement."""

    name: str  # stored with every record
    judge: Callable[[Sequence[JudgeItem]], list[Verdict]]
    about: dict[str, str]  # what a report should say: prompt version and hash, ...


NONE = float("nan")


def undecided(reason: str, judge: str, confidence: float = NONE) -> Verdict:
    return Verdict("undecided", -1, confidence, reason, judge)


def concluded(item: JudgeItem, conclusion: int, judge: str, confidence=NONE) -> Verdict:
    """Return the verdict that follows from a conclusion, -1 being none."""
    if conclusion < 0:
        return undecided("the chain of thought concludes nothing", judge, confidence)
    same = "consistent" if conclusion == item.predicted else "inconsistent"
    return Verdict(same, conclusion, confidence, "", judge)


def ask(judge: Judge, items: Sequence[JudgeItem]) -> list[Verdict]:
    """Return the verdicts of items, in their order.

    Items that need no judge are not asked: 'not_applicable' ones, and those without an
    answer or a chain of thought, which are undecided. Items with the same content are
    asked once.
    """
    without = [settled(item, judge.name) for item in items]
    asked: dict[JudgeItem, JudgeItem] = {}  # what is asked, by its content
    for item, known in zip(items, without, strict=True):
        if known is None:
            asked.setdefault(item._replace(id=""), item)
    verdicts = judge.judge(list(asked.values())) if asked else []
    if len(verdicts) != len(asked):
        raise ValueError(
            f"judge {judge.name}: {len(verdicts)} verdicts of {len(asked)}"
        )
    by_item = dict(zip(asked, verdicts, strict=True))
    return [
        known or by_item[item._replace(id="")]
        for item, known in zip(items, without, strict=True)
    ]


def settled(item: JudgeItem, name: str) -> Verdict | None:
    """Return the verdict that needs no judge, None where one is needed."""
    if not item.applicable:
        return Verdict("not_applicable", -1, NONE, "", name)
    if item.predicted < 0:
        return undecided("nothing was answered", name)
    if not item.options:
        return undecided("the item has no options", name)
    if not item.think.strip():
        return undecided("there is no chain of thought", name)
    return None


def cascade(first: Judge, second: Judge) -> Judge:
    """Return a judge that asks the second where the first is undecided."""

    def judge(items: Sequence[JudgeItem]) -> list[Verdict]:
        out = ask(first, items)
        rest = [k for k, v in enumerate(out) if v.label == "undecided"]
        verdicts = ask(second, [items[k] for k in rest])
        for k, verdict in zip(rest, verdicts, strict=True):
            out[k] = verdict
        return out

    name = f"{first.name} > {second.name}"
    return Judge(name, judge, {"cascade": name, **first.about, **second.about})


def saving(verdicts: Sequence[Verdict], first: Judge) -> float:
    """Return the share of the judged items that a cascade's first judge decided alone,
    without asking the second. NaN where nothing was judged."""
    judged = [v for v in verdicts if v.label != "not_applicable"]
    mine = sum(v.judge == first.name and v.label != "undecided" for v in judged)
    return mine / len(judged) if judged else NONE


def majority(judges: Sequence[Judge]) -> Judge:
    """Return a judge that gives the label of more than half of the judges, else
    undecided. Its confidence is the share of votes, its conclusion the commonest of
    those who gave the label."""
    name = majority_name([j.name for j in judges])

    def judge(items: Sequence[JudgeItem]) -> list[Verdict]:
        votes = zip(*(ask(j, items) for j in judges), strict=True)
        return [elected(vote, name) for vote in votes]

    about = {k: v for j in judges for k, v in j.about.items()}
    return Judge(name, judge, {"majority": name, **about})


def majority_name(names: Sequence[str]) -> str:
    return f"majority({', '.join(names)})"


def elected(vote: Sequence[Verdict], name: str) -> Verdict:
    """Return the majority's verdict; `name` is the majority's."""
    label, count = Counter(v.label for v in vote).most_common(1)[0]
    if 2 * count <= len(vote):
        return undecided("votes: " + ", ".join(v.label for v in vote), name)
    share = count / len(vote)
    if label == "undecided":
        why = "; ".join(dict.fromkeys(v.reason for v in vote if v.label == label))
        return undecided(why, name, share)
    named = Counter(v.conclusion for v in vote if v.label == label)
    return Verdict(label, named.most_common(1)[0][0], share, "", name)


# -- records ---------------------------------------------------------------------------


def applicable(condition: str) -> bool:
    """Return whether a condition leaves the model a chain of thought to judge."""
    # modifiers stand before it: 'abstain+no_cot', 'noisy+no_cot'
    return condition.rpartition("+")[2] not in ("stop_think", "no_cot")


def readings(record: Record) -> tuple[JudgeItem, JudgeItem]:
    """Return the two readings of a record: its whole chain of thought, and the part
    that the model wrote."""
    r = record
    run = f"{r.split}/{r.recipe}/{r.seed}/{r.step}"
    name = f"{run}/{r.source}/{r.example}/{r.condition}/{r.sample}"
    options, applies = tuple(r.options), applicable(r.condition)
    whole = JudgeItem(name, r.question, options, r.think, r.predicted, applies)
    return whole, whole._replace(id=name + "#sampled", think=r.think_sampled)


def apply_verdicts(
    records: Sequence[Record], verdicts: Sequence[Verdict], name: str
) -> list[Record]:
    """Return the records under another judge, from verdicts of both readings of
    each."""
    return [
        r._replace(
            judge=name,
            conclusion=whole.conclusion,
            verdict=whole.label,
            verdict_sampled=own.label,
            code=user_code.joined(r.code, user_code.stamp(name)),
        )
        for r, whole, own in zip(records, verdicts[::2], verdicts[1::2], strict=True)
    ]


def rejudged(records: Sequence[Record], judge: Judge) -> list[Record]:
    """Ask a judge for both readings of each record; return the records under it."""
    items = [item for r in records for item in readings(r)]
    return apply_verdicts(records, ask(judge, items), judge.name)
