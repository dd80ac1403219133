"""What the launchers would run, to the letter (`VLMRL_WRITE_GOLDEN=1` renews it)."""

import copy
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).with_name("golden")
JOB = ["train", "--config", "configs/tiny/grpo.py", "--workdir", "/mnt/my runs"]
CLOUD = {"PROJECT": "my-project", "ZONE": "us-west4-a"}
SPOT = {"ACCELERATOR": "v6e-256", "RUNTIME": "v2-alpha-tpuv6e", "SPOT": "1"}

DRY = {
    "tpu_vm": (["tpu_vm.sh", "--dry-run", "first", *JOB], CLOUD),
    "tpu_vm_spot_kept": (
        ["tpu_vm.sh", "--dry-run", "first", *JOB],
        {**CLOUD, **SPOT, "KEEP": "1", "MOUNT": "sudo mount 10.0.0.2:/runs /mnt"},
    ),
    "tpu_vm_delete": (["tpu_vm.sh", "--dry-run", "--delete", "first"], CLOUD),
    "xpk": (
        ["xpk.sh", "--dry-run", "first", *JOB],
        {**CLOUD, "CLUSTER": "mine", "IMAGE": "vlmrl:1", "TPU_TYPE": "v5p-128"},
    ),
    "slurm": (["slurm.sbatch", "--dry-run", *JOB], {}),
    "local": (["local.sh", "--processes", "2", "--dry-run", *JOB], {"PORT": "9999"}),
}


def launched(words, env):
    return subprocess.run(
        ["bash", ROOT / "launch" / words[0], *words[1:]],
        env={"PATH": os.environ["PATH"], **env},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("name", DRY)
def test_dry_runs_print_the_commands(name):
    done = launched(*DRY[name])
    assert done.returncode == 0, done.stderr
    output, path = done.stdout.replace(str(ROOT), "ROOT"), GOLDEN / f"{name}.txt"
    if os.environ.get("VLMRL_WRITE_GOLDEN"):
        path.write_text(output)
    assert output == path.read_text()


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["tpu_vm.sh"], "want a NAME"),
        (["tpu_vm.sh", "first"], "want a COMMAND"),
        (["tpu_vm.sh", "--dry", "first", "train"], "unknown option --dry"),
        (["tpu_vm.sh", "first", "train"], "PROJECT: the Google Cloud project"),
        (["xpk.sh", "first"], "want a NAME and a COMMAND"),
        (["slurm.sbatch"], "want a COMMAND"),
        (["local.sh", "--processes", "two", "train"], "want a number, not 'two'"),
        (["local.sh", "--processes", "2"], "want a COMMAND after the number"),
    ],
)
def test_bad_words_get_one_line(words, complaint):
    done = launched(words, {})
    assert done.returncode != 0 and done.stdout == ""
    assert complaint in done.stderr and done.stderr.count("\n") == 1


LAUNCHERS = [
    p.name
    for p in sorted((ROOT / "launch").iterdir())
    if p.is_file() and p.name != "README.md"
]


@pytest.mark.parametrize("name", LAUNCHERS)
def test_every_launcher_says_what_it_needs_and_costs(name):
    text = (ROOT / "launch" / name).read_text()
    if name == "local.sh":
        assert "Needs Python" in text  # and costs nothing
        return
    header = "".join(re.findall(r"^#(?!!).*\n", text, re.M))
    assert "# Needs " in header and "# Costs " in header and "dry" in header


