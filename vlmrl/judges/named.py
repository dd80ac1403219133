"""Judges by name, as commands and configs give them.

  rule          cues, letters and option texts by rule
  model:DIR     a model of this project; model:tiny is the judge that ships with it,
                which is asked briefly
  http:MODEL    a model behind an OpenAI-compatible endpoint

Several, separated by commas, are a cascade, or a majority where they are to vote.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from vlmrl.client import http
from vlmrl.client.cache import Budget
from vlmrl.judges import chat, judge, prompt, rule
from vlmrl.judges.judge import Judge
from vlmrl.types import UserError

_SHIPPED = {"tiny": "tiny_judge"}  # name of a judge → of its model


class Named(NamedTuple):
    judge: Judge  # the whole
    parts: list[Judge]
    client: http.Client | None  # of the endpoint, for who closes it; None without one


def named(
    words: str,
    *,
    vote: bool = False,
    endpoint: http.Endpoint | None = None,
    params: dict | None = None,
    seconds: float = 0.0,
    cache: str | os.PathLike | None = None,
    budget: Budget | None = None,
    again: bool = False,
    prompt_file: str | os.PathLike = "",
    sure: float = 0.5,
    brief: bool = False,
    field: str = "judge",
) -> Named:
    """The judge that `words` name.

    Args:
      endpoint: of an http judge; its model is the name's.
      params, seconds: see `chat.make`; cache, budget, again: see `http.Client`.
      prompt_file: '' is the project's own.
      sure, brief: see `model.make`.
      field: where the words come from, for messages.

    Raises:
      UserError: an unknown name, an http judge without a URL or a second one, or what
        the judges themselves raise.
    """
    given = prompt.load(prompt_file or prompt.DEFAULT)
    parts, client = [], None
    for kind, name in parse(words, endpoint, field):
        if kind == "rule":
            parts.append(rule.JUDGE)
        elif kind == "model":
            parts.append(_model(name, given, sure, brief))
        else:
            at = endpoint._replace(model=name)
            client = http.Client(at, cache=cache, budget=budget, again=again)
            parts.append(chat.make(client, given, params=params, seconds=seconds))
    whole = parts[0]
    if vote and len(parts) > 1:
        whole = judge.majority(parts)
    else:
        for other in parts[1:]:
            whole = judge.cascade(whole, other)
    return Named(whole, parts, client)


def parse(
    words: str, endpoint: http.Endpoint | None = None, field: str = "judge"
) -> list[tuple[str, str]]:
    """(kind, name) of each judge that `words` name; loads and asks nothing.

    Raises:
      UserError: as `named`, but for what only loading or asking shows.
    """
    kinds = []
    for word in words.split(","):
        kind, _, name = word.strip().partition(":")
        if kind not in ("rule", "model", "http") or (kind == "rule") == bool(name):
            raise UserError(f"{field}: '{word}' is none of rule, model:DIR, http:MODEL")
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


def _resolve(name: str):
    from vlmrl.models import registry

    return registry.resolve(name)


def _model(name: str, given: prompt.JudgePrompt, sure: float, brief: bool) -> Judge:
    from vlmrl import policy as policies
    from vlmrl.judges import model

    brief = brief or name in _SHIPPED
    policy = policies.load(_SHIPPED.get(name, name), dtype="")
    return model.make(policy, given, sure=sure, brief=brief)
