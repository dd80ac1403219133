"""Imports go one way, wherever in a file they stand."""

import ast
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A module may import modules of earlier rows and those of its own part.
ORDER = [
    ["vlmrl", "vlmrl.types", "vlmrl.shipped"],
    ["vlmrl.files"],
    [
        "vlmrl.sharding",
        "vlmrl.metrics",
        "vlmrl.user_code",
        "vlmrl.answers.numbers",
    ],
    ["vlmrl.answers.kinds"],
    [
        "vlmrl.data",
        "vlmrl.perturb",
        "vlmrl.rl.advantages",
        "vlmrl.rl.losses",
        "vlmrl.eval.stats",
    ],
    ["vlmrl.prompts"],
    ["vlmrl.answers"],
    ["vlmrl.run", "vlmrl.client"],
    ["vlmrl.models"],
    ["vlmrl.engine"],
    ["vlmrl.policy"],
    ["vlmrl.judges"],
    ["vlmrl.rl", "vlmrl.eval"],
    ["vlmrl.loops", "vlmrl.report"],
    ["vlmrl.plan", "vlmrl.tiny"],
    ["vlmrl.studies", "vlmrl.bench"],
    ["vlmrl.main"],
]
RANK = {part: rank for rank, row in enumerate(ORDER) for part in row}

# Imports against the order that are still to be removed.
NOT_YET = {}

# Configs start from the defaults of a recipe; the module needs neither JAX nor data.
CONFIGS_MAY = "vlmrl.rl.recipe"

# What only these parts may import; the empty string stands for nobody.
ONLY_IN = {
    "absl": "vlmrl.main",
    "ml_collections": "vlmrl.main",
    "logging": "vlmrl.main",
    "flax.linen": "vlmrl.models",
    "torch": "",
    "torchvision": "",
    "tensorflow": "",
    "clu": "",
}


class Import(NamedTuple):
    importer: str  # dotted name of the module the import stands in
    line: int
    name: str  # dotted name imported; for `from m import n` m.n


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, root: Path) -> list[Import]:
    """Every import of a file, those inside functions and `import_module("…")` too."""
    name = module_name(path, root)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    actual = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            up = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(up if node.level else []), *filter(None, [node.module])])
            targets = [f"{base}.{a.name}" for a in node.names]
        elif isinstance(node, ast.Call) and node.args:
            called = ast.unparse(node.func).rpartition(".")[2]
            first = node.args[0]
            text = first.value if isinstance(first, ast.Constant) else None
            named = called in ("import_module", "__import__") and isinstance(text, str)
            targets = [text] if named else []
        else:
            continue
        actual += [Import(name, node.lineno, t) for t in targets]
    return actual


def part_of(name: str) -> str | None:
    """The longest entry of ORDER that a dotted name lies in."""
    pieces = name.split(".")
    for n in range(len(pieces), 0, -1):
        part = ".".join(pieces[:n])
        if part in RANK and (part != "vlmrl" or n == len(pieces)):
            return part
    return None


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def violations(root: Path) -> list[str]:
    """One line per import below root/vlmrl and root/configs that breaks a rule."""
    wrong = []
    for file in sorted((root / "vlmrl").rglob("*.py")):
        if file == root / "vlmrl" / "__init__.py":
            continue  # its public names are imported when first used (test_public.py)
        here = part_of(module_name(file, root))
        if here is None:
            wrong.append(f"{file.relative_to(root)}: has no place in ORDER")
            continue
        for actual in imports_of(file, root):
            where = f"{file.relative_to(root)}:{actual.line}: imports {actual.name}"
            for package, owner in ONLY_IN.items():
                if within(actual.name, package) and not (owner and within(here, owner)):
                    wrong.append(f"{where}, which only {owner or 'nobody'} may")
            if within(actual.name, "vlmrl"):
                part = part_of(actual.name)
                allowed = NOT_YET.get(str(file.relative_to(root)), [])
                if any(within(actual.name, name) for name in allowed):
                    continue
                if part is not None and part != here and RANK[part] >= RANK[here]:
                    wrong.append(f"{where}: {here} comes before {part}, or beside it")
    for file in sorted((root / "configs").rglob("*.py")):
        for actual in imports_of(file, root):
            known = ("ml_collections", "configs", CONFIGS_MAY)
            if not any(within(actual.name, name) for name in known):
                where = f"{file.relative_to(root)}:{actual.line}"
                wrong.append(
                    f"{where}: imports {actual.name}; configs import none such"
                )
    return wrong


def circles(root: Path) -> list[list[str]]:
    """Strongly connected components of more than one file below root/vlmrl, where an
    edge is an import, wherever in a file it stands. The package's own __init__ is left
    out: its public names are imported when first used."""
    files = {module_name(f, root): f for f in sorted((root / "vlmrl").rglob("*.py"))}
    files.pop("vlmrl", None)
    graph = {}
    for name, file in files.items():
        targets = [i.name for i in imports_of(file, root)]
        targets = [t if t in files else t.rpartition(".")[0] for t in targets]
        graph[name] = {t for t in targets if t in files and t != name}

    def reachable(start: str) -> set[str]:
        seen, stack = set(), [start]
        while stack:
            new = graph[stack.pop()] - seen
            seen |= new
            stack += new
        return seen

    reach = {name: reachable(name) for name in graph}
    components = {
        tuple(sorted(m for m in reach[name] if name in reach[m]))
        for name in graph
        if name in reach[name]
    }
    return sorted(map(list, components))


