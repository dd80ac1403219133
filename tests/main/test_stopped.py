"""A run that is stopped or killed in any phase, and started again, ends as one that
never was: to the bit, no example skipped and none twice.

As a script, `python tests/main/test_stopped.py DIRECTORY`, this file makes the runs:
every start sends itself a signal at its place, and goes on from what the one before it
left. SIGTERM comes as a phase begins and is honoured at the next safe point; SIGKILL
comes as a phase ends, its work done and lost, in `checkpoint` while the step is being
written. Where two processes are one run, the second of them gets the signal.

After SIGKILL the next start is a new process, forked before threads exist. After
SIGTERM, which ends with a status, the same process runs the command again: tracing and
compiling take most of a start, and programs are still in memory.
"""

import contextlib
import functools
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parents[2]
TERM, KILL, STOPPED = int(signal.SIGTERM), int(signal.SIGKILL), 75
STEPS, PROMPTS = 4, 4

# Every phase by each signal: (how, phase, step, the phase it is stopped in). 'compile':
# the first program of a rollout; 'any': so many changes of phase after the start.
FAULTS = (
    ("asked", "compile", 1, "rollout"),
    ("killed", "compile", 1, ""),
    ("asked", "rollout", 2, "rollout"),
    ("killed", "rollout", 2, ""),
    ("asked", "reward", 2, "score"),
    ("killed", "reward", 2, ""),
    ("asked", "score", 2, "update"),
    ("killed", "score", 2, ""),
    ("killed", "update", 2, ""),
    ("asked", "update", 2, "eval"),
    ("killed", "eval", 2, ""),
    ("asked", "eval", 2, "eval"),
    ("killed", "any", int(np.random.default_rng(8).integers(3, 12)), ""),
    ("asked", "checkpoint", 3, "data"),
    ("killed", "checkpoint", 4, ""),
    ("asked", "checkpoint", 4, "checkpoint"),
)
PATIENCE = 15.0  # seconds for a process whose other half was killed

CONFIG = "configs/tiny/both.py:runlocal"
FIELDS = {
    "steps": STEPS,
    "prompts": PROMPTS,
    "sampling.group_size": 4,
    "sampling.max_tokens": 16,
    "learner.unroll": False,
    "save_rollouts": 1,
    "save_every": 2,
    "loss.kl_weight": 0.01,
    "loss.entropy_weight": 0.01,
    "data.size": STEPS * PROMPTS,
    "eval.size": 4,
    "eval.every": 2,
    "eval.conditions": ("base", "wrong_think"),
    "eval.max_tokens": 16,
}


# -- one start -------------------------------------------------------------------------


class Start(NamedTuple):
    """One start of the command."""

    run: str  # name of the run directory
    index: int  # of the starts of this run
    fault: tuple[str, str, int] | None  # (how, phase, step)


PLAN = (
    Start("straight", 0, None),
    *(Start("stopped", i, fault[:3]) for i, fault in enumerate(FAULTS)),
    Start("stopped", len(FAULTS), None),
)


def by_process(plan) -> list[list[Start]]:
    """Divide starts among processes: a process ends with its first SIGKILL."""
    parts = [[]]
    for start in plan:
        parts[-1].append(start)
        if start.fault and start.fault[0] == "killed":
            parts.append([])
    return parts


