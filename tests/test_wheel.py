"""A wheel built from the checkout works without it."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy of the checkout: pip builds beside the sources."""
    source, out = (tmp_path_factory.mktemp(name) for name in ("source", "out"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("vlmrl", "configs", "third_party"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
    words = [*"wheel --quiet --no-deps --no-build-isolation --no-index".split()]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, *words, f"--wheel-dir={out}", str(source)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def command(wheel, tmp_path_factory):
    """Run `vlmrl` of the unpacked wheel in an empty directory."""
    site, empty = (tmp_path_factory.mktemp(name) for name in ("site", "empty"))
    zipfile.ZipFile(wheel).extractall(site)
    code = (
        "import sys, vlmrl; from vlmrl.main import cli; "
        f"assert vlmrl.__file__.startswith({str(site)!r}), vlmrl.__file__; "
        "sys.exit(cli.main())"
    )

    def run(*words, status=0):
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            cwd=empty,
            env={**os.environ, "PYTHONPATH": str(site)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    return run


@pytest.mark.slow
def test_the_wheel_holds_every_file_that_is_read(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    words = ["git", "ls-files", "vlmrl", "configs", "third_party/datasets.json"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in done.stdout.splitlines():
        path = name if name.startswith("vlmrl/") else f"vlmrl/shipped/{name}"
        if (ROOT / name).is_dir() or path.endswith((".md", ".png")):
            continue
        assert path in names, path
    assert "vlmrl/judges/prompt.md" in names


@pytest.mark.slow
def test_commands_read_configs_and_pinned_facts_of_the_wheel(command):
    assert "sat" in command("data", "list")
    fields = command("train", "--config=configs/paper/recipe.py", "--help")
    assert "--config.steps=" in fields
    assert "qwen2_5_vl" in command("inspect", "tiny")
    line = command("train", "--config=configs/tiny/acuracy.py", status=2)
    assert "did you mean configs/tiny/accuracy.py?" in line and line.count("\n") == 1
