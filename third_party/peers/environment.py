"""What every peer's script here shares: an environment of its own, and how it is run.

Run by any Python 3.11 or newer, a script makes a virtual environment below
~/.cache/vlmrl/peers (or $VLMRL_PEERS), installs what it names, and goes on in there.

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


def enter(name: str, *packages: str, pip: tuple[str, ...] = ()) -> None:
    """Go on in the environment `name`, made with these packages if it is not there."""
    place = HOME / name
    if Path(sys.prefix).resolve() == place.resolve():
        return
    wanted, mark = "\n".join(packages), place / "installed.txt"
    python = place / "bin" / "python"
    if not mark.is_file() or mark.read_text() != wanted:
        print(f"making {place}", file=sys.stderr)
        venv.create(place, clear=True, with_pip=True)
        words = [python, "-m", "pip", "install", "--disable-pip-version-check", "-q"]
        subprocess.run([*words, *pip, *packages], check=True, stdout=sys.stderr)
        mark.write_text(wanted)
    clean = {
        k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")
    }
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
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", action="store_true", help="run once for every line")
    return parser.parse_args()


def run(work, settings: argparse.Namespace, definition: str, packages) -> None:
    """Time work() as the settings say; it returns how many tokens count."""

    def once() -> dict:
        begin = time.perf_counter()
        count = work()
        return {"seconds": time.perf_counter() - begin, "tokens": count}

    versions = {p: importlib.metadata.version(p) for p in packages}
    if settings.serve:
        print(json.dumps({"ready": definition, "versions": versions}), flush=True)
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
                "versions": {p: importlib.metadata.version(p) for p in packages},
                "definition": definition,
                "rounds": rounds,
            },
            indent=1,
        )
    )
