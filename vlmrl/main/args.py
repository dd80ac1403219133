"""Parse the command line of a command: `--config FILE[:ARG]`, `--config.field=value`,
`--workdir DIR`, and the command's own flags.

A command declares FLAGS, a literal dict name → (default, help). The type of a flag is
that of its default (bool, int, float, str, a list of str given as `a,b`); None is an
optional str. Three names are special:

  config    a config file; without a default it must be given
  workdir   a directory, created if missing and checked to be writable; without a
            default it must be given
  args      not a flag: (usage, help) of the words after the flags, if any are taken

The config arrives locked: reading or setting a field that it lacks is an error.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import re
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

from absl import flags as absl_flags
from ml_collections import ConfigDict, config_flags

from vlmrl import shipped
from vlmrl.rl.recipe import RENAMED
from vlmrl.types import UserError


def parse(
    argv: list[str], flags: dict[str, tuple]
) -> tuple[ConfigDict | None, Path | None, SimpleNamespace]:
    """Parse a command line.

    Args:
      argv: the words after the command's name.
      flags: the command's FLAGS.

    Returns:
      config: the locked ConfigDict with the overrides applied, None if the command has
        no `config` flag.
      workdir: an existing, writable directory, None if there is no such flag.
      other: the command's own flags as attributes, and `other.args`, the words.

    Raises:
      UserError: an unknown flag or config field, a value of the wrong type, a config
        that is missing or broken, a workdir that cannot be written to.
    """
    values = absl_flags.FlagValues()
    for flag, (default, text) in flags.items():
        if flag not in ("config", "args"):
            _define(values, flag, default, text)
    config, before = None, {}
    if "config" in flags:
        argv, path = take_config(argv, flags["config"][0])
        if path is None:
            raise UserError("--config: must be given, a file as configs/x.py[:arg]")
        config = load_config(path)
        before = _overridden(config, argv, path)
        config_flags.DEFINE_config_dict(
            "config", config, flag_values=values, sys_argv=["vlmrl", *argv]
        )
    try:
        words = values(["vlmrl", *argv])[1:]
    except (absl_flags.Error, ValueError, TypeError) as error:
        raise UserError(_explain(error, flags, before)) from error
    for field, value in before.items():
        _check_elements(field, value, config)
    if words and "args" not in flags:
        raise UserError(f"unexpected word '{words[0]}': flags start with --")
    workdir = _workdir(values.workdir) if "workdir" in flags else None
    own = [f for f in flags if f not in ("config", "workdir", "args")]
    other = SimpleNamespace(**{f: values[f].value for f in own}, args=words)
    return config, workdir, other


def load_config(path_and_arg: str) -> ConfigDict:
    """Return the ConfigDict that `get_config` of a config file returns.

    Args:
      path_and_arg: 'configs/x.py' or 'configs/x.py:arg'; `get_config(arg)` gets what
        follows the first colon; see `shipped.locate` for relative paths.

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
        raise UserError(f"{name}: get_config: expected a ConfigDict, got a {kind}")
    return config


ALGORITHMS = {"grpo": "train", "sft": "sft", "study": "study"}  # → command


def check_algorithm(config: ConfigDict, algorithm: str) -> None:
    """Raise UserError unless config.algorithm is the given one, naming the command that
    runs a config of another."""
    value = config.get("algorithm", "")
    if value in ALGORITHMS and value != algorithm:
        raise UserError(
            f"config.algorithm is '{value}', expected '{algorithm}'; run this config "
            f"with `vlmrl {ALGORITHMS[value]}`"
        )
    if value != algorithm:
        raise UserError(f"config.algorithm is '{value}', expected '{algorithm}'")


def config_file(name: str) -> Path:
    """Return the file that a config's name stands for.

    Raises:
      UserError: there is none.
    """
    path = shipped.locate(name)
    if path.is_file():
        return path.resolve()
    close = ""
    if not path.is_absolute():
        top = shipped.DIRECTORY / "configs"
        files = [*top.glob("*.py"), *top.glob("*/*.py")]
        known = sorted(str(p.relative_to(shipped.DIRECTORY)) for p in files)
        match = difflib.get_close_matches(name, known, n=1)
        close = f"; did you mean {match[0]}?" if match else ""
    raise UserError(f"--config: no file '{name}'{close}")


