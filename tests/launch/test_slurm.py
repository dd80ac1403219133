"""A real Slurm on this machine runs `slurm.sbatch`: a training of two tasks is
preempted, put back into the queue and goes on to its end."""

import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vlmrl.run import checkpoint

ROOT = Path(__file__).resolve().parents[2]
STEPS = 80  # long enough to be preempted on the way

# One node that takes two tasks; what runs in `low` makes room for `high`, with time to
# save. No munge: whoever asks is who runs it.
CONF = """
ClusterName=test
SlurmctldHost=localhost
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/none
CredType=cred/none
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={top}/state
SlurmdSpoolDir={top}/spool
SlurmctldPidFile={top}/slurmctld.pid
SlurmdPidFile={top}/slurmd.pid
SlurmctldLogFile={top}/slurmctld.log
SlurmdLogFile={top}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=bf_interval=2
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=localhost CPUs=2 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=300
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF
"""
FIELDS = {
    "steps": STEPS,
    "prompts": 2,
    "sampling.group_size": 2,
    "sampling.max_tokens": 8,
    "learner.unroll": False,
    "loss.entropy_weight": 0.01,
    "data.size": 8,
    "eval.size": 4,
    "eval.every": 0,
    "save_every": 100,
}


def free_ports(count: int) -> list[int]:
    stored = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in stored]
    for s in stored:
        s.close()
    return ports


@pytest.fixture
def slurm(tmp_path):
    """Runs a client of a Slurm of its own; gives its output."""
    top = tmp_path / "slurm"
    for name in ("state", "spool"):
        (top / name).mkdir(parents=True)
    conf = top / "slurm.conf"
    conf.write_text(CONF.format(ports=free_ports(2), user=getpass.getuser(), top=top))
    (top / "cgroup.conf").write_text("CgroupAutomount=no\n")
    cache = os.environ["JAX_COMPILATION_CACHE_DIR"]
    env = os.environ | {
        "SLURM_CONF": str(conf),
        "VLMRL": f"{sys.executable} -m vlmrl.main.cli",
        "JAX_COMPILATION_CACHE_DIR": str(Path(cache).resolve()),
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("count=8", "count=1"),
    }
    daemons = [
        subprocess.Popen(
            [shutil.which(d), "-D", "-f", conf], env=env, stderr=subprocess.DEVNULL
        )
        for d in ("slurmctld", "slurmd")
    ]

    def run(*words) -> str:
        done = subprocess.run(
            [*map(str, words)], cwd=ROOT, env=env, capture_output=True, text=True
        )
        return done.stdout + done.stderr

    until(lambda: "idle" in run("sinfo", "-h", "-p", "low", "-o", "%t"), "a node", run)
    yield run
    run("scancel", "-u", getpass.getuser())
    for daemon in daemons[::-1]:
        daemon.terminate()
        daemon.wait()


def until(what, name: str, run) -> None:
    """Waits for something to be true, ten minutes at most."""
    end = time.monotonic() + 600
    while not what():
        assert time.monotonic() < end, (
            f"waited for {name}; {run('scontrol', 'show', 'jobs')}"
        )
        time.sleep(0.5)


@pytest.mark.slow
@pytest.mark.slurm
def test_preempted_and_requeued_to_its_end(slurm, tmp_path):
    workdir, out = tmp_path / "run", tmp_path / "out"
    metrics = workdir / "seed-0" / "metrics.jsonl"
    job = ["train", "--config", "configs/tiny/accuracy.py:runlocal"]
    job += [f"--config.{name}={value}" for name, value in FIELDS.items()]

    def rows() -> list[dict]:
        text = metrics.read_text() if metrics.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def message(number: str) -> str:
        actual = slurm("scontrol", "show", "job", number)
        return actual.split("JobState=")[1].split()[0] if "JobState=" in actual else ""

    output = slurm(
        "sbatch", "-p", "low", "--ntasks-per-node=2", "--time=60", f"--output={out}",
        "launch/slurm.sbatch", *job, "--workdir", workdir,
    )  # fmt: skip
    first = output.split()[-1]
    assert first.isdigit(), output
    until(lambda: len(rows()) > 1, "two steps", slurm)
    output = slurm("sbatch", "-p", "high", "-n2", "--wrap=true", f"--output={out}.2")
    second = output.split()[-1]
    until(lambda: message(second) == "COMPLETED", "the job that preempts", slurm)
    stopped = checkpoint.latest(workdir / "seed-0" / "checkpoints")
    assert stopped and 1 < stopped < STEPS, "stopped on the way, all saved"

    # Slurm lets a requeued job wait two minutes, of which the node needs two seconds:
    # it launches nothing in the second in which it revoked the job's credential.
    time.sleep(5)

    def done() -> bool:
        slurm("scontrol", "update", f"JobId={first}", "StartTime=now")
        return message(first) in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")

    until(done, "the end of the training", slurm)
    text = out.read_text()
    assert message(first) == "COMPLETED", text
    assert "stopped on request in phase" in text and "2 × cpu on 2 hosts" in text
    assert [row["step"] for row in rows()] == list(range(1, STEPS + 1))
    assert (workdir / "seed-0" / "model" / "model.safetensors").is_file()
    starts = (workdir / "goodput.jsonl").read_text().splitlines()
    assert len(starts) == 2, text
