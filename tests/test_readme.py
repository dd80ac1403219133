"""The README's Python is run as it stands."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def snippets() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


def test_the_python_of_the_readme_runs(capsys):
    found = snippets()
    assert found
    for code in found:
        exec(compile(code, "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines[-3:]]
    assert names == ["base", "wrong_caption", "wrong_think"]
    assert all(0 <= float(line.split()[1]) <= 1 for line in lines[-3:])
