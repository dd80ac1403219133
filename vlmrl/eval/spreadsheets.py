"""Read the first sheet of an .xlsx file, with openpyxl."""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import ParseError
from zipfile import BadZipFile

from vlmrl.types import UserError


def read_xlsx(path: Path) -> list[dict]:
    """Return the rows under the headings of the first row; empty cells are ''.

    Raises:
      UserError: not a workbook, or openpyxl is not installed.
    """
    try:
        import openpyxl
        from openpyxl.utils.escape import unescape
    except ImportError:
        raise UserError(
            f"{path}: .xlsx files need openpyxl: pip install -e '.[sheets]'"
        ) from None

    def value(cell):
        if isinstance(cell, str):
            return unescape(cell)  # control characters are written as _x000D_
        if isinstance(cell, bool):
            return int(cell)
        return "" if cell is None else cell

    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        sheet = book.worksheets[0]
        sheet.reset_dimensions()  # the size that a file states may be wrong
        rows = [[value(cell) for cell in row] for row in sheet.values]
        book.close()
    except (BadZipFile, ParseError, KeyError, IndexError, ValueError) as error:
        raise UserError(f"{path}: not a readable .xlsx file ({error})") from None
    if not rows:
        return []
    heads = {i: str(name) for i, name in enumerate(rows[0]) if name != ""}
    return [
        {name: row[i] if i < len(row) else "" for i, name in heads.items()}
        for row in rows[1:]
    ]
