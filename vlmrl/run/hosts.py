"""Several processes as one run: start them, check that they are alike, and exchange
the few numbers that they need of each other.

The runtime is JAX's own (https://docs.jax.dev/en/latest/multi_process.html): every host
runs the same program, `jax.distributed` connects them, and arrays span all devices. A
host here is a process. Every exchange is a collective, so all hosts must make the same
calls in the same order.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

import vlmrl
from vlmrl.types import UserError

# An environment that JAX finds its way in: variables that must be set, by cluster.
CLUSTERS = {
    "Slurm": ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID"),
    "TPU pod": ("TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES"),
    "Open MPI": ("OMPI_MCA_orte_hnp_uri",),
}


def start(coordinator: str = "", processes: int = 0, process: int = -1) -> str:
    """Join the run that this process belongs to, before anything touches a device.
    Return what connected the hosts, '' for a single process.

    Args:
      coordinator: host:port of process 0, where the launcher knows it. With '' the
        cluster's environment decides: Slurm, a TPU pod (GKE or Cloud TPU VM), Open MPI.
      processes, process: how many there are and which this one is.

    Raises:
      UserError: arguments that contradict each other, or no answer from the others.
    """
    if coordinator or processes or process >= 0:
        if not coordinator or processes < 1 or not 0 <= process < processes:
            raise UserError(
                f"--coordinator '{coordinator}', --processes {processes}, --process "
                f"{process}: expected host:port, a number n, and 0 to n - 1"
            )
        cluster = "arguments"
        known = dict(
            coordinator_address=coordinator,
            num_processes=processes,
            process_id=process,
            cluster_detection_method="deactivate",
        )
    else:
        cluster, known = detect(os.environ), {}
        if not cluster or (cluster == "Slurm" and int(os.environ["SLURM_NTASKS"]) == 1):
            return ""
        if cluster == "Slurm":
            known["local_device_ids"] = slurm_devices(os.environ)
    if cluster == "arguments" and processes == 1:
        return ""
    # SIGTERM is ours (`run/phases.py`): every host asks the others at each safe point.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(**known)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(
            f"could not join the other hosts ({cluster}): {reason}"
        ) from None
    sys.excepthook = _fail
    return cluster


def _fail(kind, error, trace):
    """End this host at once after an unexpected error: another host may have died, and
    JAX's own shutdown waits minutes for hosts that are gone."""
    sys.__excepthook__(kind, error, trace)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def detect(environ) -> str:
    """Return the cluster an environment belongs to, '' for none."""
    for name, variables in CLUSTERS.items():
        if all(v in environ for v in variables):
            alone = name == "TPU pod" and "," not in environ["TPU_WORKER_HOSTNAMES"]
            return "" if alone else name
    chips = Path("/dev/accel0").exists() or Path("/dev/vfio/0").exists()
    return "Cloud TPU VM" if chips and _has_libtpu() else ""


def slurm_devices(environ) -> list[int] | None:
    """Return the devices of this task among those it sees, None for all of them.

    JAX takes the task's number on its node, one device for each task: with one task per
    node seven GPUs of eight would lie idle. With several tasks per node a task sees
    either all GPUs of the node or, with --gpus-per-task, only its own.
    """
    if environ.get("JAX_LOCAL_DEVICE_IDS"):
        return [int(i) for i in environ["JAX_LOCAL_DEVICE_IDS"].split(",")]
    nodes = int(environ.get("SLURM_STEP_NUM_NODES", environ.get("SLURM_NNODES", 1)))
    if int(environ["SLURM_NTASKS"]) <= nodes:
        return None
    seen = environ.get("CUDA_VISIBLE_DEVICES", "")
    if not seen or "," not in seen:  # its own, or no GPU that could be shared
        return None
    return [int(environ["SLURM_LOCALID"])]


def first() -> bool:
    """Return whether this is the host that writes."""
    return jax.process_index() == 0


def name() -> str:
    """Return this host's name for messages."""
    here = platform.node()
    count = jax.process_count()
    return f"host {jax.process_index()} of {count} ({here})" if count > 1 else here


