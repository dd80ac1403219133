"""Debian's Chromium without a display or a network: the page's DOM after its scripts
ran, what the console said, and pictures of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest


def command(path: Path, profile: Path, *flags: str) -> list[str]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.fail("chromium is not installed: `launch/local.sh test --all` brings it")
    return [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
        "--no-first-run", "--disable-background-networking", "--disable-extensions",
        "--disable-component-update", "--disable-sync", f"--user-data-dir={profile}",
        "--enable-logging=stderr", *flags, path.as_uri(),
    ]  # fmt: skip


def run(path: Path, profile: Path, *flags: str) -> tuple[str, list[str]]:
    """(DOM after the scripts ran, lines of the console)."""
    words = command(path, profile, "--virtual-time-budget=20000", *flags, "--dump-dom")
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=240, check=True
    )
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return done.stdout, console


def visit(page: str, folder: Path, script: str, *flags: str):
    """What a script sees that drives the page as a reader would: it is put at the
    page's end and calls `done(value)`. Returns (value, lines of the console).

    Time is real and the browser stays until the script has ended: virtual time runs out
    on a busy machine, before frames that no timer waits for.

    `choose(id, value)` changes a control, `press(id, key)` sends it a key, `$` is
    getElementById.
    """
    helpers = """
    const $ = (id) => document.getElementById(id);
    const press = (id, key) => $(id).dispatchEvent(
      new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
    const choose = (id, value) => {
      $(id).value = value;
      for (const kind of ["input", "change"])
        $(id).dispatchEvent(new Event(kind, { bubbles: true }));
    };
    const pause = (ms) => new Promise((ready) => setTimeout(ready, ms));
    const done = (value) => console.info("seen" + JSON.stringify(value));
    """
    script = f"""<script>{helpers}
    addEventListener("load", async () => {{
      try {{ {script} }} catch (error) {{ done({{ error: String(error.stack) }}); }}
    }});</script>"""
    folder.mkdir(exist_ok=True)
    path = folder / "report.html"
    # the last one: the page's own text may hold the words
    head, _, tail = page.rpartition("</body>")
    path.write_text(f"{head}{script}</body>{tail}", encoding="utf-8")
    words = command(path, folder / "profile", "--remote-debugging-port=0", *flags)
    console, seen = [], None
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as browser:
        patience = threading.Timer(240, browser.kill)
        patience.start()
        for line in browser.stderr:
            if ":CONSOLE" in line:
                console.append(line.rstrip())
                if seen := re.search(r'"seen(.*)", source: ', line):
                    break
        patience.cancel()
        browser.kill()
    assert seen, f"the script did not end; console: {console}"
    seen = json.loads(seen[1])
    assert not (isinstance(seen, dict) and "error" in seen), seen
    return seen, console[:-1]


def picture(page: str, folder: Path, name: str, *flags: str) -> Path:
    """A screenshot, kept in $VLMRL_ARTIFACTS where that is set."""
    import os

    kept = Path(os.environ.get("VLMRL_ARTIFACTS", folder))
    kept.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.html"
    path.write_text(page, encoding="utf-8")
    target = kept / f"{name}.png"
    run(path, folder / "profile", f"--screenshot={target}", "--hide-scrollbars", *flags)
    return target
