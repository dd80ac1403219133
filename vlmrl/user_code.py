"""Functions of a user's own, named `path/to/file.py:name` wherever a config names one
of ours:

  reward.name            f(completion, **options) -> float | Reward
  reward.shaping,        f(completion) -> float
    ranking.by
  advantage.name         f(rewards, mask) -> float[N,G]
  loss.surrogate         f(logprobs, old_logprobs, advantages, mask, **settings) -> a
                         NamedTuple with a Mean `loss`, its other fields metrics
  mix, conditions        f(example) -> Example
  noise.distortion,      f(pixels, rng) -> uint8[H,W,3]; in `mix` 'file.py:name+base'
    images of a study
  style                  a Style, or f() -> Style
  parser of a Style      f(reply, options) -> index of the option, -1 for none
  data.source, source    f(split, n) -> Examples; n = 0: all that it has
  judge.name, judges     f(items) -> a label or a Verdict each; or a Judge

A path is absolute or relative to the working directory, and has to be there on every
host. A file is loaded once per process, as a module of its own: it may import what is
installed, not its neighbours, so that its one hash says what ran. `check` before a
run raises what is wrong with a name; `call` runs a function and says, in one line,
where it failed.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib.util
import inspect
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from vlmrl.files import atomic_write
from vlmrl.types import UserError

FORM = "path/to/file.py:name"
FOLDER = "user_code"  # of a run directory: the sources that it ran
_NAME = re.compile(r"(.+\.py):(\w+)")


class UserCodeError(UserError):
    """A user's function raised or returned what it may not. The message is one line
    that names its file, its name and the item it was called with."""


class Source(NamedTuple):
    """A loaded file."""

    path: Path  # absolute
    text: bytes
    hash: str  # sha256 of `text`, first 16 hex digits
    module: ModuleType


_sources: dict[Path, Source] = {}
_resolved: dict[str, Source] = {}  # by the names that configs gave


def is_own(name: Any) -> bool:
    """Return whether a name has the form `path/to/file.py:name`.

    >>> is_own("rewards/iou.py:iou"), is_own("grpo")
    (True, False)
    """
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def short(name: str) -> str:
    """Return the name behind a path; any other name is returned as it is."""
    return name.rpartition(":")[2] if is_own(name) else name


def lookup(
    name: Any,
    known: Mapping[str, Any],
    field: str,
    takes: Sequence[str] = (),
    *,
    kind: str = "",
) -> Any:
    """Return what a name stands for: an entry of `known`, what a file defines, or a
    function itself.

    Args:
      field: where the name comes from, for messages.
      takes: names of the positional arguments; () accepts what can't be called.
      kind: what the name is of, where it comes from no field of a config.

    Raises:
      UserError: an unknown name; no such file, a file that doesn't load or lacks the
        name; a function that doesn't take these arguments.
    """
    if isinstance(name, str) and name in known:
        return known[name]
    if not is_own(name) and not callable(name):
        close = difflib.get_close_matches(str(name), known, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        opening = f"{field} is {name!r}, expected one of "
        if kind:
            opening = f"unknown {kind} {name!r}; known: "
        raise UserError(f"{opening}{', '.join(known)}, or {FORM}{hint}")
    thing = _load(name, field or kind) if isinstance(name, str) else name
    if takes:
        check_arguments(thing, field or kind, takes)
    return thing


def distinct(names: Iterable[str], known: Iterable[str], field: str) -> None:
    """Raise UserError where two names would be one in records and metrics (`short`): a
    user's own and one of `known`, or two of a user's own."""
    origins = {name: name for name in known}
    for name in names:
        origin = origins.setdefault(short(name), name)
        if origin != name:
            other = "ours" if origin in known else origin
            raise UserError(
                f"{field}: {name} and {other} are both called {short(name)!r} in "
                "records and metrics: rename the function"
            )


def check_arguments(function: Any, field: str, takes: Sequence[str]) -> None:
    """Raise UserError unless a function takes the positional arguments `takes` and
    needs no others; what it has beyond them are options by keyword."""
    if not callable(function):
        kind = type(function).__name__
        raise UserError(f"{field}: expected a function, got {kind} {function!r:.60}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some builtins don't say
        return
    parameters = signature.parameters.values()
    try:
        bound = signature.bind_partial(*takes).arguments
        fits = not any(
            p.default is p.empty
            and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
            and p.name not in bound
            for p in parameters
        )
    except TypeError:
        fits = False
    if takes == ("completion",):  # the signature of rewards in earlier versions
        fits = fits and not {"parsed", "answer"} & set(signature.parameters)
    if not fits:
        name = where(function)
        expected = f"{name.rpartition(':')[2]}({', '.join(takes)}, **options)"
        raise UserError(f"{field}: {name}: expected {expected}, got {signature}")


def call(function: Callable, *arguments, about: str = "", **options) -> Any:
    """Return function(*arguments, **options).

    Args:
      about: the item it is called with, as "example 'a'", for messages.

    Raises:
      UserCodeError: a function of a user's own raised.
    """
    try:
        return function(*arguments, **options)
    except Exception as error:
        if _is_ours(function):
            raise
        raise raised(function, about, error) from error


def raised(function: Callable, about: str, error: Exception) -> UserCodeError:
    """Return the error that says where in its file a function raised."""
    message = " ".join(f"{type(error).__name__}: {error}".split())
    return failure(function, about, _line(function, error) + message)


def failure(function: Callable, about: str, problem: str) -> UserCodeError:
    """Return the error that names a function's file and name, the item, the problem."""
    return UserCodeError(": ".join(filter(None, (where(function), about, problem))))


