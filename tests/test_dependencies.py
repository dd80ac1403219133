"""pyproject.toml declares what is imported, and nothing else; CI's pins cover it."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]

# Import names that aren't the distribution's with '_' for '-'.
MODULES = {
    "absl-py": {"absl"},
    "jax[tpu]": {"jax", "libtpu"},
    "orbax-checkpoint": {"orbax"},
    "pillow": {"PIL"},
    "pyyaml": {"yaml"},
}
# Development's commands: never imported, but started by these files.
COMMANDS = {
    "pyrefly": (".ci/run", "/pyrefly check"),
    "pytest-xdist": ("launch/local.sh", "pytest -n"),
    "ruff": (".ci/run", "/ruff check"),
    "setuptools": ("pyproject.toml", "setuptools.build_meta"),
}


def imported(*folders: str) -> set[str]:
    """Return the top-level packages of others that the Python files of folders import,
    also by name: `import_module("x")`, `find_spec("x")`, `_optional("x", …)`."""
    names = set()
    for path in (p for folder in folders for p in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {a.name for a in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module)
            elif isinstance(node, ast.Call) and node.args:
                called = ast.unparse(node.func).rpartition(".")[2]
                by_name = "import_module find_spec importorskip _optional".split()
                if called in by_name and isinstance(node.args[0], ast.Constant):
                    names.add(node.args[0].value)
    tops = {name.partition(".")[0] for name in names}
    return tops - sys.stdlib_module_names - {"vlmrl", "configs", "tests"}


def declared(lines: list[str]) -> dict[str, set[str]]:
    """Return requirement → the modules it brings to import."""
    bare = [re.match(r"[\w.-]+(\[\w+\])?", line)[0] for line in lines]
    names = {name: re.sub(r"\[.*", "", name) for name in bare}
    return {
        full: MODULES.get(full) or MODULES.get(name) or {name.replace("-", "_")}
        for full, name in names.items()
        if name != "vlmrl"
    }


def modules(*extras: str) -> set[str]:
    lines = [*PROJECT["dependencies"], *(x for e in extras for x in EXTRAS[e])]
    return set().union(*declared(lines).values())


def test_everything_imported_is_declared():
    optional = [name for name in EXTRAS if name not in ("dev", "parity")]
    assert imported("vlmrl", "configs") - modules(*optional) == set()
    assert imported("tests") - modules(*EXTRAS) - {"packaging"} == set()


def test_every_core_dependency_is_imported_by_the_package():
    used = imported("vlmrl", "configs")
    lines = declared(PROJECT["dependencies"])
    assert [name for name, brings in lines.items() if not brings & used] == []


@pytest.mark.parametrize("extra", EXTRAS)
def test_every_extra_is_imported_or_started(extra):
    used = imported("vlmrl", "tests")
    for name, brings in declared(EXTRAS[extra]).items():
        if name in COMMANDS:
            file, words = COMMANDS[name]
            text = (ROOT / file).read_text().replace('"', "").replace(" -m ", " ")
            assert words in text, name
        else:
            assert brings & used, name


def pins() -> dict[str, str]:
    text = (ROOT / ".ci" / "constraints.txt").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    rows = [re.fullmatch(r"([a-z0-9-]+)==([\w.]+)", line) for line in lines]
    assert all(rows), [x for x, row in zip(lines, rows, strict=True) if not row]
    assert lines == sorted(lines) and len({row[1] for row in rows}) == len(rows)
    return {row[1]: row[2] for row in rows}


def test_ci_pins_what_it_installs():
    installed = ("dev", "judge", "quant", "tpu", "parity")  # not cuda, wandb
    lines = [*PROJECT["dependencies"], *(x for e in installed for x in EXTRAS[e])]
    pinned = pins()
    for requirement in map(Requirement, lines):
        name = canonicalize_name(requirement.name)
        if name != "vlmrl":
            assert requirement.specifier.contains(pinned[name]), requirement
    local = (ROOT / "launch" / "local.sh").read_text()
    assert f"torch=={pinned['torch']}'" in local
    serving = re.search(r"serving=\((.*?)\)", local)[1].split()
    assert set(serving) <= set(pinned)
    assert ".ci/constraints.txt" in (ROOT / ".ci" / "run").read_text()
