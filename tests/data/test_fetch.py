"""Downloads: from a hub that is made up, and from a server on this machine."""

import hashlib
import http.server
import re
import threading
from typing import NamedTuple

import pytest

from tests.data import published
from vlmrl import files
from vlmrl.data import fetch
from vlmrl.data.sets import SETS
from vlmrl.types import UserError


def test_the_pins_cover_every_set():
    pins = fetch.pins(published.Path("third_party/datasets.json"))
    assert list(pins) == list(SETS)
    for name, pin in pins.items():
        assert pin.licence and pin.citation
        assert pin.repo or pin.manual or pin.urls, name


def test_revisions_are_whole_commits():
    """But for one, which third_party/README.md explains; addresses name theirs."""
    pins = fetch.pins(published.Path("third_party/datasets.json"))
    moving = {
        n for n, p in pins.items() if not re.fullmatch("[0-9a-f]{40}", p.revision)
    }
    assert moving == {"sat"}
    for pin in pins.values():
        assert all(pin.revision in url for url in pin.urls.values())
        assert all(re.fullmatch("[0-9a-f]{32}", md5) for md5 in pin.md5.values())


def test_broken_pins(tmp_path):
    (tmp_path / "pins.json").write_text('{"x": {"repos": "a/b"}}')
    with pytest.raises(UserError, match="not a file of pinned data sets"):
        fetch.pins(tmp_path / "pins.json")


@pytest.mark.parametrize("name", ["cv_bench", "vstar", "blink", "3dsrbench"])
def test_the_files_of_a_split_come_from_the_hub(name, tmp_path):
    hub = published.write(name, tmp_path / "hub")
    there = [str(p.relative_to(hub)) for p in hub.rglob("*") if p.is_file()]
    there += ["README.md", "data/nested/test_2d.parquet", "test.jsonl"]
    asked = []

    def download(repo, revision, file, root):
        asked.append(file)
        published.text(root / file, (hub / file).read_bytes())

    pin = fetch.Pin("a/b", "0" * 40)
    for _ in range(2):
        fetch.from_hub(
            SETS[name],
            list(SETS[name].files),
            pin,
            tmp_path / "here",
            listing=lambda repo, revision: there,
            download=download,
        )
    got = {str(p.relative_to(tmp_path / "here")) for p in tmp_path.glob("here/**/*.*")}
    assert set(asked) <= set(there) - {"README.md"} and set(asked) == got
    assert any(file.startswith(("test", "3dsr", "Spatial")) for file in asked)


def test_a_hub_that_is_away(tmp_path):
    def away(repo, revision):
        raise OSError("no route\nto host")

    with pytest.raises(
        UserError, match="a/b at 0+: cannot be downloaded .no route to host.*DIR"
    ):
        fetch.from_hub(
            SETS["vstar"],
            ["test"],
            fetch.Pin("a/b", "0" * 40),
            tmp_path,
            listing=away,
        )
    with pytest.raises(UserError, match="holds none of test_questions"):
        fetch.from_hub(
            SETS["vstar"],
            ["test"],
            fetch.Pin("a/b", "0" * 40),
            tmp_path,
            listing=lambda *_: ["README.md"],
        )


def test_a_revision_that_moves_is_looked_up_once(tmp_path):
    commits, at = iter(["a" * 40, "b" * 40]), []

    def take(revision):
        return fetch.from_hub(
            SETS["vstar"],
            ["test"],
            fetch.Pin("x/y", revision),
            tmp_path,
            commit=lambda repo, revision: next(commits),
            listing=lambda repo, revision: (
                at.append(revision) or ["test_questions.jsonl"]
            ),
            download=lambda *words: at.append(words[1]),
        ).revision

    assert [take("main"), take("main"), take("v2")] == ["a" * 40] * 2 + ["b" * 40]
    assert take("c" * 40) == "c" * 40
    assert at == [c * 40 for c in "aaaabbcc"]  # every file is of that commit


def test_sums_and_what_is_left_by_hand(tmp_path):
    published.text(tmp_path / "a.tsv", b"abc")
    pin = fetch.Pin(md5={"a.tsv": hashlib.md5(b"abc").hexdigest()})
    assert fetch.check_sums(pin, [tmp_path / "a.tsv"]) == 1
    with pytest.raises(UserError, match=r"a\.tsv: md5 is .*, 0 is published"):
        fetch.check_sums(pin._replace(md5={"a.tsv": "0"}), [tmp_path / "a.tsv"])
    pin = fetch.Pin(manual=[{"what": "photos", "from": "there", "to": "images"}])
    (step,) = fetch.by_hand(pin, tmp_path)
    assert step == f"get photos from there and put it at {tmp_path / 'images'}"
    (tmp_path / "images").mkdir()
    assert fetch.by_hand(pin, tmp_path) == []


