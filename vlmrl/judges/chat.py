"""The judge behind a chat endpoint: a strict reply, one repair, else undecided.

A reply is one JSON object with `conclusion`, `verdict` and `confidence`, consistent
with each other and with the answer. An unreadable reply is sent back once with its
fault; if the second is unreadable too, the item is undecided with the fault as its
reason. No field has a default.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from string import ascii_uppercase as LETTERS

from vlmrl.client.http import Call, Client, Reply
from vlmrl.judges.judge import LABELS, Judge, JudgeItem, Verdict, undecided
from vlmrl.judges.prompt import JudgePrompt, fill, load, messages

# Greedy and short; `max_tokens` leaves a reasoning model room to reason first.
PARAMS = {"temperature": 0.0, "max_tokens": 2048}
_FENCED = re.compile(r"```(?:json)?\s*(\{.*\})\s*```", re.DOTALL)
_THOUGHT = re.compile(r"[^{]*?</think>|\s*<think>.*?</think>", re.DOTALL)


class Unreadable(ValueError):
    """A reply that breaks the schema; the message says how in a few words."""


def make(
    client: Client,
    prompt: JudgePrompt | None = None,
    *,
    params: dict | None = None,
    seconds: float = 0.0,
    progress: Callable[[int], None] = lambda n: None,
) -> Judge:
    """Return the judge of an endpoint.

    Args:
      params: of the request, in place of PARAMS: part of the cache's key.
      seconds: time limit of a call of the judge; items without a reply by then are
        undecided. 0: no limit.
      progress: called with the number of items just judged.
    """
    prompt = prompt or load()
    params = PARAMS if params is None else params
    name = f"http {client.endpoint.model} {prompt.version}:{prompt.hash[:8]}"

    def judge(items: Sequence[JudgeItem]) -> list[Verdict]:
        began = time.monotonic()
        asked = [Call(messages(prompt, item, "json"), params) for item in items]
        replies = client.complete(asked, seconds=seconds, progress=progress)
        out = [_read(r, i, name) for r, i in zip(replies, items, strict=True)]
        again = [k for k, v in enumerate(out) if isinstance(v, Unreadable)]
        repairs = [_repair(prompt, asked[k], replies[k], out[k]) for k in again]
        left = seconds and max(seconds - (time.monotonic() - began), 1e-3)
        second = client.complete(repairs, seconds=left)
        for k, reply in zip(again, second, strict=True):
            verdict = _read(reply, items[k], name)
            if isinstance(verdict, Unreadable):
                verdict = undecided(f"unreadable reply: {verdict}", name)
            out[k] = verdict
        return out

    about = {
        **prompt.about,
        "judge model": f"{client.endpoint.model} at {client.endpoint.url}",
        "judge parameters": json.dumps(params, sort_keys=True),
    }
    return Judge(name, judge, about)


def _repair(prompt: JudgePrompt, call: Call, reply: Reply, fault: Unreadable) -> Call:
    turns = [
        {"role": "assistant", "content": reply.text[:2000]},
        {"role": "user", "content": fill(prompt.parts["repair"], fault=str(fault))},
    ]
    return call._replace(messages=[*call.messages, *turns])


def _read(reply: Reply, item: JudgeItem, name: str) -> Verdict | Unreadable:
    if reply.error:
        return undecided(reply.error, name)
    try:
        return read(reply.text, item, name)
    except Unreadable as fault:
        return fault


def read(text: str, item: JudgeItem, name: str) -> Verdict:
    """Return the verdict that a reply states.

    Reasoning before a `</think>` and one Markdown fence are stripped; the rest must
    be one JSON object with exactly the three keys, of the right kinds, that agree.

    Raises:
      Unreadable: it is not.
    """
    thought = _THOUGHT.match(text)
    text = (text[thought.end() :] if thought else text).strip()
    fenced = _FENCED.fullmatch(text)
    try:
        reply = json.loads(
            fenced[1] if fenced else text,
            object_pairs_hook=_once,
            parse_constant=_no_constant,
        )
    except Unreadable:
        raise
    except (ValueError, RecursionError):
        raise Unreadable("it is not one JSON object") from None
    keys = {"conclusion", "verdict", "confidence"}
    if not isinstance(reply, dict) or set(reply) != keys:
        raise Unreadable(f"its keys are not {', '.join(sorted(keys))}")
    label, letter, sure = (reply[k] for k in ("verdict", "conclusion", "confidence"))
    if label not in LABELS:
        raise Unreadable(f"verdict is not one of {', '.join(LABELS)}")
    if (
        isinstance(sure, bool)
        or not isinstance(sure, int | float)
        or not 0 <= sure <= 1
    ):
        raise Unreadable("confidence is not a number from 0 to 1")
    letters = LETTERS[: len(item.options)]
    if letter != "none" and (
        not isinstance(letter, str) or letter not in list(letters)
    ):
        raise Unreadable(f"conclusion is not none or one of {', '.join(letters)}")
    conclusion = -1 if letter == "none" else letters.index(letter)
    if conclusion < 0:
        wanted = "undecided"
    else:
        same = conclusion == item.predicted
        wanted = "consistent" if same else "inconsistent"
    if label != wanted:
        raise Unreadable(f"conclusion {letter} makes the verdict {wanted}, not {label}")
    reason = "the chain of thought concludes nothing" if label == "undecided" else ""
    return Verdict(label, conclusion, float(sure), reason, name)


def _once(pairs):
    reply = dict(pairs)
    if len(reply) < len(pairs):
        raise Unreadable("a key is given twice")
    return reply


def _no_constant(name):
    raise Unreadable(f"{name} is not a number")
