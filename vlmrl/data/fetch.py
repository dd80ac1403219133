"""Download published files, from a hub or by address, and check their checksums.

A file gets its final name once it is complete, so an interrupted download continues
where it stopped. Where files come from is data (`third_party/datasets.json`).
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import requests

from vlmrl.data.reading import Set
from vlmrl.files import (
    append_line,
    atomic_path,
    atomic_write,
    read_lines,
    write_lines,
)
from vlmrl.types import UserError

HEADERS = {
    "User-Agent": "vlmrl (research on vision-language models)",
    "Accept-Encoding": "identity",  # bytes as they are summed
}
PARALLEL, PER_HOST = 8, 2  # downloads at a time, and of them from one host
TRIES, WAIT = 3, 1.0  # per address; seconds before the second try, doubled after
LARGEST = 1 << 28  # bytes of an image
BLOCK = 1 << 14  # bytes read at a time
TIMEOUT = 30.0  # seconds without an answer


class Pin(NamedTuple):
    """Where a set is published, and under which terms."""

    repo: str = ""  # data set repository on the hub
    revision: str = "main"
    licence: str = ""
    citation: str = ""
    md5: Mapping[str, str] = {}  # file name → sum
    urls: Mapping[str, str] = {}  # path → address, of files that are on no hub
    images: Mapping[str, str] = {}  # columns of addresses and sums of images
    manual: Sequence[Mapping[str, str]] = ()  # {what, from, to}, to be done by hand


def pins(path: Path) -> dict[str, Pin]:
    """Return the pins of a file like third_party/datasets.json."""
    try:
        entries = json.loads(path.read_text())
        return {name: Pin(**fields) for name, fields in entries.items()}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: not a file of pinned data sets: {error}") from error


def by_hand(pin: Pin, root: Path) -> list[str]:
    """Return the steps left to do by hand, with the exact place to put each file."""
    return [
        f"get {step['what']} from {step['from']} and put it at {root / step['to']}"
        for step in pin.manual
        if not (root / step["to"]).exists()
    ]


# -- a hub -----------------------------------------------------------------------------


def from_hub(
    bench: Set,
    splits: Sequence[str],
    pin: Pin,
    root: Path,
    *,
    progress: Callable[[str], None] = lambda name: None,
    commit: Callable[[str, str], str] | None = None,
    listing: Callable[[str, str], Sequence[str]] | None = None,
    download: Callable[[str, str, str, Path], object] | None = None,
) -> Pin:
    """Download the files of the splits, and those that their rows point at. Returns the
    pin with the commit they were taken at (`settled`).

    Args:
      bench, splits: the set, and its splits to download.
      pin: the repository and its revision.
      root: the files' directory here.
      progress: called with the name of each file as it arrives.
      commit: (repo, revision) → whole commit; huggingface_hub by default.
      listing: (repo, revision) → file names; huggingface_hub by default.
      download: (repo, revision, name, root), leaves root/name; huggingface_hub by
        default, which goes on with what it left of a file.

    Raises UserError where the hub can't be reached, or has none of the files.
    """
    if not pin.repo:
        return pin
    where = f"{bench.name}: {pin.repo} at {pin.revision}"
    try:
        pin = settled(pin, root, commit or _commit)
        there = (listing or _listing)(pin.repo, pin.revision)
        wanted = wanted_files(bench, splits, there)
        if not wanted:
            patterns = ", ".join(p for s in splits for p in bench.files[s])
            raise UserError(f"{where}: holds none of {patterns}")
        for name in wanted:
            (download or _download)(pin.repo, pin.revision, name, root)
            progress(name)
    except UserError:
        raise
    except Exception as error:  # huggingface_hub raises many kinds
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{where}: cannot be downloaded ({why}); put its files into a directory and"
            " give --source DIR"
        ) from error
    return pin


def settled(pin: Pin, root: Path, commit: Callable[[str, str], str]) -> Pin:
    """Return the pin with a full commit as its revision. A moving name such as `main`
    is resolved once; root/revision.json stores the result, so that a download continues
    with the files it began with, and says which they are."""
    if re.fullmatch("[0-9a-f]{40}", pin.revision):
        return pin
    path = root / "revision.json"
    asked = {"repo": pin.repo, "revision": pin.revision}
    stored = json.loads(path.read_text()) if path.is_file() else {}
    if asked.items() <= stored.items():
        return pin._replace(revision=stored["commit"])
    sha = commit(pin.repo, pin.revision)
    root.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps(asked | {"commit": sha}).encode())
    return pin._replace(revision=sha)


def wanted_files(bench: Set, splits: Sequence[str], there: Sequence[str]) -> list[str]:
    """Return the published names to download: for each split those of its first pattern
    that matches any, then the files beside them."""
    names: dict[str, None] = {}
    for split in splits:
        for pattern in bench.files[split]:
            if some := [n for n in there if _matches(n, pattern)]:
                names |= dict.fromkeys(sorted(some))
                break
    if names:
        for pattern in bench.beside:
            names |= dict.fromkeys(sorted(n for n in there if _matches(n, pattern)))
    return list(names)


def _matches(name: str, pattern: str) -> bool:
    """Match as Path.glob does: `*` stops at a slash, a leading `**/` is any
    directories."""
    parts, wanted = name.split("/"), pattern.split("/")
    if wanted[0] == "**":
        wanted = wanted[1:]
        parts = parts[-len(wanted) :]
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))


def _commit(repo: str, revision: str) -> str:
    from huggingface_hub import HfApi

    return HfApi().dataset_info(repo, revision=revision).sha


def _listing(repo: str, revision: str) -> list[str]:
    from huggingface_hub import HfApi

    return HfApi().list_repo_files(repo, repo_type="dataset", revision=revision)


def _download(repo: str, revision: str, name: str, root: Path) -> None:
    from huggingface_hub import hf_hub_download

    hf_hub_download(repo, name, repo_type="dataset", revision=revision, local_dir=root)


# -- addresses -------------------------------------------------------------------------


class GivenUp(Exception):
    """A download without a file. Its status is 'failed' where asking again may help,
    'dead' where the server refuses for good, 'changed' where it has another file."""

    def __init__(self, status: str, why: str):
        super().__init__(" ".join(why.split())[:200])
        self.status = status


def download(url: str, path: Path, *, sha256: str = "", most: int = 0) -> None:
    """Download the body at an address to a file, whole or not at all.

    Status 429 and 5xx, broken connections and bodies shorter than announced are tried
    again with exponential back-off. A further try asks for the rest alone, if it is of
    the same body (`If-Range`, RFC 9110, 13.1.5). The file gets its name once its length
    and, where one is given, its checksum are right.

    Args:
      most: bytes of the body at most; 0: no limit.

    Raises:
      GivenUp: the last try failed, or another can't help.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:
        tag: str = ""  # ETag of the body that the partial file begins, '' for none
        for attempt in range(TRIES):
            if attempt:
                time.sleep(WAIT * 2 ** (attempt - 1))
            start = partial.stat().st_size if tag else 0
            rest = {"Range": f"bytes={start}-", "If-Range": tag} if start else {}
            try:
                with requests.get(
                    url, headers=HEADERS | rest, stream=True, timeout=TIMEOUT
                ) as answer:
                    answer.raise_for_status()
                    start = start if answer.status_code == 206 else 0
                    tag = answer.headers.get("ETag", "")
                    tag = "" if tag.startswith("W/") else tag  # weak: not to the byte
                    with open(partial, "ab" if start else "wb") as file:
                        for block in answer.iter_content(BLOCK):
                            file.write(block)
                            if most and file.tell() > most:
                                raise GivenUp("dead", f"more than {most} bytes")
                break
            except requests.HTTPError as error:
                code, tag = error.response.status_code, ""
                failure = GivenUp("failed", f"HTTP {code}")
                if code < 500 and code not in (416, 429):
                    raise GivenUp("dead", f"HTTP {code}") from None
            except requests.RequestException as error:
                failure = GivenUp("failed", str(error))
        else:
            raise failure
        if sha256 and (actual := _digest(partial, "sha256")) != sha256:
            announced = {"Content-Length", "Transfer-Encoding"}
            whole = not start and any(name in answer.headers for name in announced)
            raise GivenUp("changed" if whole else "failed", f"sha256 is {actual}")


