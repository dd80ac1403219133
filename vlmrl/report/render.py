"""A table and its four renderings: Markdown, CSV, LaTeX and the terminal.

A table holds raw numbers; what a cell looks like is told by the kind of its column:

  text       a string                      count   an integer
  share      0..1, shown in per cent       shift   a signed difference of shares, points
  number     two decimals                  change  a signed number, two decimals
  interval   (value, lo, hi) of shares, shown in per cent
  gap        (value, lo, hi) of a signed difference of shares, shown in points
  area       (value, lo, hi) of two decimals, such as an AUROC
  p          a p value

None is shown as a dash: not applicable, or not measured. CSV keeps full precision and
gives an interval three columns.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable
from pathlib import Path
from textwrap import wrap
from typing import NamedTuple

import numpy as np
from rich.console import Group
from rich.text import Text

from vlmrl.files import atomic_write
from vlmrl.types import UserError

DASH = "–"


class Table(NamedTuple):
    """A table before it is rendered."""

    name: str  # file stem
    title: str
    note: str  # what a reader must know to read the numbers
    columns: tuple[tuple[str, str], ...]  # (heading, kind)
    rows: list[tuple]


def cell(value, kind: str) -> str:
    """Return a value as a reader sees it."""
    if value is None:
        return DASH
    if kind in TRIPLES:
        scale, shape = TRIPLES[kind]
        middle, lo, hi = (_plain(format(scale * v, shape)) for v in value)
        return middle + ("" if np.isnan(value[1]) else f" [{lo}, {hi}]")
    text = {
        "text": lambda v: str(v),
        "count": lambda v: str(v),
        "share": lambda v: f"{100 * v:.1f}",
        "shift": lambda v: f"{100 * v:+.1f}",
        "number": lambda v: f"{v:.2f}",
        "change": lambda v: f"{v:+.2f}",
        "p": lambda v: DASH if np.isnan(v) else f"{v:.3f}" if v >= 0.001 else "<0.001",
    }[kind](value)
    if kind in ("text", "count"):
        return text
    return _plain(text)


# Kinds of three numbers: scale and format.
TRIPLES = {"interval": (100, ".1f"), "gap": (100, "+.1f"), "area": (1, ".2f")}


def _plain(text: str) -> str:
    """Return a rounded zero has no sign; a minus sign is not a hyphen."""
    text = text.lstrip("+-") if not text.strip("+-0.") else text
    return text.replace("-", "−").replace("inf", "∞")


def of(n: int, total: int) -> str:
    """Return 'n of N', or 'n' where they are the same."""
    return f"{n}" if n == total else f"{n} of {total}"


def scored_count(n: int, texts: int, total: int) -> str:
    """Return 'n of N' rows with option probabilities, and of what they are unless of
    letters.

    >>> scored_count(3, 3, 8), scored_count(3, 1, 3), scored_count(2, 0, 2)
    ('3 of 8, texts', '3, letters and texts', '2')
    """
    kind = "" if not texts else ", texts" if texts == n else ", letters and texts"
    return of(n, total) + kind


def heading(name: str, kind: str) -> str:
    """Return a column heading, with its unit where the kind has one."""
    return f"{name} (%)" if kind in ("share", "interval") else name


def markdown(table: Table) -> str:
    """Return a Markdown table, with its title and note."""

    def line(cells):
        safe = (c.replace("\\", "\\\\").replace("|", "\\|") for c in cells)
        return "| " + " | ".join(c.replace("\n", " ") for c in safe) + " |"

    rule = ["---" if kind == "text" else "---:" for _, kind in table.columns]
    body = [line(heading(*c) for c in table.columns), line(rule)]
    body += [line(row) for row in _texts(table)]
    return "\n".join([f"### {table.title}", "", *body, "", table.note, ""])


def csv_text(table: Table) -> str:
    """Return comma-separated values at full precision, empty where a cell is None."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = []
    for name, kind in table.columns:
        names += [name, f"{name} lo", f"{name} hi"] if kind in TRIPLES else [name]
    writer.writerow(names)
    for row in table.rows:
        flat = []
        for value, (_, kind) in zip(row, table.columns, strict=True):
            if kind in TRIPLES:
                flat += (None, None, None) if value is None else value
            else:
                flat.append(value)
        writer.writerow(["" if v is None or str(v) == "nan" else v for v in flat])
    return out.getvalue()


_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "−": "$-$",
    "Δ": r"$\Delta$",
    "∞": r"$\infty$",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "·": r"\textperiodcentered{}",
    "√": r"$\surd$",
    "σ": r"$\sigma$",
    "×": r"$\times$",
    "→": r"$\to$",
    "¬": r"$\neg$",
    "κ": r"$\kappa$",
    "±": r"$\pm$",
    "½": r"$\frac12$",
    "✓": "yes",
    "✗": "no",
    "’": "'",
    "…": r"\ldots{}",
    "|": r"\textbar{}",
    "<": "$<$",
    ">": "$>$",
} | {c: "\\" + c for c in "&%$#_{}"}


