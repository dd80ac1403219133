"""A model behind a chat endpoint as the policy under test: the same records.

    with Client(Endpoint(url, "some-model")) as client:
        records = evaluate(client, examples, ["base", "wrong_think"], style="r1v")

Prompts, conditions, parser and judges are those of every other evaluation. What an
endpoint can't give is absent, and the record says so. `Record.letters_from`:

  logprobs   the endpoint's token log-probs at the answer's letter (its top few alone:
             `option_mass` is a lower bound)
  samples    the shares of `letter_samples` answers
  absent     neither

`Record.prefill_as`, where the condition starts the assistant turn:

  continue   as an assistant turn that the endpoint continues
  assistant  as an assistant turn before the model's own
  user       quoted in the user turn

Where no condition starts the turn, `template` says that replies began inside a CoT: the
server's chat template had opened it. Tags are tokenised as the server does.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Sequence
from string import ascii_uppercase as LETTERS
from typing import NamedTuple

from vlmrl import perturb, user_code
from vlmrl.client.http import SPENT, Call, Client, Reply
from vlmrl.eval.record_builder import UNLABELLED, RunLabels, build_record
from vlmrl.judges import rule
from vlmrl.judges.judge import Judge, apply_verdicts, ask, readings
from vlmrl.prompts import styles
from vlmrl.types import Example, Prompt, Record, UserError

PREFILLS = ("continue", "assistant", "user")
# What vLLM, SGLang and others take to go on with an assistant turn.
_CONTINUE = {"add_generation_prompt": False, "continue_final_message": True}
_QUOTED = (
    "\nYour reply has begun with the text below. Go on from exactly where it ends, "
    "without repeating it.\n"
)
_MAGIC = {
    b"\x89PNG": "png",
    b"\xff\xd8\xff": "jpeg",
    b"GIF8": "gif",
    b"RIFF": "webp",
}
_OPENED = re.compile(rb"<answer>\s*\(?(?=[A-Z])")
_BARE = re.compile(rb"\s*\(?(?=[A-Z](?![A-Za-z]))")


class ServedSettings(NamedTuple):
    """How a served model is evaluated."""

    style: str = "r1v"  # prompt style
    prefill: str = "user"  # how a started assistant turn is sent, one of PREFILLS
    samples: int = 1  # per example and condition; greedy samples are all equal
    temperature: float = 0.0  # 0 is greedy
    max_tokens: int = 2048  # of a completion
    logprobs: bool = False  # ask for token log-probs; some endpoints refuse the request
    params: dict | None = None  # more of the request; None removes a parameter


DEFAULTS = ServedSettings()


def evaluate(
    client: Client,
    examples: Sequence[Example],
    conditions: Sequence[str],
    settings: ServedSettings = DEFAULTS,
    *,
    judge: Judge = rule.JUDGE,
    labels: RunLabels = UNLABELLED,
    progress: Callable[[int], None] = lambda n: None,
) -> list[Record]:
    """Return the records in the order example, condition, sample. A condition that does
    not apply to an example (`perturb.applies`) is not asked.

    Raises:
      UserError: unknown condition, style or prefill, samples of a greedy evaluation, an
        image that is not PNG, JPEG, GIF or WebP, the budget is spent (replies are in
        the cache: run again), or the endpoint can't be used.
    """
    s, samples = settings, settings.samples
    perturb.check(*conditions)
    if s.prefill not in PREFILLS:
        known = ", ".join(PREFILLS)
        raise UserError(f"prefill: expected one of {known}; got '{s.prefill}'")
    if samples > 1 and s.temperature == 0:
        raise UserError(
            f"samples is {samples} but temperature is 0: greedy samples are all equal"
        )
    items = [perturb.conditioned(e, conditions) for e in examples]
    changed, not_asked = [], []
    for item in items:
        rows = [e for e, a in zip(item.rows, item.asked, strict=True) if a]
        changed += rows
        not_asked += [item.not_asked] * len(rows)
    written = [turns(e, s.style, s.prefill) for e in changed]
    calls = [
        Call(_sent(messages, e), _request(s) | extra, sample)
        for e, (messages, extra, _) in zip(changed, written, strict=True)
        for sample in range(samples)
    ]
    replies = client.complete(calls, progress=progress)
    if left := sum(r.error == SPENT for r in replies):
        raise UserError(
            f"{left} of {len(replies)} completions were not requested: {SPENT}; raise "
            "it and run again, replies are cached"
        )
    asked_of = [e for e in changed for _ in range(samples)]
    opened = opens(asked_of, replies)
    code = user_code.stamp(conditions, s.style, styles.style(s.style).parser)
    records = []
    for i, (e, turn) in enumerate(zip(changed, written, strict=True)):
        mine = replies[i * samples : (i + 1) * samples]
        rows = [_record(e, turn, s.style, reply, opened) for reply in mine]
        records += _with_letters(rows, mine)
    records = [
        r._replace(
            **labels._replace(code=user_code.joined(labels.code, code))._asdict(),
            version=client.endpoint.model,
            prefill_as=_prefill_as(s.prefill, r.prefill, asked_of[i]),
            sample=i % samples,
            not_asked=not_asked[i // samples],
        )
        for i, r in enumerate(records)
    ]
    items = [item for r in records for item in readings(r)]
    return apply_verdicts(records, ask(judge, items), judge.name)


def asked(examples: Sequence[Example], conditions: Sequence[str]) -> int:
    """Return how many of the examples × conditions are asked: those that apply."""
    return sum(not perturb.applies(e, c) for e in examples for c in conditions)


def _prefill_as(sent: str, turn: str, example: Example) -> str:
    if example.prefill:
        return sent
    return "template" if turn else ""


def _request(s: ServedSettings) -> dict:
    """Return the parameters of a request."""
    params: dict = {"temperature": s.temperature, "max_tokens": s.max_tokens}
    if s.logprobs:
        params |= {"logprobs": True, "top_logprobs": 20}
    params |= s.params or {}
    return {k: v for k, v in params.items() if v is not None}


# -- what is sent ----------------------------------------------------------------------


def turns(
    example: Example, style: str, prefill: str
) -> tuple[list[dict], dict, list[list[int]]]:
    """Return (messages with image placeholders, parameters, spans a condition wrote).

    A condition that opens the answer (`no_cot`) has no prefill in the user turn: its
    suffix asks for the answer alone.
    """
    prompt_style = styles.style(style)
    messages = styles.messages(example, prompt_style)
    spans = [list(s) for s in styles.build(example, style).spans]
    text = example.prefill
    if not text:
        return messages, {}, spans
    if prefill != "user":
        messages = [*messages, {"role": "assistant", "content": text}]
        return messages, dict(_CONTINUE) if prefill == "continue" else {}, spans
    spans = spans[:-1]
    if example.direct:
        return messages, {}, spans
    *before, user = messages
    *parts, last = user["content"]
    last = last | {"text": last["text"] + _QUOTED + text}
    messages = [*before, user | {"content": [*parts, last]}]
    start = styles.chatml(messages).rindex(text)
    return messages, {}, [*spans, [start, start + len(text)]]


def _sent(messages: list[dict], example: Example) -> list[dict]:
    """Return messages with the images in them, as the API wants them."""
    images = iter(example.images)

    def part(p: dict) -> dict:
        if p["type"] != "image":
            return p
        return {"type": "image_url", "image_url": {"url": _url(next(images), example)}}

    def content(c):
        if isinstance(c, str):
            return c
        if all(p["type"] == "text" for p in c):  # what every server takes
            return "".join(p["text"] for p in c)
        return [part(p) for p in c]

    return [m | {"content": content(m["content"])} for m in messages]


def _url(image: bytes, example: Example) -> str:
    for magic, kind in _MAGIC.items():
        if image.startswith(magic):
            return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
    raise UserError(f"example {example.id}: its image is not PNG, JPEG, GIF or WebP")


# -- what came back --------------------------------------------------------------------


def completion(example: Example, reply: Reply) -> str:
    """Return the text that follows the prefill.

    Reasoning that a server gives apart stands in think tags, or goes on in the CoT that
    a prefill opened. A repeated prefill is taken off. A bare reply to a request for the
    answer alone stands in answer tags, behind the reasoning that came all the same.
    """
    text, prefill = reply.text, example.prefill
    if reply.reasoning and "<think>" not in text:
        close = "" if "</think>" in text else "</think>"
        open_tag = "" if perturb.is_open(prefill) else "<think>"
        text = open_tag + reply.reasoning + close + text
    text = text.removeprefix(prefill)
    if prefill and not perturb.is_open(prefill) and _inside(text):
        text = "<think>" + text
    thought, tag, answer = text.rpartition("</think>")
    thought += tag
    bare = answer.strip() and "answer>" not in answer and answer[:1] != ">"
    if example.direct and bare:
        opening = f"{thought}\n<answer>" if thought else ">"
        text = f"{opening}{answer.strip()}</answer>"
    return text


def _inside(text: str) -> bool:
    """Return whether a text closes a CoT that it did not open."""
    head, tag, _ = text.partition("</think>")
    return bool(tag) and "<think>" not in head


def opens(examples: Sequence[Example], replies: Sequence[Reply]) -> bool:
    """Return whether the server's chat template opens a CoT before the model writes: a
    reply behind no prefill closes one that it did not open."""
    return any(
        not (e.prefill or r.reasoning) and _inside(r.text)
        for e, r in zip(examples, replies, strict=True)
    )


def begun(example: Example, text: str, opened: bool) -> str:
    """Return how a turn began: with the prefill; with `<think>` where the server's
    template wrote it (assumed of replies that were cut off before they closed it); with
    nothing where an answer was asked for at once and reasoning came first."""
    if not example.prefill:
        return "<think>" if opened and "<think>" not in text else ""
    return "" if example.direct and text.startswith("<think>") else example.prefill


def _record(
    example: Example, written, style: str, reply: Reply, opened: bool = False
) -> Record:
    messages, _, spans = written
    text = styles.chatml(messages)
    if messages[-1]["role"] == "assistant":  # its turn stays open
        text = styles.chatml(messages[:-1]) + example.prefill
    reply_text = completion(example, reply)
    turn = begun(example, reply_text, opened)
    text += "" if example.prefill else turn
    prompt = Prompt(
        example, text, "", tuple(spans), style, styles.text_hash(text), turn=turn
    )
    record = build_record(
        prompt, reply_text, finish=reply.finish or "stop", engine="chat"
    )
    return record._replace(finish=f"error: {reply.error}") if reply.error else record


def _with_letters(rows: list[Record], replies: Sequence[Reply]) -> list[Record]:
    """Return the samples of one example and condition with the probabilities of its
    options: from log-probs those of letters, where letters are asked for; else the
    shares of the options that the samples name."""
    count, first = len(rows[0].options), rows[0]
    by_text = first.open or styles.style(first.style).form == "text"
    kind = "texts" if by_text else "letters"
    read = [
        letter_probabilities(r.logprobs, row.prefill, count)
        for r, row in zip(replies, rows, strict=True)
    ]
    if all(read) and not by_text:
        return [
            _lettered(
                row,
                p,
                mass,
                letters_from="logprobs",
                scored=kind,
                forced=p.index(max(p)),
            )
            for row, (p, mass) in zip(rows, read, strict=True)
        ]
    answered = [r.predicted for r in rows if r.predicted >= 0]
    if len(rows) == 1 or not answered:
        return rows
    k = len(answered)
    shares, mass = [answered.count(c) / k for c in range(count)], k / len(rows)
    facts = {"letters_from": "samples", "letter_samples": k, "scored": kind}
    return [_lettered(row, shares, mass, **facts) for row in rows]


def _lettered(row: Record, p: list[float], mass: float, **facts) -> Record:
    return row._replace(
        letters=p,
        entropy=-sum(x * math.log(x) for x in p if x > 0),
        p_correct=p[row.answer] if row.answer >= 0 else math.nan,
        p_suggested=p[row.suggested] if row.suggested >= 0 else math.nan,
        option_mass=mass,
        **facts,
    )


def letter_probabilities(
    served: list[dict], prefill: str, options: int
) -> tuple[list[float], float] | None:
    """Return (probabilities renormalised over the options, their mass) from an
    endpoint's token log-probs, at the token that writes the answer's letter; None where
    there is none.

    Sums every listed token that writes an option's letter there, with what the chosen
    token has before it (`>A`, ` A`, `(A`). Matched on bytes.
    """
    tokens = [_bytes(t) for t in served]
    text, given = b"".join(tokens), prefill.encode()
    openings = list(_OPENED.finditer(given + text))
    if openings:
        at = openings[-1].end() - len(given)
    else:
        reply = text.rpartition(b"</think>")[2]
        bare = _BARE.match(reply)
        if bare is None or b"<" in reply:
            return None
        at = len(text) - len(reply) + bare.end()
    if at < 0:
        return None
    start = 0
    for token, data in zip(served, tokens, strict=True):
        if start <= at < start + len(data):
            return _summed(token, data[: at - start], options)
        start += len(data)
    return None


def _summed(token: dict, lead: bytes, options: int):
    top = token.get("top_logprobs")
    listed = [t for t in top if isinstance(t, dict)] if isinstance(top, list) else []
    by_bytes = {_bytes(t): t.get("logprob") for t in [*listed, token]}
    mass = [0.0] * options
    for data, logprob in by_bytes.items():
        bare = data.lstrip(b" >(\n")
        letter, after = bare[:1].decode("ascii", "replace"), bare[1:2]
        option = LETTERS.find(letter) if letter else -1
        same = (b">" in lead) == data.startswith(b">")
        known = isinstance(logprob, int | float) and not after.isalnum()
        if 0 <= option < options and same and known:
            mass[option] += math.exp(min(logprob, 0.0))
    total = sum(mass)
    return ([m / total for m in mass], total) if total > 0 else None


def _bytes(token: dict) -> bytes:
    data = token.get("bytes")
    if isinstance(data, list) and all(type(b) is int and 0 <= b < 256 for b in data):
        return bytes(data)
    return str(token.get("token", "")).encode("utf-8", "replace")