# -- exchange --------------------------------------------------------------------------


def agree(flag: bool) -> bool:
    """Return whether the flag is set on any host."""
    if jax.process_count() == 1:
        return bool(flag)
    return bool(multihost_utils.process_allgather(np.int32(flag)).max())


def most(values) -> np.ndarray:
    """Return the maximum of every number over all hosts, int[...]."""
    if jax.process_count() == 1:
        return np.asarray(values)
    return multihost_utils.process_allgather(np.asarray(values, np.int32)).max(0)


def wait(what: str) -> None:
    """Wait until all hosts have reached this call."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def gather(value) -> list[Any]:
    """Return every host's value, in their order; any value that pickles."""
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(data)))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(data)] = data
    rows = multihost_utils.process_allgather(padded)
    return [
        pickle.loads(row[:n].tobytes())
        for row, n in zip(rows, sizes.ravel(), strict=True)
    ]


def whole(part: int, value) -> list[Any]:
    """Return the value of every part of a batch, once each and in their order; `part`
    is this host's (`sharding.part`), several hosts may hold the same."""
    values = dict(gather((part, value)))
    return [values[i] for i in sorted(values)]


# -- start-up check --------------------------------------------------------------------


def describe(config: Any) -> dict[str, str]:
    """Return what must be equal on all hosts, as text."""
    return {
        "python": platform.python_version(),
        "jax": version("jax"),
        "jaxlib": version("jaxlib"),
        "vlmrl": vlmrl.__version__,
        "code": code_hash(),
        "config": _digest(repr(config)),
        "kind of device": jax.local_devices()[0].device_kind,
        "devices per host": str(jax.local_device_count()),
    }


def check(config: Any, devices: int = 0) -> str:
    """Check that all hosts are alike; return a line that describes them.

    Args:
      config: anything with a stable `repr`; must be equal on all hosts.
      devices: that the run was planned for; 0 for whatever there is.
    Raises:
      UserError, on every host: hosts that differ, with what in, or another number of
      devices than wanted.
    """
    mine = describe(config)
    try:
        descriptions = gather(mine)
    except ValueError as error:  # unequal numbers of devices do not make one array
        raise UserError(
            f"{jax.device_count()} devices on {jax.process_count()} hosts, of which "
            f"this one has {jax.local_device_count()}: every host needs as many"
        ) from error
    faults = differences(descriptions)
    if faults:
        raise UserError(f"hosts are not alike: {faults}; start all of them alike")
    if devices and devices != jax.device_count():
        raise UserError(
            f"--devices is {devices}, but there are {jax.device_count()} "
            f"({jax.process_count()} hosts with {jax.local_device_count()} each)"
        )
    return (
        f"{jax.device_count()} × {mine['kind of device']} on {jax.process_count()} "
        f"{'hosts' if jax.process_count() > 1 else 'host'}, jax {mine['jax']}, code "
        f"{mine['code']}, config {mine['config']}"
    )


def differences(descriptions: list[dict[str, str]]) -> str:
    """Return in what the hosts differ from host 0, '' for nothing."""
    faults = []
    for key, value in descriptions[0].items():
        others = [(i, f[key]) for i, f in enumerate(descriptions) if f[key] != value]
        if others:
            i, other = others[0]
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            faults.append(f"{key} is {value} on host 0, {other} on host {i}{more}")
    return "; ".join(faults)


def code_hash() -> str:
    """Return a hash of the package's Python files on this host."""
    top = Path(vlmrl.__file__).parent
    files = sorted(top.rglob("*.py"))
    text = "".join(f"{p.relative_to(top)}\0{_digest(p.read_bytes())}" for p in files)
    return _digest(text)


def _digest(data: str | bytes) -> str:
    data = data.encode() if isinstance(data, str) else data
    return hashlib.sha256(data).hexdigest()[:12]


def _has_libtpu() -> bool:
    from importlib.util import find_spec

    return find_spec("libtpu") is not None
