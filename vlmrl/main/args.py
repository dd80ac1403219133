"""The command line of every command: `--config FILE[:ARG]`, `--config.field=value`,
`--workdir DIR`, and the command's own flags.

A command declares FLAGS, a literal dict name → (default, help). The type of a flag is
that of its default (bool, int, float, str, a list of str given as `a,b`); None is an
optional str. Three names are special:

  config    a config file; without a default it must be given
  workdir   a directory, made if missing and tried for writing; without a default it
            must be given
  args      not a flag: (usage, help) of the words after the flags, if any are taken

The config arrives locked: reading or setting a field that it lacks is an error.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib.util
import re
import sys
import tempfile
import tokenize
from pathlib import Path
from types import SimpleNamespace

from absl import flags as absl_flags
from ml_collections import ConfigDict, config_flags

import vlmrl
from vlmrl.types import UserError

CHECKOUT = Path(vlmrl.__file__).resolve().parents[1]

_HELP = ("-h", "--help", "-help", "--helpfull")


def parse(
    argv: list[str], doc: str, flags: dict[str, tuple], name: str = "<command>"
) -> tuple[ConfigDict | None, Path | None, SimpleNamespace]:
    """Reads a command line.

    Args:
      argv: the words after the command's name.
      doc, flags: the command's docstring and FLAGS.
      name: the command's name, for its help text.

    Returns:
      config: the locked ConfigDict with the overrides applied, None if the command has
        no `config` flag.
      workdir: an existing, writable directory, None if there is no such flag.
      other: the command's own flags as attributes, and `other.args`, the words.

    Raises:
      UserError: an unknown flag or config field, a value of the wrong type, a config
        that is missing or broken, a workdir that cannot be written to.
      SystemExit: status 0, after `--help` was printed.
    """
    if wants_help(argv):
        print(usage(name, doc, flags, argv))
        raise SystemExit(0)
    values = absl_flags.FlagValues()
    for flag, (default, text) in flags.items():
        if flag not in ("config", "args"):
            _define(values, flag, default, text)
    config = None
    if "config" in flags:
        argv, path = _take_config(argv, flags["config"][0])
        config = load_config(path)
        _check_overrides(config, argv, path)
        # The flag stands before its overrides in the words it looks for them in.
        config_flags.DEFINE_config_dict(
            "config", config, flag_values=values, sys_argv=["vlmrl", *argv]
        )
    try:
        words = values(["vlmrl", *argv])[1:]
    except (absl_flags.Error, ValueError, TypeError) as error:
        raise UserError(_explain(error, flags)) from error
    if words and "args" not in flags:
        raise UserError(f"unexpected word '{words[0]}': flags start with --")
    workdir = _workdir(values.workdir) if "workdir" in flags else None
    own = [f for f in flags if f not in ("config", "workdir", "args")]
    other = SimpleNamespace(**{f: values[f].value for f in own}, args=words)
    return config, workdir, other


def load_config(path_and_arg: str) -> ConfigDict:
    """The ConfigDict that `get_config` of a config file returns.

    Args:
      path_and_arg: 'configs/x.py' or 'configs/x.py:arg'; `get_config(arg)` gets what
        follows the first colon. A relative path is looked up from the current
        directory, then from the checkout.

    Raises:
      UserError: no such file, no `get_config` in it, or an error while it ran, with the
        line of the file it came from.
    """
    name, colon, arg = path_and_arg.partition(":")
    path = config_file(name)
    with _importable(path):
        try:
            spec = importlib.util.spec_from_file_location("vlmrl_config", path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            if not callable(getattr(module, "get_config", None)):
                raise UserError(f"{name}: has no function get_config")
            config = module.get_config(*[arg] if colon else [])
        except UserError:
            raise
        except SyntaxError as error:
            raise UserError(
                f"{error.filename}, line {error.lineno}: {error.msg}"
            ) from (error)
        except Exception as error:
            raise UserError(f"{_where(error, path, name)}: {_tell(error)}") from error
    if not isinstance(config, ConfigDict):
        kind = type(config).__name__
        raise UserError(f"{name}: get_config returned a {kind}, not a ConfigDict")
    return config


def config_file(name: str) -> Path:
    """The file a config's name means; UserError if there is none."""
    for path in (Path(name), CHECKOUT / name):
        if name and path.is_file():
            return path.resolve()
    close = ""
    if not Path(name).is_absolute():
        known = sorted(str(p.relative_to(CHECKOUT)) for p in _config_files())
        match = difflib.get_close_matches(name, known, n=1)
        close = f"; did you mean {match[0]}?" if match else ""
    raise UserError(f"--config: no file '{name}'{close}")


def wants_help(argv: list[str]) -> bool:
    return any(word in _HELP for word in argv)


