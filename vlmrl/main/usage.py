"""Help texts, from the flags of a command and the comments of a config file."""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from vlmrl.main import args
from vlmrl.rl import recipe

HELP_WORDS = ("-h", "--help", "-help", "--helpfull")


def is_asked(argv: list[str]) -> bool:
    """Return whether the words ask for help."""
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
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            "configs"
        ):
            names += [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
    files = [getattr(sys.modules.get(name), "__file__", None) for name in names]
    return [Path(file) for file in files if file]


def _flatten(config: ConfigDict, prefix: str = ""):
    for field, value in config.items():
        if isinstance(value, ConfigDict) and len(value):
            yield from _flatten(value, f"{prefix}{field}.")
        else:
            yield prefix + field, value


def _comments(source: str) -> dict[str, str]:
    """Return config field → comment, of assignments `c.a.b = …  # comment` and of the
    keywords and keys inside their values: the comment on its line, or those above."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    texts = {t.start[0]: t for t in tokens if t.type == tokenize.COMMENT}
    comments: dict[str, str] = {}
    for field, value, first in _assigned(ast.parse(source)):
        nested = isinstance(value, ast.Call | ast.Dict)
        lines = [
            n for n in (first, first if nested else value.end_lineno) if n in texts
        ]
        if not lines:
            line = first - 1
            while line in texts and texts[line].line.lstrip().startswith("#"):
                lines.insert(0, line)
                line -= 1
        text = " ".join(
            texts[n].string.lstrip("# ").strip() for n in dict.fromkeys(lines)
        )
        if text:
            comments.setdefault(field, text)
    return comments


def _assigned(tree: ast.AST):
    """Yield (field, value, first line) of what a config sets, in order."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            _, _, field = ast.unparse(target).partition(".")  # of c.a.b: a.b
            if field:
                yield field, node.value, node.lineno
            yield from _inside(node.value, field + "." * bool(field))
        elif isinstance(node, ast.Return):
            yield from _inside(node.value, "")


def _inside(node, prefix: str):
    """Yield the same of the keywords of a call and the keys of a dict."""
    pairs = []
    if isinstance(node, ast.Call):
        pairs = [(k.arg, k.value) for k in node.keywords if k.arg]
        for argument in node.args:
            yield from _inside(argument, prefix)
    elif isinstance(node, ast.Dict):
        pairs = [
            (getattr(k, "value", None), v)
            for k, v in zip(node.keys, node.values, strict=True)
        ]
    for key, value in pairs:
        if isinstance(key, str):
            yield prefix + key, value, value.lineno
            yield from _inside(value, f"{prefix}{key}.")


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
