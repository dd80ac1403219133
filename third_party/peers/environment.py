"""What every peer's script here shares: an environment of its own, and how it is run.

Run by any Python 3.11 or newer, a script makes a virtual environment below
~/.cache/vlmrl/peers (or $VLMRL_PEERS), installs what it names, and goes on in there;
with --prepare it ends there. $VLMRL_PEERS_PYTHON names a Python that has the packages
already, for a machine without a package index: it is used as it is.

With --serve it answers a line of JSON when it is ready and one for every line it reads,
so that `vlmrl bench` can run it in turn with others. Without, it runs --rounds times
and prints one JSON object: date, machine, versions, definition, seconds.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
import venv
from pathlib import Path

HOME = Path(os.environ.get("VLMRL_PEERS", Path.home() / ".cache" / "vlmrl" / "peers"))


ENTERED = "VLMRL_PEERS_ENTERED"
ASKED = """
import importlib.metadata, sys
from pip._vendor.packaging.requirements import Requirement
without = sys.argv[1].split(",")
for package in sys.argv[2:]:
    for line in importlib.metadata.requires(package) or ():
        r = Requirement(line)
        if r.name not in without and (not r.marker or r.marker.evaluate({"extra": ""})):
            r.marker = None
            print(r)
"""


def enter(
    name: str,
    *packages: str,
    alone: tuple[str, ...] = (),
    without: tuple[str, ...] = (),
    preload: str = "",
) -> None:
    """Go on in the environment `name`, made with these packages if it is not there.

    Args:
      alone: packages, as name==version, installed after the others but for what they
        ask for; of that, what is not `without` comes last.
      preload: a library of the environment that is loaded before all others.
    """
    place = HOME / name
    if Path(sys.prefix).resolve() == place.resolve() or os.environ.get(ENTERED):
        return
    wanted = "\n".join([*packages, *alone, *(f"not {w}" for w in without)])
    python, mark = place / "bin" / "python", place / "installed.txt"
    if given := os.environ.get("VLMRL_PEERS_PYTHON"):
        if "--prepare" in sys.argv:
            sys.exit()
        os.execvpe(given, [given, *sys.argv], os.environ | {ENTERED: "1"})
    if not mark.is_file() or mark.read_text() != wanted:
        print(f"making {place}", file=sys.stderr)
        venv.create(place, clear=True, with_pip=True)

        def pip(*words):
            start = [python, "-m", "pip", "install", "--disable-pip-version-check"]
            subprocess.run([*start, "-q", *words], check=True, stdout=sys.stderr)

        pip(*packages)
        if alone:
            pip("--no-deps", *alone)
            names = [a.partition("==")[0] for a in alone]
            words = [python, "-c", ASKED, ",".join(without), *names]
            asked = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
            pip(*packages, *asked.stdout.split("\n")[:-1])
        mark.write_text(wanted)
    if "--prepare" in sys.argv:
        sys.exit()
    clean = {
        k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")
    }
    if preload:
        clean["LD_PRELOAD"] = str(place / preload)
    os.execve(python, [str(python), *sys.argv], clean)


def arguments(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", required=True, help="directory of the checkpoint")
    parser.add_argument(
        "--inputs", required=True, help=".npz: ids, patches, grid, image"
    )
    parser.add_argument("--new", type=int, default=64, help="new tokens of each row")
    parser.add_argument("--samples", type=int, default=1, help="samples of each prompt")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", action="store_true", help="run once for every line")
    return parser.parse_args()


def versions(packages) -> dict[str, str]:
    return {p: importlib.metadata.version(p) for p in packages}


def run(work, settings: argparse.Namespace, definition: str, packages) -> None:
    """Time work() as the settings say; it returns how many tokens count."""

    def once() -> dict:
        begin = time.perf_counter()
        count = work()
        return {"seconds": time.perf_counter() - begin, "tokens": count}

    if settings.serve:
        ready = {"ready": definition, "versions": versions(packages)}
        print(json.dumps(ready), flush=True)
        for _ in sys.stdin:
            print(json.dumps(once()), flush=True)
        return
    once()
    report([once() for _ in range(settings.rounds)], settings, definition, packages)


def report(rounds: list[dict], settings, definition: str, packages) -> None:
    """Print the JSON of a run by itself."""
    print(
        json.dumps(
            {
                "date": datetime.datetime.now(datetime.UTC).isoformat(
                    timespec="seconds"
                ),
                "machine": {"cpu": platform.processor(), "threads": settings.threads},
                "versions": versions(packages),
                "definition": definition,
                "rounds": rounds,
            },
            indent=1,
        )
    )
