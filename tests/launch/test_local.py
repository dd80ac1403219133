"""launch/local.sh with a stand-in for Python, and what `test --all` calls a failure."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Answers as a Python of the given version would; `-m venv` copies it into place. Every
# call but the questions goes to $LOG.
PYTHON = """#!/bin/bash
case "$*" in
  *version_info*) [[ ${FAKE_OLD:-} ]] && exit 1; exit 0 ;;
  *ensurepip*) [[ ${FAKE_NO_VENV:-} ]] && exit 1; exit 0 ;;
  *'import torch,fastapi'*) [[ -e $LOG.torch ]] ;;
  --version) echo "Python 3.99" ;;
  "-m pip --version") [[ ! ${FAKE_BROKEN:-} ]] ;;
  "-m venv "*)
    echo "venv" >>"$LOG"
    mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip install"*)
    echo "pip ${*: -1}" >>"$LOG"
    words="$*"
    words=${words#*--disable-pip-version-check }
    [[ $words == --constraint* ]] && echo "$words" >>"$LOG"
    [[ ${*: -1} == torch* ]] && touch "$LOG.torch"
    [[ ${FAKE_KILL:-} ]] && kill -9 $PPID
    exit "${FAKE_PIP:-0}" ;;
  *)
    printf '%s' "$PWD" >>"$LOG"
    printf ' [%s]' "$@" >>"$LOG"
    echo >>"$LOG" ;;
