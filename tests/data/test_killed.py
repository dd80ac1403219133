"""`prepare`, killed anywhere and started again, leaves what an undisturbed run leaves.

As a script, `python tests/data/test_killed.py JOB DIRECTORY`, this file is what is
killed: it runs a job in processes of its own, each of which sends itself SIGKILL at
another line of the code, and prints how many it killed. Every process is forked before
threads exist.
"""

import contextlib
import hashlib
import http.server
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WATCHED = tuple(str(ROOT / "vlmrl/data" / name) for name in ("build.py", "fetch.py"))
DISK = ("write", "replace", "rename", "unlink", "mkdir", "rmtree", "open(", "close(")
OTHERS = 8  # lines that don't touch the disk, spread over the code


def build_job(place: Path) -> None:
    from tests.data.test_build import SMALL
    from vlmrl.data import build

    build.ROWS = 4
    build.build(SMALL, "test", place.parent / "in", place)


def images_job(place: Path) -> None:
    """Six photographs, one of them gone and one changed, and a plain file."""
    from vlmrl.data import fetch

    address = (place.parent / "address").read_text()
    pairs = [(f"{address}/{i}", sha(i)) for i in range(6)]
    fetch.images(
        [*pairs, (f"{address}/gone", "0" * 64), (f"{address}/3", "1" * 64)], place
    )
    fetch.from_urls(fetch.Pin(urls={"rows/a.json": f"{address}/0"}), place)


JOBS = {"build": build_job, "images": images_job}


def body(i: int) -> bytes:
    return bytes([i]) * (1 << 16)


def sha(i: int) -> str:
    return hashlib.sha256(body(i)).hexdigest()


def serve(address: Path) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            actual = self.path[1:].isdigit()
            self.send_response(200 if actual else 404)
            self.end_headers()
            if actual:
                self.wfile.write(body(int(self.path[1:])))

        def log_message(self, *words):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    part = address.with_suffix(".partial")
    part.write_text(f"http://127.0.0.1:{server.server_port}")
    part.rename(address)
    server.serve_forever()


def forked(work) -> int:
    """Wait status of a process that does this work."""
    if child := os.fork():
        return os.waitpid(child, 0)[1]
    try:
        work()
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def watched(work, stop: tuple[str, int] | None, message: Path) -> None:
    """Does the work and kills this process as it comes to a line, 'build.py:81', for
    the n-th time in any thread; writes how often it came to each, and what it
    imported."""
    seen: dict[str, int] = {}

    def line(frame, event, arg):
        if event == "line":
            place = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
            seen[place] = seen.get(place, 0) + 1
            if (place, seen[place]) == stop:
                os.kill(os.getpid(), signal.SIGKILL)
        return line

    def call(frame, event, arg):
        return line if frame.f_code.co_filename in WATCHED else None

    before = set(sys.modules)
    threading.settrace(call)
    sys.settrace(call)
    work()
    sys.settrace(None)
    message.write_text(json.dumps([seen, sorted(set(sys.modules) - before)]))


def stops(seen: dict[str, int]) -> list[tuple[str, int]]:
    """Where to kill: at every line that touches the disk, the first and the last time,
    and at some others."""
    texts = {Path(name).name: Path(name).read_text().splitlines() for name in WATCHED}

    def touches(place: str) -> bool:
        file, _, number = place.partition(":")
        return any(word in texts[file][int(number) - 1] for word in DISK)

    disk = [place for place in seen if touches(place)]
    rest = [place for place in seen if place not in disk]
    rest = rest[:: max(1, len(rest) // OTHERS)]
    actual = [(p, n) for p in disk for n in (1, seen[p])] + [(p, 1) for p in rest]
    return list(dict.fromkeys(actual))


def files(place: Path) -> dict[str, str]:
    return {
        str(p.relative_to(place)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(place.rglob("*"))
        if p.is_file()
    }


def main(name: str, directory: str) -> None:
    import vlmrl.data.build  # imported once, before the forks
    import vlmrl.data.fetch  # noqa: F401

    job, top = JOBS[name], Path(directory)
    message = top / "lines"
    assert forked(lambda: watched(lambda: job(top / "whole"), None, message)) == 0
    expected, (seen, imported) = files(top / "whole"), json.loads(message.read_text())
    for module in imported:  # once for all forks
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    killed = 0
    for stop in stops(seen):
        place = top / "cut"
        status = forked(lambda s=stop, p=place: watched(lambda: job(p), s, message))
        # Threads take turns, so a run may be over before its line comes.
        assert status in (0, signal.SIGKILL), (stop, status)
        killed += status == signal.SIGKILL
        assert forked(lambda p=place: job(p)) == 0, stop
        assert files(place) == expected, (stop, set(files(place)) ^ set(expected))
        shutil.rmtree(place)
    print(json.dumps({"killed": killed, "files": len(expected)}))


@pytest.mark.slow
@pytest.mark.parametrize("name, stored", [("build", 10), ("images", 8)])
def test_killed_anywhere_and_started_again_it_leaves_the_same(name, stored, tmp_path):
    from tests.data import published
    from tests.data.test_build import lines

    published.text(tmp_path / "in/test.jsonl", lines(23))
    server = None
    if name == "images":
        words = [sys.executable, __file__, "serve", str(tmp_path / "address")]
        server = subprocess.Popen(words, cwd=ROOT)
    try:
        words = [sys.executable, __file__, name, str(tmp_path)]
        output = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    finally:
        if server:
            server.kill()
            server.wait()
    assert output.returncode == 0, output.stderr
    actual = json.loads(output.stdout.splitlines()[-1])
    assert actual["files"] == stored and actual["killed"] > 2 * OTHERS, actual


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if sys.argv[1] == "serve":
        serve(Path(sys.argv[2]))
    else:
        import time

        if sys.argv[1] == "images":
            while not Path(sys.argv[2], "address").exists():
                time.sleep(0.05)
        main(*sys.argv[1:])