@pytest.mark.skipif(
    shutil.which("shellcheck") is None,
    reason="needs Debian's shellcheck: launch/local.sh test --all",
)
def test_shellcheck():
    files = [p for p in (ROOT / "launch").iterdir() if p.suffix in (".sh", ".sbatch")]
    done = subprocess.run(["shellcheck", *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# -- the loop of tpu_vm.sh -------------------------------------------------------------

GCLOUD = """#!/bin/bash
echo "gcloud ${*:3}" >>"$LOG"
case "$*" in
  *"describe first"*) cat "$LOG.state" 2>/dev/null ;;
  *"queued-resources create"*) echo ACTIVE >"$LOG.state" ;;
  *"queued-resources delete"*) rm -f "$LOG.state" ;;
  *"exec .venv/bin/vlmrl"*)
    status=$(head -n 1 "$LOG.ends") && sed -i 1d "$LOG.ends"
    [[ $status == 255 ]] && echo SUSPENDED >"$LOG.state"
    exit "$status" ;;
esac
"""


@pytest.mark.parametrize(
    "ends, built, status",
    [
        ("0", 1, 0),
        ("2", 1, 2),  # bad input is not tried again
        ("75 0", 1, 0),  # preempted with the slice left: goes on where it is
        ("255 0", 2, 0),  # the slice is gone: a new one
        ("1 70 1", 1, 1),  # RETRIES=2 ends it
        ("1 70 75 1 0", 1, 0),  # a preemption starts the count anew
    ],
)
def test_tpu_vm_goes_on_as_the_exit_status_says(tmp_path, ends, built, status):
    gcloud, log = tmp_path / "gcloud", tmp_path / "log"
    gcloud.write_text(GCLOUD)
    gcloud.chmod(0o755)
    (tmp_path / "tar").write_text("#!/bin/bash\n")
    (tmp_path / "tar").chmod(0o755)
    Path(f"{log}.ends").write_text("\n".join(ends.split()) + "\n")
    path = f"{tmp_path}:{os.environ['PATH']}"
    env = {**CLOUD, "PATH": path, "LOG": str(log), "WAIT": "0", "RETRIES": "2"}
    done = launched(["tpu_vm.sh", "first", *JOB], env)
    calls = log.read_text().splitlines()
    assert done.returncode == status, done.stderr
    assert sum("queued-resources create" in c for c in calls) == built
    assert sum("exec .venv/bin/vlmrl" in c for c in calls) == len(ends.split())
    assert "queued-resources delete first" in calls[-1], "nothing is left to pay for"


# -- manifests -------------------------------------------------------------------------


def jobset():
    return yaml.safe_load((ROOT / "launch" / "gke_jobset.yaml").read_text())


def test_the_jobset_keeps_to_its_schema():
    schema = json.loads(Path(__file__).with_name("jobset.json").read_text())
    checker = jsonschema.Draft202012Validator(schema)
    checker.check_schema(schema)
    checker.validate(jobset())
    wrong = copy.deepcopy(jobset())
    wrong["spec"]["failurePolicy"]["maxRestart"] = 3
    assert not checker.is_valid(wrong)


def test_the_jobset_honours_signals_and_exit_codes():
    spec = jobset()["spec"]
    (job,) = spec["replicatedJobs"]
    job = job["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"][0] == "vlmrl", "a shell as process 1 keeps SIGTERM"
    assert pod["terminationGracePeriodSeconds"] >= 300
    assert job["backoffLimit"] == 0 and job["completionMode"] == "Indexed"
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [2] and rule["action"] == "FailJob"
    assert rule["onExitCodes"]["containerName"] == container["name"]
    (policy,) = spec["failurePolicy"]["rules"]
    assert policy["action"] == "FailJobSet"
    assert policy["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert spec["failurePolicy"]["maxRestarts"] > 0


def test_skypilot_hands_over_rank_and_address():
    task = yaml.safe_load((ROOT / "launch" / "skypilot.yaml").read_text())
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [70, 75]
    script = 'vlmrl() { printf "[%s]" "$@"; }\n' + task["run"].replace(
        "exec .venv/bin/vlmrl", "vlmrl"
    )
    env = {
        "ARGS": "train --workdir w",
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": "1",
    }
    done = subprocess.run(
        ["bash", "-c", script], env=env, capture_output=True, text=True
    )
    assert done.stdout == (
        "[train][--workdir][w][--coordinator][10.0.0.1:8476][--processes][2]"
        "[--process][1]"
    )


def test_the_readme_names_every_launcher():
    text = (ROOT / "launch" / "README.md").read_text()
    assert [name for name in LAUNCHERS if f"| `{name}` |" not in text] == []