def watch() -> Callable[[tuple | None], None]:
    """Patch the phases of this process; return a function that sets the next fault."""
    import jax

    from vlmrl.run import checkpoint
    from vlmrl.run.phases import Phases

    armed: list[tuple] = []
    at: list[Phases] = []
    begin, switch, save = Phases.__call__, Phases.switch, checkpoint.save

    def arm(fault):
        armed[:], at[:] = [fault] if fault else [], []
        if fault and fault[1] == "compile":
            jax.clear_caches()

    def fire(mode, *places):
        """Send the signal if the fault is one of these (phase, step)."""
        if armed and armed[0][0] == mode and armed[0][1:] in places:
            armed.clear()
            os.kill(os.getpid(), TERM if mode == "asked" else KILL)

    def begins(self, name, now=None):
        begin(self, name, now)
        fire("asked", (name, self.step))

    def switches(self, name, now=None):
        at[:] = [self]
        if armed and armed[0][1] != "checkpoint":  # killed in `saves`
            fire("killed", (self.name, self.step), ("any", self.calls))
        switch(self, name, now)

    def saves(directory, now, *state, **options):
        wait = save(directory, now, *state, **options)
        fire("killed", ("checkpoint", now))
        return wait

    def heard(event, seconds, **_):
        compiled = event.endswith("backend_compile_duration")
        if compiled and at and at[0].name == "rollout":
            fire("asked", ("compile", 1))
            fire("killed", ("compile", 1))

    Phases.__call__, Phases.switch, checkpoint.save = begins, switches, saves
    jax.monitoring.register_event_duration_secs_listener(heard)
    return arm


