"""What a chat endpoint replied: a text, or the reason why there is none."""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Iterable
from typing import NamedTuple


class Reply(NamedTuple):
    """What came of a call: `text`, or `error`, why there is none."""

    text: str
    error: str
    final: bool  # kept on disk; a call that ran out of time or budget is not
    finish: str = ""  # finish_reason
    reasoning: str = ""  # a separate field of some servers
    logprobs: list[
        dict
    ] = []  # per token as served: token, bytes, logprob, top_logprobs
    model: str = ""  # the model the server says it is
    attempts: int = 0  # requests this call took when it was sent


class Failed(Exception):
    """An attempt without a text: (reason, try again?, seconds to wait first, was it
    certainly free of charge?)."""

    def __init__(self, why: str, again: bool, wait: float = 0.0, free: bool = False):
        super().__init__(why)
        self.why, self.again, self.wait, self.free = why, again, wait, free


def retry_after(value: str) -> float:
    """Return the seconds of a Retry-After header: a number or a date (RFC 9110,
    10.2.3)."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = email.utils.parsedate_to_datetime(value)
        except ValueError:
            return 0.0
        seconds = date.timestamp() - time.time()
    return max(0.0, seconds) if seconds == seconds else 0.0


def error_message(data: bytes) -> str:
    """Return the error message of a body, short and on one line."""
    try:
        body = json.loads(data)
        error = body.get("error", body.get("detail", body))
        text = error.get("message", error) if isinstance(error, dict) else error
    except (ValueError, AttributeError):
        text = data.decode("utf-8", "replace")
    return " ".join(str(text).split())[:200]


def parse_reply(data: bytes) -> tuple[Reply, tuple[int, int] | None]:
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        raise Failed("the reply is not JSON", True) from None
    try:
        choice = body["choices"][0]
        message = choice["message"]
        finish = str(choice.get("finish_reason") or "")
        text = message.get("content")
        reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
        refusal = message.get("refusal")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise Failed("the reply has no choices[0].message", True) from None
    if isinstance(text, list):  # parts, as some servers send
        text = "".join(str(p.get("text", "")) for p in text if isinstance(p, dict))
    if refusal and not text:
        return Reply("", "the model refused", final=True, finish=finish), _usage(body)
    if not isinstance(text, str) or not isinstance(reasoning, str):
        if finish in ("content_filter", "length"):
            error = f"no text (finish reason {finish})"
            return Reply("", error, final=True, finish=finish), _usage(body)
        raise Failed("the reply's content is not a text", True)
    logprobs = _list(choice.get("logprobs"), "content")
    name = str(body.get("model") or "")
    return Reply(text, "", True, finish, reasoning, logprobs, name), _usage(body)


def _list(outer, name: str) -> list[dict]:
    items: Iterable = outer.get(name) if isinstance(outer, dict) else None
    if not isinstance(items, list):
        return []
    return [t for t in items if isinstance(t, dict)]


def _usage(body: dict) -> tuple[int, int] | None:
    usage = body.get("usage")
    if not isinstance(usage, dict):
        return None
    both = [usage.get(k) for k in ("prompt_tokens", "completion_tokens")]
    whole = all(type(n) is int and n >= 0 for n in both)
    return (both[0], both[1]) if whole else None