def latex(table: Table) -> str:
    """Return a booktabs table, escaped; the document needs `\\usepackage{booktabs}`."""

    def escape(text):
        return "".join(_TEX.get(c, c) for c in str(text))

    def line(cells):
        text = " & ".join(escape(c) for c in cells)
        guard = "{}" * text.startswith(("[", "*"))  # else read by the line before it
        return f"    {guard}{text}" + r" \\"

    layout = "".join("l" if kind == "text" else "r" for _, kind in table.columns)
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering\small",
            rf"  \caption{{{escape(table.title)}. {escape(table.note)}}}",
            rf"  \label{{tab:{table.name}}}",
            rf"  \begin{{tabular}}{{{layout}}}",
            r"    \toprule",
            line(heading(*c) for c in table.columns),
            r"    \midrule",
            *(line(row) for row in _texts(table)),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
            "",
        ]
    )


_SHORT = {
    "Accuracy": "Acc. %",
    "Entropy (nats)": "H",
    "P(correct)": "P(c)",
    "P(suggested)": "P(s)",
    "Consistent": "Cons.",
    "Faithful acc.": "Faith.",
    "Undecided": "Undec.",
    "Truncated": "Trunc.",
    "Lenient": "Len.",
    "Forced": "Forc.",
}
_WIDE = ("Step", "P(suggested)")  # left out on a terminal


def terminal(table: Table) -> Group:
    """Return the table for a rich console, the conditions table within 80 columns:
    without `_WIDE` columns, interval ends in whole per cent, rows under a line that
    names their first column."""
    repeats = len({row[0] for row in table.rows}) < len(table.rows)
    keep = [
        i
        for i, (name, _) in enumerate(table.columns)
        if name not in _WIDE and not (repeats and i == 0)
    ]
    kinds = [table.columns[i][1] for i in keep]
    names = [_SHORT.get(n, n).split() for n, _ in (table.columns[i] for i in keep)]
    body = [[_brief(row[i], table.columns[i][1]) for i in keep] for row in table.rows]
    widths = [
        max(map(len, [*words, *(row[j] for row in body)]))
        for j, words in enumerate(names)
    ]
    widths[0] += 2  # indent under the group's line

    def line(cells):
        pad = [
            c.ljust(w) if kind == "text" else c.rjust(w)
            for c, w, kind in zip(cells, widths, kinds, strict=True)
        ]
        return " ".join(pad)

    out = Text(no_wrap=True, overflow="ellipsis")
    headings = [
        wrap(" ".join(w), width) for w, width in zip(names, widths, strict=True)
    ]
    height = max(map(len, headings))
    for i in range(height):
        cells = [
            h[i - height + len(h)] if i >= height - len(h) else "" for h in headings
        ]
        out.append(line(cells) + "\n", "bold")
    out.append("─" * (sum(widths) + len(widths) - 1) + "\n", "dim")
    group = None
    for row, cells in zip(table.rows, body, strict=True):
        if repeats and row[0] != group:
            group = row[0]
            out.append(f"{group}\n", "bold cyan")
        out.append(line(["  " * repeats + cells[0], *cells[1:]]) + "\n")
    return Group(Text(table.title, "bold underline"), out, Text(table.note, "dim"))


def _brief(value, kind: str) -> str:
    if kind not in ("interval", "gap") or value is None or np.isnan(value[1]):
        return cell(value, kind)
    middle, lo, hi = (100 * v for v in value)
    shape = "+.1f" if kind == "gap" else ".1f"
    return _plain(f"{middle:{shape}}") + f" [{lo:.0f}, {hi:.0f}]".replace("-", "−")


def _texts(table: Table) -> list[list[str]]:
    kinds = [kind for _, kind in table.columns]
    return [[cell(v, k) for v, k in zip(row, kinds, strict=True)] for row in table.rows]


_WRITERS: dict[str, Callable[[Table], str]] = {
    "md": markdown,
    "csv": csv_text,
    "tex": latex,
}


def write(folder: str | os.PathLike, tables: list[Table]) -> list[Path]:
    """Write each table as .md, .csv and .tex; return the paths.

    Raises:
      UserError: where the folder can't be written.
    """
    files = {
        f"{table.name}.{ending}": render(table)
        for table in tables
        for ending, render in _WRITERS.items()
    }
    return write_files(folder, files, "tables")


def write_files(folder, files: dict[str, str | bytes], what: str) -> list[Path]:
    """Write files by name into a folder, each whole or not at all; return the paths.

    Raises:
      UserError: where the folder can't be written; `what` is in the message.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            atomic_write(folder / name, content)
    except OSError as error:
        raise UserError(f"{folder}: cannot write {what}: {error.strerror}") from None
    return [folder / name for name in files]