def test_imports_go_one_way():
    assert violations(ROOT) == []


def test_no_files_import_each_other():
    assert circles(ROOT) == []


@pytest.mark.parametrize(
    "sources, circle",
    [
        (["from vlmrl.x import b", "from vlmrl.x import a"], ["a", "b"]),
        (["from vlmrl.x.b import f", "def f():\n    from . import a"], ["a", "b"]),
        (["from . import b", "from vlmrl.x import c", "import vlmrl.x.a"], "abc"),
        (["from . import b, c", "from . import c", ""], None),
    ],
)
def test_a_planted_circle_is_caught(tmp_path, sources, circle):
    folder = tmp_path / "vlmrl" / "x"
    folder.mkdir(parents=True)
    for name in ("__init__.py", "../__init__.py"):
        (folder / name).write_text("")
    for name, source in zip("abc", sources, strict=False):
        (folder / f"{name}.py").write_text(source)
    expected = [[f"vlmrl.x.{name}" for name in circle]] if circle else []
    assert circles(tmp_path) == expected


def test_every_package_has_an_init():
    packages = {p.parent for p in (ROOT / "vlmrl").rglob("*.py")}
    assert [str(p) for p in packages if not (p / "__init__.py").is_file()] == []


def test_the_top_level_holds_nothing_else():
    """Of what git tracks, or will once added; what it ignores may lie there."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    files = done.stdout.splitlines() or [p.name for p in ROOT.iterdir()]
    remaining = {name.partition("/")[0] for name in files if not name.startswith(".")}
    assert remaining == {
        *["pyproject.toml", "README.md", "LICENSE"],
        *["vlmrl", "configs", "launch", "tests", "third_party"],
    }


@pytest.mark.parametrize(
    "file, line, complaint",
    [
        ("vlmrl/types.py", "import vlmrl.metrics", "types comes before vlmrl.metrics"),
        ("vlmrl/data/x.py", "from vlmrl import prompts", "before vlmrl.prompts"),
        ("vlmrl/data/x.py", "from ..models import hf", "data comes before vlmrl.mod"),
        ("vlmrl/data/__init__.py", "from ..prompts import f", "before vlmrl.prompts"),
        ("vlmrl/engine/x.py", "from vlmrl.policy import P", "before vlmrl.policy"),
        ("vlmrl/rl/losses.py", "from vlmrl.rl import update", "before vlmrl.rl"),
        ("vlmrl/rl/losses.py", "from . import advantages", "before vlmrl.rl.adv"),
        ("vlmrl/eval/stats.py", "import vlmrl.engine.score", "before vlmrl.engine"),
        ("vlmrl/rl/x.py", "from vlmrl.eval.kernel import f", "before vlmrl.eval"),
        ("vlmrl/eval/x.py", "def f():\n    import vlmrl.rl.update", "before vlmrl.rl"),
        ("vlmrl/loops/x.py", "from vlmrl.studies import jobs", "before vlmrl.studies"),
        ("vlmrl/report/x.py", "from vlmrl.main.cli import main", "before vlmrl.main"),
        ("vlmrl/engine/x.py", "import absl.logging", "only vlmrl.main may"),
        ("vlmrl/engine/x.py", "from ml_collections import C", "only vlmrl.main may"),
        ("vlmrl/engine/x.py", "import logging", "only vlmrl.main may"),
        ("vlmrl/engine/x.py", "from flax import linen as nn", "only vlmrl.models may"),
        ("vlmrl/main/x.py", "import torch.nn", "only nobody may"),
        ("vlmrl/main/x.py", "importlib.import_module('tensorflow')", "only nobody may"),
        ("vlmrl/utils.py", "", "has no place in ORDER"),
        ("configs/tiny/x.py", "import jax", "configs import none such"),
        ("configs/x.py", "from vlmrl.types import Mean", "configs import none such"),
    ],
)
def test_a_planted_violation_is_caught(tmp_path, file, line, complaint):
    for planted in (
        "vlmrl/prompts/styles.py",
        "vlmrl/rl/update.py",
        "vlmrl/rl/advantages.py",
    ):
        path = tmp_path / planted
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(line)
    wrong = violations(tmp_path)
    assert len(wrong) == 1 and complaint in wrong[0] and file in wrong[0]


@pytest.mark.parametrize(
    "file, line",
    [
        ("vlmrl/rl/update.py", "from vlmrl.rl import losses\nimport optax"),
        ("vlmrl/rl/update.py", "from . import advantages"),
        ("vlmrl/eval/kernel.py", "from vlmrl.eval.stats import mean"),
        ("vlmrl/data/scenes.py", "import tensorflow_datasets as tfds"),
        ("vlmrl/main/cli.py", "import absl\nfrom vlmrl import __version__"),
        ("vlmrl/models/qwen.py", "import flax.linen as nn"),
        ("configs/tiny/x.py", "from configs.common import parse_arg"),
        ("configs/tiny/x.py", "from ml_collections import ConfigDict"),
        ("configs/tiny/x.py", "from vlmrl.rl import recipe as recipes"),
    ],
)
def test_a_right_import_passes(tmp_path, file, line):
    for planted in ("vlmrl/rl/losses.py", "vlmrl/rl/advantages.py", file):
        path = tmp_path / planted
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(line if planted == file else "")
    assert violations(tmp_path) == []
