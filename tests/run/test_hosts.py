"""Several processes as one run."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from vlmrl.run import hosts
from vlmrl.types import UserError

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "2",
    "SLURM_STEP_NUM_NODES": "2",
}


@pytest.mark.parametrize(
    "environ, cluster",
    [
        ({}, ""),
        (SLURM, "Slurm"),
        ({"SLURM_JOB_ID": "7"}, ""),  # in an allocation, but not in a step
        ({"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "a,b"}, "TPU pod"),
        ({"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"}, ""),
        ({"OMPI_MCA_orte_hnp_uri": "x"}, "Open MPI"),
    ],
)
def test_clusters_are_told_by_their_environment(environ, cluster):
    assert hosts.detect(environ) == cluster


@pytest.mark.parametrize(
    "more, devices",
    [
        ({}, None),  # a task per node: all of the node's
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}, None),
        # eight tasks on each of two nodes
        ({"SLURM_NTASKS": "16", "SLURM_LOCALID": "3"}, None),  # CPUs: nothing to share
        (
            {
                "SLURM_NTASKS": "16",
                "SLURM_LOCALID": "3",
                "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7",
            },
            [3],
        ),
        # --gpus-per-task=1: a task sees one GPU, and it is number 0 there
        (
            {"SLURM_NTASKS": "16", "SLURM_LOCALID": "3", "CUDA_VISIBLE_DEVICES": "3"},
            None,
        ),
        ({"JAX_LOCAL_DEVICE_IDS": "0,2"}, [0, 2]),
    ],
)
def test_a_slurm_task_gets_its_own_devices_and_all_of_them(more, devices):
    assert hosts.slurm_devices(SLURM | more) == devices


@pytest.mark.parametrize(
    "words", [("", 2, 0), ("h:1", 0, 0), ("h:1", 2, 2), ("h:1", 2, -1)]
)
def test_arguments_that_contradict_each_other(words):
    with pytest.raises(UserError, match="--coordinator .* expected host:port"):
        hosts.start(*words)


def test_a_process_of_its_own():
    assert hosts.start("127.0.0.1:1", 1, 0) == ""
    assert hosts.first() and hosts.agree(True) and not hosts.agree(False)
    assert hosts.gather({"a": 1}) == [{"a": 1}] == hosts.whole(0, {"a": 1})
    line = hosts.check({"steps": 3})
    assert line.startswith("8 × cpu on 1 host, jax ") and "config " in line
    with pytest.raises(UserError, match=r"--devices is 16, but there are 8 \(1 hosts"):
        hosts.check({"steps": 3}, 16)


def test_hosts_that_differ_are_named():
    mine = hosts.describe({"steps": 3})
    other = hosts.describe({"steps": 4})
    assert hosts.differences([mine, mine]) == ""
    output = hosts.differences([mine, mine, other | {"jax": "0.9"}, other])
    assert (
        f"config is {mine['config']} on host 0, {other['config']} on host 2" in output
    )
    assert (
        "and 1 more" in output and f"jax is {mine['jax']} on host 0, 0.9 on" in output
    )


# -- two of them -----------------------------------------------------------------------

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def both(program, words, last, devices=2):
    """[(status, output)] of two processes that run the same program."""
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("count=8", f"count={devices}"),
    }
    running = [
        subprocess.Popen(
            [sys.executable, program, *map(str, words), str(i), last[i]],
            cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for i in range(2)
    ]  # fmt: skip
    output = [p.communicate()[0].decode() for p in running]
    return [(p.returncode, text) for p, text in zip(running, output, strict=True)]


@pytest.mark.slow
def test_what_two_processes_tell_each_other(tmp_path):
    words = [tmp_path / "points", free_port()]
    for status, output in both("tests/plumbing.py", words, ["same", "same"]):
        assert status == 0, output
        first, *_, last = output.splitlines()
        assert "4 × cpu on 2 hosts" in output and last == "done", first
