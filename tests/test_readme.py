"""The README's Python runs as it stands, and its commands parse."""

import re
import shlex
from pathlib import Path

import pytest

from vlmrl.loops import run_config
from vlmrl.main import args, cli, usage

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Return the code blocks of a language; '' for those without one."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.S | re.M)
    return [text for name, text in fenced if name == language]


def commands() -> list[str]:
    """Return the lines of the README that start a command of vlmrl."""
    lines = "".join(blocks("")).replace("\\\n", " ").splitlines()
    lines = [
        re.sub(r"^launch/\S+ (--processes \d+ |NAME )?", "vlmrl ", x) for x in lines
    ]
    rows = [shlex.join(shlex.split(line, comments=True)) for line in lines]
    return [row for row in rows if re.match("vlmrl (?!test)", row)]


@pytest.mark.slow
def test_the_python_runs(capsys):
    for code in blocks("python"):
        exec(compile(code, "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines if line.startswith(("base", "wrong_"))]
    assert names == ["base", "wrong_caption", "wrong_think"] * 2


@pytest.mark.parametrize("line", commands())
def test_a_command_parses(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, *words = shlex.split(line)[1:]
    command = cli.describe(cli.COMMANDS[name])
    flags = command.flags
    if "--help" in words:
        assert "--config.steps" in usage.text(name, command.doc, flags, words)
        return
    if "config" in flags and "args" in flags:  # reproduce CONFIG
        words = [f"--config={w}" if w.startswith("configs/") else w for w in words]
    config, *_ = args.parse(words, flags)
    if name == "train":  # its fields must agree with each other, too
        run_config.check(
            {k: v for k, v in config.to_dict().items() if k != "algorithm"}
        )
