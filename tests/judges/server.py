"""A scripted chat server on loopback, in a thread, that behaves as badly as told."""

import asyncio
import hashlib
import json
import re
import threading
from collections import Counter
from contextlib import contextmanager

FAULTS = ("slow", "429", "500", "dropped", "malformed", "huge", "endless", "wrong")


def body_of(content, **extra):
    """A chat completion as servers send it."""
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "message": message, "finish_reason": "stop", **extra}
    usage = {"prompt_tokens": 50, "completion_tokens": 8, "total_tokens": 58}
    return {"object": "chat.completion", "choices": [choice], "usage": usage}


def item_of(request):
    """The item inside a judge's prompt."""
    for message in request["messages"]:
        actual = re.search(r'^\{"question": .*\}$', str(message["content"]), re.M)
        if actual:
            return json.loads(actual[0])
    raise AssertionError("no item in the prompt")


def judgement(request):
    """The right reply to a judge's prompt, for thinks that end in '#B' or '#none'."""
    item = item_of(request)
    letter = item["reasoning"].rpartition("#")[2]
    label = "consistent" if letter == item["answer"] else "inconsistent"
    label = "undecided" if letter == "none" else label
    actual = {"conclusion": letter, "verdict": label, "confidence": 0.9}
    return body_of(json.dumps(actual))


def some_faults(share, seed=0):
    """kind(body, nth): a fault with probability `share`, by hash of request and try."""

    def kind(body, nth):
        digest = hashlib.sha256(b"%d %d %s" % (seed, nth, body)).digest()
        if int.from_bytes(digest[:4], "big") >= share * 2**32:
            return "ok"
        return FAULTS[digest[5] % len(FAULTS)]

    return kind


class Server:
    """What was asked: bodies, their counts, headers, and how many at once."""

    def __init__(self, answer, kind):
        self.answer, self.kind = answer, kind
        self.bodies, self.headers, self.kinds = [], [], Counter()
        self.seen = Counter()
        self.open = self.most_open = 0
        self.slow_seconds = 1.0
        self.retry_after = "0.02"
        self.gate = None  # a threading.Event that replies wait for

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/v1"

    async def handle(self, reader, writer):
        try:
            while await self.one(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def one(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(re.search(rb"content-length: (\d+)", head, re.I)[1])
        body = await reader.readexactly(length)
        nth = self.seen[body]
        self.seen[body] += 1
        self.bodies.append(body)
        self.headers.append(head.decode())
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        kind = self.kind(body, nth)
        self.kinds[kind] += 1
        try:
            await asyncio.sleep(0.001)
            while self.gate is not None and not self.gate.is_set():
                await asyncio.sleep(0.01)
            return await self.reply(kind, json.loads(body), writer)
        finally:
            self.open -= 1

    async def reply(self, kind, request, writer):
        async def send(status, data, *headers):
            lines = [f"HTTP/1.1 {status} x", f"Content-Length: {len(data)}", *headers]
            writer.write("\r\n".join([*lines, "", ""]).encode() + data)
            await writer.drain()
            return True

        data = json.dumps(self.answer(request)).encode()
        if kind == "slow":
            await asyncio.sleep(self.slow_seconds)
        if kind == "429":
            return await send(429, b"{}", f"Retry-After: {self.retry_after}")
        if kind.isdigit():
            return await send(int(kind), b'{"error": {"message": "no such luck"}}')
        if kind == "redirect":
            return await send(307, b"", "Location: http://127.0.0.1:9/")
        if kind == "gzip":
            return await send(200, data, "Content-Encoding: gzip")
        if kind == "dropped":
            writer.write(b"HTTP/1.1 200 x\r\nContent-Length: 9999\r\n\r\n" + data[:20])
            await writer.drain()
            return False
        if kind == "malformed":
            return await send(200, data[:-7])
        if kind == "wrong":
            return await send(200, json.dumps(body_of("Probably consistent.")).encode())
        if kind == "huge":
            return await send(200, b"[" + b" " * 3_000_000 + b"]")
        if kind == "endless":
            writer.write(b"HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n")
            while True:
                writer.write(b"2000\r\n" + b"data: {}" * 1024 + b"\r\n")
                await writer.drain()
        if kind == "trickle":
            writer.write(b"HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n")
            while True:
                writer.write(b"1\r\n \r\n")
                await writer.drain()
                await asyncio.sleep(0.02)
        return await send(200, data)


@contextmanager
def serve(answer=judgement, kind=lambda body, nth: "ok"):
    """A running Server; `answer(request)` is its right reply."""
    server, ready = Server(answer, kind), threading.Event()
    loop = asyncio.new_event_loop()

    async def main():
        server.stop = asyncio.Event()
        listener = await asyncio.start_server(server.handle, "127.0.0.1", 0)
        server.port = listener.sockets[0].getsockname()[1]
        ready.set()
        await server.stop.wait()
        listener.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def run():
        loop.run_until_complete(main())
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(server.stop.set)
        thread.join(10)
