"""The public names of the package, and what importing it costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vlmrl


def imports_of(code: str) -> set[str]:
    """Return the modules that a fresh interpreter has imported after running `code`."""
    code += "\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_importing_the_package_imports_nothing_slow():
    code = "import vlmrl; print(vlmrl.__version__, dir(vlmrl))"
    assert not imports_of(code) & {"jax", "numpy", "transformers"}


def test_help_imports_nothing_slow():
    code = "from vlmrl.main import cli; assert cli.main(['--help']) == 0"
    assert not imports_of(code) & {"jax", "transformers", "matplotlib", "orbax"}


def test_every_public_name_is_resolved():
    for name in vlmrl.__all__:
        assert name in dir(vlmrl)
        value = getattr(vlmrl, name)
        if name != "__version__":
            assert value.__name__ == name and value.__doc__


def test_type_checkers_see_the_names_that_are_resolved():
    tree = ast.parse(Path(vlmrl.__file__).read_text())
    block = next(n for n in tree.body if isinstance(n, ast.If))
    seen = {a.name: node.module for node in block.body for a in node.names}
    assert seen == vlmrl._MODULES
    assert {*seen, "__version__"} == set(vlmrl.__all__)
    assert (Path(vlmrl.__file__).parent / "py.typed").is_file()


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'evalute'"):
        _ = vlmrl.evalute
