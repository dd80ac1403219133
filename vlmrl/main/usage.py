"""Help texts, from the flags of a command and the comments of a config file."""

from __future__ import annotations

import ast
import sys
import tokenize
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from vlmrl.main import args
from vlmrl.rl import recipe

HELP_WORDS = ("-h", "--help", "-help", "--helpfull")


def is_asked(argv: list[str]) -> bool:
    """Whether the words ask for help."""
    return any(word in HELP_WORDS for word in argv)


def text(name: str, doc: str, flags: dict[str, tuple], argv: Sequence[str] = ()) -> str:
    """Return the help of a command; with a config in `argv`, of its fields too."""
    words = f" {flags['args'][0]}" if "args" in flags else ""
    lines = [f"usage: vlmrl {name} [flags]{words}", "", doc.strip(), ""]
    rows, must = [], " (must be given)"
    for flag, (default, note) in flags.items():
        if flag == "args":
            rows.append((default, note))
        elif flag == "config":
            rows.append(("--config FILE[:ARG]", note + (_default(default) or must)))
            rows.append(("--config.FIELD=VALUE", "overrides a field of the config"))
        elif isinstance(default, bool):
            rows.append((f"--[no]{flag}", note + _default(default)))
        else:
            kind = "DIR" if flag == "workdir" else _kind(default)
            needed = must if flag == "workdir" else ""
            rows.append((f"--{flag}={kind}", note + (_default(default) or needed)))
    lines += _table(rows)
    if "config" in flags:
        rest = [word for word in argv if word not in HELP_WORDS]
        path = args.take_config(rest, flags["config"][0])[1]
        if path:
            lines += ["", f"fields of {path}:", *_table(config_fields(path))]
    return "\n".join(lines)


def config_fields(path_and_arg: str) -> list[tuple[str, str]]:
    """Return (`--config.field=value`, comment) of every field of a config. The
    comments are those on or right above the line that sets the field, in the config
    file or in the configs it imports, else those of the recipe's records."""
    config = args.load_config(path_and_arg)
    path = args.config_file(path_and_arg.partition(":")[0])
    comments = dict(recipe.comments())
    for file in [*_imported_configs(path), path]:
        comments.update(_comments(file.read_text(encoding="utf-8")))
    return [
        (f"--config.{field}={value!r}", comments.get(field, ""))
        for field, value in _flatten(config)
    ]


# -- pieces ----------------------------------------------------------------------------


def _imported_configs(path: Path) -> list[Path]:
    """Return the files of the `configs.*` modules that a config file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
        elif isinstance(node, ast.Import):
            names += [a.name for a in node.names]
    modules = [sys.modules.get(n) for n in names if n.split(".")[0] == "configs"]
    return [Path(m.__file__) for m in modules if getattr(m, "__file__", None)]


def _flatten(config: ConfigDict, prefix: str = ""):
    for field, value in config.items():
        if isinstance(value, ConfigDict) and len(value):
            yield from _flatten(value, f"{prefix}{field}.")
        else:
            yield prefix + field, value


def _comments(source: str) -> dict[str, str]:
    """Return config field → comment, from assignments `c.a.b = …  # comment` and from
    the keywords and keys inside their values."""
    lines = source.splitlines()
    by_line = {
        token.start[0]: token.string.lstrip("# ").strip()
        for token in tokenize.generate_tokens(iter(source.splitlines(True)).__next__)
        if token.type == tokenize.COMMENT
    }

    def near(first: int, last: int) -> str:
        if last in by_line or first in by_line:
            return by_line.get(first) or by_line[last]
        above, line = [], first - 1
        while line in by_line and lines[line - 1].lstrip().startswith("#"):
            above.insert(0, by_line[line])
            line -= 1
        return " ".join(above)

    comments: dict[str, str] = {}

    def inside(node, prefix: str) -> None:
        if isinstance(node, ast.Call):
            pairs = [(k.arg, k.value) for k in node.keywords if k.arg]
            for argument in node.args:
                inside(argument, prefix)
        elif isinstance(node, ast.Dict):
            keys = [k.value if isinstance(k, ast.Constant) else None for k in node.keys]
            pairs = [(k, v) for k, v in zip(keys, node.values, strict=True) if k]
        else:
            return
        for key, value in pairs:
            note(f"{prefix}{key}", value, value.lineno, value.end_lineno)

    def note(field: str, value, first: int, last: int) -> None:
        nested = isinstance(value, ast.Call | ast.Dict) and last > first
        text = near(first, first if nested else last)
        if text:
            comments.setdefault(field, text)
        inside(value, field + ".")

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            field = _dotted(target)
            if isinstance(target, ast.Attribute) and field:
                note(field, node.value, node.lineno, node.end_lineno)
            elif isinstance(target, ast.Name):
                inside(node.value, "")
        elif isinstance(node, ast.Return):
            inside(node.value, "")
    return comments


def _dotted(node) -> str:
    """Return 'a.b' of the target `c.a.b`; '' for anything else."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.insert(0, node.attr)
        node = node.value
    return ".".join(parts) if isinstance(node, ast.Name) else ""


def _kind(default) -> str:
    names = {int: "INT", float: "NUMBER", list: "A,B"}
    return names.get(type(default), "TEXT")


def _default(default) -> str:
    if default is None or default == [] or default == "":
        return ""
    shown = ",".join(default) if isinstance(default, list) else default
    return f" (default: {shown})"


def _table(rows: list[tuple[str, str]], at_most: int = 32) -> list[str]:
    width = min(max((len(left) for left, _ in rows), default=0), at_most)
    return [f"  {left:{width}}  {right}".rstrip() for left, right in rows]
