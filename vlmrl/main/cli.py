"""Run `vlmrl <command> [flags]`: find the command's module and call its main.

A command is a module of this package with

  its docstring     what `vlmrl <command> --help` says
  HELP              one line for the list of commands
  FLAGS             name → (default, help), a literal; see `args.parse`
  main(argv)        argv without the command's name; returns None or an exit status

Help is read from the source text without importing the module, so that it appears at
once however much the command imports.

Exit status: 0; 2 for bad input, with one line (`VLMRL_TRACEBACK=1` shows where it was
raised); 130 after Ctrl-C; 1 for an unexpected error, with its traceback. Two more are
for launchers, which may repeat the command (`run/phases.py`): 75 stopped on request
(SIGTERM) after a checkpoint, 70 ended by the watchdog.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import os
import sys
from importlib.util import find_spec
from typing import NamedTuple

import vlmrl
from vlmrl.main import usage
from vlmrl.types import UserError

COMMANDS = {
    "demo": "vlmrl.main.demo",
    "data": "vlmrl.main.data",
    "train": "vlmrl.main.train",
    "sft": "vlmrl.main.sft",
    "study": "vlmrl.main.study",
    "eval": "vlmrl.main.eval",
    "ask": "vlmrl.main.ask",
    "reproduce": "vlmrl.main.reproduce",
    "report": "vlmrl.main.report",
    "import": "vlmrl.main.imports",
    "judge": "vlmrl.main.judge",
    "convert": "vlmrl.main.convert",
    "inspect": "vlmrl.main.inspect",
    "plan": "vlmrl.main.plan",
    "bench": "vlmrl.main.bench",
    "tiny": "vlmrl.main.tiny",
}


class Command(NamedTuple):
    """A command as its source declares it."""

    doc: str
    help: str
    flags: dict


def main(argv: list[str] | None = None) -> int:
    """Run a command; argv without the program's name. Return the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    # Compiled programs are cached between runs; the user may choose the directory.
    cache = os.path.expanduser("~/.cache/vlmrl/jax")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
    try:
        return _dispatch(argv)
    except UserError as error:
        if os.environ.get("VLMRL_TRACEBACK") == "1":
            raise
        print(f"vlmrl: error: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if os.environ.get("VLMRL_TRACEBACK") == "1":
            raise
        print("\nvlmrl: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `vlmrl ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _dispatch(argv: list[str]) -> int:
    name, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if name in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if name in ("-V", "--version"):
        print(f"vlmrl {vlmrl.__version__}")
        return 0
    known = available()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean '{close[0]}'?)" if close else ""
        kind = "option" if name.startswith("-") else "command"
        raise UserError(f"unknown {kind} '{name}'{hint}; commands: {', '.join(known)}")
    if usage.is_asked(rest):
        command = describe(known[name])
        print(usage.text(name, command.doc, command.flags, rest))
        return 0
    return importlib.import_module(known[name]).main(rest) or 0


def available() -> dict[str, str]:
    """Return the commands of this installation: name → module."""
    return {name: module for name, module in COMMANDS.items() if find_spec(module)}


def describe(module: str) -> Command:
    """Read docstring, HELP and FLAGS from a command's source without running it."""
    with open(find_spec(module).origin, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    literals = {"HELP": "", "FLAGS": {}}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name in literals:
                literals[name] = ast.literal_eval(node.value)
    return Command(ast.get_docstring(tree) or "", literals["HELP"], literals["FLAGS"])


def _overview() -> str:
    known = available()
    width = max(map(len, known), default=0)
    rows = [f"  {n:{width}}  {describe(module).help}" for n, module in known.items()]
    return "\n".join(
        [
            vlmrl.__doc__.partition("\n")[0],
            "",
            "usage: vlmrl <command> [flags]",
            "",
            *rows,
            "",
            "vlmrl <command> --help          what it does and its flags",
            "vlmrl <command> --config configs/x.py --help    also the config's fields",
            "vlmrl --version",
        ]
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())
