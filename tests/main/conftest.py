"""The commands, run in this process as from a shell, on runs of a few steps."""

import pytest

from vlmrl.main import cli

# What no failed command may leave behind: it would look finished.
FINISHED = ("records.parquet", "metrics.json", "report.html", "model", "tables")


@pytest.fixture
def vlmrl(monkeypatch):
    """Runs a command line that must end with exit status 0, or the one given."""
    monkeypatch.delenv("VLMRL_TRACEBACK", raising=False)

    def run(*words, status=0):
        assert cli.main([str(word) for word in words]) == status

    return run


@pytest.fixture
def refused(capsys, monkeypatch):
    """Runs a command line that must end in one line on stderr and status 2; gives the
    line, without its 'vlmrl: error: '."""
    monkeypatch.delenv("VLMRL_TRACEBACK", raising=False)

    def run(*words, workdir=None):
        capsys.readouterr()
        words = [*words, *(["--workdir", workdir] if workdir else [])]
        assert cli.main([str(word) for word in words]) == 2
        output = capsys.readouterr().err
        assert output.startswith("vlmrl: error: ") and output.count("\n") == 1, output
        if workdir and workdir.is_dir():
            left = [p for name in FINISHED for p in workdir.rglob(name)]
            assert not left, left
        return output.removeprefix("vlmrl: error: ").strip()

    return run
