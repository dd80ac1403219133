"""Judges by name, as commands and configs give them.

  rule          patterns, letters and option texts by rule
  model:DIR     a model of this project; model:tiny is the judge that ships with it,
                which is asked briefly
  http:MODEL    a model behind an OpenAI-compatible endpoint
  path/to/file.py:name   a user's own: a `judge.Judge`, or a function from a list of
                `judge.JudgeItem` to a label or a `judge.Verdict` of each

Several, separated by commas, are a cascade, or a majority where they are to vote.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from vlmrl import user_code
from vlmrl.client import http
from vlmrl.client.cache import Budget
from vlmrl.judges import chat, judge, prompt, rule
from vlmrl.judges.judge import Judge, JudgeItem, Verdict
from vlmrl.types import UserError

_SHIPPED = {"tiny": "tiny_judge"}  # name of a judge → of its model


class JudgeOptions(NamedTuple):
    """How the named judges are set up; each kind reads its own fields."""

    endpoint: http.Endpoint | None = None  # of an http judge; the name is its model
    params: dict | None = None  # of an http judge's requests, see `chat.make`
    seconds: float = 0.0  # that a call of an http judge may take; 0 waits
    cache: str | os.PathLike | None = None  # see `http.Client`
    budget: Budget | None = None
    again: bool = False
    prompt_file: str | os.PathLike = ""  # '' is the project's own prompt
    sure: float = 0.5  # see `model.make`
    brief: bool = False


_DEFAULTS = JudgeOptions()


class Named(NamedTuple):
    judge: Judge  # the whole
    parts: list[Judge]
    client: http.Client | None  # of the endpoint, for the caller to close


def named(
    words: str,
    options: JudgeOptions = _DEFAULTS,
    *,
    vote: bool = False,
    field: str = "judge",
) -> Named:
    """Return the judge that `words` name.

    Args:
      vote: several judges are a majority instead of a cascade.
      field: where the words come from, for messages.

    Raises:
      UserError: an unknown name, an http judge without a URL or a second one, or what
        the judges themselves raise.
    """
    text = prompt.load(options.prompt_file or prompt.DEFAULT)
    parts, client = [], None
    for kind, name in parse(words, options.endpoint, field):
        if kind == "rule":
            parts.append(rule.JUDGE)
        elif kind == "own":
            parts.append(_own(name, field))
        elif kind == "model":
            parts.append(_model(name, text, options.sure, options.brief))
        else:
            client = http.Client(
                options.endpoint._replace(model=name),
                cache=options.cache,
                budget=options.budget,
                again=options.again,
            )
            asking = dict(params=options.params, seconds=options.seconds)
            parts.append(chat.make(client, text, **asking))
    if vote and len(parts) > 1:
        return Named(judge.majority(parts), parts, client)
    return Named(functools.reduce(judge.cascade, parts), parts, client)


def judge_all(
    judges: Named,
    items: Sequence[JudgeItem],
    part: int,
    progress: Callable[[int], None] = lambda n: None,
) -> list[Verdict]:
    """Return the verdicts of items, asked `part` at a time.

    Raises:
      UserError: the budget was spent before all were judged.
    """
    verdicts = []
    for start in range(0, len(items), part):
        asked = items[start : start + part]
        verdicts += judge.ask(judges.judge, asked)
        progress(len(asked))
    if left := sum(v.reason == http.SPENT for v in verdicts):
        spent = judges.client.spent
        raise UserError(
            f"{left} of {len(items)} items were not judged: {http.SPENT} "
            f"({spent.prompt_tokens + spent.completion_tokens} tokens); raise it "
            "and run again, what was replied is kept"
        )
    return verdicts


def summary(judges: Named, verdicts: Sequence[Verdict]) -> dict:
    """Return what judge.json holds: the judge, counts of verdicts, what was spent."""
    whole, parts, client = judges
    out = {
        "judge": whole.name,
        **whole.about,
        "labels": Counter(v.label for v in verdicts),
        "reasons": Counter(v.reason for v in verdicts if v.label == "undecided"),
        "decided by": Counter(v.judge for v in verdicts if v.label != "not_applicable"),
        "spent": client.spent._asdict() if client else {},
    }
    if "cascade" in whole.about:
        out["saved by " + parts[0].name] = judge.saving(verdicts, parts[0])
    return out


def parse(
    words: str, endpoint: http.Endpoint | None = None, field: str = "judge"
) -> list[tuple[str, str]]:
    """Return (kind, name) of each judge that `words` name, without loading or asking
    it.

    Raises:
      UserError: as `named`, but for what only loading or asking shows.
    """
    kinds = []
    for word in words.split(","):
        if user_code.is_own(word.strip()):
            _own(word.strip(), field)
            kinds.append(("own", word.strip()))
            continue
        kind, _, name = word.strip().partition(":")
        if kind not in ("rule", "model", "http") or (kind == "rule") == bool(name):
            raise UserError(
                f"{field}: expected rule, model:DIR, http:MODEL or {user_code.FORM}, "
                f"got '{word}'"
            )
        kinds.append((kind, name))
    asked = [name for kind, name in kinds if kind == "http"]
    if len(asked) > 1:
        raise UserError(
            f"{field}: one http judge at a time; `vlmrl judge vote` joins several"
        )
    if asked and (endpoint is None or not endpoint.url):
        raise UserError(f"{field}: an http judge needs a url")
    if asked:
        http.check_url(endpoint.url, endpoint.insecure)
        http.check_key(endpoint.key_env)
    for kind, name in kinds:
        if kind == "model":
            _resolve(_SHIPPED.get(name, name))
    return kinds


def _own(name: str, field: str) -> Judge:
    """Return the judge that a user's file defines."""
    thing = user_code.lookup(name, {}, field)
    if isinstance(thing, Judge):
        return thing
    user_code.check_arguments(thing, field, ("items",))

    def judge_items(items: Sequence[JudgeItem]) -> list[Verdict]:
        about = f"{len(items)} items from {items[0].id!r} on"
        given = user_code.call(thing, items, about=about)
        if not isinstance(given, list | tuple) or len(given) != len(items):
            size = (
                len(given) if isinstance(given, list | tuple) else type(given).__name__
            )
            problem = f"expected a list of {len(items)} verdicts, got {size}"
            raise user_code.failure(thing, about, problem)
        return [_verdict(v, i) for v, i in zip(given, items, strict=True)]

    def _verdict(value, item: JudgeItem) -> Verdict:
        label = value.label if isinstance(value, Verdict) else value
        if label not in judge.LABELS:
            problem = f"expected one of {', '.join(judge.LABELS)}, got {label!r:.60}"
            raise user_code.failure(thing, f"item {item.id!r}", problem)
        if isinstance(value, Verdict):
            return value._replace(judge=name)
        if label == "undecided":
            return judge.undecided("the judge does not say", name)
        conclusion = item.predicted if label == "consistent" else -1
        return Verdict(label, conclusion, judge.NONE, "", name)

    return Judge(name, judge_items, {"file": f"{name} {user_code.hash_of(name)}"})


def _resolve(name: str):
    from vlmrl.models import registry

    return registry.resolve(name)


def _model(name: str, given: prompt.JudgePrompt, sure: float, brief: bool) -> Judge:
    from vlmrl import policy as policies
    from vlmrl.judges import model

    brief = brief or name in _SHIPPED
    policy = policies.load(_SHIPPED.get(name, name), dtype="")
    return model.make(policy, given, sure=sure, brief=brief)