def number(value: Any, function: Callable, about: str) -> float:
    """Return a function's result as a finite float.

    Raises:
      UserCodeError: it is no number, or it is NaN or infinite.
    """
    scalar = isinstance(value, int | float) or getattr(value, "shape", None) == ()
    try:
        out = float(value) if scalar else math.nan
    except (TypeError, ValueError):
        out, scalar = math.nan, False
    if not math.isfinite(out):
        got = f"{value}" if scalar else f"{type(value).__name__} {value!r:.60}"
        raise failure(function, about, f"expected a finite number, got {got}")
    return out


def where(function: Callable) -> str:
    """Return 'file.py:name' of a function, the file relative to the working directory
    where it is below it."""
    inner = _inner(function)
    name = getattr(inner, "__name__", type(function).__name__)
    path = _file(inner)
    if path is None:
        return f"{getattr(inner, '__module__', None) or '?'}:{name}"
    near = path.is_relative_to(Path.cwd())
    return f"{path.relative_to(Path.cwd()) if near else path}:{name}"


# -- what ran --------------------------------------------------------------------------


def hashes(*settings: Any) -> dict[str, str]:
    """Return name → hash of the user's code that settings name: sha256 of the file, or
    of the function's own source where the function itself was given; first 16 hex
    digits. Names of files are those resolved before (`lookup`)."""
    out = {}
    for value in _leaves(settings):
        if isinstance(value, str):
            for name, source in _resolved.items():
                if re.search(rf"(^|[+,]\s*){re.escape(name)}\s*($|,)", value):
                    out[name] = source.hash
        elif not _is_ours(value):
            try:
                out[where(value)] = _digest(inspect.getsource(_inner(value)).encode())
            except (OSError, TypeError):  # typed into an interpreter, or a builtin
                continue
    return dict(sorted(out.items()))


def stamp(*settings: Any) -> str:
    """Return `hashes` as the text of a record: 'a.py:f=0123456789abcdef; …'."""
    return "; ".join(f"{name}={h}" for name, h in hashes(*settings).items())


def joined(*stamps: str) -> str:
    """Return stamps as one, each function once."""
    entries = (entry for text in stamps for entry in text.split("; ") if entry)
    return "; ".join(dict.fromkeys(entries))


