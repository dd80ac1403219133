"""The sizes and names that keep the code readable: bounds on functions and on their
parameters, one class per name, no everyday verbs as identifiers."""

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINES, PARAMETERS = 80, 8  # of a function at most
FORMULAS = "vlmrl/rl/losses/"  # keyword-only hyper-parameters of published formulas
VERBS = {"found", "said", "held", "made", "kept", "told", "how", "want"}


def nodes():
    """Yield (file, node) of every file of the package."""
    for path in sorted((ROOT / "vlmrl").rglob("*.py")):
        if "shipped" not in path.parts:
            name = str(path.relative_to(ROOT))
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                yield name, node


def test_functions_fit_on_a_screen():
    assert [
        f"{file}:{n.lineno} {n.name}: {n.end_lineno - n.lineno + 1} lines"
        for file, n in nodes()
        if isinstance(n, ast.FunctionDef) and n.end_lineno - n.lineno >= LINES
    ] == []


def test_functions_take_few_parameters():
    long = []
    for file, n in nodes():
        if isinstance(n, ast.FunctionDef):
            count = len(n.args.posonlyargs) + len(n.args.args)
            count += 0 if file.startswith(FORMULAS) else len(n.args.kwonlyargs)
            if count > PARAMETERS:
                long.append(f"{file}:{n.lineno} {n.name}: {count} parameters")
    assert long == []


def test_a_class_name_stands_for_one_thing():
    files = defaultdict(list)
    for file, n in nodes():
        if isinstance(n, ast.ClassDef) and n.name != "Config":  # of each family
            files[n.name].append(file)
    assert {name: where for name, where in files.items() if len(where) > 1} == {}


def test_identifiers_are_no_everyday_verbs():
    wrong = []
    for file, n in nodes():
        if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store):
            name = n.id
        elif isinstance(n, ast.arg | ast.keyword):
            name = n.arg or ""
        elif isinstance(n, ast.FunctionDef | ast.ClassDef):
            name = n.name
        else:
            continue
        if name.strip("_") in VERBS:
            wrong.append(f"{file}:{n.lineno} {name}")
    assert wrong == []
