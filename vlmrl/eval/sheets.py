"""The first sheet of an .xlsx file, read with nothing but the standard library.

A workbook is a zip of XML (ECMA-376): cells of the sheet name a row and a column, and
hold a number, a text of their own or the number of a shared text.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from xml.etree import ElementTree

from vlmrl.types import UserError

_MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_CONTROL = re.compile(r"_x([0-9A-Fa-f]{4})_")


def read_xlsx(path: Path) -> list[dict]:
    """Rows under the headings of the first row; empty cells are ''.

    Numbers come as int where they are whole, else float.

    Raises:
      UserError: not a workbook.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            shared = _shared(archive) if "xl/sharedStrings.xml" in names else []
            sheets = [
                n for n in names if re.fullmatch(r"xl/worksheets/sheet\d+.xml", n)
            ]
            if not sheets:
                raise UserError(f"{path}: has no sheet")
            first = min(sheets, key=lambda n: int(re.findall(r"\d+", n)[0]))
            rows = _rows(archive.read(first), shared)
    except (zipfile.BadZipFile, ElementTree.ParseError, KeyError, IndexError) as error:
        raise UserError(f"{path}: not a readable .xlsx file ({error})") from None
    if not rows:
        return []
    heads = {column: str(name) for column, name in rows[0].items()}
    return [{name: row.get(c, "") for c, name in heads.items()} for row in rows[1:]]


def _shared(archive: zipfile.ZipFile) -> list[str]:
    root = ElementTree.fromstring(archive.read("xl/sharedStrings.xml"))
    return [_text(item) for item in root.iter(f"{_MAIN}si")]


def _text(item) -> str:
    """The text of an item, its runs joined, without phonetic guides."""
    parts = []
    for child in item:
        if child.tag == f"{_MAIN}t":
            parts.append(child.text or "")
        elif child.tag == f"{_MAIN}r":
            parts += [t.text or "" for t in child.iter(f"{_MAIN}t")]
    return _plain("".join(parts))


def _plain(text: str) -> str:
    """Control characters are written as _x000D_."""
    return _CONTROL.sub(lambda m: chr(int(m[1], 16)), text)


def _rows(xml: bytes, shared: list[str]) -> list[dict[int, object]]:
    out = []
    for row in ElementTree.fromstring(xml).iter(f"{_MAIN}row"):
        cells: dict[int, object] = {}
        for place, cell in enumerate(row.iter(f"{_MAIN}c")):
            name = re.match(r"[A-Z]+", cell.get("r", ""))
            column = _column(name[0]) if name else place
            value = _value(cell, shared)
            if value != "":
                cells[column] = value
        out.append(cells)
    return out


def _column(letters: str) -> int:
    number = 0
    for letter in letters:
        number = 26 * number + ord(letter) - 64
    return number - 1


def _value(cell, shared: list[str]):
    kind, held = cell.get("t", "n"), cell.find(f"{_MAIN}v")
    if kind == "inlineStr":
        item = cell.find(f"{_MAIN}is")
        return "" if item is None else _text(item)
    text = "" if held is None else held.text or ""
    if kind == "s":
        return shared[int(text)]
    if kind in ("str", "e", "d"):
        return _plain(text)
    if kind == "b":
        return int(text)
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if number.is_integer() else number