def save(workdir: Path, *settings: Any) -> list[str]:
    """Copy the files that settings name to WORKDIR/user_code, as NAME-HASH.py, and
    write their hashes to its hashes.json.

    A run that is resumed after a file has changed goes on with the new one: a function
    that raised can be mended. Both sources are kept, and records hold the hash of the
    one that they were made with.

    Returns:
      A line for each function that changed since the directory was written.
    """
    new, folder = hashes(*settings), workdir / FOLDER
    path = folder / "hashes.json"
    old = json.loads(path.read_text()) if path.is_file() else {}
    if not new:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    for name in new:
        if source := _resolved.get(name):
            copy = folder / f"{source.path.stem}-{source.hash}.py"
            atomic_write(copy, source.text)
    atomic_write(path, json.dumps({**old, **new}, indent=1) + "\n")
    return [
        f"{name} has changed since this run began ({old[name]}, now {h}): it goes on "
        "with the new one"
        for name, h in new.items()
        if old.get(name, h) != h
    ]


def hash_of(name: str) -> str:
    """Return the hash of the file that a resolved name is of."""
    return _resolved[name].hash


def refresh() -> None:
    """Forget files that have changed on disk, so that they are loaded again: what a
    call from a notebook means by a path is the file as it is now."""
    for path, source in list(_sources.items()):
        if not path.is_file() or path.read_bytes() != source.text:
            del _sources[path]
            for name in [n for n, s in _resolved.items() if s is source]:
                del _resolved[name]


def _leaves(value: Any) -> Iterator[str | Callable]:
    if isinstance(value, str) or (callable(value) and not inspect.isclass(value)):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves((key, inner))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner)


# -- pieces ----------------------------------------------------------------------------


def _load(name: str, field: str) -> Any:
    file, attribute = _NAME.fullmatch(name).groups()
    path = Path(file).expanduser().resolve()
    source = _sources.get(path) or _execute(path, file, field)
    if not hasattr(source.module, attribute):
        own = [
            n
            for n, v in vars(source.module).items()
            if not n.startswith("_")
            and getattr(v, "__module__", "") == source.module.__name__
        ]
        close = difflib.get_close_matches(attribute, own, n=1)
        hint = f"did you mean {close[0]}?" if close else f"it defines {', '.join(own)}"
        raise UserError(f"{field}: {file} has no '{attribute}'; {hint}")
    _resolved[name] = source
    return getattr(source.module, attribute)


def _execute(path: Path, file: str, field: str) -> Source:
    try:
        text = path.read_bytes()
    except OSError as error:
        near = "" if Path(file).is_absolute() else f" in {Path.cwd()}"
        reason = "no such file" if not path.exists() else error.strerror
        raise UserError(f"{field}: {file}: {reason}{near}") from None
    digest = _digest(text)
    name = f"user_code_{path.stem}_{_digest(str(path).encode())}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and pickle look for it
    try:
        exec(compile(text, str(path), "exec"), vars(module))
    except SyntaxError as error:
        raise UserError(f"{field}: {file}, line {error.lineno}: {error.msg}") from None
    except (Exception, SystemExit) as error:  # a script ends itself
        line = _line_in(str(path), error)
        raise UserError(
            f"{field}: {file}, {line}{type(error).__name__}: "
            + " ".join(str(error).split())
        ) from error
    _sources[path] = Source(path, text, digest, module)
    return _sources[path]


def _inner(function: Any) -> Any:
    """Return the function below partials, decorators and callable objects."""
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    if not inspect.isroutine(function) and not inspect.isclass(function):
        return type(function).__call__
    return function


def _is_ours(function: Any) -> bool:
    module = getattr(_inner(function), "__module__", None) or ""
    return module.split(".")[0] == "vlmrl"


def _file(function: Any) -> Path | None:
    code = getattr(function, "__code__", None)
    return Path(code.co_filename) if code else None


def _line(function: Callable, error: Exception) -> str:
    path = _file(_inner(function))
    return _line_in(str(path), error) if path else ""


def _line_in(path: str, error: Exception) -> str:
    """Return 'line N: ' of the innermost frame of an error in a file, '' if none."""
    line, trace = None, error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == path:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"line {line}: " if line else ""


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