def from_urls(
    pin: Pin, root: Path, progress: Callable[[str], None] = lambda name: None
) -> None:
    """Download the pin's own addresses. Raises UserError where one can't be read."""
    for name, url in pin.urls.items():
        path = root / name
        if not path.is_file():
            _sweep(path.parent, f".{path.name}.*.partial")
            try:
                download(url, path)
            except GivenUp as error:
                raise UserError(f"{url}: cannot be downloaded ({error})") from error
        progress(name)


def _sweep(folder: Path, pattern: str) -> None:
    """Remove the partial files of a run that was killed."""
    for path in folder.glob(pattern):
        path.unlink()


def images(
    wanted: Iterable[tuple[str, str]],
    root: Path,
    progress: Callable[[int], None] = lambda n: None,
) -> dict[str, int]:
    """Download (address, sha256) pairs to root/images/SHA256; return counts by status.

    A few at a time, fewer from one host. `images/manifest.jsonl` has each status: "ok",
    "changed" (another sum), "dead" (refused for good) or "failed" (tried again by the
    next call). Files that exist, changed or are dead are left alone; the manifest after
    an interruption and a rerun equals that of one run.

    Returns: status → number.
    """
    folder = root / "images"
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder, "*.partial")
    manifest = folder / "manifest.jsonl"
    entries: dict[str, dict] = {}
    if manifest.is_file():
        rows = read_lines(manifest, torn=True)
        entries = {entry["sha256"]: entry for _, entry in rows}
    write_lines(manifest, entries.values())  # without a torn line
    pairs = {sha.lower(): url for url, sha in wanted}
    hosts = {urllib.parse.urlsplit(url).netloc for url in pairs.values()}
    locks = {host: threading.Semaphore(PER_HOST) for host in hosts}

    def one(sha: str, url: str) -> dict:
        if (folder / sha).is_file():
            return dict(sha256=sha, url=url, status="ok", why="")
        if entries.get(sha, {}).get("status") in ("changed", "dead"):
            return entries[sha]
        with locks[urllib.parse.urlsplit(url).netloc]:
            try:
                download(url, folder / sha, sha256=sha, most=LARGEST)
            except GivenUp as error:
                return dict(sha256=sha, url=url, status=error.status, why=str(error))
        return dict(sha256=sha, url=url, status="ok", why="")

    with ThreadPoolExecutor(PARALLEL) as threads:
        work = [threads.submit(one, sha, url) for sha, url in pairs.items()]
        try:
            for done in as_completed(work):
                entry = done.result()
                if entries.get(entry["sha256"]) != entry:
                    entries[entry["sha256"]] = entry
                    append_line(manifest, entry)
                progress(1)
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise
    write_lines(manifest, (entries[sha] for sha in sorted(entries)))
    return dict(Counter(entries[sha]["status"] for sha in pairs))


# -- sums ------------------------------------------------------------------------------


def check_sums(pin: Pin, files: Iterable[Path]) -> int:
    """Return how many of the files have a known sum. Raises UserError where one
    differs."""
    checked = 0
    for path in files:
        wanted = pin.md5.get(path.name)
        if wanted:
            actual = _digest(path, "md5")
            if actual != wanted:
                raise UserError(
                    f"{path}: md5 is {actual}, {wanted} is published; remove it and"
                    " prepare again"
                )
            checked += 1
    return checked


def _digest(path: Path, kind: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()
