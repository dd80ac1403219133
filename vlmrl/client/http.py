"""A client of OpenAI-compatible chat endpoints, for judges and served models.

    client = Client(Endpoint("https://api.example.com/v1", "some-model", "SOME_KEY"))
    replies = client.complete([Call(messages, {"max_tokens": 64})])

Guarantees, whatever the server does:
- one `Reply` per call, in order: a text, or the reason why there is none;
- 429, 5xx, time-outs, broken connections and broken replies are retried, with
  full-jitter exponential back-off (https://aws.amazon.com/blogs/architecture/
  exponential-backoff-and-jitter/) and never before `Retry-After`, which pauses all;
- a reply is read up to `max_bytes` and for `attempt_seconds`;
- no request is sent that could exceed the budget of tokens or of money;
- every final reply is on disk before the next request; cached calls send nothing;
- the key comes from the environment, goes into one header, and is cut from anything a
  server sends back. TLS is verified; redirects, which could leak it, are refused.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import json
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from vlmrl.client.cache import Budget, ReplyCache, Spent
from vlmrl.client.replies import Failed, Reply, error_message, parse_reply, retry_after
from vlmrl.types import UserError

try:
    import httpx2
except ImportError:  # the `judge` extra; Client raises where it is needed
    httpx2 = None

_IMAGE_TOKENS = 16_384  # of one image at most, for the budget's bound
_MESSAGE_TOKENS = 64  # a chat template adds to a message at most, for the same
_AGAIN = (408, 409, 425, 429)  # and every 5xx
_UNREACHED = "cannot connect"
SPENT = "the budget is spent"  # the error of calls that were not sent for it
LATE = "no reply within"  # how the error of calls begins that ran out of time


class Endpoint(NamedTuple):
    """Address, model and limits. Has the name of the key's variable, never the key."""

    url: str  # base, e.g. 'http://127.0.0.1:8000/v1'
    model: str
    key_env: str = ""  # environment variable that holds the key; '' sends none
    insecure: bool = False  # allow plain http to another machine
    concurrency: int = 16  # requests in flight
    attempts: int = 5  # per call
    attempt_seconds: float = 120.0
    backoff_seconds: float = 1.0  # of the first retry; doubles
    longest_wait: float = 60.0  # seconds; a longer Retry-After gives the call up
    max_bytes: int = 4 << 20  # of a reply


class Call(NamedTuple):
    """One chat completion."""

    messages: list[dict]
    params: dict[str, Any]  # temperature, max_tokens, logprobs, ...
    sample: int = 0  # tells equal calls apart in the cache


def check_url(url: str, insecure: bool = False) -> str:
    """Return the base URL without its last slash.

    Raises:
      UserError: not http(s), plain http to another machine unless `insecure`, or a
        user, password, query or fragment, which could be a secret and would be stored.
    """
    parts = urlsplit(url)
    shown = f"{parts.scheme}://{parts.hostname or ''}"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(
            f"url: expected https://host/v1 or http://127.0.0.1/v1, got '{shown}'"
        )
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UserError(
            f"url {shown}: expected no user, query or fragment: secrets in them "
            "would be stored with the run; give host and path alone, the key by key_env"
        )
    if parts.scheme == "http" and not (insecure or is_loopback(parts.hostname)):
        raise UserError(
            f"url {shown}: plain http to another machine would show key and data to "
            "the network; use https, or ask for it with insecure"
        )
    return url.rstrip("/")


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def call_key(model: str, call: Call) -> str:
    """Return the sha256 of what determines a reply: model, messages, parameters,
    sample."""
    text = json.dumps(
        [model, call.messages, call.params, call.sample],
        sort_keys=True,
        ensure_ascii=False,
    )
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def most_tokens(call: Call) -> tuple[int, int]:
    """Return upper bounds of (prompt, completion) tokens. A token of a byte-level
    tokenizer covers at least one byte of text; images are bounded by a constant."""
    prompt = 0
    for message in call.messages:
        prompt += _MESSAGE_TOKENS
        content = message["content"]
        parts = [content] if isinstance(content, str) else content
        for part in parts:
            text = part if isinstance(part, str) else part.get("text")
            size = len(text.encode("utf-8", "replace")) if text else _IMAGE_TOKENS
            prompt += size
    limits = [call.params.get(k) for k in ("max_tokens", "max_completion_tokens")]
    most = max((n for n in limits if n), default=0)
    return prompt, most * (call.params.get("n") or 1)