def usage(name: str, doc: str, flags: dict[str, tuple], argv: list[str] = ()) -> str:
    """Help text of a command; with a config in `argv`, its fields too."""
    words = f" {flags['args'][0]}" if "args" in flags else ""
    lines = [f"usage: vlmrl {name} [flags]{words}", "", doc.strip(), ""]
    rows = []
    for flag, (default, text) in flags.items():
        if flag == "args":
            rows.append((default, text))
        elif flag == "config":
            rows.append(("--config FILE[:ARG]", text + _default(default)))
            rows.append(("--config.FIELD=VALUE", "overrides a field of the config"))
        elif isinstance(default, bool):
            rows.append((f"--[no]{flag}", text + _default(default)))
        else:
            kind = "DIR" if flag == "workdir" else _kind(default)
            rows.append((f"--{flag}={kind}", text + _default(default)))
    lines += _table(rows)
    if "config" in flags:
        path = _take_config([w for w in argv if w not in _HELP], flags["config"][0])[1]
        if path:
            lines += ["", f"fields of {path}:", *_table(config_fields(path))]
    return "\n".join(lines)


def config_fields(path_and_arg: str) -> list[tuple[str, str]]:
    """(`--config.field=value`, comment) of every field of a config, in its order. The
    comments are those on or right above the line that sets the field, in the config
    file or in the configs it imports."""
    config = load_config(path_and_arg)
    path = config_file(path_and_arg.partition(":")[0])
    comments: dict[str, str] = {}
    for file in [*_imported_configs(path), path]:
        comments.update(_comments(file.read_text(encoding="utf-8")))
    return [
        (f"--config.{field}={value!r}", comments.get(field, ""))
        for field, value in _flatten(config)
    ]


# -- pieces ----------------------------------------------------------------------------


def _define(values, flag: str, default, text: str) -> None:
    define = {
        bool: absl_flags.DEFINE_bool,
        int: absl_flags.DEFINE_integer,
        float: absl_flags.DEFINE_float,
        list: absl_flags.DEFINE_list,
    }.get(type(default), absl_flags.DEFINE_string)
    define(flag, default, text, flag_values=values)


def _take_config(argv: list[str], default: str | None) -> tuple[list[str], str | None]:
    """Takes `--config FILE` out of the words: (other words, file)."""
    rest, found = [], default
    words = iter(argv)
    for word in words:
        if word in ("--config", "-config"):
            found = next(words, None)
            if found is None:
                raise UserError("--config: a file must follow, as configs/x.py[:arg]")
        elif re.match(r"--?config=", word):
            found = word.partition("=")[2]
        else:
            rest.append(word)
    if found is None and not wants_help(argv):
        return rest, None
    return rest, found


def _check_overrides(config, argv: list[str], path: str) -> None:
    for word in argv:
        match = re.match(r"--?(no)?config\.([^=]*)", word)
        if not match:
            continue
        node, done = config, []
        for part in match[2].split("."):
            fields = list(node) if isinstance(node, ConfigDict) else []
            if part not in fields:
                where = "config." + ".".join([*done, part])
                close = difflib.get_close_matches(part, fields, n=1)
                hint = f" (did you mean {close[0]}?)" if close else ""
                there = ", ".join(fields) or "none"
                raise UserError(
                    f"unknown config field {where}{hint}; {path} has here: {there}"
                )
            node, done = node[part], [*done, part]


def _explain(error: Exception, flags: dict[str, tuple]) -> str:
    if isinstance(error, absl_flags.UnrecognizedFlagError):
        name = error.flagname
        close = difflib.get_close_matches(name, [f for f in flags if f != "args"], n=1)
        hint = f" (did you mean --{close[0]}?)" if close else "; see --help"
        return f"unknown flag --{name}{hint}"
    return str(error)


def _workdir(name: str | None) -> Path:
    if not name:
        raise UserError("--workdir: must be given, a directory to write to")
    path = Path(name)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(f"--workdir {name}: not writable: {error.strerror}") from error
    return path


@contextlib.contextmanager
def _importable(path: Path):
    """While a config runs, `configs.common` and its like can be imported: those of the
    tree the config file is in, else the checkout's."""
    tops = [p.parent for p in path.parents if p.name == "configs"]
    before = sys.path[:]
    sys.path[:0] = [str(p) for p in [*tops[-1:], CHECKOUT]]
    try:
        yield
    finally:
        sys.path[:] = before


def _config_files():
    return (CHECKOUT / "configs").rglob("*.py")


def _imported_configs(path: Path) -> list[Path]:
    """Files of the `configs.*` modules that a config file names in its imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
        elif isinstance(node, ast.Import):
            names += [a.name for a in node.names]
    modules = [sys.modules.get(n) for n in names if n.split(".")[0] == "configs"]
    return [Path(m.__file__) for m in modules if getattr(m, "__file__", None)]


def _where(error: Exception, path: Path, name: str) -> str:
    line, trace = None, error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"{name}, line {line}" if line else name


def _tell(error: Exception) -> str:
    plain = isinstance(error, ValueError) and str(error)
    return str(error) if plain else f"{type(error).__name__}: {error}"


def _flatten(config: ConfigDict, prefix: str = ""):
    for field, value in config.items():
        if isinstance(value, ConfigDict) and len(value):
            yield from _flatten(value, f"{prefix}{field}.")
        else:
            yield prefix + field, value


def _comments(source: str) -> dict[str, str]:
    """Config field → comment, from assignments `c.a.b = …  # comment` and from keywords
    and keys inside their values."""
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

    found: dict[str, str] = {}

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
            found.setdefault(field, text)
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
    return found


def _dotted(node) -> str:
    """'a.b' of the target `c.a.b`; '' for anything else."""
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
