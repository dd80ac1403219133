"""Download published files, from a hub or by address, and check their checksums.

A file gets its final name once it is complete, so an interrupted download continues
where it stopped. Where files come from is data (`third_party/datasets.json`).
"""

from __future__ import annotations

import fnmatch
import hashlib
import http.client
import json
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from vlmrl.data.reading import Set
from vlmrl.files import atomic_write, numbered_lines
from vlmrl.types import UserError

AGENT = "vlmrl (research on vision-language models)"
PARALLEL, PER_HOST = 8, 2  # downloads at a time, and of them from one host
TRIES, WAIT = 3, 1.0  # per address; seconds before the second try, doubled after
LARGEST = 1 << 28  # bytes of an image
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


def from_urls(
    pin: Pin, root: Path, progress: Callable[[str], None] = lambda name: None
) -> None:
    """Download the pin's own addresses. Raises UserError where one can't be read."""
    for name, url in pin.urls.items():
        path = root / name
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            _sweep(path.parent, f".{path.name}.*.partial")
            try:
                data = get(url)
            except (OSError, http.client.HTTPException) as error:
                raise UserError(f"{url}: cannot be downloaded ({error})") from error
            atomic_write(path, data)
        progress(name)


def get(url: str) -> bytes:
    """Return the body at an address; transient failures are retried."""
    request = urllib.request.Request(url, headers={"User-Agent": AGENT})
    for number in range(TRIES):
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                data = answer.read(LARGEST + 1)
                if len(data) > LARGEST:
                    raise OSError(f"more than {LARGEST} bytes")
                return data
        except urllib.error.HTTPError as error:
            error.close()
            if error.code < 500 and error.code != 429:
                raise
            last: Exception = error
        except (OSError, http.client.HTTPException) as error:
            last = error
        if number + 1 < TRIES:
            time.sleep(WAIT * 2**number)
    raise last


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
        for _, line in numbered_lines(manifest):
            try:
                entry = json.loads(line)
            except ValueError:  # a line torn by a kill
                continue
            entries[entry["sha256"]] = entry
    pairs = {sha.lower(): url for url, sha in wanted}
    locks: dict[str, threading.Semaphore] = defaultdict(
        lambda: threading.Semaphore(PER_HOST)
    )
    for url in pairs.values():  # created here, not by racing threads
        locks[urllib.parse.urlsplit(url).netloc]

    def one(sha: str, url: str) -> dict:
        if (folder / sha).is_file():
            return dict(sha256=sha, url=url, status="ok", why="")
        if entries.get(sha, {}).get("status") in ("changed", "dead"):
            return entries[sha]
        with locks[urllib.parse.urlsplit(url).netloc]:
            status, why = _image(url, sha, folder)
        return dict(sha256=sha, url=url, status=status, why=why)

    with ThreadPoolExecutor(PARALLEL) as threads, open(manifest, "a") as file:
        work = [threads.submit(one, sha, url) for sha, url in pairs.items()]
        try:
            for done in as_completed(work):
                entry = done.result()
                if entries.get(entry["sha256"]) != entry:
                    entries[entry["sha256"]] = entry
                    file.write(json.dumps(entry) + "\n")
                    file.flush()
                progress(1)
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise
    lines = [json.dumps(entries[sha]) + "\n" for sha in sorted(entries)]
    atomic_write(manifest, "".join(lines).encode())
    counts: dict[str, int] = {}
    for sha in pairs:
        counts[entries[sha]["status"]] = counts.get(entries[sha]["status"], 0) + 1
    return counts


def _image(url: str, sha: str, folder: Path) -> tuple[str, str]:
    try:
        data = get(url)
    except urllib.error.HTTPError as error:
        gone = error.code < 500 and error.code != 429
        return ("dead" if gone else "failed"), f"HTTP {error.code}"
    except (OSError, http.client.HTTPException, ValueError) as error:
        return "failed", " ".join(str(error).split())
    if (actual := hashlib.sha256(data).hexdigest()) != sha:
        return "changed", f"sha256 is {actual}"
    atomic_write(folder / sha, data)
    return "ok", ""


# -- sums ------------------------------------------------------------------------------


def check_sums(pin: Pin, files: Iterable[Path]) -> int:
    """Return how many of the files have a known sum. Raises UserError where one
    differs."""
    checked = 0
    for path in files:
        wanted = pin.md5.get(path.name)
        if wanted:
            with open(path, "rb") as file:
                actual = hashlib.file_digest(file, "md5").hexdigest()
            if actual != wanted:
                raise UserError(
                    f"{path}: md5 is {actual}, {wanted} is published; remove it and"
                    " prepare again"
                )
            checked += 1
    return checked
