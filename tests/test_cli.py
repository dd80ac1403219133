"""The command line: dispatch, configs, and one clear line for every bad word."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from ml_collections import ConfigDict

import vlmrl
from vlmrl.main import args, cli, usage
from vlmrl.types import UserError

ROOT = Path(__file__).resolve().parents[1]

CONFIG = '''
from ml_collections import ConfigDict

from configs.common import parse_arg


def get_config(arg=None):
    """A run."""
    arg = parse_arg(arg, seed=0)
    c = ConfigDict()
    c.steps = 2 if arg.runlocal else 100  # optimizer steps
    # Seed of everything
    # that is drawn.
    c.seed = arg.seed
    c.optimizer = ConfigDict(
        dict(
            lr=1e-3,  # peak learning rate
            warmup=10,
        )
    )
    c.conditions = ("base", "no_cot")  # in this order
    c.augment = False
    c.name = "x"
    return c
'''

FLAGS = {
    "config": (None, "what to run"),
    "workdir": ("runs/x", "where to write"),
    "fast": (False, "hurry"),
    "tries": (3, "how often"),
    "splits": (["test"], "which splits"),
    "note": (None, "free text"),
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """parse in a fresh directory that has `x.py`, a config."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.py").write_text(CONFIG)
    return lambda *argv, flags=FLAGS: args.parse(list(argv), flags)


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Makes a command `try` whose module has the given body of main."""

    def make(body, head=""):
        source = f'"""What try does."""\n{head}\nHELP = "tries"\n'
        source += 'FLAGS = {"n": (1, "a number"), "config": ("d.py", "a config")}\n'
        source += "def main(argv):\n" + textwrap.indent(body, "    ")
        (tmp_path / "trycommand.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "trycommand", raising=False)
        monkeypatch.setitem(cli.COMMANDS, "try", "trycommand")
        monkeypatch.delenv("VLMRL_TRACEBACK", raising=False)

    return make


def error(run, *argv):
    with pytest.raises(UserError) as caught:
        run(*argv)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults(run, tmp_path):
    config, workdir, other = run("--config", "x.py")
    assert config.steps == 100 and config.optimizer.lr == 1e-3 and config.is_locked
    assert workdir == Path("runs/x") and (tmp_path / "runs/x").is_dir()
    assert not list(workdir.iterdir())
    assert vars(other) == dict(fast=False, tries=3, splits=["test"], note=None, args=[])


@pytest.mark.parametrize("glue", [" ", "="])
def test_overrides_take_the_type_of_the_field(run, glue):
    words = [
        *["--config=x.py:runlocal,seed=4"],
        *f"--config.optimizer.lr{glue}2".split(),
        *["--config.augment", "--config.conditions=('base',)", "--config.name=y"],
        *f"--workdir{glue}there".split(),
        *["--fast", "--tries=7", "--splits=a,b", "--note=two words"],
    ]
    config, workdir, other = run(*words)
    assert config.steps == 2 and config.seed == 4
    assert config.optimizer.lr == 2.0 and isinstance(config.optimizer.lr, float)
    assert config.augment is True and config.conditions == ("base",)
    assert config.name == "y" and workdir == Path("there")
    assert other.fast and other.tries == 7 and other.splits == ["a", "b"]
    assert other.note == "two words"


def test_order_of_config_and_overrides_does_not_matter(run):
    config, _, _ = run("--config.steps=5", "--noconfig.augment", "--config", "x.py")
    assert config.steps == 5 and config.augment is False


def test_parsing_twice_shares_nothing(run):
    first, _, _ = run("--config=x.py", "--config.steps=5")
    second, _, _ = run("--config=x.py")
    assert (first.steps, second.steps) == (5, 100)


def test_a_typo_in_use_is_an_error(run):
    config, _, _ = run("--config=x.py")
    with pytest.raises(AttributeError):
        _ = config.stps
    with pytest.raises((AttributeError, KeyError)):
        config.stps = 3


@pytest.mark.parametrize(
    "words, complaint",
    [
        (
            ["--config.stpes=3"],
            "unknown config field config.stpes (did you mean steps?)",
        ),
        (
            ["--config.optimizer.l=3"],
            "config.optimizer.l (did you mean lr?); "
            "fields of config.optimizer in x.py: lr, warmup",
        ),
        (["--config.steps.a=3"], "config.steps in x.py has no fields"),
        (["--config.steps=many"], "--config.steps: expected int, got 'many'"),
        (["--config.steps=1.5"], "--config.steps: expected int, got '1.5'"),
        (["--config.augment=perhaps"], "augment: expected bool, got 'perhaps'"),
        (
            ["--config.conditions=(1, 2)"],
            "--config.conditions: expected a tuple of str",
        ),
        (["--config.steps"], "config.steps"),
        (["--tries=x"], "--tries: expected int, got 'x'"),
        (["--trise=3"], "unknown flag --trise (did you mean --tries?)"),
        (["--unheard-of"], "unknown flag --unheard-of; see --help"),
        (["loose"], "unexpected word 'loose'"),
        (["--config"], "--config: a file must follow"),
        (["--workdir="], "--workdir: must be given"),
    ],
)
def test_a_bad_word_is_named(run, words, complaint):
    assert complaint in error(run, "--config=x.py", *words)


def test_bad_config_files_are_named(run, tmp_path):
    def write(text):
        (tmp_path / "y.py").write_text(text)

    assert error(run) == "--config: must be given, a file as configs/x.py[:arg]"
    assert "no file 'nope.py'" in error(run, "--config=nope.py")
    assert "no file ''" in error(run, "--config=")
    assert "no file '.'" in error(run, "--config=.")
    write("x = 1")
    assert error(run, "--config=y.py") == "y.py: has no function get_config"
    write("def get_config():\n    return {}")
    assert "expected a ConfigDict, got a dict" in error(run, "--config=y.py")
    assert "y.py: TypeError" in error(run, "--config=y.py:arg")
    write("\n\ndef get_config(:")
    assert "y.py, line 3: " in error(run, "--config=y.py")
    write("\ndef get_config():\n    return 1 / 0")
    assert "y.py, line 3: ZeroDivisionError" in error(run, "--config=y.py")
    write("import nothing_like_this")
    assert "y.py, line 1: ModuleNotFoundError" in error(run, "--config=y.py")
    assert "unknown option 'sede'" in error(run, "--config=x.py:sede=1")
    assert "options: runlocal, rehearse, seed" in error(run, "--config=x.py:sede=1")


def test_an_unwritable_workdir_is_named(run, tmp_path):
    (tmp_path / "file").write_text("")
    assert "--workdir file: not writable" in error(
        run, "--config=x.py", "--workdir=file"
    )
    assert "file/in" in error(run, "--config=x.py", "--workdir=file/in")


def test_words_are_taken_only_by_commands_that_ask(run):
    _, _, other = run("a", "b", "--n=2", flags={"args": ("DIR ...", "x"), "n": (1, "")})
    assert other.args == ["a", "b"] and other.n == 2


def test_configs_of_the_checkout_are_found_from_anywhere(run, tmp_path):
    assert args.config_file("configs/common.py") == ROOT / "configs/common.py"
    own = tmp_path / "configs" / "z.py"
    own.parent.mkdir()
    own.write_text(CONFIG)
    config, _, _ = run("--config=configs/z.py:seed=9")
    assert config.seed == 9 and str(tmp_path) not in sys.path


def test_help_teaches(run):
    text = usage.text("try", "Doc.", FLAGS, ["--config=x.py:seed=5", "--help"])
    assert "Doc." in text and "--workdir=DIR" in text and "(default: runs/x)" in text
    assert "--[no]fast" in text and "--splits=A,B" in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "--config.steps=100 optimizer steps" in lines
    assert "--config.seed=5 Seed of everything that is drawn." in lines
    assert "--config.optimizer.lr=0.001 peak learning rate" in lines
    assert "--config.conditions=('base', 'no_cot') in this order" in lines
    assert "--config.augment=False" in lines


def test_overview_version_and_unknown_commands(command, capsys):
    command("return None")
    assert cli.main([]) == 0
    listed = capsys.readouterr().out
    assert (
        "  try" in listed
        and "tries" in listed
        and vlmrl.__doc__.splitlines()[0] in listed
    )
    assert cli.main(["--help"]) == 0 and capsys.readouterr().out == listed
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"vlmrl {vlmrl.__version__}\n"
    assert cli.main(["tyr"]) == 2
    assert "unknown command 'tyr' (did you mean 'try'?)" in capsys.readouterr().err
    assert cli.main(["--frob"]) == 2
    assert "unknown option '--frob'" in capsys.readouterr().err


def test_a_command_gets_its_words_and_gives_its_status(command, capsys):
    command("print(argv)\nreturn 3 if argv else None")
    assert cli.main(["try", "--a", "b"]) == 3
    assert capsys.readouterr().out == "['--a', 'b']\n"
    assert cli.main(["try"]) == 0


def test_errors_are_one_line_and_status_2(command, capsys, monkeypatch):
    command("from vlmrl.types import UserError\nraise UserError('row 3:\\n no answer')")
    assert cli.main(["try"]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "vlmrl: error: row 3: no answer\n")
    monkeypatch.setenv("VLMRL_TRACEBACK", "1")
    with pytest.raises(UserError):
        cli.main(["try"])


def test_ctrl_c_is_one_line_and_status_130(command, capsys):
    command("raise KeyboardInterrupt")
    assert cli.main(["try"]) == 130
    assert capsys.readouterr() == ("", "\nvlmrl: interrupted\n")


def test_bugs_keep_their_traceback(command):
    command("return {}['missing']")
    with pytest.raises(KeyError):
        cli.main(["try"])


def test_help_of_a_command_does_not_import_it(command, capsys):
    command("return None", head="raise RuntimeError('imported')")
    assert cli.main(["try", "--config=" + str(ROOT / "nope.py"), "--help"]) == 2
    assert "no file" in capsys.readouterr().err
    assert "tries" in cli.describe("trycommand").help
    assert cli.describe("trycommand").flags["n"] == (1, "a number")


def test_every_command_declares_itself():
    for name, module in cli.available().items():
        actual = cli.describe(module)
        assert actual.doc and actual.help and "\n" not in actual.help, name
        assert len(actual.help) <= 72, name
        for flag, (default, text) in actual.flags.items():
            assert text, f"{name} --{flag}"
            if flag == "config" and default:
                args.load_config(default)
        assert "usage: vlmrl " + name in usage.text(name, actual.doc, actual.flags)


def test_an_unknown_command_is_one_line_in_a_process_of_its_own():
    words = [sys.executable, "-m", "vlmrl.main.cli", "nonsense"]
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("vlmrl: error: unknown command 'nonsense'")
    assert done.stderr.count("\n") == 1


def test_a_reader_that_leaves_early_is_no_error(tmp_path):
    code = "from vlmrl.main import cli\nimport sys\nsys.exit(cli.main(['--help']))"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-uc", code], stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert done.returncode == 1 and done.stderr == ""


def common():
    source = (ROOT / "configs" / "common.py").read_text(encoding="utf-8")
    scope = {}
    exec(compile(source, "configs/common.py", "exec"), scope)
    return scope["parse_arg"]


def test_parse_arg_reads_by_type():
    parse_arg = common()
    got = parse_arg(
        "runlocal,seed=3,lr=1e-2,name=a=b,noaug", seed=0, lr=0.1, name="", aug=True
    )
    assert isinstance(got, ConfigDict) and got.is_locked
    modes = dict(runlocal=True, rehearse=False)
    assert got.to_dict() == modes | dict(seed=3, lr=0.01, name="a=b", aug=False)
    modes = dict(runlocal=False, rehearse=False)
    for nothing in (None, "", " , "):
        assert parse_arg(nothing, seed=0).to_dict() == modes | dict(seed=0)
    for own, small in ({}, True), ({"rehearse": False}, False):
        assert parse_arg("rehearse", **own).runlocal is small
    assert parse_arg("x=false,y=1", x=True, y=False).to_dict()["x"] is False
    assert parse_arg("which=this", which=None).which == "this"
    assert parse_arg("note", note=False, te=True).note is True


@pytest.mark.parametrize(
    "text, complaint",
    [
        (
            "sede=3",
            "unknown option 'sede' after ':'; options: runlocal, rehearse, seed, lr",
        ),
        ("seed=x", "option 'seed': expected int, got 'x'"),
        ("seed=1.5", "option 'seed': expected int, got '1.5'"),
        ("lr=fast", "option 'lr': expected float"),
        ("runlocal=maybe", "option 'runlocal': expected bool"),
        ("seed", "option 'seed' needs a value"),
        ("noseed", "option 'seed' needs a value"),
        ("seed=1,seed=2", "option 'seed' is given twice"),
        ("runlocal,norunlocal", "option 'runlocal' is given twice"),
        ("nothing", "unknown option 'thing'"),
    ],
)
def test_parse_arg_is_strict(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        common()(text, seed=0, lr=0.1)
