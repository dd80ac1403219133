"""The map, vlmrl/README.md, names files that exist and what is in them."""

import re
from pathlib import Path

from tests.test_imports import ORDER

ROOT = Path(__file__).resolve().parents[1]
MAP = (ROOT / "vlmrl" / "README.md").read_text(encoding="utf-8")
MAP, CHANGES = MAP.split("## Changelog")


def locate(name: str) -> Path:
    """Return the path of a file that the map names, below vlmrl/ or the checkout."""
    path = ROOT / "vlmrl" / name
    return path if path.exists() else ROOT / name


def test_every_file_exists_and_defines_what_is_named():
    for name, symbol in re.findall(r"`([\w/]+\.\w+)(?:: (\w+))?`", MAP):
        if name.endswith((".py", ".md", ".json", ".jsonl")) and "/" in name:
            assert locate(name).is_file(), name
            assert symbol in locate(name).read_text(encoding="utf-8"), (name, symbol)


def test_walks_come_back_to_no_file():
    block = MAP[MAP.index("| record | files |") :].split("\n\n")[0]
    walks = block.splitlines()[2:]
    assert len(walks) == 6
    for walk in walks:
        files = re.findall(r"`([\w/]+\.py)`", walk)
        assert len(set(files)) == len(files) > 4, walk


def test_the_import_order_is_the_tested_one():
    text = MAP[MAP.index("## Import order") :]
    shown = " ".join(re.search(r"`(types.*?)`", text, re.S)[1].split()).split(" → ")
    rows = [[name for name in row if name != "vlmrl"] for row in ORDER]
    assert [
        [f"vlmrl.{name.replace('/', '.')}" for name in row.split(", ")] for row in shown
    ] == rows
