"""A model behind a chat endpoint as the policy under test: the same records.

    with Client(Endpoint(url, "some-model")) as client:
        records = evaluate(client, examples, ["base", "wrong_think"], style="r1v")

Prompts, conditions, parser and judges are those of every other evaluation. What an
endpoint can't give is absent, never made up, and `Record.engine` says what was had:

  letters=logprobs   from the endpoint's token log-probs at the answer's letter
                     (its top few alone: `option_mass` is a lower bound)
  letters=samples:k  the shares of k samples' answers; `letter_intervals` gives Wilson's
  letters=absent     neither
  prefill=continue   a prefill was an assistant turn that the endpoint went on with
  prefill=assistant  it was an assistant turn before the model's own
  prefill=user       it was quoted in the user turn
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Sequence
from string import ascii_uppercase as LETTERS

from vlmrl import perturb
from vlmrl.client.http import SPENT, Call, Client, Reply
from vlmrl.eval import stats
from vlmrl.eval.record_builder import build_record
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


def evaluate(
    client: Client,
    examples: Sequence[Example],
    conditions: Sequence[str],
    *,
    style: str = "r1v",
    prefill: str = "user",
    samples: int = 1,
    temperature: float = 0.0,
    max_tokens: int = 2048,
    logprobs: bool = False,
    params: dict | None = None,
    judge: Judge = rule.JUDGE,
    recipe: str = "",
    seed: int = 0,
    split: str = "",
    progress: Callable[[int], None] = lambda n: None,
) -> list[Record]:
    """Records in the order example, condition, sample, one each.

    Args:
      prefill: how an assistant prefill reaches the model, one of PREFILLS.
      samples: per example and condition; temperature 0 takes 1.
      logprobs: ask for token log-probs; an endpoint that refuses them refuses the call.
      params: of the request besides; None takes a parameter of this function away.

    Raises:
      UserError: unknown condition, style or prefill, samples of a greedy evaluation, an
        image that is not PNG, JPEG, GIF or WebP, the budget is spent (what was replied
        is kept: run again), or the endpoint can't be used.
    """
    for name in conditions:
        perturb.check(name)
    if prefill not in PREFILLS:
        raise UserError(f"prefill '{prefill}' is none of {', '.join(PREFILLS)}")
    if samples > 1 and temperature == 0:
        raise UserError(
            f"samples is {samples} but temperature is 0: greedy samples are all equal"
        )
    asked = {"temperature": temperature, "max_tokens": max_tokens}
    if logprobs:
        asked |= {"logprobs": True, "top_logprobs": 20}
    asked = {k: v for k, v in (asked | (params or {})).items() if v is not None}
    changed = [perturb.apply(e, c) for e in examples for c in conditions]
    written = [turns(e, style, prefill) for e in changed]
    calls = [
        Call(_sent(messages, e), asked | extra, sample)
        for e, (messages, extra, _) in zip(changed, written, strict=True)
        for sample in range(samples)
    ]
    replies = client.complete(calls, progress=progress)
    if left := sum(r.error == SPENT for r in replies):
        raise UserError(
            f"{left} of {len(replies)} completions were not asked for: {SPENT}; raise "
            "it and run again, what was replied is kept"
        )
    records = []
    for i, (e, turn) in enumerate(zip(changed, written, strict=True)):
        mine = replies[i * samples : (i + 1) * samples]
        rows = [_record(e, turn, style, reply) for reply in mine]
        records += _with_letters(rows, mine, client.endpoint.model, prefill)
    records = [
        r._replace(recipe=recipe, seed=seed, split=split, sample=i % samples)
        for i, r in enumerate(records)
    ]
    items = [item for r in records for item in readings(r)]
    return apply_verdicts(records, ask(judge, items), judge.name)


# -- what is sent ----------------------------------------------------------------------


def turns(
    example: Example, style: str, prefill: str
) -> tuple[list[dict], dict, list[list[int]]]:
    """(messages with image placeholders, parameters, spans a condition wrote).

    A condition that opens the answer (`no_cot`) has no prefill in the user turn: its
    suffix asks for the answer alone.
    """
    how = styles.style(style)
    messages = styles.messages(example, how)
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
    """Messages with the images in them, as the API wants them."""
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
    """The text that follows the prefill. Reasoning that a server gives apart stands in
    think tags; a repeated prefill is taken off; a bare reply to a request for the
    answer alone stands in answer tags."""
    text = reply.text
    if reply.reasoning and "<think>" not in text:
        text = f"<think>{reply.reasoning}</think>{text}"
    if example.prefill:
        text = text.removeprefix(example.prefill)
    if example.direct and text.strip() and "answer>" not in text and text[:1] != ">":
        text = f">{text.strip()}</answer>"
    return text


def _record(example: Example, turn, style: str, reply: Reply) -> Record:
    messages, _, spans = turn
    text = styles.chatml(messages)
    if messages[-1]["role"] == "assistant":  # its turn stays open
        text = styles.chatml(messages[:-1]) + example.prefill
    prompt = Prompt(example, text, "", tuple(spans), style, styles.text_hash(text))
    record = build_record(
        prompt,
        completion(example, reply),
        finish=reply.finish or "stop",
        engine="",
    )
    return record._replace(finish=f"error: {reply.error}") if reply.error else record


def _with_letters(
    rows: list[Record], replies: Sequence[Reply], model: str, prefill: str
) -> list[Record]:
    """The samples of one example and condition, with their letter probabilities."""
    count = len(rows[0].options)
    found = [
        letter_probabilities(r.logprobs, row.prefill, count)
        for r, row in zip(replies, rows, strict=True)
    ]
    given = [r.predicted for r in rows if r.predicted >= 0]
    if all(found):
        how = "logprobs"
    elif len(rows) > 1 and given:
        how = f"samples:{len(given)}"
        shares = [given.count(c) / len(given) for c in range(count)]
        found = [(shares, len(given) / len(rows))] * len(rows)
    else:
        how = "absent"
        found = [None] * len(rows)
    way = prefill if rows[0].prefill else "none"
    engine = f"chat {model} letters={how} prefill={way}"
    return [_lettered(row, pair, engine) for row, pair in zip(rows, found, strict=True)]


def _lettered(row: Record, pair, engine: str) -> Record:
    if pair is None:
        return row._replace(engine=engine)
    p, mass = pair
    return row._replace(
        engine=engine,
        letters=p,
        entropy=-sum(x * math.log(x) for x in p if x > 0),
        p_correct=p[row.answer] if row.answer >= 0 else math.nan,
        p_suggested=p[row.suggested] if row.suggested >= 0 else math.nan,
        option_mass=mass,
    )


def letter_probabilities(
    served: list[dict], prefill: str, options: int
) -> tuple[list[float], float] | None:
    """(probabilities renormalised over the options, their mass) from an endpoint's
    token log-probs, at the token that writes the answer's letter; None where there is
    none.

    Sums every listed token that writes an option's letter there, with what the chosen
    token has before it (`>A`, ` A`, `(A`). Matched on bytes.
    """
    tokens = [_bytes(t) for t in served]
    text, given = b"".join(tokens), prefill.encode()
    found = list(_OPENED.finditer(given + text))
    if found:
        at = found[-1].end() - len(given)
    else:
        bare = _BARE.match(text)
        if bare is None or b"<" in text:
            return None
        at = bare.end()
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


def letters_from(engine: str) -> tuple[str, int]:
    """How a record's letter probabilities were had: ('logprobs' | 'samples' | 'absent'
    | 'kernel', the number of answers behind them, 0 where it isn't a sample)."""
    found = re.search(r"letters=(\w+)(?::(\d+))?", engine)
    return (found[1], int(found[2] or 0)) if found else ("kernel", 0)


def letter_intervals(record: Record) -> list[stats.Interval]:
    """Wilson's interval of each option's probability, where it is a share of samples;
    [] where it isn't."""
    how, k = letters_from(record.engine)
    if how != "samples":
        return []
    return [stats.wilson(round(p * k), k) for p in record.letters]