@pytest.fixture
def server(monkeypatch):
    """(address, answers: path → a body, a status or a list of them, log of (path,
    Range header))."""
    answers, log = {}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked = self.headers.get("Range", "")
            log.append((self.path, asked))
            answer = answers.get(self.path, 404)
            if isinstance(answer, list):
                answer = answer.pop(0)
            if isinstance(answer, int):
                self.send_response(answer)
                self.end_headers()
                return
            if isinstance(answer, bytes):
                answer = Body(answer)
            start = int(asked[6:-1]) if asked else 0
            same = self.headers.get("If-Range", "") == answer.tag
            start = start if same else 0
            self.send_response(206 if start else 200)
            if answer.announced:
                self.send_header("Content-Length", str(len(answer.data) - start))
            if answer.tag:
                self.send_header("ETag", answer.tag)
            self.end_headers()
            self.wfile.write(answer.data[start : answer.end])

        def log_message(self, *words):
            pass

    monkeypatch.setattr(fetch, "WAIT", 0.01)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.02}
    )
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", answers, log
    server.shutdown()
    thread.join()
    server.server_close()


class Body(NamedTuple):
    data: bytes
    end: int | None = None  # bytes that are sent; None for all
    tag: str = ""
    announced: bool = True  # by Content-Length


def test_images_by_address_with_a_manifest(server, tmp_path):
    address, answers, log = server
    data = [published.picture("JPEG", side=10 + i) for i in range(6)]
    sums = [hashlib.sha256(d).hexdigest() for d in data]
    answers |= {f"/{i}": d for i, d in enumerate(data[:3])}
    answers |= {"/3": [503, data[3]], "/4": b"another", "/6": [500, 500, 500, data[5]]}
    pairs = [(f"{address}/{i}", s) for i, s in enumerate(sums[:5])]
    pairs += [(f"{address}/gone", "0" * 64), (f"{address}/6", sums[5]), pairs[0]]
    counts = fetch.images(pairs, tmp_path)
    assert counts == {"ok": 4, "changed": 1, "dead": 1, "failed": 1}
    manifest = tmp_path / "images/manifest.jsonl"
    entries = [entry for _, entry in files.read_lines(manifest)]
    assert [e["sha256"] for e in entries] == sorted({s for _, s in pairs})
    assert (tmp_path / "images" / sums[3]).read_bytes() == data[3]
    log.clear()
    with open(manifest, "a") as file:
        file.write('{"sha256": "cut o')
    (tmp_path / "images/x.7.partial").write_bytes(b"killed here")
    assert fetch.images(pairs, tmp_path) == {"ok": 5, "changed": 1, "dead": 1}
    assert log == [("/6", "")]  # nothing else is asked for again
    assert not list((tmp_path / "images").glob("*.partial"))


def test_a_cut_body_is_resumed_and_is_never_a_whole_file(server, tmp_path):
    address, answers, log = server
    block, data = fetch.BLOCK, bytes(range(251)) * 600
    cuts = [2 * block + 7, 5 * block + 7, None]  # the last block is lost
    answers["/a"] = [Body(data, end, '"1"') for end in cuts]
    fetch.download(f"{address}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == data
    assert log == [
        ("/a", ""),
        ("/a", f"bytes={2 * block}-"),
        ("/a", f"bytes={5 * block}-"),
    ]
    # Without a tag, or of another body, it begins anew.
    answers["/b"] = [
        Body(data, block),
        Body(data, 3 * block, '"1"'),
        Body(data[::-1]),
    ]
    fetch.download(f"{address}/b", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == data[::-1]
    assert log[3:] == [("/b", ""), ("/b", ""), ("/b", f"bytes={3 * block}-")]
    answers["/c"] = Body(data, block)
    with pytest.raises(fetch.GivenUp) as given_up:
        fetch.download(f"{address}/c", tmp_path / "c")
    assert given_up.value.status == "failed"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_an_image_that_was_cut_without_notice_is_asked_for_again(server, tmp_path):
    address, answers, _ = server
    data = published.picture("JPEG", side=40)
    sha = hashlib.sha256(data).hexdigest()
    answers["/a"] = [Body(data, 200, announced=False), data]
    pairs = [(f"{address}/a", sha)]
    assert fetch.images(pairs, tmp_path) == {"failed": 1}
    assert fetch.images(pairs, tmp_path) == {"ok": 1}
    assert (tmp_path / "images" / sha).read_bytes() == data


def test_plain_files_by_address(server, tmp_path):
    address, answers, log = server
    answers["/a"] = b"[1]"
    pin = fetch.Pin(urls={"data/a.json": f"{address}/a"})
    fetch.from_urls(pin, tmp_path)
    fetch.from_urls(pin, tmp_path)
    assert (tmp_path / "data/a.json").read_bytes() == b"[1]" and log == [("/a", "")]
    for answer in (404, Body(b"[1, 2]", 3)):
        answers["/b"] = answer
        with pytest.raises(UserError, match="/b: cannot be downloaded"):
            fetch.from_urls(fetch.Pin(urls={"b": f"{address}/b"}), tmp_path)
        assert not (tmp_path / "b").exists()