def begin(top: Path, starts: list[Start], faulty: bool, number: int, words=()) -> int:
    """Fork a process that makes starts, until one is not stopped on request; return its
    id. Only the faulty process sends itself signals.
    """
    if child := os.fork():
        return child
    before = set(sys.modules)
    from vlmrl.main import cli
    from vlmrl.run import hosts

    hosts.start = functools.cache(hosts.start)  # a process joins the others once
    arm = watch() if faulty else lambda _: None
    fields = [f"--config.{name}={value}" for name, value in FIELDS.items()]
    for run, i, fault in starts:
        with open(top / f"{run}-{i}-{number}.log", "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        arm(fault)
        train = ["train", "--config", CONFIG, "--workdir", str(top / run)]
        status = cli.main([*train, *fields, *words])
        sys.stdout.flush()
        sys.stderr.flush()
        (top / f"{run}-{i}-{number}.status").write_text(str(status))
        if number == 0:
            imported = sorted(set(sys.modules) - before)
            (top / "modules.json").write_text(json.dumps(imported))
        if status != (STOPPED if fault else 0):
            break
    sys.exit(status)  # past all callers, so that it ends as a process does


def end(process: int, patience: float = 0.0) -> int:
    """Exit status, or minus the signal; with patience it is killed after so long, as a
    launcher does with what a dead process left."""
    until = time.monotonic() + patience
    while patience and time.monotonic() < until:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.1)
    if patience:
        os.kill(process, KILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def together(top: Path, starts: list[Start], processes: int) -> dict:
    """{run-start: exit status of each process}, the last process having the faults."""
    joined = []
    if processes > 1:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{s.getsockname()[1]}"
        joined = ["--coordinator", address, "--processes", str(processes)]
    running = []
    for p in range(processes):
        words = [*joined, "--process", str(p)] if joined else []
        running.append(begin(top, starts, p == processes - 1, p, words))
    last = end(running.pop())
    ended = [end(r, PATIENCE if last == -KILL else 0.0) for r in running] + [last]

    def status(start, p):
        path = top / f"{start.run}-{start.index}-{p}.status"
        return int(path.read_text()) if path.exists() else ended[p]

    return {
        f"{s.run}-{s.index}": [status(s, p) for p in range(processes)] for s in starts
    }


def main(directory: str, processes: int) -> None:
    """Make all starts, and write their statuses."""
    import vlmrl.main.cli
    import vlmrl.main.train  # noqa: F401

    top = Path(directory)
    statuses = {}
    for starts in by_process(PLAN):
        statuses |= together(top, starts, processes)
        for module in json.loads((top / "modules.json").read_text()):
            with contextlib.suppress(ImportError):  # once for all that follow
                importlib.import_module(module)
    (top / "statuses.json").write_text(json.dumps(statuses))


# -- what is left ----------------------------------------------------------------------


def run(top: Path, processes: int):
    """(directory of all run directories, exit statuses of their starts)."""
    env = os.environ | {
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("count=8", "count=1"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",  # one program, often
    }
    words = [sys.executable, __file__, str(top), str(processes)]
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return top, json.loads((top / "statuses.json").read_text())


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two processes"])
def runs(request, tmp_path_factory):
    return run(tmp_path_factory.mktemp("runs"), request.param)


def logs(top: Path, name: str) -> str:
    return "\n".join(
        f"{p.name}: {p.read_text()[-1500:]}" for p in sorted(top.glob(f"{name}*.log"))
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "i, fault",
    list(enumerate(FAULTS)),
    ids=[f"{h}-{p}-{n}" for h, p, n, _ in FAULTS],
)
def test_sigterm_saves_and_sigkill_does_not(runs, i, fault):
    top, statuses = runs
    mode, _, step, safe = fault
    *others, last = statuses[f"stopped-{i}"]
    assert last == (STOPPED if mode == "asked" else -KILL), logs(top, f"stopped-{i}-")
    if mode == "killed":  # the other half may have had to be killed too
        assert not {0, STOPPED} & set(others), logs(top, f"stopped-{i}-")
    else:
        assert set(others) <= {STOPPED}, logs(top, f"stopped-{i}-")
        log = (top / f"stopped-{i}-0.log").read_text()
        step += safe == "data"  # which is the next step's
        assert f"stopped on request in phase {safe} of step {step}; the same" in log
        assert "longest section that a stop must wait for: " in log


@pytest.mark.slow
def test_every_other_start_ends_well(runs):
    top, statuses = runs
    assert set(statuses["straight-0"]) == {0}, logs(top, "straight")
    last = f"stopped-{len(FAULTS)}"
    assert set(statuses[last]) == {0}, logs(top, f"{last}-")


def files(seed: Path) -> dict[str, bytes]:
    """What is compared byte by byte."""
    names = ("model/*", "rollouts/*", "learning_curve.jsonl")
    return {
        str(p.relative_to(seed)): p.read_bytes()
        for name in names
        for p in seed.glob(name)
    }


def metrics_of(seed: Path) -> list[dict]:
    rows = map(json.loads, (seed / "metrics.jsonl").read_text().splitlines())
    times = ("seconds", "input_wait")
    return [{k: v for k, v in row.items() if k not in times} for row in rows]


@pytest.mark.slow
def test_it_ends_as_a_run_that_was_never_stopped(runs):
    from vlmrl.eval import records
    from vlmrl.run import checkpoint

    top, _ = runs
    actual, expected = (top / n / "seed-0" for n in ("stopped", "straight"))
    states = [
        checkpoint.restore(p / "checkpoints", STEPS)[0] for p in (actual, expected)
    ]
    assert states[0].keys() == states[1].keys()
    for leaf in ("state/params/text.embed", "state/step", "position"):
        assert leaf in states[0]
    assert any("opt_state" in leaf for leaf in states[0])
    for leaf, value in states[1].items():
        np.testing.assert_array_equal(states[0][leaf], value, err_msg=leaf)
    assert metrics_of(actual) == metrics_of(expected)
    assert [row["step"] for row in metrics_of(actual)] == list(range(1, STEPS + 1))
    assert files(actual) == files(expected)
    assert len(files(actual)) > STEPS + 2
    for step in (2, 4):
        tables = [
            records.read(p / "records" / f"step-{step:06d}.parquet")
            for p in (actual, expected)
        ]
        assert tables[0].equals(tables[1]) and tables[0].num_rows == 8


@pytest.mark.slow
def test_no_example_is_skipped_or_repeated(runs):
    """One epoch of data, in steps that were done over and over: each example once."""
    top, _ = runs
    paths = sorted((top / "stopped" / "seed-0" / "rollouts").glob("*.parquet"))
    ids = [i for p in paths for i in pq.read_table(p)["example"].to_pylist()]
    assert len(ids) == STEPS * PROMPTS * FIELDS["sampling.group_size"]
    assert Counter(Counter(ids).values()) == {
        FIELDS["sampling.group_size"]: STEPS * PROMPTS
    }


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main(sys.argv[1], int(sys.argv[2]))
