"""The files of CI and of GitHub parse, and agree with what they start."""

import re
import subprocess
from pathlib import Path

import yaml

from tests.conftest import LONG

ROOT = Path(__file__).resolve().parents[1]


def read(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_the_workflow_runs_ci_on_every_supported_python():
    workflow = read(".github/workflows/tests.yml")
    triggers = workflow[True]  # YAML 1.1 reads `on` as true
    assert {"push", "pull_request", "workflow_dispatch"} <= set(triggers)
    quick, whole = workflow["jobs"]["quick"], workflow["jobs"]["whole"]
    assert quick["steps"][-1]["run"] == ".ci/run --quick"
    assert whole["steps"][-1]["run"].endswith("'.ci/run' }}")
    oldest = re.search(
        r'requires-python = ">=(.*)"', (ROOT / "pyproject.toml").read_text()
    )
    assert quick["strategy"]["matrix"]["python"][0] == oldest[1]


def test_templates_have_what_github_asks_for():
    for name in ("bug", "feature"):
        form = read(f".github/ISSUE_TEMPLATE/{name}.yml")
        assert form["name"] and form["description"]
        for field in form["body"]:
            assert field["type"] == "textarea" and field["attributes"]["label"]


def test_pre_commit_uses_the_pinned_ruff():
    ruff = read(".pre-commit-config.yaml")["repos"][0]
    pins = (ROOT / ".ci" / "constraints.txt").read_text()
    assert f"ruff=={ruff['rev'].removeprefix('v')}\n" in pins


def test_ci_run_is_valid_bash():
    subprocess.run(["bash", "-n", ROOT / ".ci" / "run"], check=True)


def test_files_that_begin_first_exist():
    missing = [name for name in LONG if not (ROOT / "tests" / name).is_file()]
    assert not missing