def take_config(argv: list[str], default: str | None) -> tuple[list[str], str | None]:
    """Take `--config FILE` out of the words: (other words, file)."""
    rest, file = [], default
    words = iter(argv)
    for word in words:
        if word in ("--config", "-config"):
            file = next(words, None)
            if file is None:
                raise UserError("--config: a file must follow, as configs/x.py[:arg]")
        elif re.match(r"--?config=", word):
            file = word.partition("=")[2]
        else:
            rest.append(word)
    return rest, file


# -- pieces ----------------------------------------------------------------------------


def _define(values, flag: str, default, text: str) -> None:
    define = {
        bool: absl_flags.DEFINE_bool,
        int: absl_flags.DEFINE_integer,
        float: absl_flags.DEFINE_float,
        list: absl_flags.DEFINE_list,
    }.get(type(default), absl_flags.DEFINE_string)
    define(flag, default, text, flag_values=values)


def _overridden(config: ConfigDict, argv: list[str], path: str) -> dict:
    """Return dotted name → present value of the fields that the words override;
    UserError for a field that the config lacks."""
    present = {}
    for word in argv:
        match = re.match(r"--?(?:no)?config\.([^=]*)", word)
        if not match:
            continue
        if new := _renamed(match[1], config):
            raise UserError(f"config.{match[1]}: it is config.{new} now")
        value, done = config, ["config"]
        for part in match[1].split("."):
            fields = list(value) if isinstance(value, ConfigDict) else []
            if part not in fields:
                close = difflib.get_close_matches(part, fields, n=1)
                hint = f" (did you mean {close[0]}?)" if close else ""
                there = f"fields of {'.'.join(done)} in {path}: {', '.join(fields)}"
                if not fields:
                    there = f"{'.'.join(done)} in {path} has no fields"
                name = ".".join([*done, part])
                raise UserError(f"unknown config field {name}{hint}; {there}")
            value, done = value[part], [*done, part]
        present[".".join(done)] = value
    return present


def _renamed(name: str, config: ConfigDict) -> str | None:
    """Return the present name of a field that an earlier version named so."""
    prefix = match[0] if (match := re.match(r"recipes\.[^.]*\.", name)) else ""
    renamed = RENAMED | {"kernel.gather": "kernel.gather_params"}
    new = prefix + renamed.get(name.removeprefix(prefix), "")
    value = config
    for part in new.split("."):
        value = value.get(part) if isinstance(value, ConfigDict) else None
    return None if value is None else new


def _explain(error: Exception, flags: dict[str, tuple], before: dict) -> str:
    if isinstance(error, absl_flags.UnrecognizedFlagError):
        name = error.flagname
        close = difflib.get_close_matches(name, [f for f in flags if f != "args"], n=1)
        hint = f" (did you mean --{close[0]}?)" if close else "; see --help"
        return f"unknown flag --{name}{hint}"
    match = re.match(r"flag --([^=\s]+)=(.*?): ", str(error))
    values = {**{f: default for f, (default, _) in flags.items()}, **before}
    if match and match[1] in values:
        kind = type(values[match[1]]).__name__
        return f"--{match[1]}: expected {kind}, got '{match[2]}'"
    return str(error)


def _check_elements(field: str, before, config: ConfigDict) -> None:
    """Check the types of a tuple's elements, which the parser ignores."""
    if not isinstance(before, tuple) or len(kinds := {type(x) for x in before}) != 1:
        return
    after = config
    for part in field.split(".")[1:]:
        after = after[part]
    kind = kinds.pop()
    for x in after:
        if type(x) is not kind and not (kind is float and type(x) is int):
            expected = f"a tuple of {kind.__name__} like {before}"
            raise UserError(f"--{field}: expected {expected}, got {after}")


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
    """Make `configs.common` and its like importable while a config runs: those of the
    tree that the config file is in, else ours."""
    tops = [p.parent for p in path.parents if p.name == "configs"]
    before = sys.path[:]
    sys.path[:0] = [str(p) for p in [*tops[-1:], shipped.DIRECTORY]]
    try:
        yield
    finally:
        sys.path[:] = before


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