esac
"""


@pytest.fixture
def local(tmp_path):
    """Runs a copy of local.sh in a checkout of its own: (result, lines of the log)."""
    root, bin_ = tmp_path / "check out", tmp_path / "bin"
    (root / "launch").mkdir(parents=True)
    shutil.copy(ROOT / "launch" / "local.sh", root / "launch" / "local.sh")
    (root / "pyproject.toml").write_text("[project]\n")
    bin_.mkdir()
    python = bin_ / "python3"
    python.write_text(PYTHON)
    python.chmod(0o755)
    log = tmp_path / "log"

    def run(*words, **env):
        log.write_text("")
        done = subprocess.run(
            [root / "launch" / "local.sh", *words],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={
                "PATH": f"{bin_}:/usr/bin:/bin",
                "LOG": str(log),
                "PYTHON": str(python),
                **env,
            },
        )
        lines = log.read_text().replace(str(root), "ROOT").splitlines()
        return done, [line.replace(str(tmp_path), "TMP") for line in lines]

    run.root = root
    return run


def test_demo_installs_once_and_passes_its_words_on(local):
    done, log = local("demo", "--workdir", "a b", "")
    assert done.returncode == 0, done.stderr
    call = "TMP [-m] [vlmrl.main.cli] [demo] [--workdir] [a b] []"
    assert log == ["venv", "pip ROOT", call]
    assert "making" in done.stdout and "installing vlmrl" in done.stdout
    assert local("train", "--config=x.py")[1] == [
        "TMP [-m] [vlmrl.main.cli] [train] [--config=x.py]"
    ]


def test_installs_again_when_pyproject_changed(local):
    local("demo")
    (local.root / "pyproject.toml").write_text("[project]\n# new\n")
    assert local("demo")[1][0] == "pip ROOT"
    assert len(local("demo")[1]) == 1


def test_pins_are_given_to_pip_and_another_file_installs_again(local, tmp_path):
    local("demo")
    pins = tmp_path / "pins.txt"
    pins.write_text("jax==1\n")
    log = local("demo", VLMRL_CONSTRAINTS=str(pins))[1]
    assert log[:2] == ["pip ROOT", "--constraint TMP/pins.txt --editable ROOT"]
    assert len(local("demo", VLMRL_CONSTRAINTS=str(pins))[1]) == 1
    pins.write_text("jax==2\n")
    assert local("demo", VLMRL_CONSTRAINTS=str(pins))[1][0] == "pip ROOT"
    assert local("demo", VLMRL_CONSTRAINTS="")[1][0] == "pip ROOT", "the newest again"
    done, _ = local("demo", VLMRL_CONSTRAINTS="nope.txt")
    assert done.returncode == 1 and "no file nope.txt" in done.stderr


def test_the_dev_extra_includes_the_core(local):
    assert local("test")[1][:2] == ["venv", "pip ROOT[dev]"]
    assert len(local("test")[1]) == len(local("demo")[1]) == 1


def test_a_failed_installation_is_said_and_goes_on(local):
    done, log = local("demo", FAKE_PIP="1")
    assert done.returncode == 1 and "pip could not install vlmrl" in done.stderr
    assert log == ["venv", "pip ROOT"], "nothing runs after it"
    done, log = local("demo")
    assert done.returncode == 0 and log[0] == "pip ROOT" and len(log) == 2


def test_a_killed_installation_starts_anew(local):
    done, _ = local("demo", FAKE_KILL="1")
    assert done.returncode != 0
    done, log = local("demo")
    assert "cut short" in done.stdout and log[:2] == ["venv", "pip ROOT"]
    assert len(local("demo")[1]) == 1


def test_a_broken_environment_starts_anew(local):
    (local.root / ".venv" / "bin").mkdir(parents=True)
    done, log = local("demo")
    assert "broken" in done.stdout and log[:2] == ["venv", "pip ROOT"]


@pytest.mark.parametrize(
    "env, line",
    [
        ({"FAKE_OLD": "1"}, "needs Python 3.11 or newer"),
        ({"FAKE_NO_VENV": "1"}, "apt-get install -y python3-venv"),
        ({"PYTHON": "/nowhere/python"}, "needs Python 3.11 or newer"),
    ],
)
def test_an_unfit_python_gets_one_line(local, env, line):
    done, log = local("demo", **env)
    assert done.returncode == 1 and log == [] and done.stdout == ""
    assert line in done.stderr and done.stderr.count("\n") == 1
    assert not (local.root / ".venv").exists()


def test_test_runs_pytest_in_the_checkout(local):
    done, log = local("test", "-k", "a or b")
    assert done.returncode == 0, done.stderr
    call = log[-1]
    assert call.startswith("ROOT [-m] [pytest] [-n]") and call.endswith("[-k] [a or b]")
    assert "--all-must-run" not in call


def test_test_all_brings_torch_and_says_what_root_must_do(local, tmp_path):
    dpkg, apt = tmp_path / "bin" / "dpkg", tmp_path / "bin" / "apt-get"
    dpkg.write_text("#!/bin/bash\n[[ ! ${FAKE_NO_DEB:-} || $2 != chromium ]]\n")
    apt.write_text('#!/bin/bash\necho "apt-get ${*: -1}" >>"$LOG"\n')
    npm = tmp_path / "bin" / "npm"  # installs what it is asked for
    npm.write_text(
        '#!/bin/bash\necho "npm ${*: -1}" >>"$LOG"\n'
        "while [[ $1 != --prefix ]]; do shift; done\n"
        'mkdir -p "$2/node_modules/axe-core"\necho "\\"${*: -1}\\"" | '
        'sed "s/axe-core@//" >"$2/node_modules/axe-core/package.json"\n'
    )
    for program in (dpkg, apt, npm):
        program.chmod(0o755)
    _, log = local("test", "--all", "-x")
    assert log[2] == "pip torch==2.13.0" and log[3].startswith("npm axe-core@4")
    prepare = "TMP [ROOT/third_party/peers/vllm_generate.py] [--prepare]"
    assert log[4] == prepare
    assert "[--all-must-run] [-x]" in log[-1]
    done, log = local("test", "--all", FAKE_NO_DEB="1")
    if os.geteuid() == 0:
        assert log[:2] == ["apt-get -qq", "apt-get chromium"] and len(log) == 4
    else:
        assert done.returncode == 1 and "apt-get install -y chromium" in done.stderr


def test_help(local):
    for words in ([], ["--help"], ["-h"]):
        done, log = local(*words)
        assert done.returncode == 0 and log == [] and "local.sh test" in done.stdout


SUITE = """
import pytest
def test_runs(): pass
@pytest.mark.parity
def test_parity(): pass
@pytest.mark.skip(reason="no way")
def test_skipped(): pass
@pytest.mark.xfail(reason="known")
def test_expected(): assert False
def test_left_out(): pass
"""


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """Runs pytest under the real conftest on files of its own: (status, its lines)."""
    root = tmp_path_factory.mktemp("suite")
    (root / "tests").mkdir()
    conftest = (ROOT / "tests" / "conftest.py").read_text(encoding="utf-8")
    assert '"torch"' in conftest
    conftest = conftest.replace('"torch"', '"no_such_torch"')
    (root / "tests" / "conftest.py").write_text(conftest)
    shutil.copy(ROOT / "pyproject.toml", root / "pyproject.toml")

    def run(source, *flags):
        (root / "tests" / "test_it.py").write_text(source)
        words = [sys.executable, "-m", "pytest", "-p", "xdist", *flags]
        env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # starts faster
        env.pop("PYTEST_ADDOPTS", None)
        done = subprocess.run(words, cwd=root, env=env, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    return run


@pytest.mark.parametrize("workers", ["0", "2"])
def test_what_did_not_run_is_listed_and_fails_when_all_must(suite, workers):
    must = workers == "2"
    flags = ["-n", workers, "--deselect", "tests/test_it.py::test_left_out"]
    status, text = suite(SUITE, *flags, *["--all-must-run"] * must)
    listed = [line for line in text.splitlines() if line.startswith("did not run: ")]
    name = "did not run: tests/test_it.py::test_"
    assert listed == [
        f"{name}expected (expected to fail: known)",
        *[f"{name}left_out (deselected)"] * must,
        f"{name}parity (needs torch: launch/local.sh test --all)",
        f"{name}skipped (no way)",
    ]
    assert status == must, text


def test_all_must_run_passes_when_all_ran(suite):
    status, text = suite("def test_it(): pass\n", "--all-must-run")
    assert status == 0 and "did not run" not in text
    skips = "import pytest\npytest.importorskip('nothing_here')\n"
    status, text = suite(skips, "--all-must-run")
    assert status != 0 and "nothing_here" in text