class Client:
    """A client of one endpoint, with its reply cache and account.

    Args:
      cache: file of replies, created if missing and locked by one process at a time;
        None caches in memory. What earlier runs spent counts against the budget.
      budget: tokens and money at most; see `cache.Budget`.
      again: request again what is cached as failed.

    Raises:
      UserError: a refused URL, no such environment variable, a broken or busy cache, a
        budget of tokens on calls without `max_tokens`.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        cache: str | os.PathLike | None = None,
        budget: Budget | None = None,
        again: bool = False,
    ):
        if httpx2 is None:
            raise UserError("an HTTP judge or model needs httpx2: install vlmrl[judge]")
        self.endpoint = endpoint._replace(
            url=check_url(endpoint.url, endpoint.insecure)
        )
        key = check_key(endpoint.key_env)
        self._headers = {
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
        }
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._tls = httpx2.create_ssl_context()  # verifies; slow to make
        self._scrub = _scrubber(key)
        self._cache = ReplyCache(
            Path(cache) if cache else None, budget or Budget(), again
        )
        self._resume = 0.0  # time.monotonic() before which nothing is sent
        self._answered = False
        self._slots = asyncio.Semaphore(endpoint.concurrency)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._starting = threading.Lock()

    def __repr__(self) -> str:
        return f"Client({self.endpoint.model} at {self.endpoint.url})"

    @property
    def spent(self) -> Spent:
        return self._cache.spent

    def close(self) -> None:
        """End the calls that other threads still wait for and release the cache
        file."""
        with self._starting:
            loop, self._loop = self._loop, None
        if loop is not None:
            asyncio.run_coroutine_threadsafe(_cancel_others(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
        self._cache.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def complete(
        self,
        calls: Sequence[Call],
        *,
        seconds: float = 0.0,
        progress: Callable[[int], None] = lambda n: None,
    ) -> list[Reply]:
        """Return the replies of calls, in order; equal calls are sent once. Several
        threads may call it: they share the limit of requests in flight, the cache and
        the budget.

        Args:
          seconds: time limit, after which open calls are given up; 0: no limit.
          progress: called with the number of calls just done.

        Raises:
          UserError: the endpoint refuses the key, the model or the path, redirects, or
            was never reached: it would hold for every call.
        """
        work = self._complete(calls, seconds, progress)
        future = asyncio.run_coroutine_threadsafe(work, self._running())
        try:
            return future.result()
        finally:
            future.cancel()  # where this thread was interrupted

    def _running(self) -> asyncio.AbstractEventLoop:
        """Return this client's event loop, which runs in a thread of its own: all state
        changes happen there."""
        with self._starting:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                work = threading.Thread(target=_run, args=(self._loop,), daemon=True)
                work.start()
            return self._loop

    async def _complete(self, calls, seconds, progress) -> list[Reply]:
        keys = [call_key(self.endpoint.model, call) for call in calls]
        counts: dict[str, int] = {}
        for key in keys:
            counts[key] = counts.get(key, 0) + 1
        replies: dict[str, Reply] = {}
        waiting: dict[str, Call] = {}
        for key, call in dict(zip(keys, calls, strict=True)).items():
            cached = self._cache.get(key)
            if cached is None:
                waiting[key] = call
            else:
                replies[key] = Reply(**cached)
                progress(counts[key])
        if waiting:
            limits = httpx2.Limits(max_connections=self.endpoint.concurrency)
            one = self.endpoint.attempt_seconds
            async with httpx2.AsyncClient(
                headers=self._headers,
                verify=self._tls,
                timeout=httpx2.Timeout(one),
                limits=limits,
                follow_redirects=False,
                # a proxy of the environment has no business between two local ports
                trust_env=not is_loopback(urlsplit(self.endpoint.url).hostname),
            ) as http:
                await self._work(http, waiting, replies, counts, seconds, progress)
        late = Reply("", f"{LATE} {seconds:g} s", final=False)
        return [replies.get(key, late) for key in keys]

    async def _work(self, http, waiting, replies, counts, seconds, progress) -> None:
        """Run workers that each take the next call; the first error of any ends all."""
        queue = iter(waiting.items())

        async def worker():
            for key, call in queue:
                reply = await self._call(http, key, call)
                replies[key] = reply
                progress(counts[key])

        try:
            async with asyncio.timeout(seconds or None), asyncio.TaskGroup() as group:
                for _ in range(min(self.endpoint.concurrency, len(waiting))):
                    group.create_task(worker())
        except TimeoutError:
            pass
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _call(self, http, key: str, call: Call) -> Reply:
        """Attempt a call until a text, a final failure or the last attempt."""
        e, cache = self.endpoint, self._cache
        bound = most_tokens(call)
        for attempt in range(1, e.attempts + 1):
            while (pause := self._resume - time.monotonic()) > 0:
                await asyncio.sleep(pause + random.uniform(0, e.backoff_seconds))
            if not cache.reserve(bound):
                return Reply("", SPENT, final=False, attempts=attempt)
            used, reply = bound, None  # an interrupted request counts in full
            try:
                reply, usage = await self._attempt(http, call)
                used = usage or bound
            except Failed as failure:
                failed = failure
                used = (0, 0) if failed.free else bound
            finally:
                cache.settle(bound, used)
            if reply is not None or not failed.again:
                break
            if failed.wait > e.longest_wait:
                why = f"{failed.why}, asked to wait {failed.wait:.0f} s"
                return Reply("", why, final=False, attempts=attempt)
            self._resume = max(self._resume, time.monotonic() + failed.wait)
            if attempt < e.attempts:
                most = min(e.longest_wait, e.backoff_seconds * 2 ** (attempt - 1))
                await asyncio.sleep(random.uniform(0, most))
        if reply is None:
            if not self._answered and failed.why == _UNREACHED:
                raise UserError(f"{e.url}: cannot connect; is the server running?")
            reply = Reply("", f"{failed.why} (attempt {attempt})", final=True)
        reply = reply._replace(attempts=attempt)
        cache.put(key, reply._asdict())
        return reply

    async def _attempt(self, http, call: Call) -> tuple[Reply, tuple[int, int] | None]:
        """Send one request; return the reply and its reported tokens, or raise
        Failed."""
        e = self.endpoint
        body = {"model": e.model, "messages": call.messages, **call.params}
        post = {"url": f"{e.url}/chat/completions", "content": json.dumps(body)}
        try:
            async with (
                self._slots,
                asyncio.timeout(e.attempt_seconds),
                http.stream("POST", **post) as response,
            ):
                status, headers = response.status_code, response.headers
                data = await self._read(response)
        except (TimeoutError, httpx2.TimeoutException):
            raise Failed(f"timed out after {e.attempt_seconds:g} s", True) from None
        except httpx2.ConnectError as error:
            if "CERTIFICATE" in str(error).upper():
                raise UserError(f"{e.url}: its TLS certificate is not valid") from None
            raise Failed(_UNREACHED, True, free=True) from None
        except httpx2.TransportError as error:
            name = type(error).__name__
            raise Failed(f"connection broke ({name})", True) from None
        self._answered = True
        if status != 200:
            raise self._refusal(status, headers, data)
        return parse_reply(data)

    async def _read(self, response) -> bytes:
        coding = response.headers.get("content-encoding", "identity")
        if coding != "identity":
            raise Failed(f"the reply is compressed ({coding[:20]}), unasked", True)
        parts, size = [], 0
        async for part in response.aiter_raw():
            parts.append(part)
            size += len(part)
            if size > self.endpoint.max_bytes:
                raise Failed(f"the reply exceeds {self.endpoint.max_bytes} bytes", True)
        return self._scrub(b"".join(parts))

    def _refusal(self, status: int, headers, data: bytes) -> Exception:
        e = self.endpoint
        if status in (401, 403):
            named = (
                f"the key in ${e.key_env}" if e.key_env else "a call without key_env"
            )
            return UserError(f"{e.url}: refuses {named} (status {status})")
        if status == 404:
            return UserError(
                f"{e.url}: knows no model '{e.model}' or no /chat/completions (404)"
            )
        if 300 <= status < 400:
            return UserError(
                f"{e.url}: redirects (status {status}); give the final address"
            )
        if status in _AGAIN or status >= 500:
            wait = retry_after(headers.get("retry-after", ""))
            return Failed(f"status {status}", True, wait, free=True)
        return Failed(f"status {status}: {error_message(data)}", False, free=True)


def ask_texts(client: Client, prompts: Sequence[str], max_tokens: int) -> list[str]:
    """Return the greedy reply to each prompt, asked as one user message.

    Raises:
      UserError: a call without a text; those replied to are in the cache, if any.
    """
    params = {"temperature": 0.0, "max_tokens": max_tokens}
    calls = [Call([{"role": "user", "content": p}], params) for p in prompts]
    replies = client.complete(calls)
    for reply in replies:
        if reply.error:
            at = client.endpoint
            raise UserError(
                f"{at.url}: {at.model}: {reply.error}; the same command goes on from "
                "here"
            )
    return [reply.text for reply in replies]


def _run(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def check_key(name: str) -> str:
    """Return the key in an environment variable, '' for no name.

    Raises:
      UserError: there is no such variable, or what it holds can't be a key.
    """
    if not name:
        return ""
    key = os.environ.get(name, "").strip()
    if not key:
        raise UserError(f"key_env: no environment variable {name}; set it to the key")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"key_env: ${name} holds something that is not a key")
    return key


def _scrubber(key: str) -> Callable[[bytes], bytes]:
    if not key:
        return lambda data: data
    # as it is, and as JSON may write it
    forms = {key, json.dumps(key)[1:-1], key.replace("/", "\\/")}
    encoded = [form.encode() for form in forms]

    def scrub(data: bytes) -> bytes:
        for form in encoded:
            data = data.replace(form, b"[key]")
        return data

    return scrub
